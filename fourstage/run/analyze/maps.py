"""`fourstage analyze maps`: modulators, attention and sampling points of a network for a point of an image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fourstage.analysis.images import prepared
from fourstage.analysis.maps import GRID, MixerMaps, check_point, mixer_maps
from fourstage.analysis.networks import LoadedNetwork
from fourstage.analysis.unsuitable import naming
from fourstage.data.sample import Batch, Sample
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.report.analyses.maps import ImageMaps, QueryPoints, maps_page
from fourstage.resources import sentences
from fourstage.run.analyze.inputs import (
    Loading,
    Order,
    check_side,
    check_words,
    choose,
    device_of,
    load_networks,
    open_images,
    read,
    side_for,
    with_networks,
)
from fourstage.run.analyze.outputs import Outcome, check_folder, write
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.dino_query_points import best_query_points

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
        ValueError: a size out of range, or an unknown word.
    """

    images: int | None = None
    point: tuple[float, float] | None = None
    size: int | None = None
    order: Order = "spread"

    def __post_init__(self) -> None:
        check_words(self)
        check_side(self.size, largest=2048)


@sentences("use a smaller --size")
@with_networks
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
    networks = load_networks(sources, "maps", loading or Loading())
    found: list[ImageMaps] = []
    clickable = max(1, CLICKABLE // len(networks))
    with Bar("reading maps", len(networks) * len(chosen.positions), show=show) as bar:
        for loaded in networks:
            for i, sample in enumerate(read(dataset, chosen.positions)):
                found.append(maps_of(loaded, sample, setting, GRID if i < clickable else 0))
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


def maps_of(loaded: LoadedNetwork, sample: Sample, setting: MapsSetting, grid: int = 0) -> ImageMaps:
    """Return the maps of one image: of all mixers the distances, and of the last of each stage the pictures.

    Args:
        grid: points a side whose attention a reader can choose; 0: that of the given point alone.
    """
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    side = side_for(loaded, sample.image, setting.size)
    plain = replace(loaded.preparation, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image_BCHW = prepared(sample.image, side, loaded.preparation, "short_side")[None].to(device_of(loaded.network))
    shown_3HW = prepared(sample.image, side, plain, "short_side")
    shown_HW3 = np.ascontiguousarray((shown_3HW * 255).round().byte().permute(1, 2, 0).numpy())
    point = setting.point or (side / 2, side / 2)
    check_point(point, (side, side))  # first: a DINO has points of its own, whatever its backbone
    query_points = _query_points(loaded.network, image_BCHW, loaded) if isinstance(loaded.network, DINO) else None
    try:
        with naming(loaded.name):
            every = mixer_maps(loaded.network, image_BCHW, point, grid=grid)
    except ValueError:
        if query_points is None:  # the points of a DINO are there whatever its backbone
            raise
        every = []
    return ImageMaps(loaded.name, loaded.weights, sample.id, shown_HW3, point, tuple(every), query_points)


def _query_points(network: DINO, image_BCHW: torch.Tensor, loaded: LoadedNetwork) -> QueryPoints:
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    found = best_query_points(network, Batch(("image",), image_BCHW, (size,), (size,)), QUERIES)
    names = [loaded.classes[i] if i < len(loaded.classes) else f"class {i}" for i in found.labels_Q.tolist()]
    return QueryPoints(
        found.boxes_Q4.cpu().numpy(),
        tuple(names),
        found.scores_Q.cpu().numpy(),
        found.points_QS2.cpu().numpy(),
        found.weights_QS.cpu().numpy(),
    )


_HEAD = ("network", "layer", "mixer", "cells", "px", "of heads")


def _printed(found: Sequence[ImageMaps]) -> Iterator[tuple[str, ...]]:
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
        if one.query_points is not None:
            for found_name, score in zip(one.query_points.names, one.query_points.scores_Q, strict=True):
                yield (name, "decoder", f"DINO: {found_name} {score:.2f}", "", "", "")
                name = ""


def _short(layer: str) -> str:
    """Return `2.5.attn` of `stages.2.blocks.5.attn`; the CSV has the complete name."""
    return layer.removeprefix("backbone.").removeprefix("stages.").replace("blocks.", "")


def _rows(found: Sequence[ImageMaps]) -> Iterator[tuple[object, ...]]:
    for one in found:
        for maps in one.mixers:
            for head, distance in enumerate(maps.distances_h):
                start = (one.name, one.weights, one.image, maps.name, maps.kind, *maps.size)
                yield (*start, head, float(distance))


def _arrays(found: Sequence[ImageMaps]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for one in found:
        key = f"{one.name} {one.weights}__{one.image.replace('/', '|')}"
        out[f"{key}__image"] = one.image_HW3
        for maps in one.mixers:
            for name, value in _maps_of(maps).items():
                out[f"{key}__{maps.name}__{name}"] = value
        if one.query_points is not None:
            out |= {
                f"{key}__dino__boxes": one.query_points.boxes_Q4,
                f"{key}__dino__points": one.query_points.points_QS2,
            }
            out[f"{key}__dino__weights"] = one.query_points.weights_QS
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
