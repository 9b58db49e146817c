"""Encoder and decoder of DINO. B images, L levels, N cells of all levels, Q queries, C channels."""

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.ops.chunks import by_rows
from fourstage.ops.eager import may_run_fast
from fourstage.ops.matmul import linear
from fourstage.tasks.detection.boxes import as_float32
from fourstage.tasks.detection.deformable_attention import DeformableAttention, Memory
from fourstage.tasks.detection.sine import inverse_sigmoid, sine_of_boxes

REFINING_EPS = 1e-3  # of the logits of reference boxes between layers


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x_BQC: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x_BQC = linear(layer, F.relu(x_BQC) if i else x_BQC)
        return x_BQC


class FeedForward(nn.Module):
    """Two linear layers with ReLU between them, added to their input, and a norm."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.reduce = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BQC: Tensor) -> Tensor:
        fast = not torch.is_grad_enabled() and may_run_fast(x_BQC, modules=(self.expand, self.reduce))
        wide = self.expand.out_features
        out_BQC = by_rows(self._between_norms, x_BQC, wide) if fast else self._between_norms(x_BQC)
        return self.norm(x_BQC + out_BQC)

    def _between_norms(self, x_NC: Tensor) -> Tensor:
        return linear(self.reduce, F.relu(linear(self.expand, x_NC)))


class SelfAttention(nn.Module):
    """Attention among queries, whose places take part in the comparison alone."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.qkv.weight)
        for layer in (self.qkv, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, x_BQC: Tensor, place_BQC: Tensor, may_see_QQ: Tensor | None) -> Tensor:
        """Return (B, Q, C).

        Args:
            may_see_QQ: bool, True where the query of a row sees that of a column; None: all see all.
        """
        channels = x_BQC.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        query_key = F.linear(x_BQC + place_BQC, weight[: 2 * channels], bias[: 2 * channels])
        value = F.linear(x_BQC, weight[2 * channels :], bias[2 * channels :])
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (*query_key.chunk(2, dim=-1), value)
        )  # (B, h, Q, d)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=may_see_QQ)
        return linear(self.out, out.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Deformable attention among the cells of all levels, then the feed-forward layers."""

    def __init__(self, channels: int, levels: int, heads: int, points: int, hidden: int) -> None:
        super().__init__()
        self.attn, self.norm = DeformableAttention(channels, levels, heads, points), nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden)

    def forward(self, memory: Memory, place_BNC: Tensor, references_BNL2: Tensor) -> Memory:
        x_BNC = memory.cells_BNC
        x_BNC = self.norm(x_BNC + self.attn(x_BNC + place_BNC, references_BNL2, memory))
        return Memory(self.ffn(x_BNC), memory.sizes, memory.padding_BN, memory.valid_BL2)


class DecoderLayer(nn.Module):
    """Attention among the queries, deformable attention to the image, then the feed-forward layers."""

    def __init__(self, channels: int, levels: int, heads: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn, self.self_norm = SelfAttention(channels, heads), nn.LayerNorm(channels)
        self.cross_attn = DeformableAttention(channels, levels, heads, points)
        self.cross_norm = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, hidden)

    def forward(
        self, x_BQC: Tensor, place_BQC: Tensor, boxes_BQL4: Tensor, memory: Memory, may_see_QQ: Tensor | None
    ) -> Tensor:
        x_BQC = self.self_norm(x_BQC + self.self_attn(x_BQC, place_BQC, may_see_QQ))
        x_BQC = self.cross_norm(x_BQC + self.cross_attn(x_BQC + place_BQC, boxes_BQL4, memory))
        return self.ffn(x_BQC)


class Decoded(NamedTuple):
    """What one decoder layer hands on."""

    queries_BQC: Tensor  # after the decoder's norm
    boxes_BQ4: Tensor  # centre, width and height that the layer started from, with a gradient to the layer before


class Decoder(nn.Module):
    """Layers that refine a box for each query.

    Boxes are detached between layers, and the prediction of a layer starts from the box before it was detached: DINO's
    "look forward twice".
    """

    def __init__(self, layers: int, channels: int, levels: int, heads: int, points: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(channels, levels, heads, points, hidden) for _ in range(layers))
        self.norm, self.embed_box = nn.LayerNorm(channels), MLP(2 * channels, channels, channels)
        self.features = 2 * channels

    def forward(
        self,
        queries_BQC: Tensor,
        boxes_BQ4: Tensor,
        memory: Memory,
        regress: nn.ModuleList,
        may_see_QQ: Tensor | None = None,
    ) -> list[Decoded]:
        """Return what each layer hands on.

        Args:
            boxes_BQ4: centre, width and height from 0 to 1, float32, without a gradient.
            regress: (B, Q, C) to changes of the boxes' logits, one for each layer.
        """
        out, given_BQ4 = [], boxes_BQ4
        for layer, change in zip(self.layers, regress, strict=False):
            seen_BQL4 = seen_boxes(boxes_BQ4, memory)
            place_BQC = self.embed_box(sine_of_boxes(seen_BQL4[:, :, 0], self.features).to(queries_BQC.dtype))
            queries_BQC = layer(queries_BQC, place_BQC, seen_BQL4, memory, may_see_QQ)
            out.append(Decoded(self.norm(queries_BQC), given_BQ4))
            if len(out) < len(self.layers):
                logits_BQ4 = as_float32(change(queries_BQC)) + inverse_sigmoid(boxes_BQ4, REFINING_EPS)
                given_BQ4 = logits_BQ4.sigmoid()
                boxes_BQ4 = given_BQ4.detach()
        return out


def seen_boxes(boxes_BQ4: Tensor, memory: Memory) -> Tensor:
    """Return (B, Q, L, 4): boxes as shares of each level with its padding."""
    if memory.valid_BL2 is None:
        return boxes_BQ4[:, :, None].expand(-1, -1, len(memory.sizes), -1)
    return boxes_BQ4[:, :, None] * torch.cat([memory.valid_BL2] * 2, dim=-1)[:, None]
