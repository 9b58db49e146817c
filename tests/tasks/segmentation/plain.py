"""MMSegmentation's necks, heads, losses and windows, written plainly from their description, with its key names."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level


def resize(x_BCHW: Tensor, size: Sequence[int], align: bool) -> Tensor:
    return F.interpolate(x_BCHW, size=tuple(size), mode="bilinear", align_corners=align)


class Conv(nn.Module):
    """ConvModule: with a norm and ReLU, or with a bias alone."""

    def __init__(self, width: int, out: int, kernel: int, norm: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=not norm)
        self.bn = nn.BatchNorm2d(out) if norm else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.conv(x_BCHW)
        return x_BCHW if self.bn is None else F.relu(self.bn(x_BCHW))


class Backbone(nn.Module):
    """Convolutions that round odd sides up."""

    def __init__(self, widths: Sequence[int], steps: Sequence[int]) -> None:
        super().__init__()
        pairs = zip((3, *widths[:-1]), widths, steps, strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, stride=step, padding=1) for a, b, step in pairs)
        self.levels = tuple(Level(w, math.prod(steps[: i + 1])) for i, w in enumerate(widths))

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        maps = []
        for conv in self.convs:
            x_BCHW = F.gelu(conv(x_BCHW))
            maps.append(x_BCHW)
        return maps


class UPerHead(nn.Module):
    def __init__(
        self,
        widths: Sequence[int],
        classes: int,
        channels: int,
        scales: Sequence[int],
        index: Sequence[int],
        align: bool,
    ) -> None:
        super().__init__()
        self.index, self.align = index, align
        *finer, last = (widths[i] for i in index)
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), Conv(last, channels, 1)) for scale in scales
        )
        self.bottleneck = Conv(last + len(scales) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(Conv(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(Conv(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = Conv(len(index) * channels, channels, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        used = [maps[i] for i in self.index]
        pooled = [resize(module(used[-1]), used[-1].shape[2:], self.align) for module in self.psp_modules]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used[:-1], strict=True)]
        laterals.append(self.bottleneck(torch.cat([used[-1], *pooled], dim=1)))
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1].shape[2:], self.align)
        outs = [*(conv(x) for conv, x in zip(self.fpn_convs, laterals[:-1], strict=True)), laterals[-1]]
        outs = [resize(x, outs[0].shape[2:], self.align) for x in outs]
        return self.conv_seg(self.fpn_bottleneck(torch.cat(outs, dim=1)))


class FPN(nn.Module):
    def __init__(self, widths: Sequence[int], channels: int, start: int, outs: int) -> None:
        super().__init__()
        self.start, self.outs = start, outs
        self.lateral_convs = nn.ModuleList(Conv(width, channels, 1, norm=False) for width in widths[start:])
        self.fpn_convs = nn.ModuleList(Conv(channels, channels, 3, norm=False) for _ in widths[start:])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps[self.start :], strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=laterals[i - 1].shape[2:])
        outs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=True)]
        while len(outs) < self.outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return outs


class Doubled(nn.Module):
    def __init__(self, align: bool) -> None:
        super().__init__()
        self.align = align

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return resize(x_BCHW, [2 * side for side in x_BCHW.shape[2:]], self.align)


class FPNHead(nn.Module):
    def __init__(self, width: int, classes: int, channels: int, strides: Sequence[int], align: bool) -> None:
        super().__init__()
        self.align = align
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.scale_heads = nn.ModuleList()
        for stride in strides:
            head: list[nn.Module] = []
            for k in range(max(1, int(math.log2(stride) - math.log2(strides[0])))):
                head.append(Conv(channels if k else width, channels, 3))
                head += [Doubled(align)] if stride != strides[0] else []
            self.scale_heads.append(nn.Sequential(*head))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        outs = [head(x) for head, x in zip(self.scale_heads, maps, strict=True)]
        return self.conv_seg(sum(resize(x, outs[0].shape[2:], self.align) for x in outs))


class FCNHead(nn.Module):
    def __init__(
        self, widths: Sequence[int], classes: int, channels: int, convs: int, index: int, concat: bool
    ) -> None:
        super().__init__()
        self.index, width = index, widths[index]
        self.conv_seg = nn.Conv2d(channels, classes, 1)
        self.convs = nn.Sequential(*(Conv(channels if k else width, channels, 3) for k in range(convs)))
        self.conv_cat = Conv(width + channels, channels, 3) if concat else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        seen = maps[self.index]
        x_BCHW = self.convs(seen)
        return self.conv_seg(x_BCHW if self.conv_cat is None else self.conv_cat(torch.cat([seen, x_BCHW], dim=1)))


class EncoderDecoder(nn.Module):
    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        neck: nn.Module | None = None,
        auxiliary: nn.Module | None = None,
        align: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.decode_head, self.auxiliary_head = backbone, neck, head, auxiliary
        self.align = align

    def forward(self, images_BCHW: Tensor) -> Tensor:
        maps = self.backbone(images_BCHW)
        return resize(self.decode_head(self.neck(maps) if self.neck else maps), images_BCHW.shape[2:], self.align)

    def losses(
        self, images_BCHW: Tensor, labels_BHW: Tensor, *, weight: float, ignore: int, over_valid: bool
    ) -> dict[str, Tensor]:
        def loss(logits: Tensor) -> Tensor:
            logits = resize(logits, labels_BHW.shape[1:], self.align)
            each = F.cross_entropy(logits, labels_BHW, reduction="none", ignore_index=ignore)
            return each.sum() / ((labels_BHW != ignore).sum() if over_valid else labels_BHW.numel())

        maps = self.backbone(images_BCHW)
        found = {"loss_seg": loss(self.decode_head(self.neck(maps) if self.neck else maps))}
        return found if self.auxiliary_head is None else found | {"loss_aux": weight * loss(self.auxiliary_head(maps))}

    def slide(self, images_BCHW: Tensor, window: tuple[int, int], stride: tuple[int, int]) -> Tensor:
        height, width = images_BCHW.shape[2:]
        total, count = torch.zeros(()), torch.zeros(height, width)
        for i in range(max(height - window[0] + stride[0] - 1, 0) // stride[0] + 1):
            for j in range(max(width - window[1] + stride[1] - 1, 0) // stride[1] + 1):
                y1, x1 = min(i * stride[0] + window[0], height), min(j * stride[1] + window[1], width)
                y0, x0 = max(y1 - window[0], 0), max(x1 - window[1], 0)
                logits = self(images_BCHW[:, :, y0:y1, x0:x1])
                total = total + F.pad(logits, (x0, width - x1, y0, height - y1))
                count[y0:y1, x0:x1] += 1
        return total / count
