"""`fourstage analyze maps`: modulators, attention and sampling points of a network for a point of an image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fourstage.analysis.images import prepared
from fourstage.analysis.maps import GRID, MixerMaps, check_point, mixer_maps
from fourstage.analysis.subjects import Subject
from fourstage.analysis.unsuitable import naming
from fourstage.data.sample import Batch, Sample
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.report.analyses.maps import DetectorLooks, Looked, maps_page
from fourstage.resources import sentences
from fourstage.run.analyze.inputs import Loading, Order, choose, device_of, load_subjects, open_images, read, side_for
from fourstage.run.analyze.outputs import Outcome, check_folder, write
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.dino_looks import best_looks

CLICKABLE = 4  # images whose pictures show the attention of a clicked point; the networks share them, one each at least
QUERIES = 3  # of a DINO that are drawn


@dataclass(frozen=True)
class MapsSetting:
    """What is drawn; see `analysis/maps.py`.

    Attributes:
        images: their number; None: 1.
        point: (x, y) in pixels of the image as the network takes it; None: the middle.
        size: side of the images, pixels; None: each network's own.

    Raises:
        ValueError: a size out of range.
    """

    images: int | None = None
    point: tuple[float, float] | None = None
    size: int | None = None
    order: Order = "spread"

    def __post_init__(self) -> None:
        if self.size is not None and not 32 <= self.size <= 2048:
            raise ValueError(f"--size is the side of the images in pixels, 32 to 2048; got {self.size}")


@sentences("use a smaller --size")
def analyze_maps(
    sources: Sequence[str | Path | nn.Module],
    data: str | Path,
    out: str | Path,
    setting: MapsSetting | None = None,
    *,
    loading: Loading | None = None,
    show: bool = True,
) -> Outcome:
    """Write the maps of mixers as `maps.npz`, `maps.csv` and `maps.html`.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    setting, folder = setting or MapsSetting(), check_folder(out)
    dataset = open_images(data)
    chosen = choose(dataset, setting.images, setting.order, data, default=1)
    subjects = load_subjects(sources, "maps", loading or Loading())
    found: list[Looked] = []
    clickable = max(1, CLICKABLE // len(subjects))
    with Bar("reading maps", len(subjects) * len(chosen.positions), show=show) as bar:
        for subject in subjects:
            for i, sample in enumerate(read(dataset, chosen.positions)):
                found.append(look(subject, sample, setting, GRID if i < clickable else 0))
                bar.update(len(found))
    files = write(
        folder,
        "maps",
        arrays=_arrays(found),
        columns=("network", "weights", "image", "layer", "mixer", "rows", "columns", "head", "mean_distance_px"),
        rows=list(_rows(found)),
        page=maps_page(found, f"{plural(len(chosen.positions), 'image')} of {Path(data).name}"),
    )
    notes = (
        "px is the mean distance of the cells that a cell reads, weighted by attention, sampling weights or absolute "
        "kernels.",
    )
    return Outcome(_HEAD, tuple(_printed(found)), (*notes, *chosen.notes), files)


def look(subject: Subject, sample: Sample, setting: MapsSetting, grid: int = 0) -> Looked:
    """Return the maps of one image: of all mixers the distances, and of the last of each stage the pictures.

    Args:
        grid: points a side whose attention a reader can choose; 0: that of the given point alone.
    """
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    side = side_for(subject, sample.image, setting.size)
    plain = replace(subject.preparation, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image_BCHW = prepared(sample.image, side, subject.preparation, "short_side")[None].to(device_of(subject.network))
    shown_3HW = prepared(sample.image, side, plain, "short_side")
    shown_HW3 = np.ascontiguousarray((shown_3HW * 255).round().byte().permute(1, 2, 0).numpy())
    point = setting.point or (side / 2, side / 2)
    check_point(point, (side, side))  # first: a DINO has points of its own, whatever its backbone
    looks = _looks(subject.network, image_BCHW, subject) if isinstance(subject.network, DINO) else None
    try:
        with naming(subject.name):
            every = mixer_maps(subject.network, image_BCHW, point, grid=grid)
    except ValueError:
        if looks is None:  # the points of a DINO are there whatever its backbone
            raise
        every = []
    return Looked(subject.name, subject.weights, sample.id, shown_HW3, point, tuple(every), looks)


def _looks(network: DINO, image_BCHW: torch.Tensor, subject: Subject) -> DetectorLooks:
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    found = best_looks(network, Batch(("image",), image_BCHW, (size,), (size,)), QUERIES)
    names = [subject.classes[i] if i < len(subject.classes) else f"class {i}" for i in found.labels_Q.tolist()]
    return DetectorLooks(
        found.boxes_Q4.cpu().numpy(),
        tuple(names),
        found.scores_Q.cpu().numpy(),
        found.places_QS2.cpu().numpy(),
        found.weights_QS.cpu().numpy(),
    )


_HEAD = ("network", "layer", "mixer", "cells", "px", "of heads")


def _printed(found: Sequence[Looked]) -> Iterator[tuple[str, ...]]:
    """Yield a row for the last mixer of each kind in each stage, for each network's first image."""
    shown: set[str] = set()
    for one in found:
        if one.name in shown:
            continue
        shown.add(one.name)
        name = one.name
        for maps in one.last_of_stages():
            far = maps.distances_h
            heads = "" if len(far) == 1 else f"{far.min():.0f} to {far.max():.0f}"
            size = f"{maps.size[0]}x{maps.size[1]}"
            yield (
                name,
                _short(maps.name),
                maps.kind,
                size,
                f"{far.mean():.0f}",
                heads,
            )
            name = ""
        if one.looks is not None:
            for found_name, score in zip(one.looks.names, one.looks.scores_Q, strict=True):
                yield (name, "decoder", f"DINO: {found_name} {score:.2f}", "", "", "")
                name = ""


def _short(layer: str) -> str:
    """Return `2.5.attn` of `stages.2.blocks.5.attn`; the CSV has the complete name."""
    return layer.removeprefix("backbone.").removeprefix("stages.").replace("blocks.", "")


def _rows(found: Sequence[Looked]) -> Iterator[tuple[object, ...]]:
    for one in found:
        for maps in one.mixers:
            for head, distance in enumerate(maps.distances_h):
                start = (one.name, one.weights, one.image, maps.name, maps.kind, *maps.size)
                yield (*start, head, float(distance))


def _arrays(found: Sequence[Looked]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for one in found:
        key = f"{one.name} {one.weights}__{one.image.replace('/', '|')}"
        out[f"{key}__image"] = one.image_HW3
        for maps in one.mixers:
            for name, value in _maps_of(maps).items():
                out[f"{key}__{maps.name}__{name}"] = value
        if one.looks is not None:
            out |= {f"{key}__dino__boxes": one.looks.boxes_Q4, f"{key}__dino__points": one.looks.points_QS2}
            out[f"{key}__dino__weights"] = one.looks.weights_QS
    return out


def _maps_of(maps: MixerMaps) -> dict[str, np.ndarray]:
    known = {
        "distances": maps.distances_h,
        "modulator": maps.modulator_HW,
        "heads": maps.heads_hHW,
        "points": maps.points_hP2,
        "weights": maps.weights_hP,
    }
    return {name: value for name, value in known.items() if value is not None}
