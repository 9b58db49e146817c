"""Mixers with one fault each, by the line of the card that must report it. B images, H x W cells, C channels."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Good(nn.Module):
    """The mean of a neighbourhood through a linear layer; any fault below is added to it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.out(self.mean(x_BHWC.movedim(-1, 1)).movedim(1, -1) - x_BHWC)


class WrongShape(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC)[..., :3]


class NoTensor(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return [super().forward(x_BHWC)]  # type: ignore[return-value]


class NotFinite(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC).log()


class Raises(Good):
    def __init__(self, dim: int) -> None:
        raise RuntimeError(f"no luck with {dim}")


class Exits(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        raise SystemExit(0)


class FixedSize(Good):
    """Learned positions for one size."""

    def __init__(self, dim: int, map_size: tuple[int, int]) -> None:
        super().__init__(dim)
        self.position = nn.Parameter(torch.zeros(*map_size, dim))

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC + self.position)


class AcrossImages(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC) + x_BHWC.mean(dim=(0, 1, 2))


class UnusedParameter(Good):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.unused = nn.Linear(dim, dim)


class Detached(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC.detach())


class InfiniteGradient(Good):
    """A norm that is 0 for one channel, whose root has no finite gradient."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC) + (x_BHWC * 0).sum(-1, keepdim=True).sqrt()


class Overflow16(Good):
    """Values up to 3e5 on the way, which float16 has not."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC * 3e5 / 3e5)


class OverflowBoth(Good):
    """Float16 has no 3e5, and bfloat16 neither the square of 1e20 in bfloat16's exponent."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC) if x_BHWC.dtype != torch.bfloat16 else super().forward(x_BHWC * 1e20 * 1e20)


class OneType(Good):
    """A float32 constant, which a half-precision layer cannot take."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC + torch.zeros(x_BHWC.shape[-1]))


class GraphBreak(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return super().forward(x_BHWC)


class FixedBatch(Good):
    """An int of a symbolic shape, which makes an exported program one of a fixed size."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            assert x_BHWC.shape[1] < 17
        return super().forward(x_BHWC)


class Running(Good):
    """Statistics that a second forward pass counts again."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("average", torch.zeros(dim))
        self.average: Tensor

    def forward(self, x_BHWC: Tensor) -> Tensor:
        if self.training:
            self.average = 0.9 * self.average + 0.1 * x_BHWC.detach().mean(dim=(0, 1, 2))
        return super().forward(x_BHWC)


class RandomInEvaluation(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC) + 0.1 * torch.randn_like(x_BHWC)


class RandomOfItsOwn(Good):
    """Draws in training that no seed repeats."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        mixed_BHWC = super().forward(x_BHWC)
        if not self.training:
            return mixed_BHWC
        return mixed_BHWC * (1 + torch.rand((), generator=_OWN))


_OWN = torch.Generator().manual_seed(7)


class CellByCell(Good):
    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.out(x_BHWC)


FAULTS: tuple[tuple[str, Callable[..., nn.Module], str], ...] = (  # the line, the mixer, a word of the finding
    ("shapes", WrongShape, "gave (2, 16, 16, 3)"),
    ("shapes", NoTensor, "gave a list"),
    ("shapes", NotFinite, "NaN"),
    ("shapes", Raises, "no luck with 64 (faults.py, line"),
    ("shapes", Exits, "SystemExit"),
    ("any size", FixedSize, "5 of 5 sizes fail"),
    ("batch equals single", AcrossImages, "with others"),
    ("gradients", UnusedParameter, "unused.weight, unused.bias"),
    ("gradients", Detached, "for the input"),
    ("gradients", InfiniteGradient, "NaN or inf"),
    ("bfloat16", OverflowBoth, "NaN or inf"),
    ("float16", Overflow16, "NaN or inf"),
    ("compiles", GraphBreak, "faults.py, line"),
    ("exports", FixedBatch, "stage 1"),
    ("checkpointing", Running, "the buffer average"),
    ("deterministic", RandomInEvaluation, "evaluation"),
    ("deterministic", RandomOfItsOwn, "same seed"),
)
