"""Images as whole cells of every common map. B images, H x W pixels."""

import math

import torch.nn.functional as F
from torch import Tensor

MULTIPLE = 32  # pixels


def padded(images_BHW: Tensor) -> Tensor:
    """(..., H, W) with zeros on the right and at the bottom up to a multiple of 32 pixels."""
    height, width = images_BHW.shape[-2:]
    down, right = -height % MULTIPLE, -width % MULTIPLE
    return F.pad(images_BHW, (0, right, 0, down)) if down or right else images_BHW


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image of `size` that is padded alone."""
    return math.ceil(size[0] / MULTIPLE) * MULTIPLE, math.ceil(size[1] / MULTIPLE) * MULTIPLE
