"""Modules that two families or more share. B images, C channels, H x W cells; BCHW maps are often views of BHWC."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layer_scale import takes_scale
from fourstage.backbones.recomputation import recomputed
from fourstage.ops.gelu import activated
from fourstage.ops.mlp import mlp
from fourstage.ops.resize import resize_bicubically
from fourstage.ops.shapes import channels_last, known_true


@dataclass(frozen=True)
class Level:
    """One map that a backbone gives."""

    channels: int
    stride: int  # image pixels per cell


class DropPath(nn.Module):
    """Stochastic depth: drop the branch of a sample and scale the other samples up, so that the mean stays.

    Source: https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_B: Tensor) -> Tensor:
        """Any shape that starts with B."""
        if not self.training or self.rate == 0:
            return x_B
        kept_B = x_B.new_empty(x_B.shape[0], *[1] * (x_B.ndim - 1)).bernoulli_(1 - self.rate)
        return x_B * (kept_B / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def drop_path(rate: float) -> nn.Module:
    """Return a `DropPath`, or an identity where the rate is 0."""
    return DropPath(rate) if rate > 0 else nn.Identity()


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Return rates that grow linearly over all blocks, from 0 at the first to `last`, grouped by stage.

    Raises:
        ValueError: `last` is not in [0, 1).
    """
    if not 0 <= last < 1:
        raise ValueError(f"drop_path_rate is the share of branches to drop, at least 0 and below 1; got {last}")
    rates = iter(torch.linspace(0, last, sum(depths), device="cpu").tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


class LayerNorm2d(nn.Module):
    """LayerNorm over the channels of a (B, C, H, W) map, without a copy where the memory is channels-last.

    It is no `nn.LayerNorm`, because that norms the last axis, and tools that swap norms would rely on it.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Gain 1, bias 0."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        shape = self.weight.shape
        return F.layer_norm(x_BCHW.movedim(1, -1), shape, self.weight, self.bias, self.eps).movedim(-1, 1)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps:g}"


class ChannelsLast(nn.ModuleList):
    """Layers one after the other, in channels-last memory: (B, C, H, W) to (B, C', H', W')."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = channels_last(x_BCHW)
        for layer in self:
            x_BCHW = activated(layer, x_BCHW) if isinstance(layer, nn.GELU) else layer(x_BCHW)
        return x_BCHW


class Mlp(nn.Module):
    """Widen, GELU, narrow, over the last axis of (B, H, W, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.reduce = nn.Linear(hidden, dim)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        return mlp(self.expand, self.act, self.reduce, x_BHWC, scale_C)


def resized_position(position_1CHW: Tensor, height: int, width: int) -> Tensor:
    """Return the position embedding for a map of this size, resized bicubically where the size is another."""
    if known_true(position_1CHW.shape[-2] == height) and known_true(position_1CHW.shape[-1] == width):
        return position_1CHW
    return resize_bicubically(position_1CHW, (height, width))


def sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of an image size given as one side or as two.

    Raises:
        ValueError: a side is below 32 pixels.
    """
    both = (img_size, img_size) if isinstance(img_size, int) else img_size
    if not isinstance(both, Sequence) or len(both) != 2 or not all(isinstance(side, int) for side in both):
        raise ValueError(f"img_size is one side in pixels, or (height, width); got {img_size!r}")
    height, width = both
    if min(height, width) < 32:
        raise ValueError(f"img_size {height} x {width} is below the smallest image, 32 x 32 pixels; give a larger one")
    return height, width


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, *, recompute: bool) -> Tensor:
    """Run the blocks one after the other; with `recompute` each keeps only its input for the backward pass."""
    for block in blocks:
        x = recomputed(block, x) if recompute and torch.is_grad_enabled() else block(x)
    return x


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer: weights normal with std 0.02, cut at +-2 (which hardly ever happens), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
