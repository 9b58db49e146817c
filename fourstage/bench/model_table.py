"""The table of `fourstage models`. The costs of the package's networks are kept in a file, so that torch is not needed.

After a change of a family, write the file again:

    python -m fourstage.bench.model_table
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path

from fourstage import registry
from fourstage.user_files import import_files
from fourstage.weights.catalog import published

FILE = "model_counts.json"
COMMAND = "python -m fourstage.bench.model_table"
HEAD = ("model", "M params", "G MACs", "G layers", "px", "top-1 %")


@dataclass(frozen=True)
class Cost:
    """What a network costs for one image; see `count.Count`."""

    aliases: tuple[str, ...]
    parameters: int
    macs: int
    layer_macs: int
    size: tuple[int, int]  # H and W of the image, in pixels


@cache
def kept_costs() -> dict[str, Cost]:
    """Return the costs of the package's networks by name, from the file."""
    content = json.loads(files("fourstage.bench").joinpath(FILE).read_text(encoding="utf-8"))
    return {name: Cost(tuple(row.pop("aliases")), size=tuple(row.pop("size")), **row) for name, row in content.items()}


def counted(name: str) -> Cost:
    """Return the cost of one network, counted now."""
    from fourstage.bench.count import count

    entry, cost = registry.find(name), count(name)
    aliases = sorted(one for one in registry.list_models() if one != entry.name and registry.find(one) is entry)
    return Cost(tuple(aliases), cost.parameters, cost.macs, cost.layer_macs, cost.size)


def own_networks() -> list[str]:
    """Return the names of the networks that are registered in this process and are none of the package's."""
    known = {one for name, cost in kept_costs().items() for one in (name, *cost.aliases)}
    return [name for name in registry.registered_names() if name not in known]


def model_rows(
    pattern: str, imports: Iterable[str | Path] = (), progress: Callable[[int, int], None] | None = None
) -> list[list[str]]:
    """Return one row per network: its name with its aliases below, then the columns of `HEAD`.

    Args:
        pattern: wildcard on names and aliases.
        imports: Python files of the user that register networks, which are counted now.
        progress: is called with the number of networks that are counted and the number of all that must be.
    """
    import_files(imports)
    costs = {name: cost for name, cost in kept_costs().items() if _matches((name, *cost.aliases), pattern)}
    own = [name for name in own_networks() if _matches([name], pattern)]
    for done, name in enumerate(own, start=1):
        costs[name] = counted(name)
        if progress is not None:
            progress(done, len(own))
    return [_row(name, costs[name]) for name in sorted(costs)]


def _matches(names: Sequence[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _row(name: str, cost: Cost) -> list[str]:
    shown = next((f"{weight.top1:.1f}" for weight in published(name) if weight.top1 is not None), "-")
    numbers = (f"{number:.2f}" for number in (cost.parameters / 1e6, cost.macs / 1e9, cost.layer_macs / 1e9))
    return ["\n  = ".join((name, *cost.aliases)), *numbers, side(cost.size), shown]


def side(size: tuple[int, int]) -> str:
    """Return `224`, or `800x1280` (height, then width)."""
    height, width = size
    return str(height) if height == width else f"{height}x{width}"


def written(costs: dict[str, Cost]) -> str:
    """Return the content of the file, one line per network."""
    lines = [f"  {json.dumps(name)}: {json.dumps(vars(cost))}" for name, cost in sorted(costs.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def count_all() -> dict[str, Cost]:
    """Return the costs of all networks of the package, counted now."""
    return {name: counted(name) for name in sorted({registry.find(one).name for one in registry.list_models()})}


if __name__ == "__main__":
    Path(__file__).with_name(FILE).write_text(written(count_all()), encoding="utf-8")
