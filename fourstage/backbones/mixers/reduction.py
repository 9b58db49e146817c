"""Attention from every cell to a smaller map: PVT's spatial reduction (https://arxiv.org/abs/2102.12122), which PVTv2
(https://arxiv.org/abs/2106.13797) keeps.

B images, H x W cells, C channels; M cells of the smaller map; h heads of d channels.
"""

from torch import Tensor, nn

from fourstage.backbones.layer_scale import takes_scale
from fourstage.ops.attention import attend
from fourstage.ops.matmul import linear


class ReductionAttention(nn.Module):
    """Queries come from all cells, keys and values from squares of cells that a convolution joins to one.

    Cells at the right and at the bottom that fill no square give no key: the convolution leaves them out, as the
    source's does.

    Args:
        dim: C.
        heads: h; C must be a multiple of it.
        reduction: cells a side of the squares; 1: every cell is a key, without convolution and norm.

    Shapes:
        x_BHWC: (B, H, W, C), H and W at least `reduction`. Returns the same shape.
    """

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if reduction > 1:
            self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.norm = nn.LayerNorm(dim)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        height, width, channels = x_BHWC.shape[1:]
        split = (self.heads, channels // self.heads)
        q_BhNd = linear(self.q, x_BHWC).flatten(1, 2).unflatten(-1, split).transpose(1, 2)
        kv = linear(self.kv, self.reduced(x_BHWC)).flatten(1, 2).unflatten(-1, (2, *split))
        k_BhMd, v_BhMd = kv.permute(2, 0, 3, 1, 4).unbind(0)
        out_BhNd = attend(q_BhNd, k_BhMd, v_BhMd)
        return linear(self.proj, out_BhNd.transpose(1, 2).flatten(2).unflatten(1, (height, width)), scale_C)

    def reduced(self, x_BHWC: Tensor) -> Tensor:
        """Return the map from which keys and values come."""
        if self.reduction == 1:
            return x_BHWC
        return self.norm(self.reduce(x_BHWC.movedim(-1, 1)).movedim(1, -1))
