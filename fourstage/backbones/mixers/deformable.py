"""Deformable convolution as U-InternImage has it (DCNv3, https://arxiv.org/abs/2211.05778), in plain PyTorch.

B images, H x W cells, Q = H * W of them; C channels = h heads of d; one level L; P points a head.
"""

import torch
from torch import Tensor, nn

from fourstage.backbones.layer_scale import takes_scale
from fourstage.ops.matmul import linear
from fourstage.ops.sampling import deformable_sample, kernel_cells


class DeformableMixer(nn.Module):
    """Each head of each cell reads `kernel` x `kernel` points around the cell, with offsets and weights of its own.

    What moves and weighs them is a look at the neighbourhood: a depth-wise convolution, LayerNorm and GELU. Points move
    by any number of cells, the weights of a head's points add up to 1, and a point that leaves the map reads 0.

    The places of points are float32 whatever the precision of the rest, also under autocast.

    Args:
        dim: C, a multiple of `heads`.
        kernel: points a side, odd.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.

    Raises:
        ValueError: `dim` does not split into heads, or `kernel` is even.
    """

    def __init__(self, dim: int, heads: int, kernel: int = 3) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} must split evenly over {heads} heads; {dim % heads} channels are left")
        if kernel % 2 == 0:
            raise ValueError(f"a kernel of {kernel} x {kernel} points has no middle; give an odd number")
        self.heads, self.kernel = heads, kernel
        self.value = nn.Linear(dim, dim)
        self.look = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.act = nn.GELU()
        self.offset = nn.Linear(dim, heads * kernel**2 * 2)
        self.weigh = nn.Linear(dim, heads * kernel**2)
        self.proj = nn.Linear(dim, dim)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        height, width = x_BHWC.shape[1:3]
        value_BHWhd = linear(self.value, x_BHWC).unflatten(-1, (self.heads, -1))
        look_BHWC = self.act(self.norm(self.look(x_BHWC.movedim(-1, 1)).movedim(1, -1)))
        offset = linear(self.offset, look_BHWC).flatten(1, 2).unflatten(-1, (self.heads, 1, -1, 2))
        weight = linear(self.weigh, look_BHWC).flatten(1, 2).unflatten(-1, (self.heads, 1, -1))
        cells_QP2 = kernel_cells(height, width, self.kernel, device=x_BHWC.device)
        precision = torch.promote_types(offset.dtype, torch.float32)
        out_BQC = deformable_sample(
            [value_BHWhd],
            offset.to(precision),
            weight.to(precision).softmax(-1),
            cells_BQhLP2=cells_QP2[None, :, None, None],
        )
        return linear(self.proj, out_BQC.unflatten(1, (height, width)), scale_C)
