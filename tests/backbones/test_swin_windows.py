"""Windows: what shifts, what is masked, what shrinks. The originals' numbers are in test_golden_backbones.py."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import SWIN, tiny
from torch import Tensor

import fourstage
from fourstage.backbones import swin
from fourstage.backbones.mixers import window
from fourstage.backbones.mixers.window import WindowAttention
from fourstage.ops.window_masks import Visibility

side = st.integers(1, 13)


@given(height=side, width=side, w=st.integers(1, 5), shift=st.booleans(), see_padding=st.booleans())
@settings(max_examples=25, deadline=None)
def test_cells_see_each_other_if_they_share_a_window_that_the_roll_did_not_wrap(
    height: int, width: int, w: int, shift: bool, see_padding: bool
) -> None:
    by = w // 2 if shift else 0
    visible = Visibility(height, width, w, by, see_padding).pairs(torch.device("cpu"))
    padded = [s + -s % w for s in (height, width)]
    for n, corner in enumerate(product(range(0, padded[0], w), range(0, padded[1], w))):
        rolled = [(corner[0] + dy, corner[1] + dx) for dy, dx in product(range(w), range(w))]
        for (i, query), (j, key) in product(enumerate(rolled), enumerate(rolled)):
            was_query, was_key = ([(at + by) % p for at, p in zip(c, padded, strict=True)] for c in (query, key))
            together = all(
                a - b == was_a - was_b for a, b, was_a, was_b in zip(query, key, was_query, was_key, strict=True)
            )
            real = was_key[0] < height and was_key[1] < width
            assert bool(visible[n, i, j]) == (together and (real or see_padding))


@given(height=st.integers(32, 100), width=st.integers(32, 100))
@settings(max_examples=15, deadline=None)
def test_what_fills_up_the_last_windows_changes_nothing(height: int, width: int) -> None:
    torch.manual_seed(0)
    model = tiny("swin").eval()
    image_BCHW = torch.randn(1, 3, height, width)

    def noise(x_BHWC: Tensor, height: int, width: int) -> Tensor:
        extra_BHWC = 1e3 * torch.randn(x_BHWC.shape[0], height, width, x_BHWC.shape[-1])
        extra_BHWC[:, : x_BHWC.shape[1], : x_BHWC.shape[2]] = x_BHWC
        return extra_BHWC

    with torch.inference_mode():
        expected = model.forward_maps(image_BCHW)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(window, "pad_to", noise)
            noisy = model.forward_maps(image_BCHW)
    for a, b in zip(noisy, expected, strict=True):
        assert float((a - b).abs().max()) < 1e-6


def test_native_sizes_neither_pad_nor_resize() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an operation that native sizes do not need")

    for model in (tiny("swin", img_size=128), tiny("swin", img_size=96)):
        size = model.default_cfg["input_size"][1:]
        with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "pad", refuse)
            if size == (128, 128):
                model.eval()(torch.randn(1, 3, *size))
            else:  # 96 / 4 = 24, 12, 6: the last two are no multiple of 4, so this one must be caught
                with pytest.raises(AssertionError, match="native sizes"):
                    model.eval()(torch.randn(1, 3, *size))


@pytest.mark.parametrize("size", [128, 160, 256])
def test_a_network_gives_the_numbers_of_one_that_was_built_for_the_image(size: int) -> None:
    torch.manual_seed(0)
    here, there = tiny("swin", img_size=128).eval(), tiny("swin", img_size=size).eval()
    there.load_state_dict(here.state_dict())
    image_BCHW = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(here(image_BCHW), there(image_BCHW))


def test_the_window_shrinks_with_img_size_and_with_the_image() -> None:
    small = tiny("swin", img_size=64)
    tables = [p for name, p in small.named_parameters() if name.endswith("0.attn.table")]
    assert [len(table) for table in tables] == [49, 49, 49, 9]  # maps of 16, 8, 4, 2; windows of 4, 4, 4, 2
    attention = WindowAttention(8, 2, 4, shifted=True, dense=False)
    assert attention.layout(5, 9) == (4, 2)
    assert attention.layout(4, 9) == (4, 0)
    assert attention.layout(9, 3) == (3, 0)
    assert WindowAttention(8, 2, 4, shifted=True, dense=True).layout(3, 9) == (4, 2)
    inner = attention.bias(2)
    assert torch.equal(
        inner, attention.bias(4).unflatten(2, (4, 4)).unflatten(1, (4, 4))[:, :2, :2, :2, :2].reshape(2, 4, 4)
    )


def test_the_dense_form_attends_to_its_padding_and_the_classifier_does_not() -> None:
    torch.manual_seed(0)
    x_BHWC = torch.randn(1, 5, 6, 8)
    dense = WindowAttention(8, 2, 4, shifted=False, dense=True)
    classifier = WindowAttention(8, 2, 4, shifted=False, dense=False)
    classifier.load_state_dict(dense.state_dict())
    with torch.inference_mode():
        a, b = dense(x_BHWC), classifier(x_BHWC)
    assert torch.allclose(a[:, :4, :4], b[:, :4, :4], atol=1e-6)  # the one full window
    assert not torch.allclose(a[:, 4:], b[:, 4:], atol=1e-4)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_a_window_sees_its_own_cells_only(seed: int) -> None:
    torch.manual_seed(seed)
    attention = WindowAttention(8, 2, 4, shifted=True, dense=False)
    x_BHWC = torch.randn(1, 8, 8, 8, requires_grad=True)
    attention(x_BHWC)[0, 3, 3].sum().backward()
    assert x_BHWC.grad is not None
    touched = x_BHWC.grad[0].abs().sum(-1) > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:6, 2:6] = True
    assert torch.equal(touched, expected)


PARAMETERS = {  # of the classifier, of the dense form
    "swin_tiny": (28_288_354, 27_520_698),
    "swin_small": (49_606_258, 48_838_602),
    "swin_base": (87_768_224, 86_745_016),
    "swin_large": (196_532_476, 194_998_164),
    "swin_base_patch4_window12_384": (87_903_584, 86_880_376),
    "swin_large_patch4_window12_384": (196_735_516, 195_201_204),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_size_is_the_originals(name: str) -> None:
    large = "384" in name
    with torch.device("meta"):
        classifier: Any = fourstage.create_model(name)
        dense = fourstage.create_backbone(name)
    assert tuple(sum(p.numel() for p in model.parameters()) for model in (classifier, dense)) == PARAMETERS[name]
    assert classifier.default_cfg["input_size"] == ((3, 384, 384) if large else (3, 224, 224))
    windows = {m.window for m in classifier.modules() if isinstance(m, WindowAttention)}
    assert windows == {12 if large else 7}
    alias = name if large else f"{name}_patch4_window7_224"
    assert fourstage.list_models(alias) == [alias]


@pytest.mark.parametrize("form", [fourstage.create_model, fourstage.create_backbone])
def test_windows_and_positions_can_be_asked_for(form: Any) -> None:
    with torch.device("meta"):
        model = form("swin_tiny", window_size=8, ape=True, img_size=(96, 160))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in model.no_weight_decay()}
    assert shapes.pop("stages.0.embed.position") == (1, 96, 24, 40)
    sides = {"stages.0": 8, "stages.1": 8, "stages.2": 6, "stages.3": 3} if form is fourstage.create_model else {}
    assert len(shapes) == 12
    for name, (entries, _) in shapes.items():
        assert entries == (2 * sides.get(name[:8], 8) - 1) ** 2
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"window_size is the side of a window in cells, at least 1; got {wrong}"):
            form("swin_tiny", window_size=wrong)


@pytest.mark.parametrize("form", [swin.classifier, swin.dense])
def test_positions_are_added_to_the_first_map_and_resized_to_it(form: Any) -> None:
    torch.manual_seed(0)
    with_positions, without = form(SWIN, img_size=64, ape=True), form(SWIN, img_size=64)
    state = with_positions.state_dict()
    position_1CHW = state.pop("stages.0.embed.position")
    assert 0.015 < float(position_1CHW.std()) < 0.025
    without.load_state_dict(state)
    for size in ((64, 64), (45, 70)):
        image_BCHW = torch.randn(2, 3, *size)
        with torch.inference_mode():
            first_BCHW = without.stem(image_BCHW)
            resized = F.interpolate(position_1CHW, first_BCHW.shape[2:], mode="bicubic", align_corners=False)
            expected = without.stages[0](first_BCHW + (position_1CHW if size == (64, 64) else resized))
            actual = with_positions.forward_maps(image_BCHW, count=1)[0]
        torch.testing.assert_close(actual, expected)
