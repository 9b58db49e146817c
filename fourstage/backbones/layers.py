"""Parts that two families or more are made of. B images, C channels, H x W cells; BCHW maps are often views of BHWC."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourstage.ops.matmul import Linear, LinearGelu, by_rows
from fourstage.ops.shapes import known_true

IN_CACHE = 5 * 2**19  # bytes of the map that enters a stage; the widest map within is some four times as large


@dataclass(frozen=True)
class Level:
    """One map that a backbone gives."""

    channels: int
    stride: int  # image pixels per cell


class DropPath(nn.Module):
    """Stochastic depth: drop the whole branch of a sample, scale the others up so that the mean stays.

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
    """Nothing at all where the rate is 0."""
    return DropPath(rate) if rate > 0 else nn.Identity()


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow linearly over all blocks, from 0 at the first to `last`, grouped by stage.

    Raises:
        ValueError: `last` is not in [0, 1).
    """
    if not 0 <= last < 1:
        raise ValueError(f"drop_path_rate is the share of branches to drop, at least 0 and below 1; got {last}")
    rates = iter(torch.linspace(0, last, sum(depths), device="cpu").tolist())
    return [[next(rates) for _ in range(depth)] for depth in depths]


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map; no copy where the map lies channels-last in memory."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class Mlp(nn.Sequential):
    """Widen, GELU, narrow, over the last axis of (B, H, W, C)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.expand = LinearGelu(dim, hidden)
        self.reduce = Linear(hidden, dim)

    def forward(self, input: Tensor) -> Tensor:
        return by_rows(super().forward, input, self.expand.out_features)


class LayerScale(nn.Module):
    """A learned factor for each channel of a branch, over the last axis of (B, H, W, C).

    Source: https://arxiv.org/abs/2103.17239.
    """

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


def resized_position(position_1CHW: Tensor, height: int, width: int) -> Tensor:
    """A position embedding for a map of this size: the table itself at its own size, else bicubic."""
    if known_true(position_1CHW.shape[-2] == height) and known_true(position_1CHW.shape[-1] == width):
        return position_1CHW
    return F.interpolate(position_1CHW, size=(height, width), mode="bicubic", align_corners=False)


def sides(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image size given as one side or as two.

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
    """The blocks one after the other; with `recompute` each keeps only its input for the backward pass."""
    for block in blocks:
        x = recomputed(block, x) if recompute and torch.is_grad_enabled() else block(x)
    return x


def in_parts(stage: nn.Module, x_B: Tensor) -> Tensor:
    """`stage(x)`; on a CPU without gradients few images at a time.

    What passes between layers then stays in the processor's cache, in memory that the process has already.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x_B.device.type != "cpu":
        return stage(x_B)
    if x_B.numel() * x_B.element_size() <= IN_CACHE:  # an empty batch too
        return stage(x_B)
    if any(m.training or m._forward_hooks or m._forward_pre_hooks for m in stage.modules()):
        return stage(x_B)  # batch statistics and whoever looks in need the whole batch
    images = IN_CACHE * len(x_B) // (x_B.numel() * x_B.element_size())
    return torch.cat([stage(part) for part in x_B.split(max(1, images))])


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)` under activation checkpointing, the same to the last bit: batch statistics are counted once."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _uncounted(block)

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """The second forward pass of checkpointing must not move the running statistics again."""
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    before = [(m, m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:  # as many tensors as in the first pass, but none of them changes
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, momentum, counter in before:
            norm.momentum, norm.num_batches_tracked = momentum, counter


def init_linear(module: nn.Module) -> None:
    """Linear layers: weights normal with std 0.02, cut at +-2 (which hardly ever happens), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
