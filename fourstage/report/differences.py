"""What differs between the recipes of several runs, as rows of a table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fourstage.report.number_format import NOTHING, short_value
from fourstage.report.read import Run

FIRST = ("task", "method", "model", "backbone", "mixer", "data", "weights", "seed")  # rows, in this order
MACHINE = ("fourstage", "torch", "python", "device", "machine", "threads")  # of environment.json
SKIPPED = ("name",)  # it repeats what else differs
MISSING = object()


def differing(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return each key of the recipes that differs, with its value in each run as text.

    A key that a recipe does not have is shown as `NOTHING`. Of runs of several tasks, beside those that name the
    network, only the keys that all of them have are compared; the other ones belong to the task. Versions and machines
    come last.
    """
    values = [_values(run) for run in runs]
    keys = list(dict.fromkeys(key for each in values for key in each))
    if len({run.task for run in runs}) > 1:
        keys = [key for key in keys if key in FIRST or all(key in each for each in values)]
    differ = [key for key in keys if any(each.get(key, MISSING) != values[0].get(key, MISSING) for each in values[1:])]
    order = [*(key for key in FIRST if key in differ), *(key for key in differ if key not in FIRST)]
    rows = [(key, [_text(each.get(key, MISSING)) for each in values]) for key in order]
    return rows + _machines(runs)


def mixer_of(recipe: Mapping[str, Any]) -> str | None:
    """Return the token mixer of a recipe's network: the one that its arguments name, or that its name contains."""
    for network in ("model", "backbone"):
        arguments = recipe.get(f"{network}_args")
        if isinstance(arguments, Mapping) and "mixer" in arguments:
            return str(arguments["mixer"])
        if match := re.match(r"unified_(\w+)_(?:micro|tiny|small|base|large)", str(recipe.get(network))):
            return match[1]
    return None


def _values(run: Run) -> dict[str, Any]:
    """Return the values of a recipe by their dotted keys, with the task and the mixer."""
    flat = {key: value for key, value in flattened(run.recipe) if key not in SKIPPED}
    mixer = mixer_of(run.recipe)
    named = {"model_args.mixer", "backbone_args.mixer"}
    return {
        **{key: value for key, value in flat.items() if key not in named},
        "task": run.task,
        **({"mixer": mixer} if mixer else {}),
    }


def flattened(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the values of nested mappings by their dotted keys."""
    out: list[tuple[str, Any]] = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            out += flattened(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value))
    return out


def _machines(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    rows = [(key, [run.environment.get(key, MISSING) for run in runs]) for key in MACHINE]
    return [(key, [_text(value) for value in values]) for key, values in rows if any(v != values[0] for v in values)]


def _text(value: object) -> str:
    if value is MISSING or value is None:
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(short_value, value)) if isinstance(value, list) else short_value(value)
