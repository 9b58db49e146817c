"""The proof of an exported file: its outputs by its own runtime beside those of the network in PyTorch.

B images, C classes, N detections, H x W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.export.graphs.base import Graph
from fourstage.exported.decoding import Decoded, decode
from fourstage.exported.description import Suppression
from fourstage.exported.runtime import Runtime
from fourstage.tasks.detection.detector import Detections, Detector
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.single_stage import SingleStage
from fourstage.tasks.detection.two_stage import TwoStage

FEWEST = 5  # detections of all images together that a comparison needs; with fewer, the threshold is lowered for it
SOME = 50  # pairs of an image that score above a lowered threshold
TIE = 0.01  # of the tolerance of scores: queries whose logits differ by less may be in another order
SAME_PLACE = 0.5  # overlap from which on two detections of one class may be the same


@dataclass(frozen=True)
class Tolerance:
    """The largest deviations that an export may have.

    Attributes:
        values: of logits and maps, as a share of the largest value.
        pixels: share of the pixels of a label map that differ.
        boxes: of the sides of matched boxes, in pixels of the input.
        scores: of matched detections.
        masks: of the probabilities of the masks of matched detections.
        unmatched: share of the detections that have no partner.
    """

    values: float = 1e-3
    pixels: float = 1e-3
    boxes: float = 0.5
    scores: float = 1e-3
    masks: float = 0.01
    unmatched: float = 0.01


FLOAT32 = Tolerance()
HALF = Tolerance(values=0.02, pixels=0.01, boxes=4.0, scores=0.02, masks=0.1, unmatched=0.05)


@dataclass(frozen=True)
class Images:
    """Prepared images of one size: what the graph and the network read.

    Attributes:
        name: what they are, for the table.
        images_BCHW: normalised, with their padding.
        size: (H, W) without the padding.
    """

    name: str
    images_BCHW: Tensor
    size: tuple[int, int]


@dataclass(frozen=True)
class Row:
    """The deviations on some images."""

    images: str
    shape: tuple[int, ...]
    deviations: Mapping[str, float]  # by the names of `Tolerance`
    detections: int | None = None  # of the network in PyTorch

    def exceeds(self, tolerance: Tolerance) -> str:
        """Return the first deviation above the tolerance in words; empty: there is none."""
        for name, value in self.deviations.items():
            most = getattr(tolerance, name)
            if not value <= most:  # NaN too
                return f"{TITLES[name]} {value:.3g} on {self.images}, at most {most:g}"
        return ""


TITLES = {
    "values": "largest deviation of the outputs, as a share of the largest value,",
    "pixels": "share of pixels with another label",
    "boxes": "largest deviation of boxes in pixels",
    "scores": "largest deviation of scores",
    "masks": "largest deviation of the probabilities of masks",
    "unmatched": "share of detections without a partner",
}


@dataclass(frozen=True)
class Proof:
    """All deviations of a file.

    Attributes:
        stopped: why the runtime could not open the file or compute an image; empty: it computed all.
    """

    runtime: str
    tolerance: Tolerance
    rows: tuple[Row, ...]
    note: str = ""
    stopped: str = ""

    @property
    def failure(self) -> str:
        """Return in words why the runtime stopped, or the first deviation above the tolerance; empty: it is proved."""
        return self.stopped or next((text for row in self.rows if (text := row.exceeds(self.tolerance))), "")

    @property
    def worst(self) -> dict[str, float]:
        """Return the largest deviation of each name."""
        names = {name for row in self.rows for name in row.deviations}
        return {n: max(row.deviations.get(n, 0.0) for row in self.rows) for n in TITLES if n in names}


def prove(
    runtime: Runtime, graph: Graph, network: nn.Module, images: Sequence[Images], tolerance: Tolerance = FLOAT32
) -> Proof:
    """Run a file and its network on images and compare the outputs.

    Args:
        runtime: that has opened the file.
        graph: what the file was made from.
        network: the network in PyTorch, as it predicts.
    """
    if graph.kind == "detections":
        assert isinstance(network, Detector)
        return _prove_detector(runtime, network, images, tolerance, graph.lowest)
    rows = []
    for some in images:
        with torch.inference_mode():
            wanted = [x.numpy() for x in graph(some.images_BCHW)]
        try:
            deviations = _deviations(graph, wanted, runtime.run(some.images_BCHW.numpy(), some.size))
        except ValueError as error:
            return Proof(runtime.name, tolerance, tuple(rows), stopped=str(error))
        rows.append(Row(some.name, tuple(some.images_BCHW.shape), deviations))
    return Proof(runtime.name, tolerance, tuple(rows))


def _deviations(graph: Graph, wanted: Sequence[np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, float]:
    for name, x in zip(graph.outputs, wanted, strict=True):
        if found[name].shape != x.shape:
            raise ValueError(f"the exported {name} is {found[name].shape}, and the network's {x.shape}")
    if graph.kind == "label_map":
        return {"pixels": float((found["label_map"] != wanted[0]).mean())}
    relative = [_relative(found[name], x) for name, x in zip(graph.outputs, wanted, strict=True)]
    out = {"values": max(relative)}
    if graph.kind == "logits" and wanted[0].ndim == 4:
        out["pixels"] = float((found["logits"].argmax(1) != wanted[0].argmax(1)).mean())
    return out


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest deviation as a share of the largest value."""
    largest = float(np.abs(wanted).max(initial=0.0))
    deviation = float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))
    return deviation / largest if largest else deviation


def _prove_detector(
    runtime: Runtime, network: Detector, images: Sequence[Images], tolerance: Tolerance, lowest: float
) -> Proof:
    rule = runtime.description.suppression
    assert rule is not None, "a description of a detector has it"
    try:
        outputs = [runtime.run(some.images_BCHW.numpy(), some.size) for some in images]
    except ValueError as error:
        return Proof(runtime.name, tolerance, (), stopped=str(error))
    wanted = [_detect(network, some) for some in images]
    note = ""
    if isinstance(network, SingleStage | TwoStage) and sum(len(one) for ones in wanted for one in ones) < FEWEST:
        rule = replace(rule, threshold=_lower(outputs, lowest))
        note = f"hardly any score is above the threshold, so that detections above {rule.threshold:.3g} are compared"
        with _threshold(network, rule.threshold):
            wanted = [_detect(network, some) for some in images]
        if not any(len(one) for ones in wanted for one in ones):
            note = f"no score is above {rule.threshold:.3g}, so that no detection was compared; give images by --data"
    rows = [
        _detection_row(some, found, ones, rule, tolerance.scores)
        for some, found, ones in zip(images, outputs, wanted, strict=True)
    ]
    if isinstance(network, DINO):
        rows, note = _without_ties(network, rows, images, tolerance)
    return Proof(runtime.name, tolerance, tuple(rows), note)


def _without_ties(
    network: DINO, rows: Sequence[Row], images: Sequence[Images], tolerance: Tolerance
) -> tuple[list[Row], str]:
    """Return the rows without those that deviate because rounding decides the order of queries, and a note on them.

    The rank of a query chooses the embedding that it starts with, so that another order gives other detections. If no
    row remained, all are returned.
    """
    kept = [
        row
        for row, some in zip(rows, images, strict=True)
        if not (row.exceeds(tolerance) and queries_gap(network, some) < TIE * tolerance.scores)
    ]
    if not kept or len(kept) == len(rows):
        return [*rows], ""
    return kept, (
        f"{len(rows) - len(kept)} of {len(rows)} rows are left out, because two queries of theirs score alike, so that "
        f"rounding decides which is first"
    )


@torch.inference_mode()
def queries_gap(network: DINO, some: Images) -> float:
    """Return the smallest difference of the logits of two queries of successive ranks, the first unchosen included."""
    batch, queries = _batch(some), network.queries
    try:
        network.queries = queries + 1
        maps = network.maps(batch)
        chosen = network.choose(network.encode(maps, network.padding_masks(batch, maps)))
    finally:
        network.queries = queries
    ranked_BQ = chosen.logits_BQC.amax(dim=2)
    return float((ranked_BQ[:, :-1] - ranked_BQ[:, 1:]).amin())


def _lower(outputs: Sequence[Mapping[str, np.ndarray]], lowest: float) -> float:
    """Return a threshold above which each image has about `SOME` pairs, or all where there are fewer.

    Args:
        lowest: pairs that score less are not among the outputs.
    """
    ranked = [np.sort(scores, axis=None)[::-1] for found in outputs for scores in found["scores"]]
    between = [float(x[SOME - 1 : SOME + 1].mean()) if len(x) > SOME else lowest for x in ranked]
    return max(lowest, float(np.median(between)))


@contextmanager
def _threshold(network: SingleStage | TwoStage, value: float) -> Iterator[None]:
    limits: Any = network.limits
    network.limits = replace(limits, score_threshold=value)
    try:
        yield
    finally:
        network.limits = limits


@torch.inference_mode()
def _detect(network: Detector, some: Images) -> list[Detections]:
    """Return the network's detections in pixels of the input."""
    return [*network.detect(_batch(some))]


def _batch(some: Images) -> Batch:
    count = len(some.images_BCHW)
    sizes = (some.size,) * count
    return Batch(tuple(map(str, range(count))), some.images_BCHW, sizes, sizes)


def _detection_row(
    some: Images, outputs: Mapping[str, np.ndarray], wanted: Sequence[Detections], rule: Suppression, near: float
) -> Row:
    """Compare the detections in each image.

    Args:
        near: scores that differ by less may be in another order.
    """
    boxes, scores, masks, total = [0.0], [0.0], [0.0], 0
    unmatched: list[float] = []  # scores
    for i, one in enumerate(wanted):
        found = decode({name: value[i] for name, value in outputs.items()}, rule, some.size, some.size)
        pairs, scores_N = _match(one, found), one.scores_N.numpy()
        total += len(scores_N) + len(found.scores_N)
        unmatched += _alone(scores_N, {a for a, _ in pairs}, found.scores_N, rule.most, near)
        unmatched += _alone(found.scores_N, {b for _, b in pairs}, scores_N, rule.most, near)
        for a, b in pairs:
            boxes.append(float(np.abs(one.boxes_N4[a].numpy() - found.boxes_N4[b]).max()))
            scores.append(abs(float(scores_N[a]) - float(found.scores_N[b])))
            if one.masks is not None and found.masks is not None:
                difference_MM = one.masks.probabilities_NMM[a].numpy() - found.masks.probabilities_NMM[b]
                masks.append(float(np.abs(difference_MM).max()))
    edge = rule.threshold + 2 * max(scores)  # below it, rounding decides which pairs are above the threshold
    alone = sum(score > edge for score in unmatched)
    deviations = {"boxes": max(boxes), "scores": max(scores), "unmatched": alone / total if total else 0.0}
    deviations |= {"masks": max(masks)} if "masks" in outputs else {}
    return Row(some.name, tuple(some.images_BCHW.shape), deviations, sum(len(one) for one in wanted))


def _alone(scores_N: np.ndarray, matched: set[int], others_M: np.ndarray, most: int, near: float) -> list[float]:
    """Return the scores of the detections that have no partner in a list that has room for them.

    Where the other list is full, the last places of both go to one or the other of nearly equal scores.
    """
    lowest = float(others_M.min()) + near if len(others_M) >= most else -np.inf
    return [score for n, score in enumerate(scores_N.tolist()) if n not in matched and score > lowest]


def _match(wanted: Detections, found: Decoded) -> list[tuple[int, int]]:
    """Return pairs of detections of one class, each with the nearest free box, best score first."""
    boxes_N4, free = wanted.boxes_N4.numpy(), np.ones(len(found.scores_N), bool)
    pairs = []
    for a, (box_4, label) in enumerate(zip(boxes_N4, wanted.labels_N.tolist(), strict=True)):
        distance_M = np.abs(found.boxes_N4 - box_4).max(axis=1, initial=0.0)
        distance_M = np.where(free & (found.labels_N == label), distance_M, np.inf)
        if not len(distance_M):
            continue
        b = int(distance_M.argmin())
        if distance_M[b] <= SAME_PLACE * max(1.0, float((box_4[2:] - box_4[:2]).min())):
            free[b] = False
            pairs.append((a, b))
    return pairs


def noise_images(sizes: Sequence[tuple[int, int, int]]) -> list[Images]:
    """Return normalised noise, smooth and rough, as images (B, H, W)."""
    generator = torch.Generator().manual_seed(0)
    out = []
    for batch, height, width in sizes:
        coarse_BCHW = torch.randn(batch, 3, max(2, height // 16), max(2, width // 16), generator=generator)
        smooth_BCHW = nn.functional.interpolate(coarse_BCHW, (height, width), mode="bilinear")
        images_BCHW = smooth_BCHW + 0.3 * torch.randn(batch, 3, height, width, generator=generator)
        out.append(Images("noise", images_BCHW, (height, width)))
    return out


def as_json(proof: Proof, **also: Any) -> dict[str, Any]:
    """Return a proof as plain values, with `also` before them."""
    rows = [
        {"images": row.images, "shape": list(row.shape), **({} if row.detections is None else
         {"detections": row.detections}), "deviations": dict(row.deviations)} for row in proof.rows
    ]  # fmt: skip
    tolerance = {name: getattr(proof.tolerance, name) for name in proof.worst}
    return {
        "format": 1,
        **also,
        "runtime": proof.runtime,
        "passed": not proof.failure,
        "tolerance": tolerance,
        "worst": proof.worst,
        **({"note": proof.note} if proof.note else {}),
        "rows": rows,
    }
