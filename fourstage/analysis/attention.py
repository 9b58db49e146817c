"""Where cells of a map look: the attention weights of this package's mixers, put back into the map.

h heads, H x W cells, G groups of cells that attend alike (windows, blocks, or the whole map), N queries and M keys of a
group; C channels, d of a head.

The weights are computed again from a mixer's input and parameters: its forward pass keeps none. Attention rollout is
not offered, because windows move and change their size between layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.mixers.deformable import DeformableMixer
from fourstage.backbones.mixers.depthwise import DepthwiseMixer
from fourstage.backbones.mixers.halo import HaloMixer
from fourstage.backbones.mixers.modulation import LocalGlobalAttention, ScaleAwareModulation
from fourstage.backbones.mixers.reduction import ReductionAttention
from fourstage.backbones.mixers.scalable import GlobalAttention, InteractiveWindowAttention, ScalableAttention
from fourstage.backbones.mixers.window import WindowAttention
from fourstage.ops.sampling import kernel_cells
from fourstage.ops.shapes import ceil_div, pad_to
from fourstage.ops.window_masks import Visibility

NONE = -1  # for cells that only fill up a window


@dataclass(frozen=True)
class Attention:
    """The attention weights of one mixer for one image.

    Attributes:
        weights_GhNM: sum to 1 over the keys.
        queries_GN: number of each query's cell, row by row; -1 where it only fills up a window.
        keys_GM: number of each key on the map of keys; -1 likewise.
        size: (H, W) of the map.
        key_size: (rows, columns) of the map of keys, where keys stand for squares of `reduction` cells a side.
    """

    weights_GhNM: Tensor
    queries_GN: Tensor
    keys_GM: Tensor
    size: tuple[int, int]
    key_size: tuple[int, int]
    reduction: int = 1

    def of(self, row: int, column: int) -> Tensor:
        """Return (h, H, W): how much a cell takes from every other. A key that stands for a square fills all of it.

        Raises:
            ValueError: the map has no such cell.
        """
        height, width = self.size
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"the map has {height} x {width} cells, and no cell {row}, {column}")
        [group, place] = (self.queries_GN == row * width + column).nonzero()[0].tolist()
        weights_hM, keys_M = self.weights_GhNM[group, :, place], self.keys_GM[group]
        out_hK = weights_hM.new_zeros((len(weights_hM), self.key_size[0] * self.key_size[1]))
        known_M = keys_M != NONE
        out_hK.index_add_(1, keys_M[known_M], weights_hM[:, known_M])
        out_hHW = out_hK.unflatten(1, self.key_size)
        if self.reduction == 1:
            return out_hHW
        wide = out_hHW.repeat_interleave(self.reduction, 1).repeat_interleave(self.reduction, 2)
        return pad_like(wide, height, width) / self.reduction**2

    def mean_distance(self) -> Tensor:
        """Return (h,): the distance in cells from queries to their keys, weighted, as the mean over all cells."""
        queries_GN2, keys_GM2 = _places(self.queries_GN, self.size[1]), _places(self.keys_GM, self.key_size[1])
        keys_GM2 = (keys_GM2 + 0.5) * self.reduction - 0.5
        apart_GNM = torch.cdist(queries_GN2, keys_GM2)
        known_GNM = (self.keys_GM != NONE)[:, None, :] & (self.queries_GN != NONE)[:, :, None]
        apart_GNM = torch.where(known_GNM, apart_GNM, torch.zeros_like(apart_GNM))
        total_h = torch.einsum("ghnm,gnm->h", self.weights_GhNM.double(), apart_GNM.double())
        return total_h / int((self.queries_GN != NONE).sum())


@dataclass(frozen=True)
class SamplingPoints:
    """The points that each cell of a map reads, of deformable mixers, for one image. P points a head.

    Attributes:
        points_QhP2: (x, y) in cells; a point may lie outside of the map, where it reads zeros.
        weights_QhP: sum to 1 over a head's points.
        size: (H, W) of the map; cell Q is row by row.
    """

    points_QhP2: Tensor
    weights_QhP: Tensor
    size: tuple[int, int]

    def mean_distance(self) -> Tensor:
        """Return (h,): the weighted distance in cells from a cell to its points, as the mean over all cells."""
        number_Q = torch.arange(len(self.points_QhP2), device=self.points_QhP2.device)
        own_Q2 = _places(number_Q[None], self.size[1])[0].flip(-1).to(self.points_QhP2)
        apart_QhP = (self.points_QhP2 - own_Q2[:, None, None]).norm(dim=-1)
        return (apart_QhP * self.weights_QhP).sum(-1).double().mean(0)


def pad_like(x_hHW: Tensor, height: int, width: int) -> Tensor:
    """Return a map of this size: cells at the right and at the bottom that no key stands for get zero."""
    x_hHW = x_hHW[:, :height, :width]
    return F.pad(x_hHW, (0, width - x_hHW.shape[2], 0, height - x_hHW.shape[1]))


def _places(number: Tensor, width: int) -> Tensor:
    """Return (..., 2) float32: row and column of cells by their number."""
    return torch.stack([number.div(width, rounding_mode="floor"), number % width], dim=-1).float()


def attention_of(mixer: nn.Module, x_BHWC: Tensor) -> Attention:
    """Return the attention weights of a mixer for the first image of its input.

    Raises:
        ValueError: the mixer does not attend.
    """
    for kind, compute in ATTENTION.items():
        if isinstance(mixer, kind):
            with torch.no_grad():
                return compute(mixer, x_BHWC[:1])
    names = ", ".join(kind.__name__ for kind in ATTENTION)
    raise ValueError(f"{type(mixer).__name__} has no attention weights to read; this works for {names}")


def points_of(mixer: DeformableMixer, x_BHWC: Tensor) -> SamplingPoints:
    """Return the points of a deformable mixer for the first image of its input."""
    height, width = x_BHWC.shape[1:3]
    with torch.no_grad():
        look_BHWC = mixer.act(mixer.norm(mixer.look(x_BHWC[:1].movedim(-1, 1)).movedim(1, -1)))
        offset = mixer.offset(look_BHWC)[0].flatten(0, 1).unflatten(-1, (mixer.heads, -1, 2))
        weight = mixer.weigh(look_BHWC)[0].flatten(0, 1).unflatten(-1, (mixer.heads, -1))
    cells_QP2 = kernel_cells(height, width, mixer.kernel, device=x_BHWC.device)
    return SamplingPoints(cells_QP2[:, None] + offset.float(), weight.float().softmax(-1), (height, width))


def _window(mixer: WindowAttention, x_BHWC: Tensor) -> Attention:
    height, width = x_BHWC.shape[1:3]
    window, shift = mixer.layout(height, width)
    tall, wide = (ceil_div(side, window) * window for side in (height, width))
    cells_1HW1 = F.pad(_numbers(height, width, x_BHWC.device), (0, wide - width, 0, tall - height), value=NONE)
    cells_nN = _split(cells_1HW1[None, ..., None].roll((-shift, -shift), (1, 2)), window, window)[..., 0]
    padded_BHWC = pad_to(x_BHWC, tall, wide).roll((-shift, -shift), (1, 2))
    qkv = _split(mixer.qkv(padded_BHWC), window, window).unflatten(-1, (3, mixer.heads, -1))  # n, N, 3, h, d
    q, k = qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2)
    visibility = Visibility(height, width, window, shift, see_padding=mixer.dense)
    products = (q @ k.transpose(-2, -1)) * mixer.scale + mixer.bias(window)
    hidden_nNN = ~visibility.pairs(x_BHWC.device)
    weights = products.masked_fill(hidden_nNN[:, None], torch.finfo(products.dtype).min / 2).softmax(-1)
    return Attention(weights, cells_nN, cells_nN, (height, width), (height, width))


def _interactive(mixer: InteractiveWindowAttention, x_BHWC: Tensor) -> Attention:
    height, width = x_BHWC.shape[1:3]
    down, across = min(height, mixer.window), min(width, mixer.window)
    tall, wide = ceil_div(height, down) * down, ceil_div(width, across) * across
    cells = F.pad(_numbers(height, width, x_BHWC.device), (0, wide - width, 0, tall - height), value=NONE)
    cells_nN = _split(cells[None, ..., None], down, across)[..., 0]
    q_BHWC, k_BHWC, _ = mixer.qkv(x_BHWC).chunk(3, dim=-1)
    q, k = (
        _split(pad_to(one, tall, wide), down, across).unflatten(-1, (mixer.heads, -1)).transpose(1, 2)
        for one in (q_BHWC, k_BHWC)
    )
    products = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    hidden = (cells_nN == NONE)[:, None, None, :]
    weights = products.masked_fill(hidden, torch.finfo(products.dtype).min / 2).softmax(-1)
    return Attention(weights, cells_nN, cells_nN, (height, width), (height, width))


def _halo(mixer: HaloMixer, x_BHWC: Tensor) -> Attention:
    height, width = x_BHWC.shape[1:3]
    block, halo, window = mixer.block, mixer.halo, mixer.window
    tall, wide = (ceil_div(side, block) * block for side in (height, width))
    x_BHWC = pad_to(x_BHWC, tall, wide)
    q_BnmhNd = mixer.blocks(mixer.q(x_BHWC))
    visible = (tall, wide) if mixer.dense else (height, width)
    rows, columns = mixer.position_terms(q_BnmhNd, *visible)
    padded = F.pad(mixer.kv(x_BHWC), (0, 0, halo, halo, halo, halo))
    windows = padded.unfold(1, window, block).unfold(2, window, block).unflatten(3, (mixer.heads, 2, -1))
    k = windows[0, :, :, :, 0].flatten(4, 5)  # n, m, h, d, M
    products = (q_BnmhNd[0] @ k) * mixer.head_dim**-0.5 + (rows[..., :, None] + columns[..., None, :])[0].flatten(4, 5)
    cells = F.pad(_numbers(height, width, x_BHWC.device), (0, wide - width, 0, tall - height), value=NONE)
    around = F.pad(cells, (halo,) * 4, value=NONE).unfold(0, window, block).unfold(1, window, block)
    queries_GN = _split(cells[None, ..., None], block, block)[..., 0]
    weights_GhNM = products.softmax(-1).flatten(0, 1)
    return Attention(weights_GhNM, queries_GN, around.flatten(0, 1).flatten(1), (height, width), (height, width))


def _reduction(mixer: ReductionAttention, x_BHWC: Tensor) -> Attention:
    keys_BHWC = mixer.reduced(x_BHWC)
    k_BHWC = mixer.kv(keys_BHWC).chunk(2, dim=-1)[0]
    return _global(mixer.q(x_BHWC), k_BHWC, mixer.heads, None, mixer.reduction)


def _scalable(mixer: ScalableAttention, x_BHWC: Tensor) -> Attention:
    return _global(mixer.q(x_BHWC), mixer.k(mixer.reduced(x_BHWC)), mixer.heads, None, mixer.reduction)


def _at_full_width(mixer: GlobalAttention, x_BHWC: Tensor) -> Attention:
    return _global(mixer.q(x_BHWC), mixer.kv(x_BHWC).chunk(2, dim=-1)[0], mixer.heads, mixer.scale, 1)


def _local_global(mixer: LocalGlobalAttention, x_BHWC: Tensor) -> Attention:
    return _global(mixer.q(x_BHWC), mixer.kv(x_BHWC).chunk(2, dim=-1)[0], mixer.heads, None, 1)


def _global(q_BHWC: Tensor, k_BHWC: Tensor, heads: int, scale: float | None, reduction: int) -> Attention:
    """Return the attention of all cells to all keys."""
    (height, width), (rows, columns) = q_BHWC.shape[1:3], k_BHWC.shape[1:3]
    q, k = (one.flatten(1, 2)[0].unflatten(-1, (heads, -1)).transpose(0, 1) for one in (q_BHWC, k_BHWC))
    weights_hNM = ((q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)).softmax(-1)
    queries_1N, keys_1M = (_numbers(*size, q.device).flatten()[None] for size in ((height, width), (rows, columns)))
    return Attention(weights_hNM[None], queries_1N, keys_1M, (height, width), (rows, columns), reduction)


def _numbers(height: int, width: int, device: torch.device) -> Tensor:
    return torch.arange(height * width, device=device).view(height, width)


def _split(x_1HWC: Tensor, tall: int, wide: int) -> Tensor:
    """Return (n, N, C): the windows of a map that they fit, row by row."""
    windows = x_1HWC[0].unflatten(1, (-1, wide)).unflatten(0, (-1, tall)).transpose(1, 2)
    return windows.flatten(0, 1).flatten(1, 2)


ATTENTION: dict[type[nn.Module], Callable[[Any, Tensor], Attention]] = {
    WindowAttention: _window,
    InteractiveWindowAttention: _interactive,
    HaloMixer: _halo,
    ReductionAttention: _reduction,
    ScalableAttention: _scalable,
    GlobalAttention: _at_full_width,
    LocalGlobalAttention: _local_global,
}
CONVOLVING = (DepthwiseMixer, ScaleAwareModulation)
MIXERS = (*ATTENTION, DeformableMixer, *CONVOLVING)


def mean_distances(mixer: nn.Module, x_BHWC: Tensor) -> np.ndarray:
    """Return the mean distance in cells that a mixer looks over: one number for each head, or scale, or layer.

    Of a convolution it is the mean over channels of the absolute kernel's, which does not depend on the image.

    Raises:
        ValueError: the mixer is not known here.
    """
    if isinstance(mixer, DepthwiseMixer):
        return np.array([_kernel_distance(mixer.spatial.weight)])
    if isinstance(mixer, ScaleAwareModulation):
        return np.array([_kernel_distance(window.get_parameter("weight")) for window in mixer.windows])
    if isinstance(mixer, DeformableMixer):
        return points_of(mixer, x_BHWC).mean_distance().cpu().numpy()
    return attention_of(mixer, x_BHWC).mean_distance().cpu().numpy()


def _kernel_distance(weight_C1KK: Tensor) -> float:
    """Return the mean over channels of the distance from the middle, weighted by the absolute kernel."""
    side = weight_C1KK.shape[-1]
    at = torch.arange(side, device=weight_C1KK.device, dtype=torch.float64) - side // 2
    apart_KK = (at[:, None] ** 2 + at[None] ** 2).sqrt()
    size_CKK = weight_C1KK.detach()[:, 0].abs().double()
    return float(((size_CKK * apart_KK).sum((1, 2)) / size_CKK.sum((1, 2)).clamp(min=1e-30)).mean())
