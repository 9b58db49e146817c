"""Triton's kernels under its interpreter, beside what `test_sampling.py` asks of every form.

`test_sampling_kernel.py` runs this file in a process of its own, in which Triton interprets.
"""

from collections.abc import Callable

import pytest
import torch
from ops.sampling_cases import by_definition, case, gradients
from torch import Tensor

from fourstage.ops import sampling, sampling_kernel
from fourstage.ops.sampling import best_form, deformable_sample
from fourstage.ops.sampling_kernel import Launch


def heads_of(dim: int, points: int = 3, heads: int = 3) -> list[Tensor]:
    """A map of heads with this many channels, locations and weights: float64, with gradients."""
    torch.manual_seed(dim)
    map_BHWhd = torch.randn(2, 4, 5, heads, dim, dtype=torch.float64)
    at = 6 * torch.rand(2, 3, heads, 1, points, 2, dtype=torch.float64) - 1
    return [x.requires_grad_() for x in (map_BHWhd, at, torch.randn(2, 3, heads, 1, points, dtype=torch.float64))]


def assert_same(tensors: list[Tensor]) -> None:
    """Compare values and all gradients with those of the definition."""
    *maps, at, weights = tensors
    out, expected = deformable_sample(maps, at, weights, form="triton"), by_definition(maps, at, weights)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(gradients(out, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 5, 24, 32])
def test_any_number_of_channels(dim: int) -> None:
    assert_same(heads_of(dim))


@pytest.mark.parametrize(("points", "heads"), [(1, 1), (7, 6)])
def test_any_number_of_points_and_heads(points: int, heads: int) -> None:
    assert_same(heads_of(2, points, heads))


def test_several_programs_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """18 rows in programs of four, and a program of one row where a row has more channels than a program elements."""
    for elements in (16, 1):
        monkeypatch.setattr(sampling_kernel, "FORWARD", Launch(elements, 4))
        monkeypatch.setattr(sampling_kernel, "BACKWARD", Launch(elements, 4))
        assert_same(heads_of(3, points=1))


def narrowed(map_BHWhd: Tensor) -> Tensor:
    """A view of rows in a longer sequence of cells, as deformable attention has its levels."""
    batch, height, width, heads, dim = map_BHWhd.shape
    longer = torch.cat([map_BHWhd.flatten(1, 2), map_BHWhd.new_ones(batch, 3, heads, dim)], dim=1)
    return longer[:, : height * width].unflatten(1, (height, width))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "a part of a sequence": narrowed,
    "channels first": lambda map_BHWhd: map_BHWhd.permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2),
    "heads first": lambda map_BHWhd: map_BHWhd.movedim(3, 1).contiguous().movedim(1, 3),
    "the transpose": lambda map_BHWhd: map_BHWhd.transpose(1, 2).contiguous().transpose(1, 2),
    "one image for all": lambda map_BHWhd: map_BHWhd[:1].expand_as(map_BHWhd),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_of_the_map_and_of_the_points(layout: str) -> None:
    map_BHWhd, at, weights = heads_of(4)
    map_BHWhd = LAYOUTS[layout](map_BHWhd.detach()).requires_grad_()
    at = at.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    assert_same([map_BHWhd, at, weights])


def test_heads_that_are_far_apart() -> None:
    """The third begins more than 2**31 numbers after the first. The memory between them is never touched."""
    heads, dim, apart = 3, 4, 2**30 + 8
    near = torch.randn(1, 2, 2, heads, dim).half()
    far = torch.empty(2 * apart + 4 * dim, dtype=torch.float16).as_strided(near.shape, (0, 2 * dim, dim, apart, 1))
    far.copy_(near)
    at, weights = torch.rand(1, 3, heads, 1, 2, 2), torch.rand(1, 3, heads, 1, 2)
    results = []
    for map_BHWhd in (near, far):
        leaves = [x.detach().requires_grad_() for x in (map_BHWhd, at, weights)]
        out = deformable_sample(leaves[:1], leaves[1], leaves[2], form="triton")
        results.append([out, *gradients(out, leaves[1:])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3,), (0, 3)])
def test_only_the_gradients_that_are_needed(wanted: tuple[int, ...]) -> None:
    """Of two maps, locations and weights."""
    tensors = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(case(0, [(3, 4), (2, 2)]))]
    *maps, at, weights = tensors
    leaves = [tensors[i] for i in wanted]
    ours = gradients(deformable_sample(maps, at, weights, form="triton"), leaves)
    for a, b in zip(ours, gradients(by_definition(maps, at, weights), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_cells_of_each_image_and_head() -> None:
    map_BHWhd, at, weights = heads_of(2)
    for shape in ((2, 3, 3, 1, 3, 2), (1, 3, 3, 1, 3, 2), (2, 3, 1, 1, 3, 2)):
        cells = torch.randint(-2, 4, shape)
        out = deformable_sample([map_BHWhd], at, weights, cells_BQhLP2=cells, form="triton")
        torch.testing.assert_close(out, by_definition([map_BHWhd], at + cells, weights))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's
def test_places_that_are_no_numbers_have_no_gradient_in_the_map() -> None:
    map_BHWhd = torch.ones(1, 4, 4, 1, 2, requires_grad=True)
    for place in (float("inf"), -float("inf"), 1e30, float("nan")):
        at = torch.full((1, 1, 1, 1, 1, 2), place)
        deformable_sample([map_BHWhd], at, torch.ones(1, 1, 1, 1, 1), form="triton").sum().backward()
    assert map_BHWhd.grad is not None
    assert not map_BHWhd.grad.any()


def test_the_gather_form_gives_deterministic_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    gather = sampling.by_gather
    monkeypatch.setattr(sampling, "by_gather", lambda *tensors: read.append("gather") or gather(*tensors))
    tensors = case(0, [(3, 4)])
    *maps, at, weights = tensors
    torch.use_deterministic_algorithms(True)
    try:
        out = deformable_sample(maps, at, weights, form="triton")
        assert not read
        ours = gradients(out, tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    assert read
    for a, b in zip(ours, gradients(by_definition(maps, at, weights), tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_the_environment_names_it_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURSTAGE_SAMPLING", "triton")
    *maps, at, weights = case(0, [(3, 4)])
    assert best_form(maps, at, weights) == "triton"
    monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    assert best_form(maps, at, weights) == "grid_sample"


def test_a_compiler_records_another_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURSTAGE_SAMPLING", "triton")
    *maps, at, weights = case(0, [(3, 4)])
    sample = torch.compile(deformable_sample, fullgraph=True, backend="eager")
    monkeypatch.setattr(sampling, "by_triton", None)
    for form in (None, "triton"):
        torch.testing.assert_close(sample(maps, at, weights, form=form), by_definition(maps, at, weights))
