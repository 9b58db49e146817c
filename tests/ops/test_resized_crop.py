"""The forms of a crop of a resized map that run on a CPU give the bits of the plain ones."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.ops import resized_crop
from fourstage.ops.resized_crop import crop_of_resized, input_span


@given(old=st.integers(1, 60), new=st.integers(1, 130), aligned=st.booleans(), double=st.booleans(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_slices_of_the_map_give_the_bits_of_copied_rows(
    old: int, new: int, aligned: bool, double: bool, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, new - 1))
    crop = first, data.draw(st.integers(first + 1, new))
    dtype = torch.float64 if double else torch.float32
    taps = resized_crop._Taps.of(old, new, crop, aligned, dtype)
    x_CHW = torch.randn(5, taps.span[1] - taps.span[0], 33, dtype=dtype)
    assert torch.equal(taps._by_runs(x_CHW), taps._by_index(1, x_CHW))
    covered = [cell for begin, end, *_ in taps.runs for cell in range(begin, end)]
    assert covered == list(range(crop[1] - crop[0]))


def test_few_slices_do_for_many_rows() -> None:
    assert len(resized_crop._Taps.of(512, 480, (100, 119), False).runs) <= 4  # lerps, where copies take 19 rows each
    assert len(resized_crop._Taps.of(128, 512, (100, 120), False).runs) <= 6


@given(width=st.integers(1, 300), wide=st.integers(1, 400), aligned=st.booleans(), double=st.booleans())
@settings(max_examples=100, deadline=None)
def test_rows_alone_are_resized_as_rows_of_a_map(width: int, wide: int, aligned: bool, double: bool) -> None:
    x_CHW = torch.randn(4, 6, width, dtype=torch.float64 if double else torch.float32)
    expected = F.interpolate(x_CHW[None], size=(6, wide), mode="bilinear", align_corners=aligned)[0]
    assert torch.equal(resized_crop._rows_resized(x_CHW, wide, aligned), expected)


def test_a_crop_of_inference_may_be_followed_by_one_with_gradients() -> None:
    with torch.inference_mode():
        crop_of_resized(torch.randn(2, 9, 9), (9, 9), (20, 20), (3, 9), (0, 20))
    x_CHW = torch.randn(2, 9, 9, requires_grad=True)
    crop_of_resized(x_CHW, (9, 9), (20, 20), (3, 9), (0, 20)).sum().backward()
    assert x_CHW.grad is not None


def test_a_crop_on_the_cpu_ignores_the_default_device() -> None:
    """The tables of a size serve later calls too."""
    given = torch.randn(2, 9, 9), (9, 9), (19, 23), (3, 9), (1, 20)
    with torch.device("meta"):
        crop_CRK = crop_of_resized(*given)
    torch.testing.assert_close(crop_CRK, F.interpolate(given[0][None], given[2], mode="bilinear")[0][:, 3:9, 1:20])


@given(old=st.integers(1, 60), new=st.integers(1, 130), aligned=st.booleans(), data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_cells_that_are_read_are_those_of_every_precision(
    old: int, new: int, aligned: bool, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, new - 1))
    check_section(old, new, (first, data.draw(st.integers(first + 1, new))), aligned=aligned)


def test_a_place_that_float32_rounds_to_a_cell_has_that_cell_and_the_next_in_float64() -> None:
    check_section(38, 122, (85, 92), aligned=False)


def check_section(old: int, new: int, rows: tuple[int, int], *, aligned: bool) -> None:
    """Compare the crop of a section of the map with that of the complete one."""
    first, last = input_span(old, new, rows, aligned)
    for dtype in (torch.float32, torch.float64):
        x_CHW = torch.randn(2, old, 5, dtype=dtype)
        crops = [
            crop_of_resized(x[0], (old, 5), (new, 5), rows, (1, 4), origin=(x[1], 0), aligned=aligned)
            for x in ((x_CHW, 0), (x_CHW[:, first:last], first))
        ]
        assert torch.equal(*crops)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("aligned", [False, True])
def test_places_are_exact_for_maps_in_half_precision(dtype: torch.dtype, aligned: bool) -> None:
    x_CHW = torch.randn(2, 64, 60).to(dtype)
    wanted = F.interpolate(x_CHW[None].float(), (700, 710), mode="bilinear", align_corners=aligned)[0]
    crop_CRK = crop_of_resized(x_CHW, (64, 60), (700, 710), (500, 600), (400, 700), aligned=aligned)
    atol = 8 * torch.finfo(dtype).eps  # of values up to about 4, rounded twice
    torch.testing.assert_close(crop_CRK.float(), wanted[:, 500:600, 400:700], rtol=0, atol=atol)
