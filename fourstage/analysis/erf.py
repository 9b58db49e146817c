"""The effective receptive field: which pixels influence the centre unit of a feature map.

B images, C channels, H x W pixels, N images of an analysis, R distances.

The procedure is RepLKNet's (https://arxiv.org/abs/2203.06717, `erf/visualize_erf.py` and `erf/analyze_erf.py` of its
repository): the gradient of the centre unit's positive channels by the image, negative values dropped, summed over the
colours, averaged over images. Its ratios are measured on log10(A + 1), which depends on the scale of the gradient; the
ratios of the raw map and of its power do not.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.analysis.positions import strided_layers, unit_centre
from fourstage.analysis.taps import LAST, features, frozen, stage_maps, stage_number, taken_by

SHARES = (0.2, 0.3, 0.5, 0.99)
SIZE = 1024  # pixels a side, RepLKNet's
IMAGES = 50
POWER = 0.2  # of the scale-free form, VMamba's
Centre = Literal["image", "unit"]
Scale = Literal["replknet", "raw", "power"]
SCALES: tuple[Scale, ...] = ("replknet", "raw", "power")


@dataclass(frozen=True)
class Erf:
    """The mean contribution of each pixel to one unit of a feature map.

    Attributes:
        map_HW: float64, mean over the images.
        sums_N: the sum of each image's own map.
        cells: (rows, columns) of the feature map.
        unit: (row, column) of the cell whose gradient was taken.
        unit_centre: (row, column) of the pixel on which that cell is centred.
        skipped: images whose map was not finite, which are not in the mean.
        tap: the feature map.
    """

    map_HW: np.ndarray
    sums_N: np.ndarray
    cells: tuple[int, int]
    unit: tuple[int, int]
    unit_centre: tuple[float, float]
    skipped: int
    tap: str

    @property
    def images(self) -> int:
        return len(self.sums_N)

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.map_HW.shape
        return height, width

    def centre(self, of: Centre = "image") -> tuple[float, float]:
        """Return the pixel around which the field is measured: (H // 2, W // 2) as RepLKNet has it, or the unit's."""
        height, width = self.map_HW.shape
        return (height // 2, width // 2) if of == "image" else self.unit_centre


@dataclass(frozen=True)
class Square:
    """The smallest centred square that holds more than a share of a map.

    Attributes:
        side: pixels.
        ratio: its share of the image's area, 0 to 1.
    """

    side: int
    ratio: float


@dataclass(frozen=True)
class Profile:
    """The mean contribution at each distance from the centre.

    Attributes:
        distance_R: pixels, 0, 1, 2, ...
        value_R: mean of the map over the ring of that distance.
        pixels_R: number of pixels in the ring.
        sigma: pixels, of the Gaussian that fits the profile best (least squares over all pixels).
        amplitude: of that Gaussian at distance 0.
        deviation: pixels, the map's own standard deviation along one axis: (sum of A d^2 / 2 sum of A)^0.5.
    """

    distance_R: np.ndarray
    value_R: np.ndarray
    pixels_R: np.ndarray
    sigma: float
    amplitude: float
    deviation: float


def receptive_field(
    network: nn.Module,
    images: Iterable[Tensor],
    *,
    tap: str = LAST,
    unit: tuple[int, int] | None = None,
    count: int | None = None,
) -> Erf:
    """Measure the effective receptive field of one unit of a feature map.

    The network is run in evaluation mode, so that norms and dropped branches are fixed, and is left as it was.

    Args:
        images: normalised (3, H, W) or (B, 3, H, W), all of one H x W.
        tap: `stage1`, `stage2`, ..., `last`, or the name of a layer.
        unit: row and column of the cell; None: (rows // 2, columns // 2).
        count: number of images with a finite map after which to stop; None: all.

    Raises:
        ValueError: no such map or unit, images of different sizes, or no image with a finite map.
    """
    total_HW: Tensor | None = None
    first: _Place | None = None
    sums: list[float] = []
    skipped = 0
    with frozen(network):
        for image_BCHW in _one_by_one(images, network):
            if first is None:  # layers are watched once: hooks would slow every image down
                map_HW, first = _first(network, image_BCHW, tap, unit)
            else:
                map_HW, _ = contributions(network, image_BCHW, tap=tap, unit=unit)
            if map_HW.shape != first.size:
                raise ValueError(
                    f"got an image of {_by(map_HW.shape)} pixels after one of {_by(first.size)}; resize all alike"
                )
            value = float(map_HW.double().sum())
            if not np.isfinite(value):
                skipped += 1
                continue
            total_HW = map_HW.double() if total_HW is None else total_HW + map_HW
            sums.append(value)
            if count is not None and len(sums) == count:
                break
    if total_HW is None or first is None:
        raise ValueError(
            f"none of {skipped} images gave a finite map; the weights or the images hold NaN or infinity"
            if skipped
            else "a receptive field needs at least one image; got none"
        )
    map_HW = (total_HW / len(sums)).cpu().numpy()
    return Erf(map_HW, np.array(sums), first.cells, first.unit, first.centre, skipped, tap)


@dataclass(frozen=True)
class _Place:
    """What the first image shows of all: its size, the cells of the map, and where the unit is."""

    size: tuple[int, int]
    cells: tuple[int, int]
    unit: tuple[int, int]
    centre: tuple[float, float]


def _first(network: nn.Module, image_BCHW: Tensor, tap: str, unit: tuple[int, int] | None) -> tuple[Tensor, _Place]:
    """Return the map of the first image. The strides of the layers say on which pixel the unit is centred."""
    image_BCHW = image_BCHW.detach().clone().requires_grad_(True)
    with strided_layers(network) as layers:
        maps = _maps_to(network, image_BCHW, tap)
    map_HW, unit = _contributions(image_BCHW, maps[-1], tap, unit)
    sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    return map_HW, _Place(size, sizes[-1], unit, unit_centre(layers, size, sizes, unit))


def _maps_to(network: nn.Module, image_BCHW: Tensor, tap: str) -> list[Tensor]:
    """Return the maps of the stages up to the one of `tap`; of a layer, its own map alone."""
    number = stage_number(tap)
    if number is None or number == 0:
        return features(network, image_BCHW, [tap])
    maps = stage_maps(network, image_BCHW, None if number < 0 else number)
    if number > len(maps):
        return features(network, image_BCHW, [tap])  # raises the sentence on the stages that there are
    return maps[:number] if number > 0 else maps


def contributions(
    network: nn.Module, image_BCHW: Tensor, *, tap: str = LAST, unit: tuple[int, int] | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """Return the map of one batch, (H, W), and the (row, column) of the unit.

    The scalar is the sum over channels of relu(F) at the unit. Its gradient by the image is cut at zero and summed over
    the batch and the colours. Source: `get_input_grad` of RepLKNet.
    """
    image_BCHW = image_BCHW.detach().clone().requires_grad_(True)
    [x_BCHW] = features(network, image_BCHW, [tap])
    return _contributions(image_BCHW, x_BCHW, tap, unit)


def _contributions(
    image_BCHW: Tensor, x_BCHW: Tensor, tap: str, unit: tuple[int, int] | None
) -> tuple[Tensor, tuple[int, int]]:
    rows, columns = x_BCHW.shape[-2:]
    row, column = unit or (rows // 2, columns // 2)
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"the map {tap} has {rows} x {columns} cells, and no unit {row}, {column}; name one within it")
    if not x_BCHW.requires_grad:
        raise ValueError(f"the map {tap} has no gradient by the image; take another layer")
    scalar = x_BCHW[:, :, row, column].relu().sum()
    [gradient_BCHW] = torch.autograd.grad(scalar, image_BCHW)
    return gradient_BCHW.relu().sum(dim=(0, 1)), (row, column)


def _one_by_one(images: Iterable[Tensor], network: nn.Module) -> Iterable[Tensor]:
    for image in images:
        if image.ndim not in (3, 4):
            raise ValueError(f"an image is (3, H, W), or a batch of them; got {tuple(image.shape)}")
        for one_CHW in image[None] if image.ndim == 3 else image:
            yield taken_by(network, one_CHW[None])


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def scaled(map_HW: np.ndarray, scale: Scale, power: float = POWER) -> np.ndarray:
    """Return the map in a form of the ratios: log10(A + 1) of RepLKNet, A itself, or A^power of VMamba."""
    if scale == "replknet":
        return np.log10(map_HW + 1)
    return map_HW**power if scale == "power" else map_HW


def square(map_HW: np.ndarray, share: float, centre: tuple[float, float]) -> Square | None:
    """Return the smallest square around a pixel that holds more than a share of the map's sum; None: none does.

    Squares have 3, 5, ... pixels a side around a pixel and 2, 4, ... around a point between two; they end one pixel
    before the border, so that their largest side is H - 1 for an even H, as in RepLKNet's `get_rectangle`.
    """
    height, width = map_HW.shape
    row, column = centre
    y_H, x_W = np.abs(np.arange(height) - row), np.abs(np.arange(width) - column)
    ring_HW = np.ceil(np.maximum(y_H[:, None], x_W[None])).astype(np.int64)
    within = np.bincount(ring_HW.ravel(), weights=map_HW.ravel()).cumsum()
    for i in range(1, min(height, width) // 2):
        (top, bottom), (left, right) = ((int(np.ceil(c - i)), int(np.floor(c + i)) + 1) for c in centre)
        if min(top, left) < 0 or bottom > height or right > width:
            return None
        if within[-1] > 0 and within[i] / within[-1] > share:
            return Square(bottom - top, (bottom - top) * (right - left) / (height * width))
    return None


def squares(
    erf: Erf,
    scale: Scale,
    *,
    centre: Centre = "image",
    shares: Sequence[float] = SHARES,
    power: float = POWER,
) -> Mapping[float, Square | None]:
    """Return for each share the smallest square that holds more than it; see `square` and `scaled`."""
    map_HW = scaled(erf.map_HW, scale, power)
    return {share: square(map_HW, share, erf.centre(centre)) for share in shares}


def profile(erf: Erf, *, centre: Centre = "image") -> Profile:
    """Return the mean contribution by distance from the centre, and the width of a Gaussian that fits it."""
    row, column = erf.centre(centre)
    height, width = erf.map_HW.shape
    y_H, x_W = np.arange(height) - row, np.arange(width) - column
    squared_HW = y_H[:, None] ** 2 + x_W[None] ** 2
    ring_HW = np.rint(np.sqrt(squared_HW)).astype(np.int64)
    pixels_R = np.bincount(ring_HW.ravel())
    sums_R = np.bincount(ring_HW.ravel(), weights=erf.map_HW.ravel())
    known_R = pixels_R > 0
    value_R = np.divide(sums_R, pixels_R, out=np.full(len(sums_R), np.nan), where=known_R)
    total = float(erf.map_HW.sum())
    deviation = float(np.sqrt((erf.map_HW * squared_HW).sum() / (2 * total))) if total > 0 else float("nan")
    distance_R = np.arange(len(pixels_R), dtype=float)
    squared_R = np.bincount(ring_HW.ravel(), weights=squared_HW.ravel())[known_R] / pixels_R[known_R]
    sigma, amplitude = _gaussian(squared_R, value_R[known_R], pixels_R[known_R])
    return Profile(distance_R, value_R, pixels_R, sigma, amplitude, deviation)


def _gaussian(squared_R: np.ndarray, value_R: np.ndarray, weight_R: np.ndarray) -> tuple[float, float]:
    """Return (sigma, amplitude) of the Gaussian with the least squared error over all pixels, by nested search.

    Args:
        squared_R: mean squared distance of a ring's pixels from the centre.
    """
    low, high = np.log(0.2), np.log(4.0 * max(float(squared_R[-1]) ** 0.5, 1.0))
    best, amplitude = float("nan"), float("nan")
    for _ in range(6):
        grid = np.linspace(low, high, 41)
        basis_GR = np.exp(-squared_R / (2 * np.exp(2 * grid[:, None])))
        sizes_G = (basis_GR**2 * weight_R).sum(1)  # 0 for Gaussians that end before the first pixel of the image
        heights_G = (basis_GR * value_R * weight_R).sum(1) / np.where(sizes_G > 0, sizes_G, 1.0)
        errors_G = (weight_R * (value_R - heights_G[:, None] * basis_GR) ** 2).sum(1)
        i = int(errors_G.argmin())
        best, amplitude = float(np.exp(grid[i])), float(heights_G[i])
        low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    return best, amplitude


def luo_size(erf: Erf, *, centre: Centre = "image") -> float:
    """Return the size by Luo et al.: the square root of the number of pixels above 1 - 0.9545 of the centre's value.

    A centre between pixels has the mean of the pixels around it, and one in a network's padding, beyond the image, the
    value of the nearest pixel. Source: https://arxiv.org/abs/1701.04128.
    """
    inside = (min(max(c, 0.0), side - 1.0) for c, side in zip(erf.centre(centre), erf.size, strict=True))
    rows, columns = ({int(np.floor(c)), int(np.ceil(c))} for c in inside)
    value = np.mean([erf.map_HW[row, column] for row in rows for column in columns])
    return float(np.sqrt((erf.map_HW > (1 - 0.9545) * value).sum()))
