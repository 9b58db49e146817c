"""From the pixels of images to results by an exported file, one class for each task. B images, C classes, H x W pixels.

Nothing here imports torch. A file of fixed sides reads images as its task allows: a detector's are shrunk to fit and
filled up, a segmentor's are filled up or read in windows of this size.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fourstage.data.transforms.resizing import Size, keep_ratio, resize_image
from fourstage.exported.decoding import Decoded, decode
from fourstage.exported.description import KeepRatio, MiddleCrop, Views
from fourstage.exported.label_maps import View, label_map, label_map_of_graph
from fourstage.exported.preparing import as_input, middle_of, padded_size, resized, within_limits
from fourstage.exported.runtime import Runtime
from fourstage.predict.base import ImagePredictor, ReadImage, Tiling, check_options, label_map_result
from fourstage.predict.objects import Found, ObjectPredictor
from fourstage.predict.results import ClassResult, Result
from fourstage.predict.tiles import SMALLEST_TILE
from fourstage.tasks.segmentation.protocol import SMALLEST, Protocol

MOST_CLASSES = 5  # that the result of a classifier has


class ExportedPredictor(ImagePredictor):
    """What the predictors of exported files share."""

    runtime: Runtime
    _warned: frozenset[str] = frozenset()

    def warn_of_fixed_sides(self, what: str) -> None:
        """Print that images reach the graph in another way than in the network's evaluation, at the first of them."""
        height, width = self.runtime.description.input.height, self.runtime.description.input.width
        self._warn_once(f"reads {height or 'any height'} x {width or 'any width'} pixels alone: {what}")

    def warn_if_small(self, size: Size) -> None:
        """Print once that images of `size` (H, W), which the network in PyTorch reads as they are, are filled up."""
        input = self.runtime.description.input
        sides = zip((input.height, input.width), size, strict=True)
        if any(fixed is None and side < input.smallest for fixed, side in sides):
            self._warn_once(
                f"reads sides of {input.smallest} pixels and more: smaller images are filled up, which changes "
                f"predictions near the border; export it with fixed sides for them"
            )

    def _warn_once(self, what: str) -> None:
        if what not in self._warned:
            self._warned |= {what}
            print(f"fourstage: {self.runtime.path} {what}", file=sys.stderr)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.runtime.description.classes

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def network_name(self) -> str:
        return f"{self.runtime.description.network} by {self.runtime.name}"


class ExportedClassifier(ExportedPredictor):
    """Predicts the most probable classes of images."""

    gives = "classes"
    orient = False  # as `ImageClassifier`

    def __init__(self, runtime: Runtime) -> None:
        super().__init__()
        self.runtime = runtime

    def logits(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return (B, C) float32 logits of images, (H, W, 3) uint8."""
        description = self.runtime.description
        assert isinstance(description.resize, MiddleCrop), "a description of a classifier has this rule"
        crops = [middle_of(pixels_HW3, description.resize) for pixels_HW3 in images]
        side = description.resize.size
        return self.runtime.run(as_input(crops, (side, side), description))["logits"].astype(np.float32)

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        logits_BC = self.logits([one.pixels_HW3 for one in images])
        shifted_BC = logits_BC - logits_BC.max(axis=1, keepdims=True)
        scores_BC = np.exp(shifted_BC)
        scores_BC /= scores_BC.sum(axis=1, keepdims=True)
        return [self._result(one, scores_C) for one, scores_C in zip(images, scores_BC, strict=True)]

    def _result(self, one: ReadImage, scores_C: np.ndarray) -> Result:
        top = np.argsort(-scores_C, kind="stable")[:MOST_CLASSES]
        return ClassResult(one.source, one.size, self.class_names, top, scores_C[top].astype(np.float64))


class ExportedDetector(ExportedPredictor, ObjectPredictor):
    """Predicts the objects in images, complete or tile by tile."""

    def __init__(self, runtime: Runtime, threshold: float, tiling: Tiling | None = None) -> None:
        ObjectPredictor.__init__(self, threshold, runtime.description.category_ids, tiling)
        self.runtime = runtime

    def detect(self, images: Sequence[np.ndarray], names: Sequence[str]) -> list[Found]:
        """Return the detections in each image, in its pixels."""
        return [Found(one.boxes_N4, one.labels_N, one.scores_N, one.masks) for one in self.decoded(images)]

    def decoded(self, images: Sequence[np.ndarray]) -> list[Decoded]:
        """Return the detections in each image, (H, W, 3) uint8. Images of one size pass the graph together."""
        description = self.runtime.description
        assert isinstance(description.resize, KeepRatio), "a description of a detector has this rule"
        sizes = [within_limits(_size(pixels_HW3), description.resize, description.input) for pixels_HW3 in images]
        if any(
            size != keep_ratio(_size(one), description.resize.scale) for one, size in zip(images, sizes, strict=True)
        ):
            self.warn_of_fixed_sides("images that do not fit are shrunk more than in the network's evaluation")
        by_size: dict[Size, list[int]] = defaultdict(list)
        for i, size in enumerate(sizes):
            by_size[size].append(i)
        out: dict[int, Decoded] = {}
        for size, numbers in by_size.items():
            out |= zip(numbers, self._of_size([images[i] for i in numbers], size), strict=True)
        return [out[i] for i in range(len(images))]

    def _of_size(self, images: Sequence[np.ndarray], size: Size) -> list[Decoded]:
        """Return the detections in images that the graph reads at one size."""
        description = self.runtime.description
        assert description.suppression is not None, "a description of a detector has it"
        extent = padded_size(size, description.input)
        self.warn_if_small(padded_size(size, replace(description.input, smallest=1)))
        outputs = self.runtime.run(as_input([resized(one, size) for one in images], extent, description), size)
        return [
            decode({name: value[i] for name, value in outputs.items()}, description.suppression, size, _size(image))
            for i, image in enumerate(images)
        ]


class ExportedSegmentor(ExportedPredictor):
    """Predicts the class of every pixel of images.

    Args:
        tiling: windows over images in their own size; None: the view of the description.

    Raises:
        ValueError: windows that the file cannot compute.
    """

    gives = "label_map"

    def __init__(self, runtime: Runtime, tiling: Tiling | None = None) -> None:
        super().__init__()
        self.runtime, self.is_tiled = runtime, tiling is not None
        rule = runtime.description.resize
        assert isinstance(rule, Views), "a description of a segmentor has this rule"
        self.protocol = Protocol(rule.scale, window=rule.window, stride=rule.stride, divisor=rule.divisor)
        if tiling is not None:
            self._check_windows(tiling)
            self.protocol = tiling.windows(self.protocol)

    def _check_windows(self, tiling: Tiling) -> None:
        input, path = self.runtime.description.input, self.runtime.path
        if self.runtime.description.kind == "label_map":
            raise ValueError(f"{path} returns labels, and windows average scores; leave tile out, or export logits")
        fixed = {side for side in (input.height, input.width) if side is not None}
        if fixed - {tiling.side}:
            usable = len(fixed) == 1 and min(fixed) >= SMALLEST_TILE
            instead = f"give tile={min(fixed)}, " if usable else ""
            raise ValueError(
                f"{path} reads images of {input.height or 'any height'} x {input.width or 'any width'} pixels alone; "
                f"leave tile out, {instead}or export it with --dynamic height,width"
            )

    def predict(self, images: Sequence[ReadImage]) -> list[Result]:
        palette = self.runtime.description.palette
        return [label_map_result(one, self.label_map(one.pixels_HW3), self.class_names, palette) for one in images]

    def label_map(self, pixels_HW3: np.ndarray) -> np.ndarray:
        """Return (H, W) uint8 of an image, (H, W, 3) uint8.

        Raises:
            ValueError: the image needs several windows, and the file returns labels without scores.
        """
        size = _size(pixels_HW3)
        [view_size] = self.protocol.sizes(size)
        view = self._view(resize_image(np.ascontiguousarray(pixels_HW3), view_size))
        if self.runtime.description.kind == "label_map":
            if len(view.corners) > 1:
                raise ValueError(
                    f"{self.runtime.path} returns labels of {view.extent[0]} x {view.extent[1]} pixels, and this image "
                    f"needs several windows, whose scores are averaged; export logits"
                )
            return label_map_of_graph(view, size)
        return label_map(view, size, self.progress)

    def _view(self, pixels_HW3: np.ndarray) -> View:
        """Return the windows on a resized image, in the order of `tasks.segmentation.inference`."""
        description, protocol = self.runtime.description, self.protocol
        size = _size(pixels_HW3)
        height, width = (-(-side // protocol.divisor) * protocol.divisor for side in size)
        fixed = description.input.height or height, description.input.width or width
        if protocol.window is None and (height > fixed[0] or width > fixed[1]):
            self.warn_of_fixed_sides("larger images are read in windows of this size, whose scores are averaged")
            protocol = replace(protocol, window=fixed, stride=(-(-2 * fixed[0] // 3), -(-2 * fixed[1] // 3)))
        window = protocol.window or (height, width)
        least = max(SMALLEST, description.input.smallest)
        extent = padded_size((max(least, min(window[0], height)), max(least, min(window[1], width))), description.input)
        corners = protocol.windows((height, width))
        self.warn_if_small((max(SMALLEST, min(window[0], height)), max(SMALLEST, min(window[1], width))))

        def run(some: Sequence[tuple[int, int]]) -> np.ndarray:
            windows = [pixels_HW3[top : top + window[0], left : left + window[1]] for top, left in some]
            return self.runtime.run(as_input(windows, extent, description))[description.kind]

        return View(size, extent, corners, run, description.align_corners)


def _size(pixels_HW3: np.ndarray) -> Size:
    return int(pixels_HW3.shape[0]), int(pixels_HW3.shape[1])


def exported_predictor(
    runtime: Runtime, threshold: float | None = None, tiling: Tiling | None = None
) -> ExportedClassifier | ExportedDetector | ExportedSegmentor:
    """Return what predicts images with an exported file; arguments and errors as of `tasks.image_predictor`.

    Raises:
        ValueError: also for a backbone, which predicts nothing.
    """
    description = runtime.description
    if description.task == "backbone":
        raise ValueError(
            f"{runtime.path} is a backbone, which returns feature maps and predicts nothing; run it with "
            f"fourstage.exported.runtime.open_runtime({str(runtime.path)!r}).run(images)"
        )
    lowest = check_options(description.task, threshold, tiling)
    if description.task == "detection":
        return ExportedDetector(runtime, lowest, tiling)
    if description.task == "segmentation":
        return ExportedSegmentor(runtime, tiling)
    return ExportedClassifier(runtime)
