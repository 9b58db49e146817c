"""The two mixers of SMT (https://arxiv.org/abs/2307.08579): modulation by context of several scales, and attention.

B images, H x W cells, C channels: M scales of G channels each, or h heads of d channels. D = E * C channels, widened.
"""

from torch import Tensor, nn

from fourstage.backbones.layer_scale import takes_scale
from fourstage.ops.attention import attend
from fourstage.ops.depthwise import depthwise
from fourstage.ops.gelu import gelu
from fourstage.ops.matmul import linear
from fourstage.ops.pointwise import convolve
from fourstage.ops.scale_weighing import weigh_scales


class ScaleAwareModulation(nn.Module):
    """Gate every value with context that was gathered at several scales.

    Each scale has a share of the context's channels and looks at it through windows of its own size: 3, 5, 7, 9, ...
    cells a side. What the scales have at the same place in their shares is then weighed against each other, which
    gives E channels for each of the M that go in, and a product over all channels makes the gate.

    Args:
        dim: C, a multiple of `scales`.
        scales: M.
        expand: E.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.

    Raises:
        ValueError: the scales cannot have as many channels each.
    """

    def __init__(self, dim: int, scales: int = 4, expand: int = 2) -> None:
        super().__init__()
        if dim % scales:
            raise ValueError(f"{dim} channels must split evenly over {scales} scales; {dim % scales} are left over")
        group = dim // scales
        self.value = nn.Linear(dim, dim)
        self.context = nn.Linear(dim, dim)
        self.windows = nn.ModuleList(
            nn.Conv2d(group, group, 3 + 2 * m, padding=1 + m, groups=group) for m in range(scales)
        )
        self.weigh = nn.Conv2d(dim, expand * dim, 1, groups=group)
        self.norm = nn.BatchNorm2d(expand * dim)
        self.mix = nn.Conv2d(expand * dim, dim, 1)  # its output is the gate
        self.proj = nn.Linear(dim, dim)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        shares_BGHW = linear(self.context, x_BHWC).movedim(-1, 1).chunk(len(self.windows), dim=1)
        views_BHWG = [w(x_BGHW).movedim(1, -1) for w, x_BGHW in zip(self.windows, shares_BGHW, strict=True)]
        weighed_BDHW = weigh_scales(self.weigh, self.norm, views_BHWG)
        gate_BHWC = convolve(self.mix, gelu(weighed_BDHW)).movedim(1, -1)
        return linear(self.proj, gate_BHWC * linear(self.value, x_BHWC), scale_C)


class LocalGlobalAttention(nn.Module):
    """Every cell attends to every cell; a depth-wise convolution of the values adds the neighbourhood.

    Args:
        dim: C, a multiple of `heads`.
        heads: h.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.

    Raises:
        ValueError: the heads cannot have as many channels each.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"{dim} channels must split evenly over {heads} heads; {dim % heads} are left over")
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = nn.Linear(dim, dim)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        height, width = x_BHWC.shape[1:3]
        kv_BHWC = linear(self.kv, x_BHWC)
        qkv = linear(self.q, x_BHWC).flatten(1, 2), *kv_BHWC.flatten(1, 2).chunk(2, dim=-1)
        q, k, v = (x_BNC.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x_BNC in qkv)  # B, h, cells, d
        far_BHWC = attend(q, k, v).transpose(1, 2).flatten(2).unflatten(1, (height, width))
        near_BHWC = depthwise(self.local, kv_BHWC.chunk(2, dim=-1)[1])
        return linear(self.proj, far_BHWC + near_BHWC, scale_C)
