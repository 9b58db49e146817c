"""Attention of square blocks to themselves and a halo of cells around them (HaloNet, https://arxiv.org/abs/2103.12731).

B images, H x W cells, C channels = h heads of d; blocks of b x b = N cells, n of them down and m across the map; each
attends to a window of w x w cells, w = b + 2 * halo.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops.attention import by_fused_kernel
from fourstage.ops.eager import may_run_fast
from fourstage.ops.second_gradients import needs_plain_form, of_plain_form, without_autocast
from fourstage.ops.softmax import softmax


def halo_attention(q_BnmhNd: Tensor, kv_BHWC: Tensor, rows: Tensor, columns: Tensor, halo: int) -> Tensor:
    """Return the attention of each block to its window, (B, n, m, h, N, d).

    Args:
        kv_BHWC: (B, n * b, m * b, 2C): head by head, its keys and then its values. Zeros surround the map.
        rows, columns: (B, n, m, h, N, w) each: what a query adds to its product, scaled by d ** -0.5, with every cell
            of a row and of a column of its window.
        halo: cells on each side of a block.
    """
    if may_run_fast(q_BnmhNd, kv_BHWC, rows, columns):
        return by_strips(q_BnmhNd, kv_BHWC, rows, columns, halo)
    return at_once(q_BnmhNd, kv_BHWC, rows, columns, halo)


def at_once(q_BnmhNd: Tensor, kv_BHWC: Tensor, rows: Tensor, columns: Tensor, halo: int) -> Tensor:
    """Compute the plain form: all blocks at once, by PyTorch's attention."""
    _, n, m, h, _, d = q_BnmhNd.shape
    window = rows.shape[-1]
    padded = F.pad(kv_BHWC, (0, 0, halo, halo, halo, halo))
    step = window - 2 * halo
    windows = padded.unfold(1, window, step).unfold(2, window, step).unflatten(3, (h, 2, d))  # B, n, m, h, 2, d, w, w
    k, v = windows.permute(4, 0, 1, 2, 3, 6, 7, 5).flatten(5, 6).flatten(1, 3).unbind(0)
    bias = (rows[..., :, None] + columns[..., None, :]).flatten(5, 6).flatten(0, 2)
    out = by_fused_kernel(q_BnmhNd.flatten(0, 2), k, v, [bias], None)
    return out.unflatten(0, (-1, n, m))


def by_strips(q_BnmhNd: Tensor, kv_BHWC: Tensor, rows: Tensor, columns: Tensor, halo: int) -> Tensor:
    """Compute the fast form: strip after strip of blocks, so that windows and weights stay in the processor's cache."""
    return cast(Tensor, _StripAttention.apply(q_BnmhNd, kv_BHWC, rows, columns, halo))


class _StripAttention(torch.autograd.Function):
    """Windows and weights are not kept for the backward pass, which computes them again."""

    @staticmethod
    def forward(
        ctx: Any, q_BnmhNd: Tensor, kv_BHWC: Tensor, rows_BnmhNw: Tensor, columns_BnmhNw: Tensor, halo: int
    ) -> Tensor:
        padded = F.pad(kv_BHWC, (0, 0, halo, halo, halo, halo))
        q, rows, columns = (x.contiguous() for x in (q_BnmhNd, rows_BnmhNw, columns_BnmhNw))
        out = torch.empty_like(q)
        for image, strip in product(range(q.shape[0]), range(q.shape[1])):
            at = (image, strip)
            k, v = strip_windows(padded[image], strip, q.shape, halo)
            weights = strip_weights(q[at], k, rows[at], columns[at])
            torch.bmm(weights, v, out=out[at].flatten(0, 1))
        ctx.save_for_backward(q_BnmhNd, kv_BHWC, rows_BnmhNw, columns_BnmhNw)
        ctx.halo = halo
        return out

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, kv, rows, columns = ctx.saved_tensors
        if needs_plain_form(grads[0]):
            plain = partial(at_once, halo=ctx.halo)
            return (*of_plain_form(plain, (q, kv, rows, columns), ctx.needs_input_grad[:4], grads[0]), None)
        return *_gradients(grads[0].contiguous(), q, kv, rows, columns, ctx.halo), None


def _gradients(
    grad_BnmhNd: Tensor, q_BnmhNd: Tensor, kv_BHWC: Tensor, rows_BnmhNw: Tensor, columns_BnmhNw: Tensor, halo: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values, rows and columns, given that of the output."""
    q, rows, columns = (x.contiguous() for x in (q_BnmhNd, rows_BnmhNw, columns_BnmhNw))
    padded = F.pad(kv_BHWC, (0, 0, halo, halo, halo, halo))
    batch, n, m, heads, _, dim = q.shape
    window = rows.shape[-1]
    block = window - 2 * halo
    spans = -(-window // block)  # blocks a side that a window touches, counted from its first cell
    to_q, to_rows, to_columns = (torch.empty_like(x) for x in (q, rows, columns))
    to_padded = padded.new_zeros(batch, padded.shape[1], m + spans - 1, block, heads, 2, dim)
    to_kv = q.new_empty(2, m * heads, window**2, dim)
    to_windows = to_kv.view(2, m, heads, window, window, dim).permute(3, 1, 4, 2, 0, 5)  # w, m, w, h, 2, d
    for image, strip in product(range(batch), range(n)):
        at = (image, strip)
        k, v = strip_windows(padded[image], strip, q.shape, halo)
        weights = strip_weights(q[at], k, rows[at], columns[at])
        grad = grad_BnmhNd[at].flatten(0, 1)
        torch.bmm(weights.transpose(1, 2), grad, out=to_kv[1])
        to_scores = torch.ops.aten._softmax_backward_data(grad @ v.transpose(1, 2), weights, -1, weights.dtype)
        by_side = to_scores.view(*rows[at].shape, window)
        torch.sum(by_side, -1, out=to_rows[at])
        torch.sum(by_side, -2, out=to_columns[at])
        to_scores *= dim**-0.5
        torch.bmm(to_scores, k, out=to_q[at].flatten(0, 1))
        torch.bmm(to_scores.transpose(1, 2), q[at].flatten(0, 1), out=to_kv[0])
        _add_windows(to_padded[image, strip * block : strip * block + window], to_windows, block)
    inside = slice(halo, halo + n * block), slice(halo, halo + m * block)
    return to_q, to_padded.flatten(4).flatten(2, 3)[:, *inside], to_rows, to_columns


def _add_windows(lines: Tensor, windows: Tensor, block: int) -> None:
    """Add the windows of a strip, which overlap, to the lines of the padded map that they were cut out of.

    Shapes:
        lines: (w, blocks across the padded map, b, h, 2, d).
        windows: (w, m, w, h, 2, d).
    """
    m, window = windows.shape[1:3]
    for i, start in enumerate(range(0, window, block)):
        section = windows[:, :, start : start + block]
        lines[:, i : i + m, : section.shape[2]] += section


def strip_windows(padded: Tensor, strip: int, blocks: Sequence[int], halo: int) -> tuple[Tensor, Tensor]:
    """Return the keys and values in the windows of one strip of blocks of one padded image, (m * h, w * w, d) each."""
    _, n, m, heads, _, dim = blocks
    block = (padded.shape[0] - 2 * halo) // n
    window = block + 2 * halo
    lines = padded[strip * block : strip * block + window].unfold(1, window, block).unflatten(2, (heads, 2, dim))
    k, v = lines.permute(3, 1, 2, 0, 5, 4).reshape(2, m * heads, window**2, dim).unbind(0)
    return k, v


def strip_weights(q_mhNd: Tensor, k: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the attention weights (m * h, N, w * w) of one strip."""
    return softmax(partial(_scores, q_mhNd, k, rows, columns))


def _scores(q_mhNd: Tensor, k: Tensor, rows: Tensor, columns: Tensor, factor: float) -> Tensor:
    """Return `factor` times the products of queries and keys with what is added to them."""
    added = ((rows * factor)[..., :, None] + (columns * factor)[..., None, :]).flatten(3).flatten(0, 1)
    return added.baddbmm_(q_mhNd.flatten(0, 1), k.transpose(1, 2), alpha=q_mhNd.shape[-1] ** -0.5 * factor)
