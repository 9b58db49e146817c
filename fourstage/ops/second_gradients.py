"""Gradients of a fast path where its own backward pass cannot give them: second ones, batches, and tangents of them.

A backward pass that writes into memory of its own is neither differentiable nor fit for a transform. There, the plain
form runs again and PyTorch differentiates it.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor  # what is_grads_batched=True makes
from torch.autograd import forward_ad

from fourstage.ops.eager import is_transformed

Gradients = TypeVar("Gradients")


def needs_plain_form(grad: Tensor) -> bool:
    """Return whether the running backward pass needs a graph (`create_graph=True`), or got gradients that come in a
    batch or with tangents.
    """
    return torch.is_grad_enabled() or comes_in_a_batch(grad) or forward_ad._current_level >= 0


def comes_in_a_batch(grad: Tensor) -> bool:
    """Return whether the running backward pass got a batch of gradients as one: `is_grads_batched=True`, or vmap."""
    return is_transformed() or is_legacy_batchedtensor(grad)


def without_autocast(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Return a backward pass that computes in float32, as its forward pass did, where autocast is on around it."""

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor) -> Gradients:
        if not torch.is_autocast_enabled("cpu"):
            return backward(ctx, *grads)
        with torch.autocast("cpu", enabled=False):
            return backward(ctx, *grads)

    return run


def of_plain_form(
    plain: Callable[..., Tensor], tensors: Sequence[Tensor | None], wanted: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Return the gradient of each wanted tensor, given that of `plain(*tensors)`; None for the others.

    A tensor of None is an argument that was left out.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, since one tensor may be computed from another, and its gradient must not pass through that one
        own = [
            x if x is None else x.view_as(x) if want or create_graph else x.detach()
            for x, want in zip(tensors, wanted, strict=True)
        ]
        leaves = [x for x, want in zip(own, wanted, strict=True) if x is not None and want]
        found = iter(torch.autograd.grad(plain(*own), leaves, grad, create_graph=create_graph))
    return [next(found) if want else None for want in wanted]
