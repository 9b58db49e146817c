"""Small masks become pixels and run lengths: by the definition, by the plain form and by the fast path."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourstage.data.objects.rle import encode_mask, encode_windows
from fourstage.tasks.detection import masks as masks_module
from fourstage.tasks.detection.masks import SmallMasks

seeds = st.integers(0, 2**31)


def some_masks(n: int, seed: int, size: tuple[int, int], longest: float = 1.5) -> SmallMasks:
    """Smooth masks in boxes that reach over all edges, up to `longest` times the image; some of whole pixels."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.tensor([size[1], size[0]])
    center_N2 = (torch.rand(n, 2, generator=generator) * 1.4 - 0.2) * side
    half_N2 = torch.rand(n, 2, generator=generator) ** 2 * side * longest / 2
    boxes_N4 = torch.cat([center_N2 - half_N2, center_N2 + half_N2], dim=1)
    boxes_N4[::3] = boxes_N4[::3].round()
    values_NMM = torch.rand(n, 1, 5, 5, generator=generator)
    small_NMM = F.interpolate(values_NMM, (28, 28), mode="bicubic")[:, 0] if n else values_NMM.new_zeros(0, 28, 28)
    return SmallMasks(small_NMM, boxes_N4, size)


def plain(masks: SmallMasks) -> Tensor:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("FOURSTAGE_OPS", "plain")
        return masks.full_size()


def pasted_by_torch(small: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    out = []
    for mask, (x1, y1, x2, y2) in zip(small, boxes, strict=True):
        y, x = ((torch.arange(n) + 0.5 - a) / (b - a) * 2 - 1 for n, a, b in ((size[0], y1, y2), (size[1], x1, x2)))
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        out.append(F.grid_sample(mask[None, None], grid, align_corners=False)[0, 0] >= 0.5)
    return torch.stack(out)


@pytest.mark.parametrize("switch", ["plain", "fast"])
@pytest.mark.parametrize("pixels", [1, 10**4, 10**8])
def test_pasting_is_sampling_at_pixel_centres(pixels: int, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "PIXELS", pixels)
    monkeypatch.setenv("FOURSTAGE_OPS", switch)
    masks = some_masks(9, 1, (70, 90), 0.6)
    expected = pasted_by_torch(masks.probabilities_NMM, masks.boxes_N4, masks.size)
    assert (masks.full_size() != expected).sum() <= 3
    at_once = [len(some) for some in masks.paste()]
    assert at_once == {1: [1] * 9, 10**4: [1] * 9, 10**8: [9]}[pixels]


@given(
    n=st.integers(0, 30), seed=seeds, height=st.integers(1, 60), width=st.integers(1, 60), window=st.integers(1, 2000)
)
@settings(max_examples=80, deadline=None)
def test_the_fast_path_gives_the_bits_of_the_plain_form(
    n: int, seed: int, height: int, width: int, window: int
) -> None:
    masks = some_masks(n, seed, (height, width), longest=4.0)
    expected = plain(masks)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(masks_module, "WINDOW_PIXELS", window)
        assert torch.equal(masks.full_size(), expected)
        lengths = masks.run_lengths()
    assert lengths == [encode_mask(mask_HW)["counts"] for mask_HW in expected.numpy()]


def test_plain_run_lengths_are_those_of_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = some_masks(40, 5, (128, 96))
    fast = masks.run_lengths()
    monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    monkeypatch.setattr(SmallMasks, "_windows", None)
    assert masks.run_lengths() == fast


@given(seed=seeds, height=st.integers(1, 12), width=st.integers(1, 12), share=st.sampled_from([0.0, 0.2, 0.8, 1.0]))
@settings(max_examples=80, deadline=None)
def test_windows_are_encoded_as_complete_masks_are(seed: int, height: int, width: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
    windows_Nhw = rng.random((rng.integers(0, 6), h, w)) < share
    top_N = rng.integers(0, height - h + 1, len(windows_Nhw))
    left_N = rng.integers(0, width - w + 1, len(windows_Nhw))
    expected = []
    for window_hw, top, left in zip(windows_Nhw, top_N, left_N, strict=True):
        mask_HW = np.zeros((height, width), dtype=bool)
        mask_HW[top : top + h, left : left + w] = window_hw
        expected.append(encode_mask(mask_HW)["counts"])
    assert encode_windows(windows_Nhw, top_N, left_N, (height, width)) == expected


def test_masks_of_huge_images_are_pasted_one_at_a_time() -> None:
    boxes = torch.tensor([[0.0, 0, 100, 100]]).repeat(300, 1)
    masks = SmallMasks(torch.ones(300, 28, 28), boxes, (20_000, 20_000))
    assert next(masks.paste()).shape == (1, 20_000, 20_000)


def test_interpolated_pixels_in_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "WINDOW_PIXELS", 500)
    most, real = 0, masks_module._interpolated

    def counting(*args: object) -> Tensor:
        nonlocal most
        values = real(*args)  # pyright: ignore[reportArgumentType]
        most = max(most, values.numel())
        return values

    monkeypatch.setattr(masks_module, "_interpolated", counting)
    masks = some_masks(30, 3, (300, 400))
    plain(masks)
    assert most > 5000  # the plain form is not
    most = 0
    masks.run_lengths()
    assert 0 < most <= max(500, 300 * 28)  # the first axis has a row of 28 cells for each pixel


def test_a_mask_without_extent_is_no_error() -> None:
    boxes = torch.tensor([[10.0, 5, 10, 20], [3, 3, 3, 3], [-5, -5, -2, -1], [torch.nan] * 4])
    masks = SmallMasks(torch.ones(4, 28, 28), boxes, (30, 30))
    assert 0 < masks.full_size().sum() < 100
    assert masks.run_lengths()[2:] == [encode_mask(np.zeros((30, 30), dtype=bool))["counts"]] * 2


@pytest.mark.parametrize(
    "box", [[float("nan")] * 4, [float("nan"), 2.0, 9.0, 8.0], [float("-inf"), 2.0, float("inf"), 8.0]]
)
def test_boxes_of_a_network_that_diverged_have_no_mask_in_any_form(box: list[float]) -> None:
    probabilities = torch.ones(2, 4, 4)
    masks = SmallMasks(probabilities, torch.tensor([box, [3.0, 3.0, 12.0, 12.0]]), (20, 30))
    plain, fast = masks._together(), masks._from_windows()
    assert torch.equal(plain, fast)
    assert plain[1].sum() == 81
    alone = SmallMasks(probabilities[:1], masks.boxes_N4[:1], (20, 30))
    assert torch.equal(alone._together(), fast[:1])
