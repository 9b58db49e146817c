"""Fit the values of a recipe that depend on the amount of data, once, when a run begins.

A value that the user set stays as it is. Every other value here is fitted where the data is too small for it, or, with
`sizing: fine_tuning`, always; the caller prints a line for each.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm, sqrt
from typing import Any

from fourstage.plurals import plural
from fourstage.recipe.common import steps
from fourstage.recipe.resolve import Resolved, scaled_rates
from fourstage.recipe.schema import Recipe

FEWEST_UPDATES = 4  # per epoch, of a batch size that is fitted to small data
ROUND = 8  # images: larger batch sizes are multiples, so that they split over devices
WARMUP_SHARE = 10  # a fitted warm-up is a tenth of the training
LONGEST_WARMUP = 500  # steps, of fine-tuning
MANY_EPOCHS = 1000


@dataclass(frozen=True)
class FineTuning:
    """How long a task is fine-tuned: epochs within limits, so that the network sees about `images` images in all."""

    images: int
    epochs: tuple[int, int]
    updates: int  # per epoch, if the recipe's batch size leaves fewer


FINE_TUNING = {  # ours; no paper stands behind them
    "classification": FineTuning(images=20_000, epochs=(10, 50), updates=6),
    "detection": FineTuning(images=3_000, epochs=(12, 60), updates=16),
    "segmentation": FineTuning(images=8_000, epochs=(20, 60), updates=16),
}


@dataclass(frozen=True)
class Sizing:
    """Fitted values by dotted key, and a line for each of them."""

    values: dict[str, Any]
    lines: tuple[str, ...]


def sized(resolved: Resolved, images: int, unit: int) -> tuple[Resolved, tuple[str, ...]]:
    """Return a recipe whose values fit the data, and a line for each value that was fitted.

    Args:
        images: that the run trains on.
        unit: images that a batch size must be a multiple of.
    """
    lines: list[str] = []
    rules = {
        "none": (),
        "small_data": (_batch, _warmup, _many_epochs),
        "fine_tuning": (_batch, _rate, _length, _warmup),
    }
    for rule in rules[resolved.recipe.sizing]:  # each sees the values of those before
        sizing = rule(resolved, images, unit)
        resolved = resolved.fit(sizing.values)
        lines += sizing.lines
    return resolved, tuple(lines)


def _batch(resolved: Resolved, images: int, unit: int) -> Sizing:
    recipe, key = resolved.recipe, "optimisation.batch_size"
    plain = recipe.optimisation.batch_size
    fine_tuning = recipe.sizing == "fine_tuning"
    updates = FINE_TUNING[recipe.task].updates if fine_tuning else FEWEST_UPDATES
    if key in resolved.given or plain * updates <= images or images < unit:
        return Sizing({}, ())
    wanted = max(images // updates, min(ROUND, images // FEWEST_UPDATES))
    batch_size = min(plain, smaller_batch(wanted, unit))
    if batch_size == plain:
        return Sizing({}, ())
    rates = {} if fine_tuning else _scaled_rates(resolved, batch_size / plain)
    count = f"{images} training image{'s' * (images != 1)}"
    line = f"batch size {batch_size}: {count}, {plural(images // batch_size, 'update')} an epoch (recipe: {plain})"
    rate = rates.get("optimisation.lr")
    scaled = () if rate is None else (f"learning rate {rate:.3g}: it follows the batch size, as the recipe says",)
    return Sizing({key: batch_size, **rates}, (line, *scaled))


def _scaled_rates(resolved: Resolved, factor: float) -> dict[str, float]:
    """Return the rates that the recipe scales with the batch size; no other rate of the recipe is above the peak."""
    o = resolved.recipe.optimisation
    rates = {key: rate for key, rate in scaled_rates(resolved.recipe, factor).items() if key not in resolved.given}
    peak = rates.get("optimisation.lr", o.lr)
    for key, rate in {"optimisation.warmup_lr": o.warmup_lr, "optimisation.min_lr": o.min_lr}.items():
        if rates.get(key, rate) > peak and key not in resolved.given:
            rates[key] = peak
    return rates


def smaller_batch(images: int, unit: int) -> int:
    """Return the largest convenient batch size of up to `images` images, at least one unit."""
    convenient = lcm(unit, ROUND)
    multiple = convenient if images >= convenient else unit
    return max(unit, images // multiple * multiple)


def _rate(resolved: Resolved, images: int, unit: int) -> Sizing:
    """Return the rate of fine-tuning: that of the recipe at its batch size, and with the square root of another one."""
    if "optimisation.lr" in resolved.given:
        return Sizing({}, ())
    o = resolved.recipe.optimisation
    batch_size, plain = o.batch_size, resolved.changes.get("optimisation.batch_size", (o.batch_size,))[0]
    scale = sqrt(batch_size / plain)
    peak = float(f"{o.lr * scale:.3g}")
    of_recipe = f" (recipe: {o.lr:g} for {plain})" if batch_size != plain else ""
    rates = {f"optimisation.{name}": getattr(o, name) * scale for name in ("warmup_lr", "min_lr")}
    rates = {name: rate for name, rate in rates.items() if name not in resolved.given}
    return Sizing({"optimisation.lr": peak, **rates}, (f"learning rate {peak:g}: batch size {batch_size}{of_recipe}",))


def _length(resolved: Resolved, images: int, unit: int) -> Sizing:
    if "optimisation.length" in resolved.given:
        return Sizing({}, ())
    rule = FINE_TUNING[resolved.recipe.task]
    least, most = rule.epochs
    epochs = min(most, max(least, round(rule.images / max(images, 1))))
    updates = epochs * (images // resolved.recipe.optimisation.batch_size)
    line = f"length {plural(epochs, 'epoch')}: {plural(images, 'image')}, {plural(updates, 'update')}"
    return Sizing({"optimisation.length": f"{epochs}ep"}, (line,))


def _warmup(resolved: Resolved, images: int, unit: int) -> Sizing:
    o = resolved.recipe.optimisation
    per_epoch = images // o.batch_size
    total, warmup = steps(o.length, per_epoch), steps(o.warmup, per_epoch)
    if "optimisation.warmup" in resolved.given or total == 0:
        return Sizing({}, ())
    if resolved.recipe.sizing == "fine_tuning":
        wanted = min(total // WARMUP_SHARE, LONGEST_WARMUP)
        return Sizing({"optimisation.warmup": f"{wanted}it"}, (f"warm-up {wanted} of {total} updates",))
    of_other_data = o.warmup[-2:] == "it" and o.length[-2:] == "ep"  # a number of updates, for an epoch of many
    if warmup < total and not (of_other_data and 2 * warmup > total):
        return Sizing({}, ())
    wanted = total // WARMUP_SHARE
    line = f"warm-up {plural(wanted, 'update')}: the training has {total} (recipe: {o.warmup})"
    return Sizing({"optimisation.warmup": f"{wanted}it"}, (line,))


def _many_epochs(resolved: Resolved, images: int, unit: int) -> Sizing:
    """Fit nothing: a length in updates may be meant, but on small data it is a long training."""
    o = resolved.recipe.optimisation
    epochs = steps(o.length, 1) * o.batch_size // max(1, images)
    if "optimisation.length" in resolved.given or o.length.endswith("ep") or epochs <= MANY_EPOCHS:
        return Sizing({}, ())
    return Sizing({}, (f"length {o.length}: {epochs} epochs of {plural(images, 'image')}; length=100ep is shorter",))


@dataclass(frozen=True)
class Blocker:
    """A value that the user set and the data is too small for."""

    reason: str
    change: str = ""  # key=value that removes it; empty: only other data does


def blockers(recipe: Recipe, images: int, unit: int) -> list[Blocker]:
    """Return all values of a recipe that the data is too small for."""
    o, found = recipe.optimisation, []
    batch_size, per_epoch = o.batch_size, images // o.batch_size
    if per_epoch == 0:
        reason = f"the training data has {_images(images)}, fewer than one batch of {o.batch_size}"
        if images < unit:
            return [Blocker(reason)]
        batch_size = smaller_batch(images // FEWEST_UPDATES, unit)
        found.append(Blocker(reason, f"batch_size={batch_size}"))
        per_epoch = images // batch_size
    total, warmup = steps(o.length, per_epoch), steps(o.warmup, per_epoch)
    if total == 0:
        reason = f"length={o.length} is less than one step: an epoch of this data has {per_epoch}"
        found.append(Blocker(reason, "length=1ep"))
        total = per_epoch
    if warmup >= total:
        reason = f"warmup={o.warmup} is {warmup} step{'s' * (warmup != 1)}, but the training has only {total}"
        found.append(Blocker(reason, f"warmup={total // WARMUP_SHARE}it"))
    milestones = [steps(milestone, per_epoch) for milestone in o.milestones]
    if milestones and milestones == sorted(set(milestones)) and milestones[-1] >= total:
        earlier = sorted({max(1, total * share // 12) for share in (8, 11)})
        reason = f"milestones={','.join(o.milestones)} are not before the end, {total} steps"
        found.append(Blocker(reason, f"milestones=[{','.join(f'{step}it' for step in earlier)}]"))
    return found


def refuse(found: Sequence[Blocker], command: Sequence[str]) -> None:
    """Raise one ValueError for all blockers, with what to type.

    Args:
        command: the words of the command that was typed.
    """
    if not found:
        return
    reasons = ", and ".join(one.reason for one in found)
    changes = [one.change for one in found if one.change]
    if not changes:
        raise ValueError(f"{reasons}; give it more images")
    names = {change.partition("=")[0] for change in changes}
    kept = [word for word in command if word.partition("=")[0].rpartition(".")[2] not in names]
    raise ValueError(f"{reasons}; type: {shlex.join([*kept, *changes])}")


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"
