"""How predictions change when images are shifted, rotated or resized. Source: https://arxiv.org/abs/2211.05781.

S settings of a family, N images, B views, K classes, C channels, H x W pixels, P pixels a side.

Each image is seen in a standard view and, for each setting of a family, in a changed view. `loss` is the cross-entropy
between the changed view's logits and the standard view's probabilities; a prediction is consistent where both views
have the same best class. `original` switches to what the authors' `tools/variance_transforms.py` does: one direction
of seven, drawn for each view, and a crop that is clipped to the image and padded on both sides, which moves its content
back to the middle.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.analysis.logits import logits_of
from fourstage.analysis.networks import Preparation
from fourstage.analysis.statistics import bootstrap_means
from fourstage.analysis.taps import frozen
from fourstage.data.images import as_picture

if TYPE_CHECKING:
    from PIL.Image import Image

Family = Literal["translation", "pre_rotation", "post_rotation", "scale"]
FAMILIES: tuple[Family, ...] = ("translation", "pre_rotation", "post_rotation", "scale")
SETTINGS: dict[Family, tuple[float, ...]] = {
    "translation": tuple(range(0, 65, 4)),  # pixels of an image of 224
    "pre_rotation": tuple(range(0, 91, 5)),  # degrees, counter-clockwise, before the crop
    "post_rotation": tuple(range(0, 91, 5)),  # after it
    "scale": tuple(ratio / 1000 for ratio in range(200, 2001, 125)),  # crop ratio: P over the resized short side
}
PUBLISHED_SIDE = 224
# (down, right) in the order of the authors' numbers; they draw from the first seven
DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1))
ORIGINAL_DIRECTIONS = 7
VIEWS_AT_ONCE = 32


@dataclass(frozen=True)
class Protocol:
    """How views are made.

    Attributes:
        preparation: normalisation and crop ratio of the standard view.
        side: pixels of the square views.
        directions: shift each image in all eight directions, or in one that is drawn for it.
        original: the authors' transforms; see above. Translations then are in pixels whatever the side.
        seed: of drawn directions.
    """

    preparation: Preparation = field(default_factory=Preparation)
    side: int = PUBLISHED_SIDE
    directions: Literal["all", "one"] = "all"
    original: bool = False
    seed: int = 0

    @property
    def resized(self) -> int:
        """The short side that an image is resized to before the crop."""
        return int(self.side / self.preparation.crop_pct)


@dataclass(frozen=True)
class Curves:
    """What one family of changes does to each image; with several directions, the mean over them.

    Attributes:
        settings_S: pixels, degrees or crop ratios.
        loss_SN: soft cross-entropy against the standard view.
        top1_SN, top5_SN: 1 where the label is the best, or among the best five, of the changed view; NaN without label.
        consistent_SN: 1 where the best class is that of the standard view.
        standard_top1_N, standard_top5_N: of the standard view.
    """

    family: Family
    settings_S: np.ndarray
    loss_SN: np.ndarray
    top1_SN: np.ndarray
    top5_SN: np.ndarray
    consistent_SN: np.ndarray
    standard_top1_N: np.ndarray
    standard_top5_N: np.ndarray

    def values(self, measure: str) -> np.ndarray:
        """Return (S, N) of "loss", "top1", "top5" or "consistency"; shares in per cent."""
        if measure == "loss":
            return self.loss_SN
        return 100 * {"top1": self.top1_SN, "top5": self.top5_SN, "consistency": self.consistent_SN}[measure]

    def interval(self, measure: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the bootstrap interval of the mean over images for each setting."""
        return bootstrap_means(self.values(measure), seed=seed)


def evaluate_invariance(
    network: nn.Module,
    images: Iterable[tuple[np.ndarray, int | None]],
    families: Sequence[Family],
    protocol: Protocol | None = None,
    settings: dict[Family, tuple[float, ...]] | None = None,
) -> dict[Family, Curves]:
    """Measure invariance on images with their labels.

    Args:
        network: (B, 3, P, P) to (B, K) logits.
        images: (H, W, 3) uint8 RGB, and the label in the classes of the network, or None.
        families: one that is given twice is measured once.
        settings: of each family; None: those of the paper.

    Raises:
        ValueError: there is no image or no family, or the network returns no logits.
    """
    if not families:
        raise ValueError(f"invariance needs at least one family; choose from {', '.join(FAMILIES)}")
    families = tuple(dict.fromkeys(families))
    protocol, settings = protocol or Protocol(), {**SETTINGS, **(settings or {})}
    rows: dict[Family, list[np.ndarray]] = {family: [] for family in families}
    draw = np.random.RandomState(protocol.seed % 2**32)
    with frozen(network), torch.inference_mode():
        for number, (image_HW3, label) in enumerate(images):
            standard = _logits(network, [standard_view(image_HW3, protocol)])
            for family in families:
                counts, views = _views_of(image_HW3, family, settings[family], protocol, draw, number)
                rows[family].append(_image_row(standard, _logits(network, views), counts, label))
    if not rows[families[0]]:
        raise ValueError("invariance needs at least one image; got none")
    return {family: _curves(family, settings[family], np.stack(rows[family], axis=-1)) for family in families}


def measures(logits_BK: Tensor, standard_BK: Tensor, labels_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (B,) soft cross-entropy, top-1, top-5 and consistency of changed views against standard ones.

    Without labels, top-1 and top-5 are NaN. Networks of fewer than five classes have top-5 by all of them.
    """
    loss_B = F.cross_entropy(logits_BK, standard_BK.softmax(dim=1), reduction="none")
    consistent_B = (logits_BK.argmax(dim=1) == standard_BK.argmax(dim=1)).to(loss_B.dtype)
    if labels_B is None:
        unknown_B = torch.full_like(loss_B, torch.nan)
        return loss_B, unknown_B, unknown_B, consistent_B
    best_B5 = logits_BK.topk(min(5, logits_BK.shape[1]), dim=1).indices
    hit_B5 = (best_B5 == labels_B[:, None]).to(loss_B.dtype)
    return loss_B, hit_B5[:, 0], hit_B5.sum(dim=1), consistent_B


def _image_row(standard_1K: Tensor, logits_BK: Tensor, counts: Sequence[int], label: int | None) -> np.ndarray:
    """Return (6, S): loss, top-1, top-5, consistency, and the standard view's top-1 and top-5, for one image."""
    labels_B = None if label is None else torch.full((len(logits_BK),), label, device=logits_BK.device)
    found = torch.stack(measures(logits_BK, standard_1K.expand_as(logits_BK), labels_B))
    by_setting = torch.stack([part.mean(dim=1) for part in found.split(list(counts), dim=1)], dim=1)
    own = measures(standard_1K, standard_1K, None if labels_B is None else labels_B[:1])
    standard = torch.stack([own[1], own[2]]).expand(2, by_setting.shape[1])
    return torch.cat([by_setting, standard]).double().cpu().numpy()


def _curves(family: Family, settings: Sequence[float], values_6SN: np.ndarray) -> Curves:
    loss, top1, top5, consistent, standard1, standard5 = values_6SN
    return Curves(family, np.array(settings, float), loss, top1, top5, consistent, standard1[0], standard5[0])


def _logits(network: nn.Module, views: Sequence[Tensor]) -> Tensor:
    chunks = [views[begin : begin + VIEWS_AT_ONCE] for begin in range(0, len(views), VIEWS_AT_ONCE)]
    return torch.cat([logits_of(network, torch.stack(list(chunk)), "invariance") for chunk in chunks])


def standard_view(image_HW3: np.ndarray, protocol: Protocol, crop_ratio: float | None = None) -> Tensor:
    """Return the image resized to int(P / crop ratio) and cropped in the middle, normalised (3, P, P).

    A crop ratio above 1 makes an image smaller than the crop, whose border is black.
    """
    ratio = protocol.preparation.crop_pct if crop_ratio is None else crop_ratio
    return _normalised(_cropped(_resized(image_HW3, int(protocol.side / ratio), protocol), protocol.side), protocol)


def rotated_view(image_HW3: np.ndarray, angle: float, protocol: Protocol, *, before_crop: bool) -> Tensor:
    """Return the image rotated bicubically, counter-clockwise, before or after the centre crop; corners are black."""
    from torchvision.transforms.functional import InterpolationMode, rotate

    picture: Any = _resized(image_HW3, protocol.resized, protocol)
    if not before_crop:
        picture = _cropped(picture, protocol.side)
    turned: Any = rotate(picture, angle=angle, interpolation=InterpolationMode.BICUBIC)
    return _normalised(_cropped(turned, protocol.side) if before_crop else turned, protocol)


def shifted_view(image_HW3: np.ndarray, pixels: int, direction: tuple[int, int], protocol: Protocol) -> Tensor:
    """Return a crop whose centre is moved by `pixels` down and right times `direction`; the outside is black.

    In the original the crop is clipped to the image and padded on both sides alike, so that its content is centred. A
    crop that ends above the image, or left of it, ends there as Python's negative indices do: counted from its far end.
    """
    side = protocol.side
    near = side // 2
    far = near if protocol.original else side - near  # the original loses a pixel of an odd side
    image_3HW = _tensor(_resized(image_HW3, protocol.resized, protocol))
    spans = []
    for length, step in zip(image_3HW.shape[1:], direction, strict=True):
        middle = length // 2 + step * pixels
        begin, end = max(middle - near, 0), min(middle + far, length)
        if protocol.original and end < 0:
            end += length
        missing = side - max(end - begin, 0)
        ahead = missing // 2 if protocol.original else min(max(near - middle, 0), missing)
        spans.append((min(begin, length), max(end, 0), ahead, missing - ahead))
    (top, bottom, above, below), (left, right, before, after) = spans
    crop_3HW = image_3HW[:, top : max(bottom, top), left : max(right, left)]
    return _normalised_tensor(F.pad(crop_3HW, (before, after, above, below)), protocol)


def _views_of(
    image_HW3: np.ndarray,
    family: Family,
    settings: Sequence[float],
    protocol: Protocol,
    draw: np.random.RandomState,
    number: int,
) -> tuple[list[int], list[Tensor]]:
    """Return how many views each setting has, and all views."""
    by_setting = [list(_views(image_HW3, family, setting, protocol, draw, number)) for setting in settings]
    return [len(views) for views in by_setting], [view for views in by_setting for view in views]


def _views(
    image_HW3: np.ndarray, family: Family, setting: float, protocol: Protocol, draw: np.random.RandomState, number: int
) -> Iterator[Tensor]:
    """Yield the views of one setting: several for a translation in all directions, else one."""
    if family == "translation":
        scale = 1.0 if protocol.original else protocol.side / PUBLISHED_SIDE
        for direction in _directions(protocol, draw, number):
            yield shifted_view(image_HW3, round(setting * scale), direction, protocol)
    elif family == "scale":
        yield standard_view(image_HW3, protocol, setting)
    else:
        yield rotated_view(image_HW3, setting, protocol, before_crop=family == "pre_rotation")


def _directions(protocol: Protocol, draw: np.random.RandomState, number: int) -> Sequence[tuple[int, int]]:
    """Return the directions of one view: all, the one of this image, or in the original a new draw for each view."""
    if protocol.original:
        return (DIRECTIONS[draw.randint(ORIGINAL_DIRECTIONS)],)
    if protocol.directions == "all":
        return DIRECTIONS
    return (DIRECTIONS[int(np.random.default_rng((protocol.seed % 2**64, number)).integers(len(DIRECTIONS)))],)


def _resized(image_HW3: np.ndarray, short_side: int, protocol: Protocol) -> "Image":
    from torchvision.transforms.functional import InterpolationMode, resize

    picture: Any = as_picture(image_HW3)  # torchvision's types know tensors alone
    resized: Any = resize(picture, [short_side], InterpolationMode(protocol.preparation.interpolation))
    return resized


def _cropped(picture: Any, side: int) -> "Image":
    from torchvision.transforms.functional import center_crop

    cropped: Any = center_crop(picture, [side, side])
    return cropped


def _tensor(picture: "Image") -> Tensor:
    from torchvision.transforms.functional import to_tensor

    return to_tensor(picture)


def _normalised(picture: "Image", protocol: Protocol) -> Tensor:
    return _normalised_tensor(_tensor(picture), protocol)


def _normalised_tensor(image_3HW: Tensor, protocol: Protocol) -> Tensor:
    from torchvision.transforms.functional import normalize

    return normalize(image_3HW, list(protocol.preparation.mean), list(protocol.preparation.std))
