"""Attention of square blocks to themselves and a halo of cells around them (HaloNet, https://arxiv.org/abs/2103.12731).

B images, H x W cells, C channels = h heads of d; blocks of b x b = N cells, n of them down and m across the map; each
attends to a window of w x w cells, w = b + 2 * halo.
"""

import torch
from torch import Tensor, nn

from fourstage.backbones.layer_scale import takes_scale
from fourstage.ops.halo_attention import halo_attention
from fourstage.ops.matmul import linear
from fourstage.ops.shapes import ceil_div, crop_to, known_true, pad_to


class HaloMixer(nn.Module):
    """Multi-head attention of each block to the window around it, with learned terms for the relative position.

    To its product with a key, scaled by d^-0.5, a query q adds `q . height_rel[y] + q . width_rel[x]`, unscaled. Here y
    is the key's row in the window less the query's row in the block, plus w - 1; x is the same of columns. Cells of a
    window that lie outside the map are invisible.

    Zeros fill up the last blocks of a map that the blocks do not fit. In the classifier (`dense=False`) they are
    invisible; the detectors (`dense=True`) attend to them like any cell.

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
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)  # head by head, its keys and then its values
        self.height_rel = nn.Parameter(torch.empty(2 * self.window - 1, self.head_dim))
        self.width_rel = nn.Parameter(torch.empty(2 * self.window - 1, self.head_dim))
        self.proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The two tables: normal with std d^-0.5."""
        for table in (self.height_rel, self.width_rel):
            nn.init.normal_(table, std=self.head_dim**-0.5)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        _, height, width, _ = x_BHWC.shape
        tall, wide = (ceil_div(side, self.block) * self.block for side in (height, width))
        fits = known_true(tall == height) and known_true(wide == width)
        x_BHWC = pad_to(x_BHWC, tall, wide)
        q_BnmhNd = self.blocks(linear(self.q, x_BHWC))
        kv_BHWC = linear(self.kv, x_BHWC)
        visible = x_BHWC.shape[1:3] if self.dense else (height, width)
        rows, columns = self.position_terms(q_BnmhNd, *visible)
        out = halo_attention(q_BnmhNd, kv_BHWC, rows, columns, self.halo)
        out = out.unflatten(4, (self.block, self.block)).permute(0, 1, 4, 2, 5, 3, 6)
        out_BHWC = out.reshape(x_BHWC.shape)
        return linear(self.proj, out_BHWC if fits else crop_to(out_BHWC, height, width), scale_C)

    def blocks(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, n, m, h, N, d)."""
        x = x_BHWC.unflatten(3, (self.heads, -1)).unflatten(2, (-1, self.block)).unflatten(1, (-1, self.block))
        return x.permute(0, 1, 3, 5, 2, 4, 6).contiguous().flatten(4, 5)

    def position_terms(self, q_BnmhNd: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return what each query adds to its product with every cell of a row and of a column of its window.

        Both are (B, n, m, h, N, w). The rows and columns outside of `height` x `width` cells carry what hides them.
        """
        q = q_BnmhNd.unflatten(4, (self.block, self.block))
        down = self.terms_by_query(q @ self.height_rel.to(q.dtype).T, axis=4)
        across = self.terms_by_query(q @ self.width_rel.to(q.dtype).T, axis=5)
        down = down + self.hiding(q.shape[1], height, q)[:, None, None, None, None]
        across = across + self.hiding(q.shape[2], width, q)[:, None, None, None]
        return down.flatten(4, 5).contiguous(), across.flatten(4, 5).contiguous()

    def terms_by_query(self, offsets: Tensor, axis: int) -> Tensor:
        """Return, of the products with all rows of a table, (..., 2w - 1), the w that belong to cells of the window.

        Which these are depends on where in its block a query is, along `axis`: at i, from row w - 1 - i on.
        """
        last = self.window - 1
        terms = [query[..., last - i : last - i + self.window] for i, query in enumerate(offsets.unbind(axis))]
        return torch.stack(terms, axis)

    def hiding(self, blocks: int, side: int, like: Tensor) -> Tensor:
        """Return (blocks, w): 0 for cells of each window inside a map of `side` cells, else a number far below 0."""
        first = torch.arange(blocks, device=like.device) * self.block - self.halo
        at = first[:, None] + torch.arange(self.window, device=like.device)
        far = torch.finfo(like.dtype).min / 4  # two of them, and what is added to them, still make a number
        return torch.zeros_like(at, dtype=like.dtype).masked_fill((at < 0) | (at >= side), far)
