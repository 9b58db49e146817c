"""`fourstage analyze erf`: effective receptive fields of networks side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from fourstage.analysis import erf
from fourstage.analysis.images import Resize, prepared
from fourstage.analysis.networks import LoadedNetwork
from fourstage.analysis.unsuitable import UnknownStages, UnsuitableNetwork, naming
from fourstage.data.sample import Dataset
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.report.analyses.erf import FORMS, Field, erf_page
from fourstage.report.number_format import significant
from fourstage.resources import sentences
from fourstage.run.analyze.inputs import (
    Chosen,
    Loading,
    Order,
    check_side,
    check_words,
    choose,
    few_words,
    load_networks,
    open_images,
    readable,
    with_networks,
)
from fourstage.run.analyze.outputs import Outcome, check_folder, write


@dataclass(frozen=True)
class ErfSetting:
    """How fields are measured; see `analysis/erf.py`.

    Attributes:
        size: side of the square images, pixels.
        images: images with a finite map that are averaged; None: 50, or all where there are fewer.
        tap: the feature map: `stage1`, ..., `last`, or the name of a layer.
        centre: around which pixel the field is measured.
        power: exponent of the scale-free form.
        untrained: also measure each trained network with fresh weights.

    Raises:
        ValueError: a size or a power out of range, or an unknown word.
    """

    size: int = erf.SIZE
    images: int | None = None
    tap: str = erf.LAST
    centre: erf.Centre = "image"
    resize: Resize = "exact"
    order: Order = "first"
    power: float = erf.POWER
    untrained: bool = False

    def __post_init__(self) -> None:
        check_words(self)
        check_side(self.size)
        if not 0 < self.power <= 1:
            raise ValueError(f"--power is the exponent of the scale-free form, above 0 and up to 1; got {self.power:g}")


@sentences("use a smaller --size")
@with_networks
def analyze_erf(
    sources: Sequence[str | Path | nn.Module],
    data: str | Path,
    out: str | Path,
    setting: ErfSetting | None = None,
    *,
    loading: Loading | None = None,
    show: bool = True,
) -> Outcome:
    """Measure effective receptive fields and write `erf.npz`, `erf.csv` and `erf.html`.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    setting, folder = setting or ErfSetting(), check_folder(out)
    dataset = open_images(data)
    chosen = choose(dataset, setting.images, setting.order, data, default=erf.IMAGES)
    later = _later(dataset, chosen, setting)
    count = min(chosen.requested, len(chosen.positions) + len(later))
    networks = load_networks(sources, "maps", loading or Loading(), untrained=setting.untrained)
    fields = []
    with Bar("measuring receptive fields", len(networks) * count, show=show) as bar:
        for i, loaded in enumerate(networks):
            images = _counted(_images(dataset, (*chosen.positions, *later), loaded, setting), bar, i * count)
            with naming(loaded.name, with_map):
                found = erf.receptive_field(loaded.network, images, tap=setting.tap, count=count)
            fields.append(_field(loaded, found, setting))
    files = write(
        folder,
        "erf",
        arrays=_arrays(fields),
        columns=_COLUMNS,
        rows=[row for field in fields for row in _rows(field)],
        page=erf_page(fields, setting_words(setting, data, max(field.erf.images for field in fields))),
    )
    return Outcome(_HEAD, tuple(_printed(fields)), (*_notes(fields, count), *chosen.notes, *few_words(count)), files)


def with_map(error: UnsuitableNetwork) -> str:
    """Return what to type for a network that an analysis with --map cannot read."""
    return f"name a layer of it, such as --map {error.layer}" if isinstance(error, UnknownStages) else error.hint


def setting_words(setting: ErfSetting, data: str | Path, count: int) -> str:
    """Return one sentence on the images of an analysis."""
    how = {"exact": "resized to a square", "short_side": "resized by the short side and cropped"}[setting.resize]
    which = {"first": "the first", "spread": "evenly spread"}[setting.order]
    return f"{plural(count, 'image')} ({which} of {Path(data).name}), {setting.size} x {setting.size} pixels, {how}"


def _later(dataset: Dataset, chosen: Chosen, setting: ErfSetting) -> Sequence[int]:
    """Return the images that take the places of those that cannot be read or give no finite map: those that follow."""
    return range(chosen.positions[-1] + 1, len(dataset)) if setting.order == "first" else ()


def _images(dataset: Dataset, positions: Sequence[int], loaded: LoadedNetwork, setting: ErfSetting) -> Iterator[Tensor]:
    for sample in readable(dataset, positions):
        assert isinstance(sample.image, np.ndarray), "data sets give arrays"
        yield prepared(sample.image, setting.size, loaded.preparation, setting.resize)


def _counted(images: Iterator[Tensor], bar: Bar, before: int) -> Iterator[Tensor]:
    for i, image in enumerate(images):
        bar.update(min(before + i, bar.total))
        yield image


def _field(loaded: LoadedNetwork, found: erf.Erf, setting: ErfSetting) -> Field:
    ratios: dict[erf.Scale, Mapping[float, erf.Square | None]] = {
        scale: erf.squares(found, scale, centre=setting.centre, power=setting.power) for scale in erf.SCALES
    }
    return Field(
        loaded.name,
        loaded.weights,
        found,
        ratios,
        erf.profile(found, centre=setting.centre),
        found.centre(setting.centre),
        setting.power,
        erf.luo_size(found, centre=setting.centre),
    )


_COLUMNS = (
    *("network", "weights", "map", "cells", "pixels", "images", "skipped", "form"),
    *("centre_row", "centre_column", "share", "side", "ratio", "gaussian_sigma", "deviation", "luo_size"),
)


def _rows(field: Field) -> Iterator[tuple[object, ...]]:
    """Yield a row for each form and share."""
    found, (rows, columns), (height, width) = field.erf, field.erf.cells, field.erf.size
    start = (
        field.name,
        field.weights,
        found.tap,
        f"{rows}x{columns}",
        f"{height}x{width}",
        found.images,
        found.skipped,
    )
    ends = (field.profile.sigma, field.profile.deviation, field.luo_size)
    for scale, by_share in field.squares.items():
        for share, square in by_share.items():
            side, ratio = (None, None) if square is None else (square.side, square.ratio)
            yield (*start, FORMS[scale], *field.centre, share, side, ratio, *ends)


_HEAD = ("network", "weights", "form", *(f"{100 * share:.0f} %" for share in erf.SHARES), "width px")


def _printed(fields: Sequence[Field]) -> Iterator[tuple[str, ...]]:
    for field in fields:
        for i, (scale, by_share) in enumerate(field.squares.items()):
            start = (field.name, field.weights) if i == 0 else ("", "")
            cells = ["-" if one is None else f"{100 * one.ratio:.1f}" for one in by_share.values()]
            yield (*start, FORMS[scale], *cells, significant(field.profile.sigma, 3) if i == 0 else "")


def _notes(fields: Sequence[Field], count: int) -> tuple[str, ...]:
    notes = [
        "The columns are the area, in % of the image, of the smallest centred square that holds this share of the map.",
        "width px is the standard deviation of the Gaussian that fits the radial profile.",
    ]
    if any(square is None for field in fields for by_share in field.squares.values() for square in by_share.values()):
        notes.append("-: no centred square inside of the image holds this share.")
    if skipped := sum(field.erf.skipped for field in fields):
        notes.append(f"{plural(skipped, 'image')} gave no finite map and {'is' if skipped == 1 else 'are'} left out.")
    short = [field for field in fields if field.erf.images < count]
    notes += [f"{one.name} has {plural(one.erf.images, 'image')} with a finite map, not {count}." for one in short]
    return tuple(notes)


def _arrays(fields: Sequence[Field]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for field in fields:
        key = f"{field.name} {field.weights}"
        out[f"{key}__map"] = field.erf.map_HW.astype(np.float32)
        out[f"{key}__sum_per_image"] = field.erf.sums_N
        out[f"{key}__unit"] = np.array(field.erf.unit)
        out[f"{key}__unit_centre"] = np.array(field.erf.unit_centre)
        out[f"{key}__profile_distance"] = field.profile.distance_R
        out[f"{key}__profile"] = field.profile.value_R
    return out
