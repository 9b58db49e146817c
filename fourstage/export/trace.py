"""From a graph to a program of `torch.export`, for fixed sizes or for any."""

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from fourstage.export.graphs.base import Graph

AXES = ("batch", "height", "width")
SMALLEST = 32  # pixels of a side
LARGEST = 4096  # pixels of a dynamic side
MOST_IMAGES = 256  # of a dynamic batch
EXTRA = (150, 102)  # pixels above the smallest sides of the example that is traced: no two axes are equal


@dataclass(frozen=True)
class Traced:
    """A program and the sizes that it serves.

    Attributes:
        smallest: pixels of the smallest dynamic side; 1 where no side is dynamic.
    """

    program: ExportedProgram
    smallest: int


def check_axes(axes: Collection[str]) -> None:
    """Raise ValueError for an unknown name of an axis."""
    for name in axes:
        if name not in AXES:
            raise ValueError(f"there is no axis {name!r}; --dynamic takes some of {', '.join(AXES)}, such as batch")


def trace(graph: Graph, size: tuple[int, int], axes: Collection[str] = ()) -> Traced:
    """Record a graph.

    Args:
        graph: in evaluation mode, on the CPU.
        size: (H, W) of its images, pixels; dynamic sides begin at the smaller one if they cannot begin before.
        axes: the names of dynamic axes, of `AXES`.

    Raises:
        ValueError: PyTorch cannot record the network for such axes.
    """
    check_axes(axes)
    for axis, side in zip(AXES[1:], size, strict=True):
        if axis not in axes and side % graph.multiple:
            raise ValueError(
                f"a {axis} of {side} pixels is not a multiple of {graph.multiple}, to which this detector fills images "
                f"up; give --size in multiples of {graph.multiple}, or --dynamic height,width"
            )
    from torch._dynamo.exc import UserError

    reason = ""
    for smallest in first_sides(graph, size) if {"height", "width"} & set(axes) else (1,):
        try:
            return Traced(_program(graph, size, axes, smallest), smallest)
        except (UserError, AssertionError) as error:  # a guard that smaller sizes break
            reason = " ".join(str(error).split())
    raise ValueError(
        f"PyTorch {torch.__version__} cannot record this network for every {' and '.join(sorted(axes))} "
        f"({reason:.200}); leave --dynamic out, which fixes the size, or name fewer axes"
    )


def first_sides(graph: Graph, size: tuple[int, int]) -> list[int]:
    """Return from which sides on a graph may serve all sizes, also from that of its own images, in order."""
    own = min(size) // graph.multiple * graph.multiple
    return sorted({*graph.smallest_sides, own} if own >= SMALLEST else graph.smallest_sides)


def _program(graph: Graph, size: tuple[int, int], axes: Collection[str], smallest: int) -> ExportedProgram:
    height, width = (
        (smallest + extra) // graph.multiple * graph.multiple if axis in axes else side
        for axis, side, extra in zip(AXES[1:], size, EXTRA, strict=True)
    )
    images_B3HW = torch.randn(2 if "batch" in axes else 1, 3, height, width)
    arguments: tuple[Any, ...] = (images_B3HW,)
    shapes: tuple[Mapping[int, Any], ...] = (_dims(axes, smallest, graph.multiple),)
    if graph.reads_sizes:
        arguments = (images_B3HW, torch.tensor([[height, width]]).expand(len(images_B3HW), -1).contiguous())
        shapes = (*shapes, {0: shapes[0][0]} if "batch" in axes else {})
    from torch.fx.experimental import _config

    # without it, PyTorch asks whether a batch or a map is larger than one, which fixes a graph to some sizes
    oblivious: Any = getattr(_config, "patch")(backed_size_oblivious=True)  # noqa: B009 - it has no type
    with warnings.catch_warnings(), oblivious, torch.no_grad():
        warnings.simplefilter("ignore")  # of torch about itself
        return torch.export.export(graph, arguments, dynamic_shapes=shapes)


def _dims(axes: Collection[str], smallest: int, multiple: int) -> dict[int, Any]:
    """Return the dynamic axes of the images. A side is written as a multiple, so that its maps divide evenly."""
    dims: dict[int, Any] = {0: Dim("batch", min=1, max=MOST_IMAGES)} if "batch" in axes else {}
    for number, axis in ((2, "height"), (3, "width")):
        if axis in axes and multiple == 1:
            dims[number] = Dim(axis, min=smallest, max=LARGEST)
        elif axis in axes:
            dims[number] = multiple * Dim(f"{axis}_cells", min=smallest // multiple, max=LARGEST // multiple)
    return dims
