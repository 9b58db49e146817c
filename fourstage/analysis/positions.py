"""Where in the image a cell of a feature map is centred. Rows and columns count pixels from 0."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Strided:
    """A layer that makes a map smaller, as it was called."""

    before: tuple[int, int]  # (H, W) of its input
    after: tuple[int, int]
    kernel: int
    padding: int


def unit_centre(
    layers: Sequence[Strided], image: tuple[int, int], sizes: Sequence[tuple[int, int]], unit: tuple[int, int]
) -> tuple[float, float]:
    """Return the pixel (row, column) on which a cell of a feature map is centred.

    Unit i of a patch embedding of stride s is centred on s (i + 0.5) - 0.5, and of padded 3 x 3 layers on s i. A step
    between two maps that no layer makes is a merge of patches.

    Args:
        layers: those with a stride, in the order of their calls; see `strided_layers`.
        image: (H, W), pixels.
        sizes: (H, W) of the maps from the first one to the one of the unit.
        unit: row and column of the cell.
    """
    rows, columns = ([size[axis] for size in sizes] for axis in (0, 1))
    row = _position(unit[0], image[0], rows, [(s.before[0], s.after[0], s) for s in layers])
    return row, _position(unit[1], image[1], columns, [(s.before[1], s.after[1], s) for s in layers])


@contextmanager
def strided_layers(network: nn.Module) -> Iterator[list[Strided]]:
    """Collect the layers that make maps smaller, in the order of their calls, while the context is open."""
    found: list[Strided] = []

    def hook(module: Any, inputs: Any, output: Any) -> None:
        before, after = inputs[0].shape[-2:], output.shape[-2:]
        found.append(Strided(tuple(before), tuple(after), _side(module.kernel_size), _side(module.padding)))

    with ExitStack() as stack:
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and _side(module.stride) > 1:
                stack.callback(module.register_forward_hook(hook).remove)
        yield found


def _side(value: Any) -> int:
    value = value[0] if isinstance(value, tuple) else value
    return value if isinstance(value, int) else 0


def _position(unit: int, pixels: int, cells: Sequence[int], layers: Sequence[tuple[int, int, Strided]]) -> float:
    """Return the pixel on which a unit is centred along one axis.

    From one map to the next the last layer that fits is taken: the layers that reduce keys within a stage, as in PVT,
    are called before the next stage begins.
    """
    jump, start, current = 1.0, 0.0, pixels
    for target in cells:
        while current > target:
            fitting = [row for row in layers if row[0] == current and target <= row[1] < current]
            if fitting:
                _, after, layer = fitting[-1]
                start += ((layer.kernel - 1) / 2 - layer.padding) * jump
            else:
                after = target
                start += (round(current / target) - 1) / 2 * jump
            jump *= round(current / after)
            current = after
    return start + jump * unit
