"""The published protocol of a checkpoint on the user's data, and the published number beside what comes out."""

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from fourstage.plurals import plural
from fourstage.recipe import list_recipes, resolve
from fourstage.run.described import stored_values
from fourstage.run.evaluate import Evaluated, evaluate
from fourstage.run.pretrained.facts import Facts
from fourstage.run.published import needed_arguments
from fourstage.weights.catalog import Weight

if TYPE_CHECKING:
    from fourstage.run.verify.identify import Identified

TOLERANCE = 0.1  # per cent points that two measurements of one file may differ, such as by the decoder of JPEG
IMAGES = {"in1k": 50_000, "in22k_in1k": 50_000, "coco": 5_000, "ade20k": 2_000}  # of the published validation split


@dataclass(frozen=True)
class Measured:
    """A metric on the user's data beside the published one.

    Attributes:
        interval: of 95 %; None: this metric has none.
        published: None: no number is published, or it is of other data.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    published: float | None

    @property
    def verdict(self) -> Literal["agrees", "disagrees", "not known"]:
        """Whether the published number is within the interval, or close by."""
        if self.published is None:
            return "not known"
        low, high = self.interval or (self.value, self.value)
        near = abs(self.value - self.published) <= TOLERANCE + 1e-9
        return "agrees" if near or low <= self.published <= high else "disagrees"


def measure(
    found: "Identified", known: Facts, data: str | Path, changes: Iterable[str], *, show: bool
) -> tuple[tuple[Measured, ...], tuple[str, ...]]:
    """Evaluate a checkpoint by the recipe that belongs to it.

    Raises:
        ValueError: no recipe belongs to it, or the data does not suit.
    """
    published = dict(known.expected if found.weight is not None else known.measured)
    with tempfile.TemporaryDirectory() as folder:
        recipe, needed = _recipe(found, Path(folder))
        evaluated = evaluate(recipe, weights=found.file.path, data=data, changes=[*needed, *changes], show=show)
    notes = _notes(found.weight, evaluated, known)
    if found.weight is not None and not evaluated.expect and resolve(recipe).recipe.expect:
        published = {}  # the data is another test set, as the evaluation's own notes say
    rows = [
        Measured(name, value, evaluated.intervals.of.get(name), published.get(name))
        for name, value in evaluated.metrics.items()
        if name in published or name in evaluated.intervals.of
    ]
    return tuple(rows), notes


def _recipe(found: "Identified", folder: Path) -> tuple[str | Path, list[str]]:
    """Return the recipe that evaluates a checkpoint, and changes of it that its weights need."""
    weight = found.weight
    if weight is not None:
        name = _name_of_recipe(weight)
        needed = needed_arguments(resolve(name).recipe, weight)
        return name, [f"{key}={value}" for key, value in needed.items()]
    stored = stored_values(found.file, found.described)
    path = folder / "recipe.yaml"  # without files to import: the recipe may come from anyone
    path.write_text(yaml.safe_dump({**stored, "imports": [], "expect": {}}))
    return path, []


def _name_of_recipe(weight: Weight) -> str:
    """Return the recipe by which the source has measured a published file."""
    names = [str(weight.recipe)] if weight.method else list_recipes("*_in1k")
    for name in names:
        if name not in list_recipes():
            continue
        recipe: Any = resolve(name).recipe
        fits = weight.method or (recipe.model == weight.model and recipe.image_size == weight.img_size)
        if fits and all(recipe.expect.get(key) == value for key, value in weight.metrics.items()):
            return name
    for name in names:
        recipe = resolve(name).recipe if name in list_recipes() else None
        if recipe is not None and (weight.method or recipe.network_name == weight.model):
            return name
    raise ValueError(f"no recipe says how {weight.name} was measured; leave --data out")


def _notes(weight: Weight | None, evaluated: Evaluated, known: Facts) -> tuple[str, ...]:
    images = known.images if weight is None else IMAGES.get(weight.data, 0)
    if not images or images == evaluated.images:
        return evaluated.notes
    of = f"the published numbers are of {images:,}"
    return (
        f"{plural(evaluated.images, 'image')} were evaluated, and {of}: the interval is for images like yours",
        *evaluated.notes,
    )
