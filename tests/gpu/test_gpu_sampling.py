"""Deformable sampling on the device: every form has the values and the gradients of the definition."""

import pytest
import torch
from gpu.conftest import TINY
from ops.sampling_cases import by_definition, case
from torch import Tensor
from torchvision.ops import deform_conv2d

from fourstage.ops import sampling, sampling_choice
from fourstage.ops.sampling import FORMS, Form, deformable_sample, kernel_cells

EVERY: list[Form] = [*FORMS, "triton"]
every_form = pytest.mark.parametrize("form", EVERY)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [(9, 7), (4, 5)]


def skip_without_kernel(form: Form, device: torch.device) -> None:
    if form == "triton" and not sampling_choice.may_run_kernel(torch.zeros(1, device=device)):
        pytest.skip("Triton does not run on this device")


def inputs(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Maps in a precision, locations and weights in float32."""
    *maps, at, weights = (x.detach().float() for x in case(3, SIZES))
    return [x.to(device).requires_grad_() for x in (*(x.to(dtype) for x in maps), at, weights)]


def gradients(out: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((out * probe.to(out)).sum(), tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_form
def test_values_and_gradients_are_those_of_the_definition(form: Form, dtype: torch.dtype, device: torch.device) -> None:
    skip_without_kernel(form, device)
    tensors = inputs(device, dtype)
    *maps, at, weights = tensors
    exact = [x.detach().cpu().double().requires_grad_() for x in tensors]
    expected = by_definition(exact[:2], exact[2], exact[3])
    out = deformable_sample(maps, at, weights, form=form)
    assert out.dtype == dtype
    unit = max(torch.finfo(dtype).eps / 2, 2e-6)
    assert ((out.cpu().double() - expected).abs() <= unit * expected.abs() + 2e-5).all()
    for ours, theirs in zip(gradients(out, tensors), gradients(expected, exact), strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=4 * unit, atol=1e-4 + 4 * unit)


@every_form
def test_a_deformable_convolution_is_torchvisions(form: Form, device: torch.device) -> None:
    skip_without_kernel(form, device)
    torch.manual_seed(0)
    height, width, heads, dim, points = 13, 10, 4, 12, 9
    value = torch.randn(2, height, width, heads, dim, device=device, requires_grad=True)
    cells_QP2 = kernel_cells(height, width, 3, device=device)
    offset = torch.randn(2, len(cells_QP2), heads, 1, points, 2, device=device, requires_grad=True)
    weight = torch.rand(2, len(cells_QP2), heads, 1, points, device=device, requires_grad=True)
    ours = deformable_sample([value], offset, weight, cells_BQhLP2=cells_QP2[None, :, None, None], form=form)
    by_row = torch.arange(points).view(3, 3).t().flatten()  # their points run along rows, ours down columns
    theirs = deform_conv2d(
        value.flatten(3).movedim(-1, 1),
        offset[:, :, :, 0, by_row].flip(-1).flatten(2).transpose(1, 2).unflatten(2, (height, width)),
        torch.ones(heads * dim, 1, 3, 3, device=device),
        padding=(1, 1),
        mask=weight[:, :, :, 0, by_row].flatten(2).transpose(1, 2).unflatten(2, (height, width)),
    )
    theirs = theirs.flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    tensors = [value, offset, weight]
    for a, b in zip(gradients(ours, tensors), gradients(theirs, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


@every_form
def test_a_place_that_is_no_number_spoils_nothing_else(form: Form, device: torch.device) -> None:
    skip_without_kernel(form, device)
    map_BHWhd = torch.ones(1, 4, 4, 1, 2, device=device, requires_grad=True)
    for place in (float("inf"), -float("inf"), 1e30, -1e30, float("nan")):
        at = torch.full((1, 1, 1, 1, 2, 2), place, device=device)
        at[..., 1, :] = 1.5
        out = deformable_sample([map_BHWhd], at, torch.ones(1, 1, 1, 1, 2, device=device), form=form)
        assert out.isnan().all() or bool((out == 1).all())
        if form in ("triton", "gather"):
            (grad,) = torch.autograd.grad(out.sum(), map_BHWhd)
            assert grad.sum() == 2  # of the other point alone
            assert not grad[:, 0].any()


@pytest.mark.parametrize("learns", [True, False], ids=["training", "inference"])
def test_a_form_is_chosen_by_measurement(learns: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_choice, "_chosen", {})
    *maps, at, weights = inputs(device, torch.bfloat16)
    with torch.set_grad_enabled(learns):
        form = sampling.best_form(maps, at, weights)
        torch.testing.assert_close(
            deformable_sample(maps, at, weights),
            deformable_sample(maps, at, weights, form="gather"),
            rtol=2e-2,
            atol=1e-2,
        )
    assert form in EVERY
    assert len(sampling_choice._chosen) == (device.type == "cuda")


def test_deterministic_gradients_repeat_themselves(device: torch.device) -> None:
    tensors = inputs(device, torch.float32)
    *maps, at, weights = tensors
    forms: list[Form | None] = [None]
    if sampling_choice.may_run_kernel(*tensors):
        forms.append("triton")  # whose backward pass is then the gather form's
    torch.use_deterministic_algorithms(True)
    try:
        for form in forms:
            first, second = (gradients(deformable_sample(maps, at, weights, form=form), tensors) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_large_maps_need_64_bits(device: torch.device) -> None:
    """2^31 values of a map and more, so that an offset of 32 bits would read another cell."""
    if device.type != "cuda" or TINY:
        pytest.skip("needs 5 GiB of a GPU's memory")
    skip_without_kernel("triton", device)
    map_BHWhd = torch.zeros(1, 2**15, 2**12 + 1, 2, 8, device=device, dtype=torch.float16)
    map_BHWhd[0, -1, -1, 1] = 3.0
    at = torch.tensor([2.0**12, 2.0**15 - 1], device=device).expand(1, 1, 2, 1, 1, 2)
    out = deformable_sample([map_BHWhd], at, torch.ones(1, 1, 2, 1, 1, device=device), form="triton")
    assert out.flatten().tolist() == [0.0] * 8 + [3.0] * 8
