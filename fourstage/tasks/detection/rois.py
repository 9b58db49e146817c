"""Regions of interest: features within a box, at one size. R regions, M x M cells."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.ops.eager import is_exporting
from fourstage.ops.roi_align import roi_align
from fourstage.tasks.detection.boxes import as_float32, box_areas

FINEST_SCALE = 56.0  # pixels; boxes of less than twice this side are read from the first map


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Return (R, 5) of the boxes of all images, each with the index of its image in front."""
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])


def to_rois_of_batch(boxes_BN4: Tensor) -> Tensor:
    """Return (B * N, 5) of as many boxes in every image, each with the index of its image in front."""
    image_B = torch.arange(boxes_BN4.shape[0], device=boxes_BN4.device).to(boxes_BN4.dtype)
    image_BN1 = image_B[:, None, None].expand(-1, boxes_BN4.shape[1], 1)
    return torch.cat([image_BN1, boxes_BN4], dim=2).flatten(0, 1)


class RoIPool(nn.Module):
    """Cut boxes out of the map whose cells fit their size and average them on an M x M grid (RoIAlign).

    Args:
        levels: of the maps, each half as large as the one before.
        size: M.
        samples: points a side in each cell of the grid; 0: as many as the box has cells there.
        finest_scale: boxes of less than twice this side, pixels, are read from the first map, whatever its stride is.
    """

    def __init__(
        self, levels: Sequence[Level], size: int, samples: int = 0, finest_scale: float = FINEST_SCALE
    ) -> None:
        super().__init__()
        self.strides = tuple(level.stride for level in levels)
        self.size, self.samples, self.finest_scale = size, samples, finest_scale

    def level_of(self, boxes_R4: Tensor) -> Tensor:
        """Return (R,) index of a map: the first for boxes below twice `finest_scale`, one coarser for each doubling."""
        side_R = box_areas(boxes_R4).clamp(min=0).sqrt()
        return torch.log2(side_R / self.finest_scale + 1e-6).floor().clamp(0, len(self.strides) - 1).long()

    def forward(self, maps: Sequence[Tensor], rois_R5: Tensor) -> Tensor:
        """Return (R, C, M, M) from one (B, C, H_i, W_i) map per level, averaged in float32; further maps are unused."""
        dtype = maps[0].dtype
        maps = [as_float32(x_BCHW) for x_BCHW in maps[: len(self.strides)]]
        # a kernel would read anywhere for a box that is not a number; losses report it, whose outputs are none either
        rois_R5 = rois_R5.to(maps[0].dtype).nan_to_num(nan=0.0)
        level_R = self.level_of(rois_R5[:, 1:])
        if is_exporting():
            return self._from_all(maps, rois_R5, level_R).to(dtype)
        pooled, places = [], []
        for i, (x_BCHW, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here = (level_R == i).nonzero().squeeze(1)
            if len(here) or not i or torch.is_grad_enabled():  # a map without boxes has a gradient too, which is 0
                pooled.append(roi_align(x_BCHW, rois_R5[here], self.size, 1 / stride, self.samples))
                places.append(here)
        order = torch.cat(places)
        back = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
        return torch.cat(pooled)[back].to(dtype)

    def _from_all(self, maps: Sequence[Tensor], rois_R5: Tensor, level_R: Tensor) -> Tensor:
        """Cut every box out of every map, of which one is its own: a graph has no maps with some of the boxes.

        The boxes of the other maps shrink to one pixel of the first image, which costs little.
        """
        out_RCMM = maps[0].new_zeros(())
        for i, (x_BCHW, stride) in enumerate(zip(maps, self.strides, strict=True)):
            here_R1 = (level_R == i)[:, None]
            own_R5 = torch.where(here_R1, rois_R5, rois_R5.new_tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
            pooled_RCMM = roi_align(x_BCHW, own_R5, self.size, 1 / stride, self.samples)
            out_RCMM = torch.where(here_R1[..., None, None], pooled_RCMM, out_RCMM)
        return out_RCMM

    def extra_repr(self) -> str:
        return f"strides={self.strides}, size={self.size}, samples={self.samples}, finest_scale={self.finest_scale}"
