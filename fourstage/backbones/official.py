"""Two networks that the STM study keeps as their authors drew them, inside its own frame of blocks: Swin's tiny and
PVTv2's b0 (https://arxiv.org/abs/2103.14030, https://arxiv.org/abs/2106.13797; code: OpenGVLab/STM-Evaluation).

They differ from the originals in their layer scales, and in the epsilon of most norms. No weights of them were
published. B images, C channels, H x W cells.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones import unified
from fourstage.backbones.swin import PatchEmbed, PatchMerge
from fourstage.backbones.unified import DESIGNS, Norm, Shell, classifier, dense


class OverlapEmbed(nn.Sequential):
    """PVTv2's stem and down-sampling: overlapping patches. (B, C, H, W) to (B, C', ceil(H / s), ceil(W / s))."""

    def __init__(self, before: int, width: int, *, patch: int, stride: int) -> None:
        conv = nn.Conv2d(before, width, patch, stride=stride, padding=patch // 2)
        super().__init__(conv, Norm(width))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.contiguous(memory_format=torch.channels_last))


class SwinStem(PatchEmbed):
    """Swin's patch embedding with the epsilon of this source."""

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__(in_chans, width)
        self[1] = Norm(width)


class SwinDown(nn.Module):
    """Swin's merge of four neighbours: (B, C, H, W) to (B, 2C, ceil(H / 2), ceil(W / 2))."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        assert width == 2 * before, "a merge doubles the channels"
        self.merge = PatchMerge(before)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.merge(x_BCHW.movedim(1, -1)).movedim(-1, 1)


SWIN = Shell(SwinStem, SwinDown, stage_norm=nn.Identity, final=Norm, head_ratio=1)
PVT_V2 = Shell(
    stem=partial(OverlapEmbed, patch=7, stride=4),
    down=partial(OverlapEmbed, patch=3, stride=2),
    final=nn.Identity,
    head_ratio=1,
)
SWIN_TINY = replace(DESIGNS["unified_swin_tiny"], shell=SWIN)
PVT_V2_B0 = replace(DESIGNS["unified_pvt_v2_micro"], depths=(2, 2, 2, 2), shell=PVT_V2)
TEST_DESIGNS = {
    "official_swin": replace(unified.TEST_DESIGNS["unified_swin"], shell=SWIN),
    "official_pvt_v2": replace(unified.TEST_DESIGNS["unified_pvt_v2"], shell=PVT_V2),
}

registry.add("official_swin_tiny", classifier=partial(classifier, SWIN_TINY), dense=partial(dense, SWIN_TINY))
registry.add("official_pvt_v2_b0", classifier=partial(classifier, PVT_V2_B0), dense=partial(dense, PVT_V2_B0))
