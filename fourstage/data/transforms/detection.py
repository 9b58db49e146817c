"""Transforms of an image and its objects for detection, with MMDetection's arithmetic. H x W pixels.

Resizing is OpenCV's on bytes, which published numbers were measured with. Random transforms draw from the global
generator of `numpy.random` only, in MMDetection's order. Images leave at different sizes; `collate` pads a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from fourstage.data.sample import Dataset, Objects, Sample
from fourstage.data.transforms.detection_steps import (
    Crop,
    Either,
    Finish,
    Flip,
    Jitter,
    Resize,
    Scale,
    Sequential,
    Sometimes,
    Step,
    chosen,
    pixels,
    tight_where_masked,
)
from fourstage.data.transforms.resizing import Normalise, opencv
from fourstage.data.transforms.values import check_shares

Policy = Literal["resize", "multi_scale", "large_scale_jitter"]
POLICIES: tuple[Policy, ...] = ("resize", "multi_scale", "large_scale_jitter")

SHORT_SIDES = tuple(range(480, 801, 32))  # of the multi-scale policy, pixels
MOST_PASTED = 100  # objects that are pasted into one image, less one
COVERED_BOX = 10.0  # pixels that an edge of a box may move, and
COVERED_MASK = 300  # pixels that must be left of a mask, for an object to stay when others are pasted over it


def train_transform(
    policy: Policy,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: Scale = (1333, 800),
    short_sides: Sequence[int] = SHORT_SIDES,
    first_sides: Sequence[int] = (400, 500, 600),
    crop: tuple[int, int] = (384, 600),
    jitter: tuple[float, float] = (0.1, 2.0),
    hflip: float = 0.5,
    crop_prob: float = 0.5,
    paste_from: Dataset | None = None,
) -> Step:
    """A training policy by name.

    `resize`: to the largest size within `scale`, then perhaps mirrored: the 1x schedule. `multi_scale`: perhaps
    mirrored, then resized to one of `short_sides`, or, with `crop_prob`, resized to one of `first_sides`, cropped and
    resized to one of `short_sides`: the 3x schedule. `large_scale_jitter`: resized to a random multiple of `scale`,
    cropped to it, perhaps mirrored (https://arxiv.org/abs/2012.07177); let `collate` pad to multiples of `scale`.

    Args:
        mean, std: per channel, in units of 1 (white).
        scale: limits on the longer and the shorter side, pixels, in either order; for `multi_scale` the longer one of
            these limits the longer side; for `large_scale_jitter` it is the height and width of the result.
        short_sides, first_sides: pixels.
        crop: smallest and largest height and width of the crop of `multi_scale`, pixels.
        jitter: smallest and largest multiple of `scale`.
        hflip: probability of a mirror image.
        crop_prob: probability of the crop of `multi_scale`.
        paste_from: a data set with masks; random objects of a random image of it, which went through the
            same steps, are pasted into each image (https://arxiv.org/abs/2012.07177).

    Returns:
        A transform from (H, W, 3) uint8 to (3, h, w) float32, normalised, with the objects in its pixels. It can be
        pickled.

    Raises:
        ValueError: an unknown policy, an impossible value; a library is missing.
    """
    opencv()
    _check(policy, scale, short_sides, first_sides, crop, jitter)
    check_shares(hflip=hflip, crop_prob=crop_prob)
    flip, longest = Flip(hflip), max(scale)
    if policy == "resize":
        steps: tuple[Step, ...] = (Resize((scale,)), flip)
    elif policy == "multi_scale":
        last = Resize(tuple((side, longest) for side in short_sides))
        first = Resize(tuple((side, longest) for side in first_sides))
        steps = (flip, _perhaps(Sequential((first, Crop(crop, crop), last)), last, crop_prob))
    else:
        height, width = min(scale), longest
        steps = (Jitter(scale, jitter), Crop((height, height), (width, width), tight=True), flip)
    if paste_from is not None:
        steps = (CopyPaste(paste_from, Sequential(steps)),)
    return Sequential((*steps, Finish(Normalise.of(mean, std))))


def _perhaps(step: Step, otherwise: Step, probability: float) -> Step:
    """Return a step that is taken with this probability; at one half with MMDetection's draw."""
    if probability in (0, 1):
        return step if probability else otherwise
    return Either((otherwise, step)) if probability == 0.5 else Sometimes(step, otherwise, probability)


def evaluation_transform(scale: Scale = (1333, 800), *, mean: Sequence[float], std: Sequence[float]) -> Step:
    """Resize to the largest size within `scale` and normalise; drop the objects.

    What is scored against is in `Sample.reference`, in pixels of the file.

    Args:
        scale: limits on the longer and the shorter side, pixels, in either order.
        mean, std: per channel, in units of 1 (white).

    Returns:
        A transform from (H, W, 3) uint8 to (3, h, w) float32. It can be pickled. (h / H, w / W) takes boxes of the
        file to boxes of the result; a batch has both sizes.

    Raises:
        ValueError: an impossible value; a library is missing.
    """
    opencv()
    _check("resize", scale)
    return Sequential((without_objects, Resize((scale,)), Finish(Normalise.of(mean, std))))


def without_objects(sample: Sample) -> Sample:
    return replace(sample, objects=None)


@dataclass(frozen=True)
class CopyPaste:
    """Paste objects of another image, which is drawn at random and went through the same steps.

    The other image is laid on the upper left corner; what it has beyond this image is lost. Objects that the pasted
    ones cover are left out, unless their box hardly moves or enough of their mask stays visible. Every draw follows
    from the seed of the sample, so that the partner is the same on each try.

    Raises:
        ValueError: the objects of an image have no masks.
    """

    dataset: Dataset
    steps: Step

    def __call__(self, sample: Sample) -> Sample:
        if _needed(sample).masks_NHW is None:
            raise ValueError(
                f"the objects of {sample.id} have no masks, without which nothing can be pasted: switch copy-paste off"
            )
        here = self.steps(sample)
        partner = int(np.random.randint(len(self.dataset)))  # noqa: NPY002 - seeded for each sample by the loader
        there = self.steps(self.dataset.sample(partner))
        count = len(_needed(there).labels_N)
        drawn = int(np.random.randint(0, min(count + 1, MOST_PASTED)))  # noqa: NPY002
        picked = np.random.choice(count, size=drawn, replace=False) if drawn else np.zeros(0, dtype=np.int64)  # noqa: NPY002
        return pasted(here, there, torch.from_numpy(picked))


def pasted(sample: Sample, other: Sample, picked: torch.Tensor) -> Sample:
    """`sample` with some objects of `other` on top; pasted objects come last.

    Args:
        picked: (K,) int64, positions of objects in `other`.
    """
    objects, image_HW3 = _needed(sample), pixels(sample).copy()
    assert objects.masks_NHW is not None, "checked by the caller"
    new = _at_size(chosen(_needed(other), picked), image_HW3.shape[:2])
    assert new.masks_NHW is not None, "one data set has masks or not"
    if not len(new.labels_N):
        return sample
    over_HW = new.masks_NHW.any(dim=0)
    image_HW3[over_HW.numpy()] = _canvas(pixels(other), image_HW3.shape[:2])[over_HW.numpy()]
    masks_NHW = objects.masks_NHW & ~over_HW
    boxes_N4 = tight_where_masked(objects, masks_NHW)
    stays_N = ((boxes_N4 - objects.boxes_N4).abs() <= COVERED_BOX).all(dim=1)
    stays_N |= masks_NHW.sum(dim=(1, 2)) > COVERED_MASK
    old = chosen(replace(objects, boxes_N4=boxes_N4, masks_NHW=masks_NHW), stays_N)
    assert old.masks_NHW is not None, "they were given"
    partly = objects.masked_N is not None or new.masked_N is not None
    both = Objects(
        torch.cat([old.boxes_N4, new.boxes_N4]),
        torch.cat([old.labels_N, new.labels_N]),
        torch.cat([old.crowd_N, new.crowd_N]),
        torch.cat([old.masks_NHW, new.masks_NHW]),
        torch.cat([_masked(old), _masked(new)]) if partly else None,
    )
    return replace(sample, image=image_HW3, objects=both)


def _masked(objects: Objects) -> torch.Tensor:
    """(N,) bool."""
    return objects.masked_N if objects.masked_N is not None else torch.ones_like(objects.crowd_N)


def _at_size(objects: Objects, size: tuple[int, ...]) -> Objects:
    """The objects on a canvas of another size, from its upper left corner; those without a mask on it are left out."""
    assert objects.masks_NHW is not None, "checked by the caller"
    height, width = size
    masks_NHW = objects.masks_NHW[:, :height, :width]
    canvas_NHW = masks_NHW.new_zeros((len(masks_NHW), height, width))
    canvas_NHW[:, : masks_NHW.shape[1], : masks_NHW.shape[2]] = masks_NHW
    limits = torch.tensor([width, height] * 2, dtype=torch.float32)
    moved = replace(objects, boxes_N4=objects.boxes_N4.minimum(limits), masks_NHW=canvas_NHW)
    return chosen(moved, canvas_NHW.any(dim=2).any(dim=1))


def _canvas(image_HW3: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    out_HW3 = np.zeros((*size, 3), dtype=np.uint8)
    inside_HW3 = image_HW3[: size[0], : size[1]]
    out_HW3[: inside_HW3.shape[0], : inside_HW3.shape[1]] = inside_HW3
    return out_HW3


def _needed(sample: Sample) -> Objects:
    if sample.objects is None:
        raise ValueError(f"the sample {sample.id} has no objects: detection needs data with boxes, such as COCO's")
    return sample.objects


def _check(
    policy: Policy,
    scale: Scale,
    short_sides: Sequence[int] = SHORT_SIDES,
    first_sides: Sequence[int] = SHORT_SIDES,
    crop: tuple[int, int] = (384, 600),
    jitter: tuple[float, float] = (0.1, 2.0),
) -> None:
    if policy not in POLICIES:
        raise ValueError(f"the policy {policy!r} is unknown; it is one of {', '.join(POLICIES)}")
    if len(scale) != 2 or not all(side >= 32 for side in scale):
        raise ValueError(f"scale is two limits in pixels, at least 32, such as [1333, 800]; got {list(scale)}")
    for name, sides in (("short_sides", short_sides), ("first_sides", first_sides)):
        if not sides or min(sides) < 32:
            raise ValueError(f"{name} are pixels, one or more, at least 32, such as [480, 640]; got {list(sides)}")
    if not 1 <= crop[0] <= crop[1]:
        raise ValueError(f"crop is [smallest, largest] side in pixels, such as [384, 600]; got {list(crop)}")
    if not 0 < jitter[0] <= jitter[1]:
        raise ValueError(f"jitter is [smallest, largest], above 0, such as [0.1, 2.0]; got {list(jitter)}")
