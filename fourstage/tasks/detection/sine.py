"""Places as sines and cosines of many wavelengths, for attention. B images, H x W cells, F features, Q queries."""

from math import pi

import torch
from torch import Tensor

from fourstage.ops.eager import must_repeat_itself

SMALLEST_SIDE = 1e-6  # cells, is added to a side before something is divided by it


def sine_of_cells(
    size: tuple[int, int],
    features: int,
    *,
    temperature: float = 20.0,
    offset: float = 0.0,
    padding_BHW: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Encode the place of each cell, as a share of the image: y in the first half of the features, x in the second.

    Args:
        size: (H, W) of the map.
        features: F, a multiple of 4.
        temperature: ratio of the longest wavelength to the shortest, roughly.
        offset: is added to a place, in cells; cells count from 1.
        padding_BHW: bool, True where a cell is padding, which does not count; None: no cell is.

    Returns:
        (B, H, W, F) float32; B is 1 without `padding_BHW`.
    """
    if padding_BHW is None:
        padding_BHW = torch.zeros((1, *size), dtype=torch.bool, device=device)
    image_BHW = (~padding_BHW).float()
    if must_repeat_itself(image_BHW.device):  # running sums of floats raise, and those of integers are the same here
        y_BHW, x_BHW = (image_BHW.long().cumsum(axis).float() for axis in (1, 2))
    else:
        y_BHW, x_BHW = image_BHW.cumsum(1), image_BHW.cumsum(2)
    y_BHW = (y_BHW + offset) / (y_BHW[:, -1:, :] + SMALLEST_SIDE) * (2 * pi)
    x_BHW = (x_BHW + offset) / (x_BHW[:, :, -1:] + SMALLEST_SIDE) * (2 * pi)
    return torch.cat([_waves(side_BHW, features // 2, temperature) for side_BHW in (y_BHW, x_BHW)], dim=-1)


def sine_of_boxes(boxes_BQ4: Tensor, features: int, *, temperature: float = 10000.0) -> Tensor:
    """Encode boxes (centre x, centre y, width, height, as shares of the image): (B, Q, F), of y, x, width, height."""
    x, y, width, height = (boxes_BQ4 * (2 * pi)).unbind(-1)
    return torch.cat([_waves(value_BQ, features // 4, temperature) for value_BQ in (y, x, width, height)], dim=-1)


def _waves(value: Tensor, features: int, temperature: float) -> Tensor:
    """(...) to (..., features): a sine and a cosine in turn."""
    step_F = torch.arange(features // 2, dtype=torch.float32, device=value.device)
    phase = value[..., None] / temperature ** (2 * step_F / features)
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(-2)


def inverse_sigmoid(share: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of a number from 0 to 1; numbers closer than `eps` to either end are moved there."""
    share = share.clamp(0, 1)
    return (share.clamp(min=eps) / (1 - share).clamp(min=eps)).log()
