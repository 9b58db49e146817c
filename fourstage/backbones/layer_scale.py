"""Layer scales (https://arxiv.org/abs/2103.17239): a learned factor for each channel of a residual branch.

B images, H x W cells, C channels.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fourstage.ops.eager import is_recorded, is_watched, may_run_fast

Forward = TypeVar("Forward", bound=Callable[..., Any])
MARKED: set[Callable[..., Any]] = set()  # by `takes_scale`


class LayerScale(nn.Module):
    """A factor for each channel, over the last axis of (B, H, W, C)."""

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.value = value
        self.scale = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every factor: `value`."""
        nn.init.constant_(self.scale, self.value)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC * self.scale


def takes_scale(forward: Forward) -> Forward:
    """Mark the `forward` of a branch that ends in a linear layer: given a second argument, it scales its output.

    A subclass with a `forward` of its own has no mark.
    """
    MARKED.add(forward)
    return forward


def scaled(branch: nn.Module, scale: nn.Module, x_BHWC: Tensor) -> Tensor:
    """Return `scale(branch(x))`: (B, H, W, C) to the same. The scale is left to the branch where that may be sooner.

    Raises:
        ValueError: the branch gives another shape.
    """
    if isinstance(scale, LayerScale) and _may_take(branch, scale, x_BHWC):
        return branch(x_BHWC, scale.scale.flatten())
    out_BHWC = branch(x_BHWC)
    _check_shape(branch, x_BHWC, out_BHWC)
    return scale(out_BHWC)


def _may_take(branch: nn.Module, scale: LayerScale, x_BHWC: Tensor) -> bool:
    return (
        type(branch).forward in MARKED
        and type(scale).forward is LayerScale.forward
        and may_run_fast(x_BHWC, scale.scale)
        and not (is_watched(branch) or is_watched(scale))
    )


def _check_shape(mixer: nn.Module, x_BHWC: Tensor, mixed: object) -> None:
    """Raise ValueError unless a mixer, which may be the user's, returned a map of the shape of its input."""
    if is_recorded() or (isinstance(mixed, Tensor) and mixed.shape == x_BHWC.shape):
        return
    got = f"{tuple(mixed.shape)}" if isinstance(mixed, Tensor) else f"a {type(mixed).__name__}"
    need = f"{tuple(x_BHWC.shape)}, (B, H, W, C), and must return the same"
    raise ValueError(f"the mixer {type(mixer).__name__} was given {need}; it gave {got}")
