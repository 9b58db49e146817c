"""`deformable_sample`: every form against the definition, each other and torchvision's operator."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.sampling_cases import by_definition, case, gradients
from torch import Tensor
from torchvision.ops import deform_conv2d

from fourstage.ops import eager, sampling
from fourstage.ops.sampling import FORMS, Form, best_form, deformable_sample, kernel_cells

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # see test_sampling_kernel.py
EXAMPLES = 2 if INTERPRETED else 15  # the interpreter is slow
every_form = pytest.mark.parametrize("form", [*FORMS, "triton"] if INTERPRETED else list(FORMS))
side, seeds = st.integers(1, 9), st.integers(0, 2**31)


@every_form
@given(sizes=st.lists(st.tuples(side, side), min_size=1, max_size=3), seed=seeds)
@settings(max_examples=EXAMPLES, deadline=None)
def test_values_and_gradients_are_those_of_the_definition(form: Form, sizes: list[tuple[int, int]], seed: int) -> None:
    tensors = case(seed, sizes)
    *maps, locations, weights = tensors
    out, expected = deformable_sample(maps, locations, weights, form=form), by_definition(maps, locations, weights)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(gradients(out, tensors), gradients(expected, tensors), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
@given(seed=seeds)
@settings(max_examples=3, deadline=None)
def test_gradients_are_slopes(form: Form, seed: int) -> None:
    *maps, locations, weights = case(seed, [(3, 2)], batch=1)
    assert torch.autograd.gradcheck(
        lambda value, at, weight: deformable_sample([value], at, weight, form=form), (*maps, locations, weights)
    )


@every_form
@given(
    kernel=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    dilation=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    scale=st.sampled_from([0.5, 1.0, 3.0]),
    height=side,
    width=side,
    seed=seeds,
)
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_deformable_convolution_is_torchvisions(
    form: Form, kernel: int, stride: int, dilation: int, heads: int, scale: float, height: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    points, channels = kernel**2, 8
    value = torch.randn(2, height, width, heads, channels // heads, requires_grad=True)
    cells_QP2 = kernel_cells(height, width, kernel, stride=stride, dilation=dilation)
    offset = torch.randn(2, len(cells_QP2), heads, 1, points, 2, requires_grad=True)
    weight = torch.rand(2, len(cells_QP2), heads, 1, points, requires_grad=True)
    ours = deformable_sample([value], scale * offset, weight, cells_BQhLP2=cells_QP2[None, :, None, None], form=form)

    rows, reach = -(-height // stride), dilation * (kernel // 2)
    by_row = torch.arange(points).view(kernel, kernel).t().flatten()  # their points run along rows, ours down columns
    flat_offset = scale * offset[:, :, :, 0, by_row].flip(-1)  # theirs are (y, x)
    theirs = deform_conv2d(
        value.flatten(3).movedim(-1, 1),
        flat_offset.flatten(2).transpose(1, 2).unflatten(2, (rows, -1)),
        torch.ones(channels, 1, kernel, kernel),
        stride=(stride, stride),
        padding=(reach, reach),
        dilation=(dilation, dilation),
        mask=weight[:, :, :, 0, by_row].flatten(2).transpose(1, 2).unflatten(2, (rows, -1)),
    )
    theirs = theirs.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)
    tensors = (value, offset, weight)
    for a, b in zip(gradients(ours, tensors), gradients(theirs, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3 * scale)


@every_form
@given(sizes=st.lists(st.tuples(side, side), min_size=1, max_size=2), seed=seeds)
@settings(max_examples=min(EXAMPLES, 5), deadline=None)
def test_images_of_a_batch_do_not_see_each_other(form: Form, sizes: list[tuple[int, int]], seed: int) -> None:
    *maps, locations, weights = (x.detach().float() for x in case(seed, sizes, batch=3))
    together = deformable_sample(maps, locations, weights, form=form)
    for i in range(3):
        alone = deformable_sample([x[i, None] for x in maps], locations[i, None], weights[i, None], form=form)
        torch.testing.assert_close(together[i, None], alone, rtol=1e-5, atol=1e-5)


@every_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_the_rounding_of_its_result(form: Form, dtype: torch.dtype) -> None:
    *maps, locations, weights = (x.detach().float() for x in case(0, [(150, 130), (40, 50)], spread=0.0))
    maps, weights = [x.to(dtype).requires_grad_() for x in maps], weights.to(dtype).requires_grad_()
    out = deformable_sample(maps, locations, weights, form=form)
    assert out.dtype == dtype
    exact = by_definition([x.double() for x in maps], locations.double(), weights.double())
    cut = INTERPRETED and dtype == torch.bfloat16  # Triton's interpreter does not round to nearest
    assert ((out.double() - exact).abs() <= torch.finfo(dtype).eps / (1 if cut else 2) * exact.abs() + 1e-4).all()
    out.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == dtype and x.grad.isfinite().all() for x in (*maps, weights))
    if form == "triton":
        return  # a GPU's form; autocast of the CPU takes another
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(out, deformable_sample(maps, locations, weights, form=form))


@every_form
def test_between_two_squares_the_gradient_is_that_of_the_right_and_lower_one(form: Form) -> None:
    map_BHWhd = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]).view(1, 2, 3, 1, 1)
    expected = {(0, 0): (1, 7), (1, 0): (2, 14), (2, 0): (-4, 28), (1, 1): (16, -16), (-1, 0): (1, 0), (3, 0): (0, 0)}
    for place, slope in expected.items():
        location = torch.tensor(place, dtype=torch.float32).view(1, 1, 1, 1, 1, 2).requires_grad_()
        deformable_sample([map_BHWhd], location, torch.ones(1, 1, 1, 1, 1), form=form).sum().backward()
        assert location.grad is not None
        assert location.grad.flatten().tolist() == pytest.approx(slope, rel=1e-4, abs=1e-4)


@every_form
@pytest.mark.parametrize("sign", [-1, 1])
def test_cells_given_apart_keep_a_small_offset_on_its_side_of_a_line(form: Form, sign: int) -> None:
    """1e-6 vanishes in 999 + 1e-6, but not the side that it is on."""
    row = torch.arange(1024.0) ** 2 / 1024
    offset = torch.tensor([sign * 1e-6, 0.25]).view(1, 1, 1, 1, 1, 2).requires_grad_()
    cells = torch.tensor([999, 0]).view(1, 1, 1, 1, 1, 2)
    weight = torch.ones(1, 1, 1, 1, 1)
    deformable_sample([row.view(1, 1, -1, 1, 1)], offset, weight, cells_BQhLP2=cells, form=form).sum().backward()
    assert offset.grad is not None
    slope = row[1000] - row[999] if sign > 0 else row[999] - row[998]
    assert offset.grad.flatten()[0].item() == pytest.approx(0.75 * slope.item(), rel=1e-5)


@every_form
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in Triton's interpreter
def test_a_place_that_is_no_number_gives_no_number_and_no_crash(form: Form) -> None:
    map_BHWhd = torch.ones(1, 4, 4, 1, 2)
    for place in (float("inf"), -float("inf"), 1e30, -1e30, float("nan")):
        location = torch.full((1, 1, 1, 1, 1, 2), place)
        out = deformable_sample([map_BHWhd], location, torch.ones(1, 1, 1, 1, 1), form=form)
        assert out.isnan().all() or not out.any()


@pytest.mark.parametrize("form", ["gather", "embedding_bag"])
def test_a_place_that_is_no_number_reads_outside_of_the_map(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where NaN as an integer is 0, as on a GPU and on Arm: the gradient of no cell is spoilt."""
    to_int = Tensor.int
    monkeypatch.setattr(Tensor, "int", lambda x: to_int(x.nan_to_num(nan=0.0)))
    map_BHWhd = torch.ones(1, 4, 4, 1, 2, requires_grad=True)
    at = torch.tensor([[float("nan"), 1.0], [1.5, 1.5]]).view(1, 1, 1, 1, 2, 2)
    out = deformable_sample([map_BHWhd], at, torch.ones(1, 1, 1, 1, 2), form=form)
    (grad,) = torch.autograd.grad(out.sum(), map_BHWhd)
    assert grad.isfinite().all()


def test_locations_in_half_precision_are_refused_with_a_sentence() -> None:
    *maps, locations, weights = case(0, [(3, 3)])
    with pytest.raises(ValueError, match=r"bfloat16 cannot tell neighbouring cells .* use locations.float\(\)"):
        deformable_sample(maps, locations.bfloat16(), weights)


def shapes(device: str = "cpu", *, learned: bool = False) -> tuple[list[Tensor], Tensor, Tensor]:
    """A map, locations and weights."""
    map_BHWhd = torch.zeros(1, 2, 2, 1, 1, device=device, requires_grad=learned)
    return [map_BHWhd], torch.zeros(1, 1, 1, 1, 1, 2, device=device), torch.zeros(1, 1, 1, 1, 1, device=device)


def test_samples_that_are_read_twice_give_the_same_bits() -> None:
    """So that a run goes on with the numbers with which it began."""
    tensors = [x.detach().float().requires_grad_() for x in case(0, [(5, 6), (9, 11)])]
    *maps, locations, weights = tensors
    once, twice = (
        deformable_sample(maps, locations, weights, form=form) for form in ("grid_sample", "grid_sample_twice")
    )
    assert torch.equal(once, twice)
    assert all(map(torch.equal, gradients(once.double(), tensors), gradients(twice.double(), tensors)))


def test_the_form_is_chosen_by_device_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, learned, elsewhere = shapes(), shapes(learned=True), shapes("meta", learned=True)
    assert best_form(*learned) == "grid_sample"
    assert best_form(*(learned[0] * 2, *learned[1:])) == "grid_sample_twice"
    assert best_form(*plain) == "embedding_bag"
    assert best_form(*elsewhere) == "grid_sample"
    with torch.inference_mode():
        assert best_form(*learned) == "embedding_bag"
    torch.use_deterministic_algorithms(True)
    try:
        assert best_form(*elsewhere) == "gather"
        assert best_form(*learned) == "grid_sample"
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(eager, "is_compiling", lambda: True)
    assert best_form(*learned) == best_form(*elsewhere) == "gather"
    monkeypatch.setattr(eager, "is_exporting", lambda: True)
    assert best_form(*learned) == "grid_sample"


def test_the_environment_names_a_form_where_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = shapes(learned=True)
    for name in FORMS:
        monkeypatch.setenv("FOURSTAGE_SAMPLING", name)
        assert best_form(*learned) == name
        monkeypatch.setenv("FOURSTAGE_OPS", "plain")
        assert best_form(*learned) == "grid_sample"
        monkeypatch.delenv("FOURSTAGE_OPS")
        with monkeypatch.context() as patch:
            patch.setattr(eager, "is_compiling", lambda: True)
            assert best_form(*learned) == "gather"
    monkeypatch.setenv("FOURSTAGE_SAMPLING", "gathr")
    with pytest.raises(ValueError, match="grid_sample, grid_sample_twice, gather, embedding_bag, triton; got 'gathr'"):
        best_form(*learned)


def test_the_deterministic_form_repeats_itself_under_that_setting() -> None:
    """What can be shown of it without a GPU: none of its operators refuses."""
    tensors = case(0, [(5, 6)])
    *maps, locations, weights = tensors
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(deformable_sample(maps, locations, weights, form="gather"), tensors) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_one_graph_serves_every_size() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    sample = torch.compile(deformable_sample, fullgraph=True, dynamic=True, backend=count)
    for batch, size in ((5, (7, 9)), (6, (8, 11)), (9, (10, 12))):  # no two alike: equal sizes count as one
        *maps, locations, weights = case(batch, [size], batch=batch)
        torch.testing.assert_close(sample(maps, locations, weights), by_definition(maps, locations, weights))
    assert len(graphs) == 1


def test_kernel_cells_run_down_the_columns_and_keep_the_size() -> None:
    cells = kernel_cells(3, 5, 3, stride=2, dilation=2).unflatten(0, (2, 3))
    assert cells[1, 2, 4].tolist() == [4, 2]  # the middle point of the query in the second row and third column
    assert cells[1, 2, :3].tolist() == [[2, 0], [2, 2], [2, 4]]
    assert len(sampling.kernel_cells(7, 4, 5)) == 28
