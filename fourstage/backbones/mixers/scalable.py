"""The two mixers that take turns in ScalableViT (https://arxiv.org/abs/2203.10790).

B images, H x W cells, C channels; h heads of d channels. Windows of w x w cells hold N cells, n windows fill a map.
Queries are N cells, keys M cells where the two differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.attention import attend
from fourstage.ops.matmul import linear
from fourstage.ops.pointwise import convolve
from fourstage.ops.shapes import ceil_div, crop_to, known_true, pad_to


class InteractiveWindowAttention(nn.Module):
    """Attention inside windows that never move; a depth-wise convolution of the values carries across their borders.

    Where windows do not fit the map they are padded on the right and at the bottom with hidden cells. A side of
    the map that is shorter than the window is one window. The source has neither: it needs maps that the windows fit.

    Args:
        dim: C.
        heads: h; C must be a multiple of it.
        window: w.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        q_BHWC, k_BHWC, v_BHWC = linear(self.qkv, x_BHWC).chunk(3, dim=-1)
        local_BHWC = self.local(v_BHWC.movedim(-1, 1)).movedim(1, -1)
        return linear(self.proj, self.attend(q_BHWC, k_BHWC, v_BHWC) + local_BHWC)

    def attend(self, q_BHWC: Tensor, k_BHWC: Tensor, v_BHWC: Tensor) -> Tensor:
        """Return (B, H, W, C): the attention of each window, before the last linear layer."""
        height, width = q_BHWC.shape[1:3]
        tall, wide = (side if known_true(side < self.window) else self.window for side in (height, width))
        bottom, right = (ceil_div(side, window) * window - side for side, window in ((height, tall), (width, wide)))
        fits = known_true(bottom == 0) and known_true(right == 0)
        masks = []
        if not fits:
            q_BHWC, k_BHWC, v_BHWC = (F.pad(x_BHWC, (0, 0, 0, right, 0, bottom)) for x_BHWC in (q_BHWC, k_BHWC, v_BHWC))
            masks = [self.mask(height, width, tall, wide, q_BHWC)]
        q, k, v = (self.windows(x_BHWC, tall, wide) for x_BHWC in (q_BHWC, k_BHWC, v_BHWC))
        out_BHWC = self.map_of(attend(q, k, v, masks), height + bottom, width + right, tall, wide)
        return out_BHWC if fits else crop_to(out_BHWC, height, width)

    def windows(self, x_BHWC: Tensor, tall: int, wide: int) -> Tensor:
        """(B, n h, N, d) from a map that windows of `tall` x `wide` cells fit."""
        batch, height, width, channels = x_BHWC.shape
        down, across, head_dim = height // tall, width // wide, channels // self.heads
        windows = x_BHWC.reshape(batch, down, tall, across, wide, self.heads, head_dim).permute(0, 1, 3, 5, 2, 4, 6)
        return windows.reshape(batch, down * across * self.heads, tall * wide, head_dim)

    def mask(self, height: int, width: int, tall: int, wide: int, like: Tensor) -> Tensor:
        """(1, n h, 1, N): 0 for the cells of each window inside a map of this size, for others a large negative
        number. The map is padded to whole windows.
        """
        down, across, cells = ceil_div(height, tall), ceil_div(width, wide), tall * wide
        number = torch.arange(down * across * self.heads * cells, device=like.device)
        window, cell = number // (self.heads * cells), number % cells
        row, column = window // across * tall + cell // wide, window % across * wide + cell % wide
        hidden = torch.finfo(like.dtype).min / 2
        mask = torch.zeros_like(number, dtype=like.dtype).masked_fill((row >= height) | (column >= width), hidden)
        return mask.reshape(1, down * across * self.heads, 1, cells)

    def map_of(self, x: Tensor, height: int, width: int, tall: int, wide: int) -> Tensor:
        """Invert `windows`."""
        batch, head_dim = x.shape[0], x.shape[-1]
        windows = x.reshape(batch, height // tall, width // wide, self.heads, tall, wide, head_dim)
        return windows.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, self.heads * head_dim)


class ScalableAttention(nn.Module):
    """Attention of every cell to a smaller map; queries and keys have another width than values.

    Squares of cells that would reach over the right or the lower border give no key, as in the source. A side shorter
    than a square would leave no key at all: there zeros complete it to one square, as those around a padded
    convolution do. In ScalableViT no image of 32 pixels or more comes to that.

    Args:
        dim: C; values and result have d = C / h channels a head.
        heads: h; C and C * ratio must be multiples of it.
        ratio: width of queries and keys, as a multiple of C.
        reduction: cells a side of the squares that give a key each.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.
    """

    def __init__(self, dim: int, heads: int, ratio: float, reduction: int) -> None:
        super().__init__()
        inner = int(dim * ratio)
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(dim, inner)
        self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction, groups=dim)
        self.mix = nn.Conv2d(dim, inner, 1)
        self.norm = nn.LayerNorm(inner)
        self.act = nn.GELU()
        self.k = nn.Linear(inner, inner)
        self.v = nn.Linear(inner, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        reduced_BHWC = self.reduced(x_BHWC)
        q, k, v = linear(self.q, x_BHWC), linear(self.k, reduced_BHWC), linear(self.v, reduced_BHWC)
        return linear(self.proj, attention(q, k, v, self.heads))

    def reduced(self, x_BHWC: Tensor) -> Tensor:
        """(B, H // reduction, W // reduction, C * ratio): the map from which keys and values come."""
        height, width = x_BHWC.shape[1:3]
        if not (known_true(height >= self.reduction) and known_true(width >= self.reduction)):
            x_BHWC = pad_to(x_BHWC, max(height, self.reduction), max(width, self.reduction))
        reduced_BCHW = convolve(self.mix, self.reduce(x_BHWC.movedim(-1, 1)))
        return self.act(self.norm(reduced_BCHW.movedim(1, -1)))


class GlobalAttention(nn.Module):
    """Scalable attention as the source has it where nothing is reduced: every cell attends to every cell at full width.

    Args:
        dim: C.
        heads: h; C must be a multiple of it.
        ratio: only scales the products of queries and keys, by (d * ratio) ** -0.5. This looks like an oversight of the
            source, but its weights were trained so.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.
    """

    def __init__(self, dim: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads * ratio) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        k_BHWC, v_BHWC = linear(self.kv, x_BHWC).chunk(2, dim=-1)
        return linear(self.proj, attention(linear(self.q, x_BHWC), k_BHWC, v_BHWC, self.heads, self.scale))


def attention(q_BHWC: Tensor, k_BHWC: Tensor, v_BHWC: Tensor, heads: int, scale: float | None = None) -> Tensor:
    """Every cell of one map attends to every cell of another. (B, H, W, C): H and W of the queries, C of the values.

    Where heads of queries and values differ in width, zeros make them equal and change nothing: for equal widths there
    is a kernel that never holds all products in memory.

    Args:
        scale: factor on q k^T; default: d ** -0.5 of the queries.
    """
    height, width = q_BHWC.shape[1:3]
    q, k, v = (x_BHWC.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2) for x_BHWC in (q_BHWC, k_BHWC, v_BHWC))
    asked, answered = q.shape[-1], v.shape[-1]
    wide = max(asked, answered)
    q, k, v = (widened(x, wide) for x in (q, k, v))
    out = attend(q, k, v, scale=asked**-0.5 if scale is None else scale)
    return out[..., :answered].transpose(1, 2).flatten(2).unflatten(1, (height, width))


def widened(x: Tensor, width: int) -> Tensor:
    """Zeros after the last axis up to `width`."""
    more = width - x.shape[-1]
    return torch.cat([x, x.new_zeros(*x.shape[:-1], more)], dim=-1) if more else x
