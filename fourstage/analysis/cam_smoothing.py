"""Class activation maps averaged over changed copies of the images, which evens out what single maps show by chance.

B images, H x W pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from fourstage.analysis.cam import Cam
from fourstage.analysis.cam_targets import NotDetected
from fourstage.plurals import plural


@dataclass(frozen=True)
class View:
    """A changed copy of normalised images.

    Attributes:
        flipped: left and right are exchanged.
        factor: on the normalised values.
    """

    flipped: bool
    factor: float

    def of(self, image_BCHW: Tensor) -> Tensor:
        return (image_BCHW.flip(-1) if self.flipped else image_BCHW) * self.factor

    def back(self, map_BHW: Tensor) -> Tensor:
        """Return a map of the copy as one of the images."""
        return map_BHW.flip(-1) if self.flipped else map_BHW


VIEWS = tuple(View(flipped, factor) for flipped, factor in product((False, True), (0.9, 1.0, 1.1)))
UNCHANGED = View(flipped=False, factor=1.0)


def aug_smoothed(cams_of: Callable[[Tensor, bool], Mapping[str, Cam]], image_BCHW: Tensor) -> dict[str, Cam]:
    """Return the mean of each method's maps over six copies of the images: flipped or not, times 0.9, 1 and 1.1.

    This is `aug_smooth` of grad-cam. Copies in which the object is not detected are left out, and noted.

    Args:
        cams_of: from images, and whether they are flipped, to the maps of each method. It gets the images as they are
            first; of these, `raw` and `taps` are returned.

    Raises:
        ValueError: the object is not detected in the images as they are.
    """
    first = cams_of(image_BCHW, False)
    maps = {method: [one.map_BHW] for method, one in first.items()}
    lost = 0
    for view in VIEWS:
        if view == UNCHANGED:
            continue
        try:
            found = cams_of(view.of(image_BCHW), view.flipped)
        except NotDetected:
            lost += 1
            continue
        for method, one in found.items():
            maps[method].append(view.back(one.map_BHW))
    note = f"the object is not detected in {plural(lost, 'changed copy', 'changed copies')} of the image"
    return {
        method: replace(
            one, map_BHW=torch.stack(maps[method]).mean(dim=0), notes=(*one.notes, *((note,) if lost else ()))
        )
        for method, one in first.items()
    }
