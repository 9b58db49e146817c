"""The first convolution for another number of channels than the RGB images that a file was trained on.

O filters, I channels of the image, K x K pixels.
"""

import torch
from torch import Tensor

RGB = 3


def is_adaptable(theirs: Tensor, ours: Tensor) -> bool:
    """Return whether two weights are one convolution, theirs for RGB images and ours for other ones."""
    if theirs.ndim != 4 or ours.ndim != 4 or theirs.shape[1] != RGB or ours.shape[1] == RGB:
        return False
    return theirs.shape[0] == ours.shape[0] and theirs.shape[2:] == ours.shape[2:] and theirs.is_floating_point()


def adapt_stem(weight_O3KK: Tensor, channels: int) -> Tensor:
    """Return the weight of a convolution for RGB images as one for another number of channels, as timm does.

    The three channels are summed for one channel, so that a grey image gives what its three copies gave. For others
    they are repeated in their order, and scaled by 3 / channels, so that the sum keeps its size.
    """
    wide_O3KK = weight_O3KK.to(torch.float32)
    if channels == 1:
        return wide_O3KK.sum(dim=1, keepdim=True).to(weight_O3KK.dtype)
    order = torch.arange(channels, device=weight_O3KK.device) % RGB
    return (wide_O3KK[:, order] * (RGB / channels)).to(weight_O3KK.dtype)


def adapted_note(channels: int) -> str:
    """Return what happened to a stem, for a report."""
    return f"stem adapted: RGB {'summed to 1 channel' if channels == 1 else f'repeated to {channels} channels'}"
