"""What the networks of arms cost, and widths with which they cost the same."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import torch
from torch import nn

from fourstage.backbones.unified import DESIGNS
from fourstage.bench.count import count_module
from fourstage.bench.count_tasks import count_network
from fourstage.data.sample import Dataset
from fourstage.recipe import Classification, Detection, Recipe, Segmentation, resolve
from fourstage.run.build import unmatched_names
from fourstage.run.compare.grid import Arm, Grid
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import protocol_of
from fourstage.user_files import import_files

TOLERANCE = 0.05  # relative difference above which arms count as unequal
Quantity = Literal["parameters", "macs"]
SCALES = [2 ** (i / 48) for i in range(-96, 97)]  # of all widths together: from a quarter to four times
UNITS = (32, 16)  # shares of a width that heads may need to divide


@dataclass(frozen=True)
class Cost:
    """The cost of a network for one image."""

    parameters: int
    macs: int
    size: tuple[int, int]  # (H, W) of that image, in pixels
    takes_widths: bool = False  # which `matched` searches


def costs_of(grid: Grid) -> dict[str, Cost]:
    """Return the cost of each arm's network by the arm's name. Builds them on the meta device.

    Raises:
        ValueError: a network cannot be built, or lacks what the user names in it.
    """
    datasets: dict[str | None, Dataset] = {}
    return {arm.name: _cost(arm.recipe, datasets, arm.given) for arm in grid.arms}


def _cost(recipe: Recipe, datasets: dict[str | None, Dataset], given: Collection[str] = ()) -> Cost:
    import_files(recipe.imports)
    protocol = protocol_of(recipe)
    if recipe.data not in datasets:
        datasets[recipe.data] = open_split(protocol, "train", show=True)
    data = datasets[recipe.data]
    with torch.device("meta"):
        task = protocol.build_task(data.classes, protocol.dataset_metadata(data))
    unmatched_names(task, recipe, given)
    return counted(task.network, image_size(recipe))


def image_size(recipe: Recipe) -> tuple[int, int]:
    """Return (H, W) of the images that an arm is counted and timed with: those of its evaluation."""
    if isinstance(recipe, Classification):
        return recipe.image_size, recipe.image_size
    assert isinstance(recipe, Detection | Segmentation)
    sides = recipe.evaluation.scale
    if isinstance(recipe, Segmentation):
        sides = sides or recipe.augmentation.crop
    assert sides is not None, "a detector's images have a size"
    return min(sides), max(sides)


def counted(network: nn.Module, size: tuple[int, int]) -> Cost:
    """Return what a classifier, detector or segmentor costs for one image of (H, W) pixels."""
    is_task = hasattr(network, "backbone")
    count = count_network(network, size) if is_task else count_module(network, (3, *size))
    name = getattr(getattr(network, "backbone", network), "default_cfg", {}).get("architecture")
    return Cost(count.parameters, count.macs, size, takes_widths=name in DESIGNS)


def unequal(costs: Mapping[str, Cost], reference: str) -> list[str]:
    """Return a sentence for each arm whose parameters or MACs differ from the reference's by more than `TOLERANCE`."""
    out, base = list[str](), costs[reference]
    for name, cost in costs.items():
        pairs = (("parameters", cost.parameters, base.parameters), ("MACs", cost.macs, base.macs))
        words = [
            f"{one / other - 1:+.0%} {what}".replace("-", "\u2212").replace("%", " %")
            for what, one, other in pairs
            if abs(one / other - 1) > TOLERANCE
        ]
        if words:
            what = "parameters" if "parameters" in words[0] else "macs"
            advice = f"; train it with --match-cost {what}, which searches widths of equal cost"
            out.append(f"{name} has {' and '.join(words)} against {reference}{advice if cost.takes_widths else ''}")
    return out


def matched(grid: Grid, quantity: Quantity, reference: str) -> Grid:
    """Return the grid with widths by which each arm costs as much as the reference.

    Raises:
        ValueError: a network takes no `widths`, or none of those that were tried comes within `TOLERANCE`.
    """
    datasets: dict[str | None, Dataset] = {}
    base = next(arm for arm in grid.arms if arm.name == reference)
    goal = getattr(_cost(base.recipe, datasets), quantity)
    return replace(grid, arms=tuple(_matched(arm, quantity, goal, datasets) for arm in grid.arms))


def _matched(arm: Arm, quantity: Quantity, goal: int, datasets: dict[str | None, Dataset]) -> Arm:
    def measure(widths: Sequence[int] | None) -> int:
        recipe = arm.recipe if widths is None else _with_widths(arm, widths).recipe
        return getattr(_cost(recipe, datasets), quantity)

    if abs(measure(None) / goal - 1) <= TOLERANCE / 10:
        return arm
    found = _search(_widths(arm.recipe), measure, goal)
    if found is None:
        raise ValueError(
            f"no widths of {arm.name} have the {quantity} of the reference within {TOLERANCE:.0%}; choose another "
            f"--reference, or set them by hand"
        )
    return _with_widths(arm, found)


def _search(base: Sequence[int], measure: Callable[[Sequence[int]], int], goal: int) -> tuple[int, ...] | None:
    """Return the widths, all scaled alike and rounded, that come closest to the goal; None: all are too far from it."""
    best, distance = None, inf
    for unit in UNITS:
        candidates = list(dict.fromkeys(_scaled(base, scale, unit) for scale in SCALES))
        low, high = 0, len(candidates) - 1
        try:
            while low <= high:  # the cost rises with the widths
                middle = (low + high) // 2
                cost = measure(candidates[middle])
                if abs(cost / goal - 1) < distance:
                    best, distance = candidates[middle], abs(cost / goal - 1)
                low, high = (middle + 1, high) if cost < goal else (low, middle - 1)
        except ValueError as error:
            if "multiples of the heads" not in str(error):
                raise
        if distance <= TOLERANCE:
            return best
    return None


def _scaled(base: Sequence[int], scale: float, unit: int) -> tuple[int, ...]:
    steps = [max(1, width // unit) for width in base]
    return tuple(step * max(1, round(width * scale / step)) for width, step in zip(base, steps, strict=True))


def _section(recipe: Recipe) -> str:
    return "model_args" if isinstance(recipe, Classification) else "backbone_args"


def _widths(recipe: Recipe) -> Sequence[int]:
    """Return the widths of a network that takes others. Raises ValueError for one that does not."""
    name = str(getattr(recipe, "model", None) or getattr(recipe, "backbone", ""))
    if name not in DESIGNS:
        raise ValueError(
            f"{name} takes no widths, which --match-cost searches; leave it out, or compare unified networks, such as "
            f"model=unified_pico"
        )
    own = getattr(recipe, _section(recipe)).get("widths")
    return own or DESIGNS[name].widths


def _with_widths(arm: Arm, widths: Sequence[int]) -> Arm:
    change = f"{_section(arm.recipe)}.widths=[{','.join(map(str, widths))}]"
    changes = (*(one for one in arm.changes if not one.startswith(change.partition("=")[0])), change)
    recipe = resolve(arm.source, changes, {}, arm.recipe.imports).recipe
    return replace(arm, changes=changes, recipe=recipe)
