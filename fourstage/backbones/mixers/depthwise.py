"""A depth-wise convolution between two linear layers: ConvNeXt's mixer in the form of the STM study.

B images, H x W cells, C channels. Sources: https://arxiv.org/abs/2201.03545, https://arxiv.org/abs/2211.05781.
"""

from torch import Tensor, nn

from fourstage.backbones.layer_scale import takes_scale
from fourstage.ops.matmul import linear


class DepthwiseMixer(nn.Module):
    """Each channel looks at its own 7 x 7 neighbours; the linear layers around it mix channels. No activation.

    Args:
        dim: C.
        kernel: cells a side of the neighbourhood, odd; zeros lie outside the map.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.
    """

    def __init__(self, dim: int, kernel: int = 7) -> None:
        super().__init__()
        self.before = nn.Linear(dim, dim)
        self.spatial = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.after = nn.Linear(dim, dim)

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        x_BCHW = self.spatial(linear(self.before, x_BHWC).movedim(-1, 1))
        return linear(self.after, x_BCHW.movedim(1, -1), scale_C)
