"""Networks as functions from one tensor of images to named tensors, as exported files hold them.

B images, C classes, P pairs of a box and a class, H x W pixels, h x w cells. A graph fixes no size: batch, height and
width may be symbols while it is traced.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fourstage.backbones.base import Dense
from fourstage.exported.description import Kind, Suppression
from fourstage.ops.shapes import ceil_div, known_true
from fourstage.tasks.detection.atss import ATSS
from fourstage.tasks.detection.boxes import as_float32, corner_form
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.detection.single_stage import SingleStage, by_anchor
from fourstage.tasks.parts.levels import feature_maps, levels_of
from fourstage.tasks.segmentation.segmentor import Segmentor

Output = Literal["logits", "labels"]


class Graph(nn.Module):
    """A network that an exported file holds: from normalised images (B, 3, H, W) to its outputs.

    Attributes:
        kind: of the outputs, see `exported.description`.
        outputs: their names.
        suppression: what remains to be done for a detector; None for other networks.
        multiple: the sides of the images are multiples of it, in pixels.
        smallest_sides: from which on one graph may serve all sizes, pixels; the first that PyTorch can record is taken.
        reads_sizes: whether `forward` takes the (H, W) of each image without its padding too, (B, 2) whole numbers.
    """

    kind: Kind
    outputs: tuple[str, ...]
    suppression: Suppression | None = None
    multiple: int = 1
    smallest_sides: tuple[int, ...] = (64, 65, 97, 129, 225)
    reads_sizes: bool = False


class ClassifierGraph(Graph):
    """The logits of a classifier."""

    kind, outputs = "logits", ("logits",)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (as_float32(self.network(images_BCHW)),)


class BackboneGraph(Graph):
    """The maps of a dense backbone."""

    kind = "maps"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.outputs = tuple(f"map_{i}" for i in range(len(levels_of(network))))

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return tuple(as_float32(x_BCHW) for x_BCHW in feature_maps(self.network, images_BCHW))


class SegmentorGraph(Graph):
    """The logits of every pixel of the input, (B, C, H, W)."""

    kind, outputs = "logits", ("logits",)

    def __init__(self, network: Segmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (as_float32(self.network(images_BCHW)),)


class LabelMapGraph(Graph):
    """The most likely class of every pixel of the input, (B, H, W) uint8."""

    kind, outputs = "label_map", ("label_map",)

    def __init__(self, network: Segmentor) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (self.network(images_BCHW).argmax(dim=1).to(torch.uint8),)


class SingleStageGraph(Graph):
    """The candidates of RetinaNet or ATSS, before suppression, which their reader does in the original image.

    With the candidates "pairs", of each map the best pairs of an anchor and a class: boxes (B, P, 4), scores (B, P)
    and labels (B, P). With "anchors", all classes of its best anchors: scores (B, P, C). Boxes are pixels of the input.
    """

    kind = "detections"

    def __init__(self, detector: SingleStage) -> None:
        super().__init__()
        self.detector, limits, self.multiple = detector, detector.limits, detector.pad_to
        coarsest = detector.dense_head.anchors.strides[-1]
        self.smallest_sides = tuple(_up(side, self.multiple) for side in (coarsest + 1, 2 * coarsest + 1))
        self.pairs = limits.candidates == "pairs"
        self.has_factors = isinstance(detector, ATSS)
        self.outputs = ("boxes", "scores", *(["labels"] if self.pairs else []))
        self.outputs += ("factors",) if self.has_factors else ()
        self.suppression = Suppression(
            threshold=limits.score_threshold,
            iou=limits.iou_threshold,
            most=limits.per_image,
            where="image",
            drop_empty=self.pairs,
        )

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        detector, head = self.detector, self.detector.dense_head
        maps = detector.neck(feature_maps(detector.backbone, images_BCHW))
        logits, deltas, *centers = head(maps)
        anchors = head.anchors.boxes([(x.shape[-2], x.shape[-1]) for x in logits], logits[0].device)
        found = []
        for i, anchors_N4 in enumerate(anchors):
            scores_BNC = by_anchor(logits[i], head.num_classes).sigmoid()
            factors_BN = by_anchor(centers[0][i], 1).squeeze(2).sigmoid() if self.has_factors else None
            choose = self._best_pairs if self.pairs else self._best_anchors
            found.append(choose(scores_BNC, by_anchor(deltas[i], 4), anchors_N4, factors_BN))
        return tuple(torch.cat(of_maps, dim=1) for of_maps in zip(*found, strict=True))

    def _best_pairs(
        self, scores_BNC: Tensor, deltas_BN4: Tensor, anchors_N4: Tensor, factors_BN: Tensor | None
    ) -> list[Tensor]:
        scores_BK, classes = scores_BNC.flatten(1), scores_BNC.shape[2]
        scores_BP, place_BP = best(scores_BK, self.detector.limits.per_level)
        anchor_BP = torch.div(place_BP, classes, rounding_mode="floor")
        found = [self._boxes(anchors_N4, deltas_BN4, anchor_BP), scores_BP, place_BP - anchor_BP * classes]
        return found if factors_BN is None else [*found, factors_BN.gather(1, anchor_BP)]

    def _best_anchors(
        self, scores_BNC: Tensor, deltas_BN4: Tensor, anchors_N4: Tensor, factors_BN: Tensor | None
    ) -> list[Tensor]:
        ranks_BN = scores_BNC.amax(dim=2)
        ranks_BN = ranks_BN if factors_BN is None else ranks_BN * factors_BN
        _, anchor_BP = best(ranks_BN, self.detector.limits.per_level)
        found = [self._boxes(anchors_N4, deltas_BN4, anchor_BP), rows(scores_BNC, anchor_BP)]
        return found if factors_BN is None else [*found, factors_BN.gather(1, anchor_BP)]

    def _boxes(self, anchors_N4: Tensor, deltas_BN4: Tensor, anchor_BP: Tensor) -> Tensor:
        return self.detector.dense_head.coder.decode(anchors_N4[anchor_BP], rows(deltas_BN4, anchor_BP))


class DINOGraph(Graph):
    """The best pairs of a query and a class of DINO: nothing remains but to clip the boxes to the image.

    It reads the size of each image beside its pixels, because its attention leaves padding out.
    """

    kind, outputs = "detections", ("boxes", "scores", "labels")
    reads_sizes = True

    def __init__(self, detector: DINO) -> None:
        super().__init__()
        self.detector, self.multiple = detector, detector.pad_to
        self.suppression = Suppression(threshold=-1.0, iou=None, most=detector.per_image, where="image")
        neck: Any = detector.neck
        strides = [level.stride for level in neck.levels]
        self.smallest_sides = tuple(
            _up(side, self.multiple) for side in (_side_with(strides, detector.queries), 2 * strides[-1] + 1)
        )

    def forward(self, images_BCHW: Tensor, sizes_B2: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        maps = detector.neck(feature_maps(detector.backbone, images_BCHW))
        memory = detector.encode(maps, _padding_masks(images_BCHW, sizes_B2, maps))
        decoded = detector.decode(memory, detector.choose(memory))
        last = detector.predict(len(decoded) - 1, decoded[-1])
        classes = last.logits_BQC.shape[2]
        scores_BP, place_BP = best(last.logits_BQC.sigmoid().flatten(1), detector.per_image)
        query_BP = torch.div(place_BP, classes, rounding_mode="floor")
        scale_B14 = sizes_B2.flip(1).repeat(1, 2)[:, None].to(last.boxes_BQ4.dtype)
        boxes_BP4 = corner_form(rows(last.boxes_BQ4, query_BP)) * scale_B14
        return boxes_BP4, scores_BP, place_BP - query_BP * classes


def _padding_masks(images_BCHW: Tensor, sizes_B2: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return as `Detector.padding_masks`, of sizes in a tensor."""
    beyond = []
    for axis in (0, 1):
        places = torch.arange(images_BCHW.shape[2 + axis], device=images_BCHW.device)
        beyond.append((places[None] >= sizes_B2[:, axis, None]).float())
    masks = []
    for x_BCHW in maps:
        rows_Bh, columns_Bw = (
            line_BS.index_select(1, _nearest(line_BS.shape[1], side, line_BS.device))
            for line_BS, side in zip(beyond, x_BCHW.shape[2:], strict=True)
        )
        masks.append((rows_Bh[:, :, None] + columns_Bw[:, None]) > 0)
    return masks


def _nearest(side: int, cells: int, device: torch.device) -> Tensor:
    """Return which of `side` pixels each of the cells takes, as `interpolate` has it for nearest neighbours."""
    return torch.div(torch.arange(cells, device=device) * side, cells, rounding_mode="floor")


def _side_with(strides: Sequence[int], cells: int) -> int:
    """Return the smallest side of a square image whose maps have this number of cells together."""
    return next(side for side in range(32, 2**16) if sum((side // stride) ** 2 for stride in strides) >= cells)


def _up(side: int, multiple: int) -> int:
    return ceil_div(side, multiple) * multiple


def best(scores_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best scores of each row and their places, or all where there are fewer."""
    most = scores_BN.shape[1]
    if isinstance(most, int):
        most = min(most, count)
    elif known_true(most >= count):
        most = count
    else:
        most = torch.sym_min(most, count)
    return scores_BN.topk(most, dim=1)


def rows(x_BNC: Tensor, index_BP: Tensor) -> Tensor:
    """Return (B, P, C): of each image the rows of these indices."""
    return x_BNC.gather(1, index_BP[..., None].expand(-1, -1, x_BNC.shape[2]))


def graph_of(network: nn.Module, output: Output = "logits") -> Graph:
    """Return the graph of a classifier, a dense backbone, a segmentor or a detector.

    Args:
        output: of a segmentor: the "logits" of each pixel, or its label in a label map.

    Raises:
        ValueError: there is no export of such a detector, or `output` is for another network.
    """
    return _graph_of(network, output).train(network.training)


def _graph_of(network: nn.Module, output: Output) -> Graph:
    if isinstance(network, Segmentor):
        return LabelMapGraph(network) if output == "labels" else SegmentorGraph(network)
    if output != "logits":
        raise ValueError(f"--output {output} is for segmentors, and this is a {type(network).__name__}; leave it out")
    for of, graph in DETECTORS.items():
        if isinstance(network, of):
            return graph(network)
    if isinstance(network, Detector):
        known = ", ".join(sorted({str(of.method) for of in DETECTORS}))
        raise ValueError(
            f"{network.method or type(network).__name__} has no export yet, because its regions depend on its own "
            f"proposals; export a detector of {known}, or predict with the checkpoint itself"
        )
    return BackboneGraph(network) if isinstance(network, Dense) else ClassifierGraph(network)


DETECTORS: dict[type[Detector], Callable[..., Graph]] = {
    RetinaNet: SingleStageGraph,
    ATSS: SingleStageGraph,
    DINO: DINOGraph,
}
