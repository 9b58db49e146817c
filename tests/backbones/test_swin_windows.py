"""Windows: what shifts, what is masked, what shrinks. The originals' numbers are in test_golden_backbones.py."""

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourstage.backbones import swin
from fourstage.backbones.mixers.window import WindowAttention, visible_along, visible_pairs

side = st.integers(1, 13)


@given(height=side, width=side, window=st.integers(1, 5), shift=st.booleans(), see_padding=st.booleans())
@settings(max_examples=25, deadline=None)
def test_cells_see_each_other_if_they_share_a_window_that_the_roll_did_not_wrap(
    height: int, width: int, window: int, shift: bool, see_padding: bool
) -> None:
    by = window // 2 if shift else 0
    rows, columns = (
        visible_along(s, window, by, see_padding=see_padding, device=torch.device("cpu")) for s in (height, width)
    )
    visible = visible_pairs(rows, columns)
    padded = [s + -s % window for s in (height, width)]
    for n, corner in enumerate(product(range(0, padded[0], window), range(0, padded[1], window))):
        rolled = [(corner[0] + dy, corner[1] + dx) for dy, dx in product(range(window), range(window))]
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
    model = swin.tiny().eval()
    image_BCHW = torch.randn(1, 3, height, width)

    def noise(x: Tensor, pad: tuple[int, ...], *_: Any) -> Tensor:
        return zeros(x, pad) + zeros(torch.zeros_like(x), pad, value=1e3) * torch.randn(zeros(x, pad).shape)

    zeros = F.pad
    with torch.inference_mode():
        expected = model.forward_maps(image_BCHW)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "pad", noise)
            noisy = model.forward_maps(image_BCHW)
    for a, b in zip(noisy, expected, strict=True):
        assert float((a - b).abs().max()) < 1e-6


def test_native_sizes_neither_pad_nor_resize() -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an operation that native sizes do not need")

    for model in (swin.tiny(img_size=128), swin.tiny(img_size=96)):
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
    here, there = swin.tiny(img_size=128).eval(), swin.tiny(img_size=size).eval()
    there.load_state_dict(here.state_dict())
    image_BCHW = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(here(image_BCHW), there(image_BCHW))


def test_the_window_shrinks_with_img_size_and_with_the_image() -> None:
    small = swin.tiny(img_size=64)
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
