"""Transforms of an image and its label map for segmentation, with MMSegmentation's arithmetic. H x W pixels.

Resizing is OpenCV's on bytes, which published numbers were measured with. Random transforms draw from the global
generator of `numpy.random` only, in MMSegmentation's order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fourstage.data.sample import IGNORE, Sample
from fourstage.data.transforms.resizing import Normalise, Size, keep_ratio, opencv, resize_image, resize_nearest
from fourstage.data.transforms.values import check_shares

Transform = Callable[[Sample], Sample]

CHECKS = 10  # crops that are checked; the next one is used in any case
BRIGHTNESS = 32  # levels, of 256
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of OpenCV's 180


def train_transform(
    crop: Size,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: tuple[int, int] | None = (2048, 512),
    ratio: tuple[float, float] = (0.5, 2.0),
    most_of_one: float = 0.75,
    hflip: float = 0.5,
    photometric: bool = True,
) -> Transform:
    """Resize by a random ratio, crop, mirror, change colours, normalise, pad.

    Args:
        crop: (H, W) of the result, pixels; smaller images are padded, zeros in the image and `IGNORE` in the labels.
        mean, std: per channel, in units of 1 (white).
        scale: the two limits on an image's sides at ratio 1, pixels; None: its own sides.
        ratio: smallest and largest.
        most_of_one: share of a crop's pixels that one class may have; ten crops are tried.
        hflip: probability of a mirror image.
        photometric: whether brightness, contrast, saturation and hue change.

    Returns:
        A transform from (H, W, 3) uint8 to (3, *crop) float32, normalised, and (*crop) uint8 labels. It can be pickled.

    Raises:
        ValueError: an impossible value; a library is missing.
    """
    opencv()
    if min(crop) < 32:
        raise ValueError(f"crop {crop} is below the smallest image, 32 x 32 pixels; give a larger one")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio is [smallest, largest], above 0; got {list(ratio)}")
    if scale is not None and not all(side >= 1 for side in scale):
        raise ValueError(f"scale is two limits in pixels, at least 1, such as [2048, 512]; got {list(scale)}")
    check_shares(hflip=hflip, most_of_one=most_of_one)
    return _Train(crop, Normalise.of(mean, std), scale, ratio, most_of_one, hflip, photometric)


def evaluation_transform() -> Transform:
    """The image as it was read, (3, H, W) uint8, and its labels: a protocol resizes it, see tasks/segmentation."""
    return _as_read


def _as_read(sample: Sample) -> Sample:
    pixels_HW3 = _pixels(sample)
    return replace(sample, image=torch.from_numpy(np.array(pixels_HW3)).movedim(-1, 0), objects=None)


def normalised(pixels_3HW: Tensor, by: Normalise) -> Tensor:
    """(..., 3, H, W) uint8, on any device, to float32: the mean off, then divided by the standard deviation."""
    mean, std = (pixels_3HW.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (by.mean_3, by.std_3))
    return pixels_3HW.float().sub_(mean).div_(std)


@dataclass(frozen=True)
class _Train:
    crop: Size
    normalise: Normalise
    scale: tuple[int, int] | None
    ratio: tuple[float, float]
    most_of_one: float
    hflip: float
    photometric: bool

    def __call__(self, sample: Sample) -> Sample:
        image_HW3, labels_HW = _pixels(sample), _labels(sample)
        size = random_size(image_HW3.shape[:2], self.scale, self.ratio)
        image_HW3, labels_HW = resize_image(image_HW3, size), resize_nearest(labels_HW, size)
        box = random_crop(labels_HW, self.crop, self.most_of_one)
        image_HW3, labels_HW = image_HW3[box], labels_HW[box]
        if np.random.random_sample() < self.hflip:  # noqa: NPY002 - seeded for each sample by the loader
            # copies, also of one column, whose negative stride ascontiguousarray leaves and torch refuses
            image_HW3, labels_HW = image_HW3[:, ::-1].copy(), labels_HW[:, ::-1].copy()
        if self.photometric:
            image_HW3 = distort(np.ascontiguousarray(image_HW3))
        image_3HW = self.normalise(image_HW3)
        labels = torch.from_numpy(np.ascontiguousarray(labels_HW))
        return replace(
            sample,
            image=_padded(image_3HW, self.crop, 0),
            label_map_HW=_padded(labels, self.crop, IGNORE),
            objects=None,
        )


def random_size(size: Size, scale: tuple[int, int] | None, ratio: tuple[float, float]) -> Size:
    """The size of an image resized to a random multiple of `scale`; None: of its own sides."""
    low, high = ratio
    drawn = np.random.random_sample() * (high - low) + low  # noqa: NPY002
    limits = scale or (max(size), min(size))
    return keep_ratio(size, (max(1, int(limits[0] * drawn)), max(1, int(limits[1] * drawn))))


def random_crop(labels_HW: np.ndarray, crop: Size, most_of_one: float) -> tuple[slice, slice]:
    """Where to cut: two slices, which run out where the map is smaller than `crop`.

    A crop in which one class has `most_of_one` of the pixels or more, or in which there is only one, is drawn again.
    """
    for _ in range(CHECKS if most_of_one < 1 else 0):
        box = _random_box(labels_HW.shape, crop)
        counts = np.bincount(labels_HW[box].reshape(-1), minlength=IGNORE + 1)
        counts[IGNORE] = 0
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < most_of_one:
            return box
    return _random_box(labels_HW.shape, crop)


def _random_box(size: Sequence[int], crop: Size) -> tuple[slice, slice]:
    tops = [int(np.random.randint(0, max(side - cut, 0) + 1)) for side, cut in zip(size, crop, strict=True)]  # noqa: NPY002
    return slice(tops[0], tops[0] + crop[0]), slice(tops[1], tops[1] + crop[1])


def distort(image_HW3: np.ndarray) -> np.ndarray:
    """Random brightness, contrast, saturation and hue, each with probability 1/2.

    Args:
        image_HW3: (H, W, 3) uint8 RGB, contiguous.

    Returns:
        A new image, or the same one where every coin fell that way.
    """
    if _coin():
        image_HW3 = _scaled(image_HW3, 1.0, _uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_first = _coin()
    if contrast_first and _coin():
        image_HW3 = _scaled(image_HW3, _uniform(*CONTRAST))
    if _coin():
        hsv_HW3 = _as_hsv(image_HW3)
        hsv_HW3[..., 1] = _scaled(hsv_HW3[..., 1], _uniform(*SATURATION))
        image_HW3 = _as_rgb(hsv_HW3)
    if _coin():
        hsv_HW3 = _as_hsv(image_HW3)
        turn = int(np.random.randint(-HUE, HUE))  # noqa: NPY002
        hsv_HW3[..., 0] = (hsv_HW3[..., 0].astype(np.int64) + turn) % 180
        image_HW3 = _as_rgb(hsv_HW3)
    if not contrast_first and _coin():
        image_HW3 = _scaled(image_HW3, _uniform(*CONTRAST))
    return image_HW3


def _coin() -> bool:
    return bool(np.random.randint(2))  # noqa: NPY002


def _uniform(low: float, high: float) -> float:
    return float(np.random.uniform(low, high))  # noqa: NPY002


def _scaled(values: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    """In float32, cut at 0 and 255, the fraction dropped."""
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _as_hsv(image_HW3: np.ndarray) -> np.ndarray:
    cv2 = opencv()
    return cv2.cvtColor(image_HW3, cv2.COLOR_RGB2HSV)


def _as_rgb(hsv_HW3: np.ndarray) -> np.ndarray:
    cv2 = opencv()
    return cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB)


def _padded(tensor: Tensor, size: Size, value: int) -> Tensor:
    if tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    out = tensor.new_full((*tensor.shape[:-2], *size), value)
    out[..., : tensor.shape[-2], : tensor.shape[-1]] = tensor
    return out


def _pixels(sample: Sample) -> np.ndarray:
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    return sample.image


def _labels(sample: Sample) -> np.ndarray:
    if sample.label_map_HW is None:
        raise ValueError(
            f"the sample {sample.id} has no label map: segmentation needs data with one, such as "
            "images/train/*.jpg with masks/train/*.png"
        )
    return sample.label_map_HW.numpy()
