"""Rows and images that do not know of each other may be computed some at a time."""

from collections.abc import Callable

import pytest
import torch
from backbones.forms import FORMS, build
from torch import Tensor, nn

from fourstage.backbones.layers import Mlp
from fourstage.ops import chunks


def assert_same(ours: Tensor, plain: Tensor) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * float(plain.detach().abs().max() + 1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_rows(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def run(x_NC: Tensor) -> Tensor:
        sizes.append(len(x_NC))
        return x_NC * 2

    x_BHWC = torch.randn(3, 8, 16, 9).movedim(1, -1) if channels_last else torch.randn(3, 16, 9, 8)
    monkeypatch.setattr(chunks, "FRESH", 0)
    monkeypatch.setattr(chunks, "ROWS", chunks.FEW * 32 * 4)
    assert_same(chunks.by_rows(run, x_BHWC, 32), 2 * x_BHWC)
    assert sizes == [128, 128, 128, 48]
    mlp = Mlp(8, 32)
    expected = mlp.reduce(mlp.act(mlp.expand(x_BHWC)))
    assert_same(mlp(x_BHWC), expected)


@pytest.mark.parametrize("form", FORMS)
def test_images_go_through_a_stage_some_at_a_time(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, image_BCHW = build(form), torch.randn(5, 3, 64, 71)
    with torch.inference_mode():
        expected = model.forward_maps(image_BCHW)
        monkeypatch.setattr(chunks, "WIDEST", 2 * widest(model.stem) * (64 * 71 // 4) * 4)
        sizes = sizes_given_to(model.stem, monkeypatch)
        for ours, plain in zip(model.forward_maps(image_BCHW), expected, strict=True):
            assert_same(ours, plain)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(("batch", "expected"), [(4, [4]), (5, [3, 2]), (8, [4, 4]), (9, [3, 3, 3]), (1, [1])])
def test_chunks_are_of_equal_size(batch: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    mlp, x_BHWC = Mlp(3, 12).eval(), torch.randn(batch, 10, 10, 3)
    monkeypatch.setattr(chunks, "WIDEST", 4 * 12 * 100 * 4)
    with torch.inference_mode():
        whole = mlp(x_BHWC)
        sizes = sizes_given_to(mlp, monkeypatch)
        assert_same(chunks.by_images(mlp, x_BHWC, 100), whole)
    assert sizes == expected


def widest(stem: nn.Module) -> int:
    return max(conv.out_channels for conv in stem.modules() if isinstance(conv, nn.Conv2d))


def sizes_given_to(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Watch the class, since what is done to the module itself turns chunks off."""
    sizes: list[int] = []
    forward = type(module).forward

    def spy(self: nn.Module, x_BCHW: Tensor) -> Tensor:
        sizes.extend([len(x_BCHW)] if self is module else [])
        return forward(self, x_BCHW)

    monkeypatch.setattr(type(module), "forward", spy)
    return sizes


class Own(nn.Identity):
    """Of a module that is not ours: it may look at the whole batch."""


def watched(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model.get_submodule("stem.0").register_forward_hook(lambda *_: None)


def replaced(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model.get_submodule("stem").append(Own())  # type: ignore[operator]


def trained(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    model.get_submodule("stem").train()


def patched(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a tool may do that scales each convolution's input by the largest number of a batch."""
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda conv, x_BCHW: 2 * forward(conv, x_BCHW))


@pytest.mark.parametrize("touch", [watched, replaced, trained, patched])
def test_a_touched_stage_sees_whole_batches(
    touch: Callable[[nn.Module, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image_BCHW = build("smt-classifier"), torch.randn(5, 3, 64, 64)
    monkeypatch.setattr(chunks, "WIDEST", 2 * widest(model.stem) * (64 * 64 // 4) * 4)
    sizes = sizes_given_to(model.stem, monkeypatch)
    touch(model, monkeypatch)
    with torch.inference_mode():
        model(image_BCHW)
    assert sizes == [5]
