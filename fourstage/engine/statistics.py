"""Running statistics of batch norms in networks of others, whose activations are recomputed in the backward pass."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

KEPT = "counted_before"  # attribute of a norm during a recomputation


def count_statistics_once(network: nn.Module) -> None:
    """Let the batch norms of a network move their running statistics in the forward pass alone.

    Activation checkpointing runs a part of the forward pass again within the backward pass, and timm's form of it moves
    them there once more.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_hold)
            module.register_forward_hook(_release, always_call=True)  # the recomputation ends early by an exception


def _hold(norm: nn.Module, inputs: Sequence[Tensor]) -> None:
    assert isinstance(norm, _BatchNorm)
    if not norm.training or torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return  # compilers count once by themselves; -1: outside a backward pass
    setattr(norm, KEPT, (norm.momentum, norm.num_batches_tracked))
    norm.momentum = 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked = norm.num_batches_tracked.clone()


def _release(norm: nn.Module, inputs: Sequence[Tensor], out: Tensor | None) -> None:
    assert isinstance(norm, _BatchNorm)
    if hasattr(norm, KEPT):
        norm.momentum, norm.num_batches_tracked = getattr(norm, KEPT)
        delattr(norm, KEPT)
