"""What is known about a trained network beside its weights: who trained it, what it scored, its licence."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fourstage.documents import read_json
from fourstage.files import is_hub_name
from fourstage.recipe import EMBEDDED, Recipe
from fourstage.registry import find
from fourstage.run.described import is_training
from fourstage.run.folder import RunFolder
from fourstage.weights import catalog
from fourstage.weights.catalog import NOT_STATED, Weight
from fourstage.weights.reading.metadata import damaged, value_of
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

ENTRY = "facts"  # in the metadata of a saved file
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Facts:
    """Statements about a network; what nobody states is missing.

    Attributes:
        recipe: the name of the recipe that trained it.
        published_as: the row of the catalogue that its weights are.
        expected: published numbers of the recipe or the row, per cent.
        measured: what its own run measured at the end, per cent.
        intervals: of 95 %, of what was measured.
        images: of the evaluation.
        data: the name of the data set, without its path.
        main_metric: the most important of what was measured.
        started_from: the published weights that the training started from.
        licence: of the weights, as their authors or the user state it.
        origin: the repository of the code that trained them.
    """

    recipe: str | None = None
    published_as: str | None = None
    expected: Numbers = field(default_factory=dict)
    measured: Numbers = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    images: int = 0
    data: str | None = None
    main_metric: str | None = None
    started_from: str | None = None
    licence: str | None = None
    origin: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return the statements that are there, as plain values."""
        return {key: value for key, value in asdict(self).items() if value}


def find_facts(source: str, weights: str | Path | None, which: str, recipe: Recipe) -> Facts:
    """Return what is known about a network that `fourstage.load` loaded by these arguments.

    Args:
        recipe: of its task.
    """
    path = Path(source)
    if weights is not None:
        return of_recipe(recipe)
    if (path / "recipe.yaml").is_file():
        run = RunFolder(path)
        best = run.kept(which)[0] == run.best
        return of_run(path, recipe) if best else of_recipe(recipe)
    if path.exists() or is_hub_name(source):
        file = read_checkpoint(source)
        return of_file(file) if ENTRY in file.metadata or "published_as" in file.metadata else of_recipe(recipe)
    row = catalog.of_recipe(source)
    if row is None:
        model, tag = catalog.split(source)
        row = catalog.find(find(model).name, tag)
    return of_weight(row)


def of_weight(weight: Weight) -> Facts:
    """Return what the catalogue says about published weights."""
    licence = None if weight.licence == NOT_STATED else weight.licence
    return Facts(
        recipe=weight.recipe,
        published_as=weight.name,
        expected=dict(weight.metrics),
        data=weight.data,
        licence=licence,
        origin=weight.origin,
    )


def of_recipe(recipe: Recipe) -> Facts:
    """Return what a recipe says about the network that it trains."""
    if not is_training(recipe):
        return Facts()
    start = row_named(recipe.weights)
    return Facts(
        recipe=recipe.name,
        expected=dict(recipe.expect),
        data=_data_name(recipe.data),
        started_from=start and start.name,
    )


def of_run(folder: Path, recipe: Recipe) -> Facts:
    """Return what a run folder says about its best checkpoint.

    Raises:
        ValueError: its evaluation.json is damaged.
    """
    facts, path = of_recipe(recipe), folder / "evaluation.json"
    if not path.is_file():
        return facts
    content = read_json(path)
    try:
        measured = {str(name): float(value) for name, value in content["metrics"].items()}
        intervals = {str(name): (float(a), float(b)) for name, (a, b) in (content.get("intervals") or {}).items()}
        images, main = int(content.get("images", 0)), content.get("main_metric")
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is damaged; remove it, and the numbers of the run are left out") from None
    return Facts(
        **{
            **vars(facts),
            "measured": {name: value for name, value in measured.items() if math.isfinite(value)},
            "intervals": intervals,
            "images": images,
            "main_metric": None if main is None else str(main),
        }
    )


def of_file(file: Checkpoint) -> Facts:
    """Return what a saved file says. Raises ValueError where that is damaged."""
    if ENTRY not in file.metadata:
        row = row_named(file.metadata.get("published_as"))
        return Facts() if row is None else of_weight(row)
    values = value_of(file.metadata, ENTRY, file.path)
    try:
        texts = ("recipe", "published_as", "data", "main_metric", "started_from", "licence", "origin")
        return Facts(
            **{key: str(values[key]) for key in texts if key in values},
            expected=_numbers(values.get("expected", {})),
            measured=_numbers(values.get("measured", {})),
            intervals={str(key): (float(a), float(b)) for key, (a, b) in values.get("intervals", {}).items()},
            images=int(values.get("images", 0)),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise damaged(file.path, f"facts: {error}") from None


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {str(key): float(value) for key, value in values.items()}


def row_named(weights: str | None) -> Weight | None:
    """Return the row of the catalogue of this name, such as a recipe starts from; None: another file, or none."""
    model, tag = catalog.split(weights or "")
    rows = catalog.published(model) if tag is not None else []
    return next((row for row in rows if row.tag == tag), None)


def _data_name(data: str | None) -> str | None:
    """Return the last name in the path of a data set, which is for the public, unlike the path."""
    return data if data is None or data in EMBEDDED else Path(data).name or None
