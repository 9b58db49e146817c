"""The two mixers of SMT (https://arxiv.org/abs/2307.08579): modulation by context of several scales, and attention.

B images, H x W cells, C channels: M scales of G channels each, or h heads of d channels. D = E * C channels, widened.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Linear
from fourstage.ops.matmul import attend, has_choice
from fourstage.ops.shapes import known_true

RUN = 8  # channels of a scale that are weighed together: small groups of a convolution are slow, large ones wasteful


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
        self.value = Linear(dim, dim)
        self.context = Linear(dim, dim)
        self.windows = nn.ModuleList(
            nn.Conv2d(group, group, 3 + 2 * m, padding=1 + m, groups=group) for m in range(scales)
        )
        self.weigh = nn.Conv2d(dim, expand * dim, 1, groups=group)
        self.norm = nn.BatchNorm2d(expand * dim)
        self.mix = nn.Conv2d(expand * dim, dim, 1)  # its output is the gate
        self.proj = Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        shares_BGHW = self.context(x_BHWC).movedim(-1, 1).chunk(len(self.windows), dim=1)
        views_BHWG = [w(x_BGHW).movedim(1, -1) for w, x_BGHW in zip(self.windows, shares_BGHW, strict=True)]
        weighed_BDHW = (self.weighed_in_runs if has_choice(x_BHWC) else self.weighed)(views_BHWG)
        gate_BHWC = self.mix(F.gelu(weighed_BDHW)).movedim(1, -1)
        return self.proj(gate_BHWC * self.value(x_BHWC))

    def weighed(self, views_BHWG: list[Tensor]) -> Tensor:
        """(B, D, H, W): the views woven, so that the M of one channel lie side by side, weighed, and normed."""
        woven_BHWC = torch.stack(views_BHWG, dim=-1).flatten(-2)
        return self.norm(self.weigh(woven_BHWC.movedim(-1, 1)))

    def weighed_in_runs(self, views_BHWG: list[Tensor]) -> Tensor:
        """The same numbers faster on a CPU: several channels at a time, and a norm at rest as part of the weights."""
        weight_DM, bias_D = self.weigh.weight.flatten(1), self.weigh.bias
        assert bias_D is not None
        at_rest = isinstance(self.norm, nn.BatchNorm2d) and not self.norm.training
        if at_rest:
            weight_DM, bias_D = normed(weight_DM, bias_D, self.norm)
        group = views_BHWG[0].shape[-1]
        run = math.gcd(group, RUN)
        woven_BHWC = torch.stack([view.unflatten(-1, (-1, run)) for view in views_BHWG], dim=-2).flatten(-3)
        weight = in_runs(weight_DM, group, run)[:, :, None, None]
        weighed_BDHW = F.conv2d(woven_BHWC.movedim(-1, 1), weight, bias_D, groups=group // run)
        return weighed_BDHW if at_rest else self.norm(weighed_BDHW)


def normed(weight_DM: Tensor, bias_D: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weights and bias of a convolution that does what a norm with fixed statistics would do to its output."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain_D = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight_DM * gain_D[:, None], (bias_D - norm.running_mean) * gain_D + norm.bias


def in_runs(weight_DM: Tensor, group: int, run: int) -> Tensor:
    """(D, M * run): weights that see a run of channels, M times each, from those that see one, and zeros elsewhere."""
    scales = weight_DM.shape[1]
    diagonal = weight_DM.unflatten(0, (group // run, run, -1)).permute(0, 2, 3, 1).diag_embed()  # runs, E, M, run, run
    return diagonal.permute(0, 3, 1, 2, 4).reshape(-1, scales * run)


class LocalGlobalAttention(nn.Module):
    """Every cell looks at every cell; a depth-wise convolution of the values adds what is near.

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
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.proj = Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        height, width = x_BHWC.shape[1:3]
        kv_BHWC = self.kv(x_BHWC)
        qkv = self.q(x_BHWC).flatten(1, 2), *kv_BHWC.flatten(1, 2).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv)  # B, h, cells, d
        far_BHWC = attend(q, k, v).transpose(1, 2).flatten(2).unflatten(1, (height, width))
        near_BHWC = depthwise(kv_BHWC.chunk(2, dim=-1)[1], self.local.weight, self.local.bias)
        return self.proj(far_BHWC + near_BHWC)


def depthwise(x_BHWC: Tensor, kernel_C133: Tensor, bias_C: Tensor | None) -> Tensor:
    """Each channel's 3 x 3 neighbours, weighed; zeros lie around the map. (B, H, W, C) to the same.

    The last stage's map may have one cell a side. To tell how a map lies in memory a convolution asks whether it has
    more, and a graph for many sizes would hold on to the answer and refuse the others. So there the zeros are put
    around it beforehand, after which it has more for certain.
    """
    x_BCHW, padding = x_BHWC.movedim(-1, 1), 1
    if not (known_true(x_BHWC.shape[1] > 1) and known_true(x_BHWC.shape[2] > 1)):
        x_BCHW, padding = F.pad(x_BCHW, (1, 1, 1, 1)), 0
    return F.conv2d(x_BCHW, kernel_C133, bias_C, padding=padding, groups=len(kernel_C133)).movedim(1, -1)
