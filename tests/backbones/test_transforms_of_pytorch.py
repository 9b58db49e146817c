"""Networks can be traced, transformed by `torch.func` and called with no image at all."""

import warnings
from typing import Any

import pytest
import torch
from forms import FORMS, build
from torch import Tensor


def outputs(out: Tensor | list[Tensor]) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else out


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_jit_trace(form: str, gradients: bool) -> None:
    model, image_BCHW = build(form), torch.randn(2, 3, 64, 71)
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        traced: Any = torch.jit.trace(model, image_BCHW)  # compares the graphs of two passes, and their outputs
        for ours, plain in zip(outputs(traced(image_BCHW)), outputs(model(image_BCHW)), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * float(plain.detach().abs().max()))


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_each_image_by_vmap(form: str) -> None:
    model, image_BCHW = build(form), torch.randn(2, 3, 64, 64)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image_CHW: Tensor) -> Tensor:
        maps = torch.func.functional_call(model, parameters, (image_CHW[None],))
        return torch.stack([x.square().mean() for x in outputs(maps)]).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, image_BCHW)
    size = max(float(x.abs().max()) for x in each.values())
    for i, image_CHW in enumerate(image_BCHW):
        model.zero_grad()
        loss(dict(model.named_parameters()), image_CHW).backward()
        for name, parameter in model.named_parameters():
            expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(each[name][i], expected, rtol=1e-3, atol=1e-4 * size)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_an_empty_batch(form: str, gradients: bool) -> None:
    model, image_BCHW = build(form), torch.randn(2, 3, 64, 71)
    with torch.set_grad_enabled(gradients):
        for empty, usual in zip(outputs(model(image_BCHW[:0])), outputs(model(image_BCHW)), strict=True):
            assert empty.shape == (0, *usual.shape[1:])
