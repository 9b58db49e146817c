"""Deformable convolution is the one of torchvision, in every form of sampling, and an ordinary one without offsets."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from fourstage.ops import sampling
from fourstage.ops.deformable_conv import deformable_conv


def inputs(stride: int, size: tuple[int, int] = (7, 6)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    out = [-(-side // stride) for side in size]
    shapes = [(2, 5, *size), (4, 5, 3, 3), (2, 18, *out), (2, 9, *out)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("form", ["grid_sample", "gather", "embedding_bag"])  # Triton's needs a GPU
@pytest.mark.parametrize("stride", [1, 2])
def test_values_and_gradients_are_those_of_torchvision(
    stride: int, form: sampling.Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "best_form", lambda *_: form)
    x, weight, offset, mask = inputs(stride)
    offset.data *= 3  # some taps read beyond the map
    ours = deformable_conv(x, weight, offset, mask, stride=stride)
    theirs = deform_conv2d(x, offset, weight, stride=(stride, stride), padding=(1, 1), mask=mask)
    torch.testing.assert_close(ours, theirs)
    towards = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).sin().view_as(ours)
    leaves = [x, weight, offset, mask]
    for a, b in zip(*(torch.autograd.grad(out, leaves, towards) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_without_offsets_it_is_an_ordinary_convolution(stride: int, size: tuple[int, int]) -> None:
    x, weight, offset, mask = inputs(stride, size)
    ours = deformable_conv(x, weight, torch.zeros_like(offset), torch.ones_like(mask), stride=stride)
    torch.testing.assert_close(ours, F.conv2d(x, weight, stride=stride, padding=1))


def test_half_precision_reads_at_exact_places() -> None:
    x, weight, offset, mask = (tensor.detach().bfloat16() for tensor in inputs(1))
    ours = deformable_conv(x, weight, offset, mask)
    assert ours.dtype == torch.bfloat16
    exact = deformable_conv(x.float(), weight.float(), offset.float(), mask.float())
    torch.testing.assert_close(ours.float(), exact, rtol=0.02, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(deformable_conv(x, weight.float(), offset, mask), ours)


def test_a_network_on_meta_has_its_shape() -> None:
    x, weight, offset, mask = (tensor.to("meta") for tensor in inputs(2))
    assert deformable_conv(x, weight, offset, mask, stride=2).shape == (2, 4, 4, 3)
