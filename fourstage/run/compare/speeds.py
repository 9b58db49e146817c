"""Throughput and memory of the arms, measured in turns, and kept so that a comparison measures them once."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from fourstage.analysis.comparison import Speed
from fourstage.bench.options import Options
from fourstage.bench.results import Speed as Measured
from fourstage.bench.run import bench
from fourstage.documents import read_json
from fourstage.files import write_text
from fourstage.recipe import Recipe
from fourstage.run.compare.costs import image_size

FILE = "speed.json"
NETWORK_KEYS = ("task", "model", "model_args", "backbone", "backbone_args", "method", "method_args", "image_size")

Speeds = dict[str, dict[str, Speed]]  # arm -> "infer" and "train" -> its speed


def speeds_of(recipes: Mapping[str, tuple[Recipe, int]], folder: Path, seconds: float, *, show: bool) -> Speeds:
    """Return the speeds of arms; those of an earlier call for the same networks are read from the folder.

    Args:
        recipes: by arm, its recipe and the number of classes of its data.
        folder: of the comparison.
        seconds: for each arm and mode.

    Raises:
        ValueError: memory is too small for a network.
    """
    asked = {name: _described(recipe, classes) for name, (recipe, classes) in recipes.items()}
    known = _known(folder / FILE)
    if known is None or known["networks"] != json.loads(json.dumps(asked)):
        speeds = _measured(recipes, folder, seconds, show=show)
        plain = {name: {mode: asdict(speed) for mode, speed in modes.items()} for name, modes in speeds.items()}
        write_text(folder / FILE, json.dumps({"networks": asked, "speeds": plain}, indent=1))
        return speeds
    return {name: {mode: Speed(**one) for mode, one in modes.items()} for name, modes in known["speeds"].items()}


def _known(path: Path) -> dict[str, Any] | None:
    """Return the content of an earlier measurement; None where there is none, or it is damaged."""
    try:
        content = read_json(path) if path.is_file() else None
        if content is not None:
            [[Speed(**one) for one in modes.values()] for modes in content["speeds"].values()]
            return content if "networks" in content else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return None


def _described(recipe: Recipe, classes: int) -> dict[str, Any]:
    values = recipe.model_dump(mode="json")
    return {"classes": classes, **{key: values[key] for key in NETWORK_KEYS if key in values}}


def _measured(recipes: Mapping[str, tuple[Recipe, int]], folder: Path, seconds: float, *, show: bool) -> Speeds:
    sizes = {image_size(recipe) for recipe, _ in recipes.values()}
    options = Options(img_size=sizes.pop() if len(sizes) == 1 else None, seconds=seconds, train=True)
    files = {}
    for i, (name, (recipe, classes)) in enumerate(recipes.items()):
        path = folder / "networks" / f"{i}.yaml"  # the processes that measure memory read it
        path.parent.mkdir(parents=True, exist_ok=True)
        values = recipe.model_copy(update={"num_classes": classes, "weights": None}).model_dump(mode="json")
        write_text(path, yaml.safe_dump(values, sort_keys=False))
        files[str(path)] = name
    results, _ = bench(list(files), options, show=show)
    return {files[one.model]: {mode: _plain(measured) for mode, measured in one.speeds.items()} for one in results}


def _plain(measured: Measured) -> Speed:
    rate = measured.rate
    return Speed(rate.median, rate.low, rate.high, measured.batch, measured.peak)
