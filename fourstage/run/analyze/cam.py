"""`fourstage analyze cam`: class activation maps of classifiers, segmentors and detectors."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.analysis import cam, cam_methods, cam_scores, cam_targets
from fourstage.analysis.cam_smoothing import aug_smoothed
from fourstage.analysis.images import evaluated, prepared
from fourstage.analysis.networks import LoadedNetwork
from fourstage.analysis.taps import taken_by
from fourstage.analysis.unsuitable import naming
from fourstage.data.sample import Sample
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.report.analyses.cam import SCORES, Explained, cam_page
from fourstage.resources import sentences
from fourstage.run.analyze.erf import with_map
from fourstage.run.analyze.inputs import (
    Loading,
    Order,
    check_side,
    check_words,
    choose,
    load_networks,
    open_images,
    read,
    side_for,
    with_networks,
)
from fourstage.run.analyze.outputs import Outcome, check_folder, write
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.segmentation.segmentor import Segmentor

IMAGES = 4  # where the data has as many


@dataclass(frozen=True)
class CamSetting:
    """What is explained, and how; see `analysis/cam.py`.

    Attributes:
        images: their number; None: 4, or all where there are fewer.
        methods: names in `cam_methods.NAMES`.
        taps: layers whose maps are averaged; none: the one that the head reads.
        label: class by name or number; None: the best class of each image, of a segmentor the one with most pixels.
        box: of a detector's object, or a segmentor's region: x1, y1, x2, y2 in pixels of the network's image.
        scores: also measure how faithful the maps are, which needs a classifier.
        aug_smooth: average the maps of six copies of each image; see `analysis/cam_smoothing.py`.
        eigen_smooth: see `cam.class_activation_map`.

    Raises:
        ValueError: an unknown method or word, no method, or a size out of range.
    """

    images: int | None = None
    methods: tuple[str, ...] = cam_methods.FIVE
    taps: tuple[str, ...] = ()
    label: str | None = None
    box: cam_targets.Box | None = None
    size: int | None = None
    scores: bool = False
    aug_smooth: bool = False
    eigen_smooth: bool = False
    order: Order = "spread"

    def __post_init__(self) -> None:
        check_words(self)
        if unknown := [method for method in self.methods if method not in cam_methods.NAMES]:
            raise ValueError(f"there is no method {unknown[0]!r}; choose from {', '.join(cam_methods.NAMES)}")
        if not self.methods:
            raise ValueError(
                f"a class activation map needs at least one method; choose from {', '.join(cam_methods.NAMES)}"
            )
        check_side(self.size)


@sentences("use a smaller --size")
@with_networks
def analyze_cam(
    sources: Sequence[str | Path | nn.Module],
    data: str | Path,
    out: str | Path,
    setting: CamSetting | None = None,
    *,
    loading: Loading | None = None,
    show: bool = True,
) -> Outcome:
    """Explain predictions and write `cam.npz`, `cam.csv` and `cam.html`.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    setting, folder = setting or CamSetting(), check_folder(out)
    dataset = open_images(data)
    chosen = choose(dataset, setting.images, setting.order, data, default=IMAGES)
    networks = load_networks(sources, "logits", loading or Loading())
    _check_scores(networks, setting)
    found: list[Explained] = []
    with Bar("explaining", len(networks) * len(chosen.positions), show=show) as bar:
        for loaded in networks:
            for sample in read(dataset, chosen.positions):
                with naming(loaded.name, with_map):
                    found.append(explain(loaded, sample, setting))
                bar.update(len(found))
    layers = {f"The layer of {one.name} is {' and '.join(one.taps)}.": None for one in found}
    notes = (*layers, *dict.fromkeys(f"{note[0].upper()}{note[1:]}." for one in found for note in one.notes))
    notes = (*notes, *chosen.notes)
    files = write(
        folder,
        "cam",
        arrays=_arrays(found),
        columns=(
            *("network", "weights", "image", "explained", "score", "method", "layers"),
            *SCORES,
        ),
        rows=list(_rows(found)),
        page=cam_page(found, f"{plural(len(chosen.positions), 'image')} of {Path(data).name}", notes),
    )
    return Outcome(_HEAD, tuple(_printed(found)), notes, files)


def explain(loaded: LoadedNetwork, sample: Sample, setting: CamSetting) -> Explained:
    """Return all maps of one image."""
    image_3HW, shown_HW3 = _views(loaded, sample, setting)
    network = loaded.network
    image_BCHW = taken_by(network, image_3HW[None])
    run = cam_targets.run_of(network)
    subject = _subject(loaded, run, image_BCHW, setting)

    taps = setting.taps

    def cams_of(image_BCHW: Tensor, flipped: bool) -> dict[str, cam.Cam]:
        nonlocal taps
        target = subject.mirrored if flipped else subject.target
        found = _cams(network, image_BCHW, target, replace(setting, taps=taps), run)
        if isinstance(network, Detector | Segmentor):  # whose layer depends on the image: copies have that of the image
            taps = next(iter(found.values())).taps
        return found

    maps = aug_smoothed(cams_of, image_BCHW) if setting.aug_smooth else cams_of(image_BCHW, False)
    scores = {}
    if setting.scores:
        score = _probability(subject.target, run)
        scores = {m: cam_scores.faithfulness(score, image_BCHW[0], one.map_BHW[0]) for m, one in maps.items()}
    return Explained(
        loaded.name,
        loaded.weights,
        sample.id,
        shown_HW3,
        subject.words,
        subject.score,
        next(iter(maps.values())).taps,
        {method: one.map_BHW[0].cpu().numpy() for method, one in maps.items()},
        scores,
        subject.box,
        tuple(dict.fromkeys(note for one in maps.values() for note in one.notes)),
    )


def _views(loaded: LoadedNetwork, sample: Sample, setting: CamSetting) -> tuple[Tensor, np.ndarray]:
    """Return the image as the network takes it, (3, H, W), and the same crop as (H, W, 3) uint8."""
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    plain = replace(loaded.preparation, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    side = side_for(loaded, sample.image, setting.size)
    if isinstance(loaded.network, Detector | Segmentor):
        views = [prepared(sample.image, side, one, "short_side") for one in (loaded.preparation, plain)]
    else:
        views = [evaluated(sample.image, side, one) for one in (loaded.preparation, plain)]
    shown_HW3 = (views[1] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return views[0], np.ascontiguousarray(shown_HW3)


@dataclass(frozen=True)
class _Subject:
    """What is explained of one image.

    Attributes:
        target, mirrored: of the image, and of its mirror image.
        words: the class, and where.
        box: of an object, or a region that was given, in pixels of the image.
    """

    target: cam.Target
    mirrored: cam.Target
    words: str
    score: float
    box: cam_targets.Box | None


def _subject(loaded: LoadedNetwork, run: Callable[[Tensor], Any], image_BCHW: Tensor, setting: CamSetting) -> _Subject:
    label = None if setting.label is None else label_of(setting.label, loaded)
    with torch.no_grad():
        output = run(image_BCHW)
    if isinstance(loaded.network, Detector):
        chosen = cam_targets.chosen_detection(output[0], setting.box, label)
        x1, y1, x2, y2 = output[0].boxes_N4[chosen].tolist()
        own, width = int(output[0].labels_N[chosen]), image_BCHW.shape[-1]
        target = cam_targets.box_target((x1, y1, x2, y2), own)
        mirrored = cam_targets.box_target((width - x2, y1, width - x1, y2), own)
        words, box = _name(loaded, own), (x1, y1, x2, y2)
    elif isinstance(loaded.network, Segmentor):
        best_BHW = output.argmax(dim=1)
        best = int(best_BHW.flatten().bincount().argmax()) if label is None else label
        region_HW = best_BHW[0] == best if setting.box is None else _region(setting.box, image_BCHW)
        if not bool(region_HW.any()):
            raise ValueError(
                f"no pixel is predicted as {_name(loaded, best)}; choose another --class, or give a region by --box"
            )
        target, mirrored = (cam_targets.region_target(best, one) for one in (region_HW, region_HW.flip(-1)))
        where = "its pixels" if setting.box is None else "the box"
        words, box = f"{_name(loaded, best)} in {where}", setting.box
    else:
        if setting.box is not None:
            raise ValueError(f"{loaded.name} is a classifier, and --box is for detectors and segmentors; remove --box")
        cam_targets.class_target(label)(output)  # raises its sentence for another kind of network
        best, box = int(output[0].argmax()) if label is None else label, None
        target = mirrored = cam_targets.class_target(best)
        words = _name(loaded, best)
    return _Subject(target, mirrored, words, float(target(output)[0]), box)


def _cams(
    network: nn.Module, image_BCHW: Tensor, target: cam.Target, setting: CamSetting, run: Callable[[Tensor], Any]
) -> dict[str, cam.Cam]:
    """Return the maps of each method."""
    activated = cam.activations(network, image_BCHW, target, setting.taps, run=run)
    smooth, maps = setting.eigen_smooth, {}
    for method in setting.methods:
        if method == cam_methods.SCORE_CAM:
            maps[method] = cam.score_cam(network, image_BCHW, activated, target, eigen_smooth=smooth)
        else:
            maps[method] = cam.class_activation_map(activated, method, eigen_smooth=smooth)
    return maps


def _region(box: cam_targets.Box, image_BCHW: Tensor) -> Tensor:
    left, top, right, bottom = (max(0, round(value)) for value in box)
    region_HW = torch.zeros(image_BCHW.shape[-2:], dtype=torch.bool, device=image_BCHW.device)
    region_HW[top:bottom, left:right] = True
    if not bool(region_HW.any()):
        height, width = region_HW.shape
        raise ValueError(f"--box {','.join(f'{v:g}' for v in box)} holds no pixel of an image of {height} x {width}")
    return region_HW


def label_of(text: str, loaded: LoadedNetwork) -> int:
    """Return the class that a name or a number stands for.

    Raises:
        ValueError: the network has no such class.
    """
    if text in loaded.classes:
        return loaded.classes.index(text)
    if text.isdecimal() and (not loaded.classes or int(text) < len(loaded.classes)):
        return int(text)
    shown = ", ".join(loaded.classes[:5]) + (", ..." if len(loaded.classes) > 5 else "")
    raise ValueError(f"{loaded.name} has no class {text!r}; its classes are {shown}; give one of them or its number")


def _name(loaded: LoadedNetwork, label: int) -> str:
    return loaded.classes[label] if label < len(loaded.classes) else f"class {label}"


def _check_scores(networks: Sequence[LoadedNetwork], setting: CamSetting) -> None:
    for loaded in networks:
        if not isinstance(loaded.network, Detector | Segmentor):
            continue
        if setting.scores:
            raise ValueError(f"--scores measures classifiers, and {loaded.name} is none; remove --scores")
        if cam_methods.SCORE_CAM in setting.methods:
            raise ValueError(
                f"--method {cam_methods.SCORE_CAM} is for classifiers, and {loaded.name} is none; remove it"
            )


def _probability(target: cam.Target, run: Callable[[Tensor], Any]) -> cam_scores.Score:
    """Return the probability of the explained class."""

    def score(images_BCHW: Tensor) -> Tensor:
        with torch.inference_mode():
            logits_BK = run(images_BCHW)
            return (target(logits_BK) - logits_BK.logsumexp(dim=1)).exp()

    return score


_HEAD = ("network", "image", "explained", "method", "ROAD", "insertion", "deletion")


def _printed(found: Sequence[Explained]) -> Iterator[tuple[str, ...]]:
    for one in found:
        start = (one.name, Path(one.image).name, one.explained)
        if not one.scores:
            yield (*start, plural(len(one.maps), "map"), "-", "-", "-")
            continue
        for i, (method, scores) in enumerate(one.scores.items()):
            numbers = (f"{value:.3f}" for value in (scores.road, scores.insertion, scores.deletion))
            yield (*(start if i == 0 else ("",) * 3), cam_methods.NAMES[method], *numbers)


def _rows(found: Sequence[Explained]) -> Iterator[tuple[object, ...]]:
    for one in found:
        for method in one.maps:
            scores = one.scores.get(method)
            ends = (None if scores is None else getattr(scores, key) for key in SCORES)
            start = (one.name, one.weights, one.image, one.explained, one.score)
            yield (*start, cam_methods.NAMES[method], "+".join(one.taps), *ends)


def _arrays(found: Sequence[Explained]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for one in found:
        key = f"{one.name} {one.weights}__{one.image.replace('/', '|')}"
        out[f"{key}__image"] = one.image_HW3
        out |= {f"{key}__{method}": map_HW.astype(np.float32) for method, map_HW in one.maps.items()}
    return out
