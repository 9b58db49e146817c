"""Convolutions with what follows them, as necks and heads stack them. B images, C channels, H x W cells."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from fourstage.ops.pointwise import convolve
from fourstage.ops.resized_conv import conv_of_resized


class ConvNormAct(nn.Module):
    """Convolution, norm, activation; each of the last two only where it is given.

    Args:
        kernel_size: side of the kernel, cells, odd; at stride 1 the map keeps its size.
        norm: builds a norm for a number of channels.
        act: the activation itself; None: none.
        bias: of the convolution; None: only where no norm follows, which has its own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        norm: Callable[[int], nn.Module] | None = None,
        act: nn.Module | None = None,
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        assert kernel_size % 2 == 1
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=norm is None if bias is None else bias,
        )
        self.norm = nn.Identity() if norm is None else norm(out_channels)
        self.act = nn.Identity() if act is None else act
        # Kaiming's normal for what ReLU follows, from the outputs' side, as the published heads start
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        return self.act(self.norm(convolve(self.conv, x_BCHW)))


class MergingConv(nn.Module):
    """A 3x3 convolution, a norm and an activation on several maps, concatenated at the size of the first one.

    Args:
        in_channels: of all maps together.
        norm: builds a norm for a number of channels.
        align_corners: how the maps are resized, which is bilinear.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Callable[[int], nn.Module],
        act: nn.Module,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        layers = ConvNormAct(in_channels, out_channels, 3, norm=norm, act=act)
        self.conv, self.norm, self.act, self.align_corners = layers.conv, layers.norm, layers.act, align_corners

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, C_i, h_i, w_i), C_i adding up to `in_channels`, to (B, out_channels, h_0, w_0)."""
        return self.act(self.norm(conv_of_resized(self.conv, maps, self.align_corners)))
