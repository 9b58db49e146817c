"""Attention of square blocks to themselves and a halo of cells around them (HaloNet, https://arxiv.org/abs/2103.12731).

B images, H x W cells, C channels = h heads of d; blocks of b x b = N cells, n of them down and m across the map; each
sees a window of w x w cells, w = b + 2 * halo.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fourstage.backbones.layers import Linear
from fourstage.ops.matmul import has_choice
from fourstage.ops.shapes import ceil_div, crop_to, known_true, pad_to


class HaloMixer(nn.Module):
    """Multi-head attention of each block to the window around it, with learned terms for the relative position.

    To its product with a key, scaled by d^-0.5, a query q adds `q . height_rel[y] + q . width_rel[x]`, unscaled. Here y
    is the key's row in the window less the query's row in the block, plus w - 1; x is the same of columns. Cells of a
    window that lie outside the map are invisible.

    Zeros fill up the last blocks of a map that the blocks do not fit. In the classifier (`dense=False`) they are
    invisible; the detectors (`dense=True`) see them like any cell.

    Args:
        dim: C, a multiple of `heads`.
        block: b.
        halo: cells on each side of a block.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.

    Raises:
        ValueError: `dim` does not split into heads.
    """

    def __init__(self, dim: int, heads: int, block: int = 7, halo: int = 3, *, dense: bool) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} must split evenly over {heads} heads; {dim % heads} channels are left")
        self.heads, self.block, self.halo, self.dense = heads, block, halo, dense
        self.window = block + 2 * halo
        self.head_dim = dim // heads
        self.q = Linear(dim, dim, bias=False)
        self.kv = Linear(dim, 2 * dim, bias=False)  # head by head, its keys and then its values
        self.height_rel = nn.Parameter(torch.empty(2 * self.window - 1, self.head_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * self.window - 1, self.head_dim))
        self.proj = Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The two tables: normal with std d^-0.5."""
        for table in (self.height_rel, self.width_rel):
            nn.init.normal_(table, std=self.head_dim**-0.5)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        _, height, width, _ = x_BHWC.shape
        tall, wide = (ceil_div(side, self.block) * self.block for side in (height, width))
        fits = known_true(tall == height) and known_true(wide == width)
        x_BHWC = pad_to(x_BHWC, tall, wide)
        q_BnmhNd = self.blocks(self.q(x_BHWC))
        kv_BHWC = self.kv(x_BHWC)
        seen = x_BHWC.shape[1:3] if self.dense else (height, width)
        rows, columns = self.position_terms(q_BnmhNd, *seen)
        if has_choice(q_BnmhNd):
            out = StripAttention.apply(q_BnmhNd, kv_BHWC, rows, columns, self.halo)
        else:
            out = attend(q_BnmhNd, kv_BHWC, rows, columns, self.halo)
        out = out.unflatten(4, (self.block, self.block)).permute(0, 1, 4, 2, 5, 3, 6)
        out_BHWC = out.reshape(x_BHWC.shape)
        return self.proj(out_BHWC if fits else crop_to(out_BHWC, height, width))

    def blocks(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, n, m, h, N, d)."""
        x = x_BHWC.unflatten(3, (self.heads, -1)).unflatten(2, (-1, self.block)).unflatten(1, (-1, self.block))
        return x.permute(0, 1, 3, 5, 2, 4, 6).contiguous().flatten(4, 5)

    def position_terms(self, q_BnmhNd: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """What each query adds to its product with every cell of a row and of a column of its window.

        Both are (B, n, m, h, N, w). The rows and columns outside of `height` x `width` cells carry what hides them.
        """
        q = q_BnmhNd.unflatten(4, (self.block, self.block))
        down = self.seen_from(q @ self.height_rel.to(q.dtype).T, axis=4)
        across = self.seen_from(q @ self.width_rel.to(q.dtype).T, axis=5)
        down = down + self.hiding(q.shape[1], height, q)[:, None, None, None, None]
        across = across + self.hiding(q.shape[2], width, q)[:, None, None, None]
        return down.flatten(4, 5).contiguous(), across.flatten(4, 5).contiguous()

    def seen_from(self, offsets: Tensor, axis: int) -> Tensor:
        """Of products with every row of a table, (..., 2w - 1), the w that stand for cells of the window.

        Which these are depends on where in its block a query is, along `axis`: at i, from row w - 1 - i on.
        """
        last = self.window - 1
        terms = [query[..., last - i : last - i + self.window] for i, query in enumerate(offsets.unbind(axis))]
        return torch.stack(terms, axis)

    def hiding(self, blocks: int, side: int, like: Tensor) -> Tensor:
        """(blocks, w): 0 for cells of each window inside a map with so many cells on that side, else far below 0."""
        first = torch.arange(blocks, device=like.device) * self.block - self.halo
        at = first[:, None] + torch.arange(self.window, device=like.device)
        far = torch.finfo(like.dtype).min / 4  # two of them, and what is added to them, still make a number
        return torch.zeros_like(at, dtype=like.dtype).masked_fill((at < 0) | (at >= side), far)


def attend(q_BnmhNd: Tensor, kv_BHWC: Tensor, rows: Tensor, columns: Tensor, halo: int) -> Tensor:
    """All blocks at once, by PyTorch's attention. `rows` and `columns` as of `position_terms`; returns what q is."""
    _, n, m, h, _, d = q_BnmhNd.shape
    window = rows.shape[-1]
    padded = F.pad(kv_BHWC, (0, 0, halo, halo, halo, halo))
    step = window - 2 * halo
    windows = padded.unfold(1, window, step).unfold(2, window, step).unflatten(3, (h, 2, d))  # B, n, m, h, 2, d, w, w
    k, v = windows.permute(4, 0, 1, 2, 3, 6, 7, 5).flatten(5, 6).flatten(1, 3).unbind(0)
    bias = (rows[..., :, None] + columns[..., None, :]).flatten(5, 6).flatten(0, 2)
    out = F.scaled_dot_product_attention(q_BnmhNd.flatten(0, 2), k, v, attn_mask=bias)
    return out.unflatten(0, (-1, n, m))


class StripAttention(torch.autograd.Function):
    """The same as `attend`, for a CPU: strip after strip of blocks, so that windows and weights stay in its cache.

    Neither is kept for the backward pass, which computes them again.
    """

    @staticmethod
    def forward(ctx: Any, q_BnmhNd: Tensor, kv_BHWC: Tensor, rows: Tensor, columns: Tensor, halo: int) -> Tensor:
        padded = F.pad(kv_BHWC, (0, 0, halo, halo, halo, halo))
        q, rows, columns = (x.contiguous() for x in (q_BnmhNd, rows, columns))
        out = torch.empty_like(q)
        for image, strip in product(range(q.shape[0]), range(q.shape[1])):
            at = (image, strip)
            k, v = strip_windows(padded[image], strip, q.shape, halo)
            weights = strip_weights(q[at], k, rows[at], columns[at])
            torch.bmm(weights, v, out=out[at].flatten(0, 1))
        ctx.save_for_backward(q, padded, rows, columns)
        ctx.halo = halo
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, padded, rows, columns = ctx.saved_tensors
        batch, n, m, heads, _, dim = q.shape
        window = rows.shape[-1]
        block = window - 2 * ctx.halo
        spans = -(-window // block)  # blocks a side that a window touches, counted from its first cell
        grad_out = grads[0].contiguous()
        to_q, to_rows, to_columns = (torch.empty_like(x) for x in (q, rows, columns))
        to_padded = padded.new_zeros(batch, padded.shape[1], m + spans - 1, block, heads, 2, dim)
        to_kv = q.new_empty(2, m * heads, window**2, dim)
        to_windows = to_kv.view(2, m, heads, window, window, dim).permute(3, 1, 4, 2, 0, 5)  # w, m, w, h, 2, d
        for image, strip in product(range(batch), range(n)):
            at = (image, strip)
            k, v = strip_windows(padded[image], strip, q.shape, ctx.halo)
            weights = strip_weights(q[at], k, rows[at], columns[at])
            grad = grad_out[at].flatten(0, 1)
            torch.bmm(weights.transpose(1, 2), grad, out=to_kv[1])
            to_logits = torch.ops.aten._softmax_backward_data(grad @ v.transpose(1, 2), weights, -1, weights.dtype)
            by_side = to_logits.view(*rows[at].shape, window)
            torch.sum(by_side, -1, out=to_rows[at])
            torch.sum(by_side, -2, out=to_columns[at])
            to_logits *= dim**-0.5
            torch.bmm(to_logits, k, out=to_q[at].flatten(0, 1))
            torch.bmm(to_logits.transpose(1, 2), q[at].flatten(0, 1), out=to_kv[0])
            lines = to_padded[image, strip * block : strip * block + window]  # w, blocks, b, h, 2, d
            for i in range(spans):
                part = to_windows[:, :, i * block : (i + 1) * block]
                lines[:, i : i + m, : part.shape[2]] += part
        inside = slice(ctx.halo, ctx.halo + n * block), slice(ctx.halo, ctx.halo + m * block)
        return to_q, to_padded.flatten(4).flatten(2, 3)[:, *inside], to_rows, to_columns, None


def strip_windows(padded: Tensor, strip: int, blocks: Sequence[int], halo: int) -> tuple[Tensor, Tensor]:
    """Keys and values, (m * h, w * w, d) each, that one strip of blocks sees of one image (H + .., W + .., 2C)."""
    _, n, m, heads, _, dim = blocks
    block = (padded.shape[0] - 2 * halo) // n
    window = block + 2 * halo
    lines = padded[strip * block : strip * block + window].unfold(1, window, block).unflatten(2, (heads, 2, dim))
    k, v = lines.permute(3, 1, 2, 0, 5, 4).reshape(2, m * heads, window**2, dim).unbind(0)
    return k, v


def strip_weights(q_mhNd: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Attention weights (m * h, N, w * w) of one strip."""
    logits = (rows[..., :, None] + columns[..., None, :]).flatten(3).flatten(0, 1)
    return logits.baddbmm_(q_mhNd.flatten(0, 1), k.transpose(1, 2), alpha=q_mhNd.shape[-1] ** -0.5).softmax(-1)
