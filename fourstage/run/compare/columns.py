"""What analyses say about each finished run: receptive field, invariance, feature maps. Measured once and kept.

H x W pixels, V settings of an invariance, T maps, P pairs of images.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from fourstage.analysis import cka, erf
from fourstage.analysis.images import prepared
from fourstage.analysis.invariance import Family, Protocol, evaluate_invariance
from fourstage.analysis.networks import LoadedNetwork, load_network
from fourstage.analysis.similarity import unit_vectors
from fourstage.analysis.taps import stage_maps, taken_by
from fourstage.analysis.unsuitable import UnsuitableNetwork, naming
from fourstage.checksums import sum_of_file
from fourstage.data.sample import BadImage
from fourstage.engine.devices import choose_device
from fourstage.files import read_bytes, write_file
from fourstage.progress import Bar
from fourstage.recipe import Recipe
from fourstage.resources import sentences
from fourstage.run.compare.costs import image_size
from fourstage.run.compare.grid import folder_name
from fourstage.run.compare.runs import FinishedRun, Table
from fourstage.run.splits import open_splits
from fourstage.run.task_protocol import protocol_of
from fourstage.user_files import import_files

Analysis = Literal["erf", "invariance", "cka"]
ANALYSES: tuple[Analysis, ...] = ("erf", "invariance", "cka")
FOLDER = "analyses"  # in the folder of a comparison
FORMAT = 3  # of the kept files
KEPT_BYTES = 2**28
FAMILIES: tuple[Family, ...] = ("translation", "pre_rotation", "scale")
IMAGES: dict[str, dict[Analysis, int]] = {  # of the validation split, evenly spread; by task
    "classification": {"erf": 32, "invariance": 64, "cka": 256},
    "detection": {"erf": 16, "cka": 64},
    "segmentation": {"erf": 16, "cka": 64},
}
LARGEST: dict[Analysis, int] = {"erf": 640, "cka": 320}  # pixels a side, of images for detectors and segmentors
IDS, LEFT_OUT = "ids", "left_out"  # arrays of every analysis: its images, and those that could not be read
MULTIPLE = 32  # pixels, of such images

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class RunAnalyses:
    """What is known of one run.

    Attributes:
        found: the arrays of each analysis; see `_measure` and `_names`.
        reasons: a sentence for each analysis that could not be made.
    """

    found: dict[Analysis, Arrays] = field(default_factory=dict)
    reasons: dict[Analysis, str] = field(default_factory=dict)


Measured = dict[str, dict[int, RunAnalyses]]  # arm -> seed -> what is known


@dataclass(frozen=True)
class _Image:
    id: str
    pixels_HW3: np.ndarray
    label: int | None


@dataclass(frozen=True)
class _Chosen:
    """Images for all analyses, and the names of those that cannot be read, each with the reason."""

    images: list[_Image]
    left_out: tuple[str, ...]


def check_analyses(text: str) -> tuple[Analysis, ...]:
    """Return the analyses that a text names, such as `erf,cka`; `none` names none.

    Raises:
        ValueError: a word is no analysis.
    """
    words = [] if text == "none" else text.split(",")
    unknown = next((word for word in words if word not in ANALYSES), None)
    if unknown is not None:
        raise ValueError(
            f"--analyses names {unknown!r}, which is not an analysis; choose from {', '.join(ANALYSES)}, or none"
        )
    return tuple(one for one in ANALYSES if one in words)


def analyses_of(
    table: Table, seeds: Sequence[int], folder: Path, wanted: Sequence[Analysis], *, show: bool
) -> Measured:
    """Return what the wanted analyses say about runs; what was measured before is read from the folder.

    Args:
        folder: of the comparison.
    """
    out: Measured = {arm: {seed: RunAnalyses() for seed in seeds} for arm in table}
    if not wanted:
        return out
    images = Images()
    with Bar("analysing", len(table) * len(seeds), show=show) as bar:
        for i, (arm, seed) in enumerate((arm, seed) for seed in seeds for arm in table):
            bar.update(i, f"{arm}, seed {seed}")
            out[arm][seed] = analyse(table[arm][seed], place_of(folder, arm, seed), wanted, images)
        bar.update(len(table) * len(seeds))
    for analysis in wanted:
        if len({_images_of(run.found[analysis]) for run in _having(out, analysis)}) > 1:
            _again(out, analysis, table, folder, images, show=show)
    return out


def _having(measured: Measured, analysis: Analysis) -> list[RunAnalyses]:
    return [run for runs in measured.values() for run in runs.values() if analysis in run.found]


def _images_of(arrays: Arrays) -> tuple[str, ...]:
    return tuple(arrays[IDS].tolist())


def _again(measured: Measured, analysis: Analysis, table: Table, folder: Path, images: "Images", *, show: bool) -> None:
    """Make an analysis of all runs again, because an image could be read at one time and not at another."""
    cells = [(arm, seed) for arm, runs in measured.items() for seed in runs]
    with Bar(f"analysing again, with the same images ({analysis})", len(cells), show=show) as bar:
        for i, (arm, seed) in enumerate(cells, 1):
            new = analyse(table[arm][seed], place_of(folder, arm, seed), (analysis,), images, afresh=True)
            known = measured[arm][seed]
            known.found.pop(analysis, None)
            known.found.update(new.found)
            known.reasons.update(new.reasons)
            bar.update(i, f"{arm}, seed {seed}")


def place_of(folder: Path, arm: str, seed: int) -> Path:
    """Return the beginning of the names of the files that hold what is known of a run."""
    return folder / FOLDER / folder_name(arm) / f"seed-{seed}"


def analyse(
    run: FinishedRun, place: Path, wanted: Sequence[Analysis], images: "Images", *, afresh: bool = False
) -> RunAnalyses:
    """Return what analyses say about a run, and keep it. What cannot be measured has a reason.

    Args:
        afresh: measure also what was kept.
    """
    out, missing = RunAnalyses(), list[Analysis]()
    checkpoint = run.folder / "checkpoints" / "best.pt"
    if not checkpoint.is_file():
        return RunAnalyses(reasons=dict.fromkeys(wanted, f"{checkpoint} is not there"))
    total = sum_of_file(checkpoint) if wanted else 0
    for analysis in wanted:
        if analysis not in IMAGES[run.recipe.task]:
            out.reasons[analysis] = f"{analysis} is measured on classifiers alone"
        elif not afresh and (kept := _kept(_file(place, analysis), _key(run.recipe, analysis, total))) is not None:
            out.found[analysis] = kept
        else:
            missing.append(analysis)
    if not missing:
        return out
    try:
        import_files(run.recipe.imports)
        chosen = images.of(run.recipe)
        loaded = load_network(run.folder)
        loaded.network.to(choose_device("cpu" if run.recipe.device == "cpu" else "auto"))
    except (ValueError, OSError) as error:
        return RunAnalyses(out.found, {**out.reasons, **dict.fromkeys(missing, str(error))})
    for analysis in missing:
        try:
            with sentences("leave this analysis out of --analyses"), naming(run.recipe.network_name, _without):
                own = _spread(chosen.images, IMAGES[run.recipe.task][analysis])
                found = {**_measure(analysis, loaded, run.recipe, own), **_names(own, chosen)}
        except ValueError as error:
            out.reasons[analysis] = str(error)
            continue
        _keep(_file(place, analysis), _key(run.recipe, analysis, total), found)
        out.found[analysis] = found
    return out


def _without(_: UnsuitableNetwork) -> str:
    return "leave this analysis out of --analyses"


class Images:
    """Validation images of the recipes of a comparison, each data set read once."""

    def __init__(self) -> None:
        self._known: dict[str, _Chosen] = {}

    def of(self, recipe: Recipe) -> _Chosen:
        """Return the images for all analyses, those that cannot be read left out.

        Raises:
            ValueError, OSError: the data is not there, or no image of it can be read.
        """
        key = f"{recipe.task} {recipe.data}"
        if key not in self._known:
            self._known[key] = _read(recipe, max(IMAGES[recipe.task].values()))
        return self._known[key]


def _read(recipe: Recipe, count: int) -> _Chosen:
    dataset = open_splits(protocol_of(recipe), show=False).val
    count, images, left_out = min(count, len(dataset)), list[_Image](), list[str]()
    for i in range(count):
        position = i * len(dataset) // count
        try:
            sample = dataset.sample(position)
        except BadImage as error:
            left_out.append(f"{Path(error.path).name} ({error.reason})")
            continue
        assert isinstance(sample.image, np.ndarray), "data sets give arrays"
        images.append(_Image(dataset.id(position), sample.image, sample.label))
    if not images:
        raise ValueError(f"none of {count} images of {recipe.data} can be read, the first: {left_out[0]}")
    return _Chosen(images, tuple(left_out))


def _names(images: Sequence[_Image], chosen: _Chosen) -> Arrays:
    """Return the arrays that say which images an analysis is of."""
    return {IDS: np.array([one.id for one in images], dtype=str), LEFT_OUT: np.array(chosen.left_out, dtype=str)}


def _spread(images: Sequence[_Image], count: int) -> list[_Image]:
    count = min(count, len(images))
    return [images[i * len(images) // count] for i in range(count)]


def side_of(recipe: Recipe, analysis: Analysis) -> int:
    """Return the side of square images: that of the evaluation, for dense tasks at most `LARGEST`."""
    side = min(image_size(recipe))
    if recipe.task == "classification":
        return side
    return max(MULTIPLE, min(LARGEST[analysis], side) // MULTIPLE * MULTIPLE)


def _measure(analysis: Analysis, loaded: LoadedNetwork, recipe: Recipe, images: Sequence[_Image]) -> Arrays:
    """Return the arrays of one analysis.

    erf: the map over its sum, (H, W), and the `sum`; `unit_centre`, `cells`. invariance: for each family its settings
    (V,), and consistency, top-1 and loss as means over images (V,). cka: the unit vectors of the stages' Gram matrices
    (T, P).
    """
    side = side_of(recipe, analysis)
    if analysis == "erf":
        return _field(loaded, images, side)
    if analysis == "invariance":
        return _invariance(loaded, images, side)
    with torch.inference_mode():
        count = len(stage_maps(loaded.network, taken_by(loaded.network, torch.zeros(1, 3, side, side))))
    batch_BCHW = torch.stack([prepared(one.pixels_HW3, side, loaded.preparation, "short_side") for one in images])
    stages = [f"stage{i + 1}" for i in range(count)]
    return {"units": unit_vectors(cka.grams_of(loaded.network, batch_BCHW, stages, "flatten"))}


def _field(loaded: LoadedNetwork, images: Sequence[_Image], side: int) -> Arrays:
    tensors = (prepared(one.pixels_HW3, side, loaded.preparation, "short_side") for one in images)
    found = erf.receptive_field(loaded.network, tensors)
    total = float(found.map_HW.sum())
    if not total > 0:
        raise ValueError("the field is zero everywhere: no pixel moves the last map")
    return {
        "map": (found.map_HW / total).astype(np.float32),
        "sum": np.array(total),
        "unit_centre": np.array(found.unit_centre),
        "cells": np.array(found.cells),
    }


def _invariance(loaded: LoadedNetwork, images: Sequence[_Image], side: int) -> Arrays:
    protocol = Protocol(loaded.preparation, side, directions="one")
    curves = evaluate_invariance(loaded.network, [(one.pixels_HW3, one.label) for one in images], FAMILIES, protocol)
    out = dict[str, np.ndarray]()
    for family, one in curves.items():
        out[f"{family}_settings"] = one.settings_S
        out |= {f"{family}_{name}": one.values(name).mean(axis=1) for name in ("consistency", "top1", "loss")}
    return out


def _file(place: Path, analysis: Analysis) -> Path:
    return place.with_name(f"{place.name}.{analysis}.npz")


def _key(recipe: Recipe, analysis: Analysis, checkpoint: int) -> str:
    """Return what a kept file must be of: these weights, measured in this way."""
    images, side = IMAGES[recipe.task][analysis], side_of(recipe, analysis)
    return json.dumps({"format": FORMAT, "checkpoint": checkpoint, "images": images, "side": side})


def _kept(path: Path, key: str) -> Arrays | None:
    """Return the arrays of an earlier call; None where there are none, or they are damaged or of other weights."""
    if not path.is_file():
        return None
    try:
        with np.load(io.BytesIO(read_bytes(path, KEPT_BYTES)), allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile):
        return None
    return content if str(content.pop("key", "")) == key else None


def _keep(path: Path, key: str, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"key": np.array(key), **arrays}
    write_file(path, lambda file: np.savez_compressed(file, **content))  # pyright: ignore[reportArgumentType]
