"""What the mixers of a network do with one image: modulators, attention, sampling points, distances.

C channels, h heads, H x W cells, R x S cells of a grid, g groups of heads.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.analysis.attention import (
    ATTENTION,
    MIXERS,
    Attention,
    attention_of,
    mean_distances,
    points_of,
)
from fourstage.analysis.taps import as_float32, frozen, taken_by
from fourstage.analysis.unsuitable import UnsuitableNetwork
from fourstage.backbones.base import Backbone
from fourstage.backbones.mixers.deformable import DeformableMixer
from fourstage.backbones.mixers.modulation import ScaleAwareModulation

GRID = 14  # points a side, of the attention of many cells
GRID_HEADS = 4  # whose attention is kept for them
GRID_CELLS = 2**20  # of all maps of one layer together; a larger map has fewer points


@dataclass(frozen=True)
class AttentionGrid:
    """How much each of some cells takes from every cell, for a page on which a reader chooses the cell.

    Attributes:
        rows_R, columns_S: of these cells; the given point's cell is among them.
        weights_gRSHW: the mean over heads, then the first heads.
    """

    rows_R: np.ndarray
    columns_S: np.ndarray
    weights_gRSHW: np.ndarray


@dataclass(frozen=True)
class MixerMaps:
    """What one mixer does with one image.

    Attributes:
        name: of the module.
        kind: name of its class.
        stride: pixels a cell.
        distances_h: mean distance in pixels, for each head or scale; a convolution has one.
        modulator_HW: of SMT, the mean over channels of the absolute modulator, which is multiplied with the values.
        heads_hHW: of SMT, the same of each scale's depth-wise convolution; of attention, the weights of the given cell.
        points_hP2, weights_hP: of DCNv3, the points of the given cell, (x, y) in the image's pixels, and their weights.
        cell: (row, column) of the given point on this map.
        grid: of attention, the weights of many cells, where these were requested.
    """

    name: str
    kind: str
    stride: float
    size: tuple[int, int]
    cell: tuple[int, int]
    distances_h: np.ndarray
    modulator_HW: np.ndarray | None = None
    heads_hHW: np.ndarray | None = None
    points_hP2: np.ndarray | None = None
    weights_hP: np.ndarray | None = None
    grid: AttentionGrid | None = None


def mixer_maps(
    network: nn.Module,
    image_BCHW: Tensor,
    point: tuple[float, float] | None = None,
    *,
    last_of_stage: bool = False,
    grid: int = 0,
) -> list[MixerMaps]:
    """Return what each mixer of a network does with the first image, from the image on.

    Args:
        point: (x, y) in pixels of the image, for attention and sampling points; None: the middle.
        last_of_stage: of each stage only the last mixer of each kind; for figures.
        grid: points a side for which these last mixers keep their attention as well; 0: none.

    Raises:
        ValueError: the network has no mixers of this package, or the point is outside of the image.
    """
    backbone: Any = getattr(network, "backbone", network)
    mixers = {name: module for name, module in backbone.named_modules() if isinstance(module, MIXERS)}
    if not isinstance(backbone, Backbone) or not mixers:
        raise UnsuitableNetwork(
            backbone,
            "has none of this package's mixers",
            "maps are for swin, scalable_vit, smt and unified networks",
        )
    height, width = image_BCHW.shape[-2:]
    x, y = point or (width / 2, height / 2)
    check_point((x, y), (height, width))
    last = _last_of_each_stage(mixers)
    chosen = last if last_of_stage else list(mixers)
    with frozen(network), torch.no_grad():
        inputs, gates = _run(backbone, mixers, chosen, image_BCHW)
        return [
            _of_mixer(
                name, mixers[name], inputs[name], gates.get(name), (height, width), (x, y), grid if name in last else 0
            )
            for name in chosen
        ]


def check_point(point: tuple[float, float], size: tuple[int, int]) -> None:
    """Raise ValueError where a point (x, y) is outside of an image of (H, W) pixels."""
    (x, y), (height, width) = point, size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"the point {x:g},{y:g} is outside of the image of {width} x {height} pixels; give X,Y in it")


def _last_of_each_stage(mixers: dict[str, nn.Module]) -> list[str]:
    """Return names; `stages.2.blocks.5.attn` is of stage `stages.2`."""
    last: dict[tuple[str, type], str] = {}
    for name, mixer in mixers.items():
        last[name.partition(".blocks.")[0], type(mixer)] = name
    kept = set(last.values())
    return [name for name in mixers if name in kept]


def _run(
    backbone: Backbone, mixers: dict[str, nn.Module], chosen: Sequence[str], image_BCHW: Tensor
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, list[Tensor]]]]:
    """Return the input of each chosen mixer, and of SMT's the modulator and the maps of its scales."""
    inputs: dict[str, Tensor] = {}
    gates: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    with ExitStack() as stack:

        def keep_input(name: str) -> Any:
            return lambda _module, given: inputs.__setitem__(name, given[0])

        def keep_output(kept: list[Tensor]) -> Any:
            return lambda _module, _given, output: kept.append(output)

        for name in chosen:
            mixer = mixers[name]
            stack.callback(mixer.register_forward_pre_hook(keep_input(name)).remove)
            if isinstance(mixer, ScaleAwareModulation):
                gates[name] = ([], [])
                stack.callback(mixer.mix.register_forward_hook(keep_output(gates[name][0])).remove)
                for window in mixer.windows:
                    stack.callback(window.register_forward_hook(keep_output(gates[name][1])).remove)
        backbone.forward_maps(taken_by(backbone, image_BCHW[:1]))
    return inputs, {name: (gate[0], scales) for name, (gate, scales) in gates.items()}


def _of_mixer(
    name: str,
    mixer: nn.Module,
    x_BHWC: Tensor,
    gate: tuple[Tensor, list[Tensor]] | None,
    image: tuple[int, int],
    point: tuple[float, float],
    grid: int,
) -> MixerMaps:
    rows, columns = x_BHWC.shape[1:3]
    stride = image[0] / rows
    cell = (int(point[1] * rows / image[0]), int(point[0] * columns / image[1]))
    known: dict[str, Any] = {}
    if gate is not None:
        known["modulator_HW"] = _mean_size(gate[0])
        known["heads_hHW"] = np.stack([_mean_size(scale) for scale in gate[1]])
    elif isinstance(mixer, DeformableMixer):
        points = points_of(mixer, x_BHWC)
        own = cell[0] * columns + cell[1]
        per_cell_2 = points.points_QhP2.new_tensor([image[1] / columns, image[0] / rows])
        known["points_hP2"] = ((points.points_QhP2[own] + 0.5) * per_cell_2 - 0.5).cpu().numpy()
        known["weights_hP"] = points.weights_QhP[own].cpu().numpy()
    elif isinstance(mixer, tuple(ATTENTION)):
        attention = attention_of(mixer, x_BHWC)
        known["heads_hHW"] = _array(attention.of(*cell))
        known["grid"] = attention_grid(attention, cell, grid)
    distances_h = mean_distances(mixer, x_BHWC) * stride
    return MixerMaps(name, type(mixer).__name__, stride, (rows, columns), cell, distances_h, **known)


def attention_grid(attention: Attention, cell: tuple[int, int], points: int) -> AttentionGrid | None:
    """Return the attention of at most `points` x `points` cells; None where the map is too large for two a side.

    Args:
        cell: (row, column) of one that is among them.
    """
    heads = attention.weights_GhNM.shape[1]
    groups = 1 + min(heads, GRID_HEADS)
    points = min(points, int((GRID_CELLS / (groups * attention.size[0] * attention.size[1])) ** 0.5))
    if points < 2:
        return None
    rows_R, columns_S = (_spread(side, points, own) for side, own in zip(attention.size, cell, strict=True))
    weights = [[attention.of(int(row), int(column)) for column in columns_S] for row in rows_R]
    every_RShHW = torch.stack([torch.stack(own) for own in weights])
    mean_RS1HW = every_RShHW.mean(dim=2, keepdim=True)
    kept = torch.cat([mean_RS1HW, every_RShHW[:, :, :GRID_HEADS]], dim=2).movedim(2, 0)
    return AttentionGrid(rows_R, columns_S, _array(kept))


def _spread(side: int, points: int, own: int) -> np.ndarray:
    """Return the numbers of at most `points` cells of a side, evenly spread, one of them its own."""
    count = min(points, side)
    out = (np.arange(count) * side + side // 2) // count
    out[np.abs(out - own).argmin()] = own
    return out


def _mean_size(x_BCHW: Tensor) -> np.ndarray:
    """Return the mean over channels of the absolute values of the first image, as SMT's notebook draws it."""
    return _array(x_BCHW[0].abs().mean(dim=0))


def _array(x: Tensor) -> np.ndarray:
    return as_float32(x).cpu().numpy()
