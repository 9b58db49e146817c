"""Images of an analysis as tensors. H x W pixels, S pixels a side."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fourstage.analysis.invariance import Protocol, standard_view
from fourstage.analysis.networks import Preparation, Triple
from fourstage.data.images import as_picture, as_pixels

Resize = Literal["exact", "short_side"]


def prepared(image_HW3: np.ndarray, side: int, preparation: Preparation, resize: Resize = "exact") -> Tensor:
    """Return an image as a normalised (3, S, S) tensor.

    Args:
        image_HW3: uint8 RGB.
        resize: "exact" resizes to S x S whatever the aspect ratio, bicubically, as RepLKNet does; "short_side" resizes
            the short side to S and crops the centre, as VMamba does.
    """
    from torchvision.transforms import functional
    from torchvision.transforms.functional import InterpolationMode

    picture: Any = as_picture(image_HW3)  # torchvision's types know tensors alone
    size = [side, side] if resize == "exact" else [side]
    picture = functional.resize(picture, size, InterpolationMode.BICUBIC)
    if resize == "short_side":
        picture = functional.center_crop(picture, [side, side])
    return normalised(as_pixels(picture), preparation.mean, preparation.std)


def evaluated(image_HW3: np.ndarray, side: int, preparation: Preparation) -> Tensor:
    """Return an image as an evaluation of the network prepares it, a normalised (3, S, S) tensor.

    Args:
        image_HW3: uint8 RGB.
    """
    if preparation.crop_mode == "center":
        return standard_view(image_HW3, Protocol(preparation, side))
    from torchvision.transforms import functional
    from torchvision.transforms.functional import InterpolationMode

    picture: Any = as_picture(image_HW3)  # torchvision's types know tensors alone
    picture = functional.resize(picture, [side, side], InterpolationMode(preparation.interpolation))
    return normalised(as_pixels(picture), preparation.mean, preparation.std)


def normalised(image_HW3: np.ndarray, mean: Triple, std: Triple) -> Tensor:
    """Return uint8 pixels as (3, H, W) float32: scaled to [0, 1], less the mean, over the standard deviation."""
    image_3HW = torch.from_numpy(np.array(image_HW3.transpose(2, 0, 1))).float().div_(255)
    mean_311, std_311 = (torch.tensor(list(values))[:, None, None] for values in (mean, std))
    return image_3HW.sub_(mean_311).div_(std_311)
