"""The gradient of RoIAlign's map by matrix products. B images, R regions, C channels, H x W cells, M x M in a region.

RoIAlign is linear in the map, and the weight of a cell is that of its row times that of its column:

    out[r, c, i, j] = sum over y, x of rows[r, i, y] * columns[r, j, x] * map[image of r, c, y, x]

so that its transpose is two products for each image. torchvision's kernel adds value after value in place of it, on a
GPU in no fixed order. Products of whole rows and columns are more operations, but quicker ones while maps are small.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

VALUES = 1 << 24  # of the first product that are in memory at a time
# operations of a product in the time of one addition of the kernel: 40 to 160 measured, by map and processor
RATE = 48.0
FOR_AN_IMAGE = float(1 << 20)  # operations of a product in the time of the calls for one image


def is_quicker(rois_R5: Tensor, size: int, scale: float, samples: int, shape: tuple[int, int, int, int]) -> bool:
    """Return whether the products take less time on a CPU than torchvision's kernel, with as many threads for both.

    Args:
        rois_R5, size, scale, samples: as for `roi_align`.
        shape: B, C, H, W.
    """
    images, channels, height, width = shape
    counts_R2 = _samples(rois_R5, size, scale, samples)
    values = channels * size * size
    additions = 4.0 * values * float(counts_R2.prod(dim=1).sum())
    operations = len(rois_R5) * values * width * (1 + height / size) + images * FOR_AN_IMAGE
    return operations < RATE * additions and float(counts_R2.max()) <= max(height, width)


def by_products(
    grad_RCMM: Tensor, rois_R5: Tensor, scale: float, samples: int, shape: tuple[int, int, int, int]
) -> Tensor:
    """Return (B, C, H, W), the gradient of the map, the same in each run on any device.

    Args:
        grad_RCMM: the gradient of the regions.
        rois_R5, scale, samples: as for `roi_align`.
        shape: B, C, H, W.
    """
    images, channels, height, width = shape
    size = grad_RCMM.shape[-1]
    starts_R2 = rois_R5[:, 1:3] * scale - 0.5
    cells_R2 = _cells(rois_R5, size, scale)
    counts_R2 = _samples(rois_R5, size, scale, samples)
    columns_RMW, rows_RMH = (
        _weights(starts_R2[:, axis], cells_R2[:, axis], counts_R2[:, axis], size, length)
        for axis, length in enumerate((width, height))
    )
    out_BCHW = grad_RCMM.new_zeros(shape)
    for out_CHW, here in zip(out_BCHW, _of_images(rois_R5[:, 0].long(), images), strict=True):
        step = max(1, VALUES // max(1, len(here) * size * width))
        for i in range(0, channels if len(here) else 0, step):
            some = slice(i, i + step)
            out_CHW[some] = _of_image(grad_RCMM[here, some], rows_RMH[here], columns_RMW[here])
    return out_BCHW


def _of_images(image_R: Tensor, images: int) -> Sequence[Tensor]:
    """Return the indices of the regions of each image."""
    return image_R.argsort(stable=True).split(torch.bincount(image_R, minlength=images).tolist())


def _of_image(grad_RCMM: Tensor, rows_RMH: Tensor, columns_RMW: Tensor) -> Tensor:
    """Return (C, H, W)."""
    channels, height, width = grad_RCMM.shape[1], rows_RMH.shape[2], columns_RMW.shape[2]
    across_RMcW = grad_RCMM.transpose(1, 2).flatten(1, 2) @ columns_RMW  # M * C rows
    both_HcW = rows_RMH.flatten(0, 1).T @ across_RMcW.reshape(-1, channels * width)
    return both_HcW.view(height, channels, width).transpose(0, 1)


def _cells(rois_R5: Tensor, size: int, scale: float) -> Tensor:
    """Return (R, 2), the width and the height of a region's cells on the map, as torchvision's kernel rounds them."""
    corners_R4 = rois_R5[:, 1:] * scale - 0.5
    return (corners_R4[:, 2:] - corners_R4[:, :2]) / size


def _samples(rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Return (R, 2), the number of points across and down a region's cell, none in an empty one."""
    cells_R2 = _cells(rois_R5, size, scale)
    return torch.full_like(cells_R2, samples) if samples > 0 else cells_R2.ceil().clamp(min=0)


def _weights(start_R: Tensor, cell_R: Tensor, count_R: Tensor, size: int, length: int) -> Tensor:
    """Return (R, M, length), how much of each row (or column) of the map is in each of a region."""
    length_L, cell_M = (torch.arange(n, device=start_R.device) for n in (length, size))
    weights_RML = start_R.new_zeros((len(start_R), size, length))
    share_R = 1 / count_R.clamp(min=1)
    for point in range(int(count_R.max()) if len(count_R) else 0):
        within_R = (point + 0.5) * cell_R / count_R.clamp(min=1)
        at_RM = start_R[:, None] + cell_M * cell_R[:, None] + within_R[:, None]
        is_counted_RM = (point < count_R)[:, None] & (at_RM >= -1) & (at_RM <= length)
        distance_RML = (at_RM.clamp(0, length - 1)[..., None] - length_L).abs_()
        weights_RML.addcmul_((1 - distance_RML).clamp_(min=0), (is_counted_RM * share_R[:, None])[..., None])
    return weights_RML
