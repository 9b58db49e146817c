"""Activations that are computed again in the backward pass. Batch norms move their running statistics once."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from fourstage.ops.eager import is_compiled, runs_within_backward

Statistics = tuple[float | None, Tensor | None]  # momentum and counter of a norm
HELD = "held_statistics"  # attribute of a norm of another library, while it runs again


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Return `block(x)` under activation checkpointing, bitwise the same."""
    if is_compiled():  # the graph moves running statistics once, and may hold no contexts
        return checkpoint(block, x, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _Uncounted(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


def count_statistics_once(network: nn.Module) -> None:
    """Let the batch norms of a network of another library move their running statistics in the forward pass alone.

    Its own activation checkpointing, such as timm's, moves them in the backward pass once more.
    """
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(_before_norm)
            module.register_forward_hook(_after_norm, always_call=True)  # a recomputation ends early by an exception


class _Uncounted(AbstractContextManager[None]):
    """`_uncounted`, entered once in each backward pass through the same graph."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.entered = ExitStack()

    def __enter__(self) -> None:
        self.entered.enter_context(_uncounted(self.block))

    def __exit__(self, *error: object) -> None:
        self.entered.close()


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Hold the statistics of all norms of a block."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [_hold(norm) for norm in norms]
    try:
        yield
    finally:
        for norm, statistics in zip(norms, before, strict=True):
            _release(norm, statistics)


def _before_norm(norm: _BatchNorm, inputs: Sequence[Tensor]) -> None:
    if norm.training and runs_within_backward():
        setattr(norm, HELD, _hold(norm))


def _after_norm(norm: _BatchNorm, inputs: Sequence[Tensor], out: Tensor | None) -> None:
    if HELD in vars(norm):
        _release(norm, vars(norm).pop(HELD))


def _hold(norm: _BatchNorm) -> Statistics:
    """Let a norm compute as many tensors as in the first pass, none of which moves its statistics."""
    before = norm.momentum, norm.num_batches_tracked
    norm.momentum = 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked = norm.num_batches_tracked.clone()
    return before


def _release(norm: _BatchNorm, before: Statistics) -> None:
    norm.momentum, norm.num_batches_tracked = before
