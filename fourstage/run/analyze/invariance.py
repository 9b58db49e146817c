"""`fourstage analyze invariance`: predictions of classifiers under shifts, rotations and scales, side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from fourstage.analysis.invariance import FAMILIES, Family, Protocol, evaluate_invariance
from fourstage.analysis.networks import LoadedNetwork
from fourstage.analysis.statistics import bootstrap_means
from fourstage.analysis.unsuitable import naming
from fourstage.data.sample import Dataset
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.report.analyses.invariance import MEASURES, Invariance, invariance_page
from fourstage.resources import sentences
from fourstage.run.analyze.inputs import (
    Loading,
    Order,
    check_side,
    check_words,
    choose,
    few_words,
    load_networks,
    open_images,
    read,
    with_networks,
)
from fourstage.run.analyze.labels import labelled_for
from fourstage.run.analyze.outputs import Outcome, check_folder, with_interval, write

IMAGES = 100  # where the data has as many


@dataclass(frozen=True)
class InvarianceSetting:
    """How invariance is measured; see `analysis/invariance.py`.

    Attributes:
        images: their number; None: 100, or all where there are fewer.
        size: side of the views, pixels; None: each network's own.
        families: the changes.
        directions: of shifts: all eight, or one that is drawn for each image.
        original: the transforms of the authors' code.

    Raises:
        ValueError: an unknown family, or a size out of range.
    """

    images: int | None = None
    size: int | None = None
    families: tuple[Family, ...] = FAMILIES
    directions: Literal["all", "one"] = "all"
    original: bool = False
    order: Order = "spread"
    seed: int = 0

    def __post_init__(self) -> None:
        check_words(self)
        check_side(self.size, "views")
        if unknown := [family for family in self.families if family not in FAMILIES]:
            raise ValueError(f"there is no family {unknown[0]!r}; choose from {', '.join(FAMILIES)}")


@sentences("use fewer --images or a smaller --size")
@with_networks
def analyze_invariance(
    sources: Sequence[str | Path | nn.Module],
    data: str | Path,
    out: str | Path,
    setting: InvarianceSetting | None = None,
    *,
    loading: Loading | None = None,
    show: bool = True,
) -> Outcome:
    """Measure invariance and write `invariance.npz`, `invariance.csv` and `invariance.html`.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    setting, folder = setting or InvarianceSetting(), check_folder(out)
    dataset = open_images(data)
    chosen = choose(dataset, setting.images, setting.order, data, default=IMAGES)
    positions = chosen.positions
    networks = load_networks(sources, "logits", loading or Loading())
    found, notes = [], []
    with Bar("measuring invariance", len(networks) * len(positions), show=show) as bar:
        for i, loaded in enumerate(networks):
            usable, note = labelled_for(dataset, loaded, data)
            notes += [note] if note else []
            images = _images(usable if usable is not None else dataset, positions, usable is not None, bar, i)
            with naming(loaded.name):
                curves = evaluate_invariance(loaded.network, images, setting.families, _protocol(loaded, setting))
            found.append(Invariance(loaded.name, loaded.weights, curves))
    which = {"first": "the first", "spread": "evenly spread"}[setting.order]
    words = f"{plural(len(positions), 'image')} ({which} of {Path(data).name})"
    files = write(
        folder,
        "invariance",
        arrays=_arrays(found),
        columns=(
            "network",
            "weights",
            "family",
            "setting",
            *(f"{m}{e}" for m in MEASURES for e in ("", "_low", "_high")),
        ),
        rows=list(_rows(found)),
        page=invariance_page(found, words, original=setting.original),
    )
    notes.append("Means over all settings, with 95 % bootstrap intervals over images; differences are paired by image.")
    notes.append("plain is the accuracy of the standard view.")
    return Outcome(
        _HEAD, tuple(_printed(found)), tuple(dict.fromkeys([*notes, *chosen.notes, *few_words(len(positions))])), files
    )


def _protocol(loaded: LoadedNetwork, setting: InvarianceSetting) -> Protocol:
    side = setting.size or loaded.preparation.image_size[0]
    return Protocol(loaded.preparation, side, setting.directions, setting.original, setting.seed)


def _images(
    dataset: Dataset, positions: Sequence[int], labelled: bool, bar: Bar, number: int
) -> Iterator[tuple[np.ndarray, int | None]]:
    for i, sample in enumerate(read(dataset, positions)):
        bar.update(number * len(positions) + i)
        assert isinstance(sample.image, np.ndarray), "data sets give arrays"
        yield sample.image, sample.label if labelled else None


_HEAD = ("network", "family", "consistency %", "to the first", "top-1 (plain) %")


def _printed(found: Sequence[Invariance]) -> Iterator[tuple[str, ...]]:
    for i, one in enumerate(found):
        for j, (family, curves) in enumerate(one.curves.items()):
            mean, low, high = mean_interval(curves.values("consistency").mean(axis=0))
            difference = "-"
            if i:
                first_N = found[0].curves[family].values("consistency").mean(axis=0)
                gap, gap_low, gap_high = mean_interval(curves.values("consistency").mean(axis=0) - first_N)
                difference = with_interval(gap, gap_low, gap_high, "+.0f")
            top1, standard = curves.values("top1").mean(), 100 * curves.standard_top1_N.mean()
            accuracy = "-" if np.isnan(top1) else f"{top1:.1f} ({standard:.1f})"
            consistency = with_interval(mean, low, high, ".0f")
            yield (one.name if j == 0 else "", family, consistency, difference, accuracy)


def mean_interval(values_N: np.ndarray) -> tuple[float, float, float]:
    """Return the mean over images with its bootstrap interval."""
    low_1, high_1 = bootstrap_means(values_N[None])
    return float(values_N.mean()), float(low_1[0]), float(high_1[0])


def _rows(found: Sequence[Invariance]) -> Iterator[tuple[object, ...]]:
    for one in found:
        for family, curves in one.curves.items():
            cells = [(curves.values(measure).mean(axis=1), *curves.interval(measure)) for measure in MEASURES]
            for s, setting in enumerate(curves.settings_S):
                yield (one.name, one.weights, family, setting, *(column[s] for triple in cells for column in triple))


def _arrays(found: Sequence[Invariance]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for one in found:
        for family, curves in one.curves.items():
            key = f"{one.name} {one.weights}__{family}"
            out[f"{key}__settings"] = curves.settings_S
            for measure in MEASURES:
                out[f"{key}__{measure}"] = curves.values(measure).astype(np.float32)
            out[f"{key}__standard_top1"] = 100 * curves.standard_top1_N
            out[f"{key}__standard_top5"] = 100 * curves.standard_top5_N
    return out
