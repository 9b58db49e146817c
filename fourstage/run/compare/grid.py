"""The plan of a comparison: arms that differ in values of a recipe, and seeds. Checked before anything is trained."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from fourstage.files import real_path
from fourstage.plurals import plural
from fourstage.recipe import Classification, Recipe, data_path, resolve
from fourstage.recipe.other_network import ARGUMENTS
from fourstage.recipe.resolve import Resolved
from fourstage.run_folders import COMPARISON
from fourstage.user_files import as_files

PICO = "unified_pico"  # the network of mixers where a recipe's own network has none
WITH_MIXERS = ("unified_", "official_")  # names of networks that take `mixer=`
MOST_CELLS = 10_000
NAMED_BY_VALUE = ("mixer", "model", "backbone", "method")  # keys whose values name an arm by themselves


@dataclass(frozen=True)
class Arm:
    """One of the settings that are compared.

    Attributes:
        name: in tables, such as "swin" or "lr=0.001".
        folder: name of its folder, which holds one run folder for each seed.
        source: the recipe by name or file.
        changes: KEY=VALUE, all but the seed.
        recipe: the resolved recipe, with the seed of the source.
        given: dotted keys that the user set.
    """

    name: str
    folder: str
    source: str
    changes: tuple[str, ...]
    recipe: Recipe
    given: frozenset[str]


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    arm: Arm
    seed: int
    folder: Path


@dataclass(frozen=True)
class Grid:
    """All trainings of a comparison, in the order in which they run: all arms of a seed before the next seed."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    out: Path
    imports: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        return [Cell(arm, seed, self.out / arm.folder / f"seed-{seed}") for seed in self.seeds for arm in self.arms]


def plan(
    sources: Sequence[str],
    vary: Sequence[str],
    seeds: int,
    out: str | Path,
    *,
    changes: Sequence[str] = (),
    data: str | Path | None = None,
    imports: Iterable[str | Path] = (),
) -> Grid:
    """Return the grid of a comparison. Nothing is read but recipes.

    Args:
        sources: recipes by name or file.
        vary: KEY=VALUE,VALUE,... each; several give all combinations. `mixer` is a key of its own; see `_mixer`.
        seeds: their number; they count from 0.
        changes: KEY=VALUE for all arms.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    axes = [_axis(text) for text in vary]
    _check(sources, axes, seeds, changes)
    _check_out(Path(out))
    files = tuple(str(real_path(file)) for file in as_files(imports))
    values = {} if data is None else {"data": data_path(data)}
    arms, notes = list[Arm](), dict[str, None]()
    for source in sources:
        for choice in product(*([(key, value) for value in chosen] for key, chosen in axes)):
            own = list[str]()
            others = [f"{key}={value}" for key, value in choice if key != "mixer"]
            for key, value in choice:
                more, note = _mixer(source, value, [*changes, *others]) if key == "mixer" else ([f"{key}={value}"], "")
                own += more
                notes |= {note: None} if note else {}
            fixed = [] if _sets("evaluate_every", [*changes, *own]) else ["evaluate_every=null"]
            resolved = resolve(source, [*fixed, *changes, *own], values, files)
            recipe = resolved.recipe
            own_name = [recipe.name] if len(sources) > 1 or not choice else []
            name = ", ".join([*own_name, *([arm_name(choice)] if choice else [])])
            words = (*fixed, *changes, *own, *_data(values))
            notes |= dict.fromkeys(_without(name, resolved))
            arms.append(Arm(name, folder_name(name), source, words, recipe, resolved.given))
    _check_arms(arms)
    return Grid(tuple(arms), tuple(range(seeds)), real_path(out), files, tuple(notes))


def _without(arm: str, resolved: Resolved) -> list[str]:
    """Return a sentence on arguments of the recipe's own network that the arm's network does not take."""
    own = tuple(f"{key}." for key in resolved.given)  # such as `method_args.`: the user replaced the section
    gone = [
        key.split(".")
        for key, (_, value) in resolved.changes.items()
        if value is None and not f"{key}.".startswith(own)
    ]
    lacking = dict.fromkeys(f"{words[0]}.{words[1]}" for words in gone if words[0] in ARGUMENTS.values())
    return [f"{arm} trains without {', '.join(lacking)}: its network has no such arguments"] if lacking else []


def _axis(text: str) -> tuple[str, list[str]]:
    """Return the key and the values of `KEY=VALUE,VALUE`; commas inside brackets and quotes separate nothing."""
    key, equals, rest = text.partition("=")
    values = _separated(rest)
    is_list = bool(rest) and not rest.startswith(",") and not rest.endswith(",") and ",," not in rest
    if not equals or not re.fullmatch(r"[\w.]+", key) or not is_list:
        raise ValueError(
            f"--vary is KEY=VALUE,VALUE, such as mixer=swin,pvt or optimisation.lr=1e-3,2e-3; got {text!r}"
        )
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise ValueError(f"--vary {key} has the value {twice} twice; leave one out")
    return key, values


def _separated(text: str) -> list[str]:
    """Return what commas separate that are in no bracket and no quotes."""
    out, depth = [""], 0
    for part in re.findall(r"\"[^\"]*\"|'[^']*'|.", text, re.DOTALL):
        depth = max(0, depth + (part in "[{") - (part in "]}"))
        if part == "," and not depth:
            out.append("")
        else:
            out[-1] += part
    return out


def _same_key(a: str, b: str) -> bool:
    """Return whether two dotted keys can be of one value: a recipe also takes the last words of a key."""
    return f".{a}".endswith(f".{b}") or f".{b}".endswith(f".{a}")


def _sets(key: str, changes: Sequence[str]) -> bool:
    return any(change.partition("=")[0].rpartition(".")[2] == key for change in changes)


def _check(
    sources: Sequence[str], axes: Sequence[tuple[str, Sequence[str]]], seeds: int, changes: Sequence[str]
) -> None:
    if not 1 <= seeds <= 1000:
        raise ValueError(f"--seeds is a number of trainings for each arm, from 1 to 1000; got {seeds}")
    keys = [key for key, _ in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ValueError(f"--vary {twice} was given twice; give all its values at once: --vary {twice}=A,B,C")
    if _sets("seed", [*changes, *(f"{key}=" for key in keys)]):
        raise ValueError("every arm is trained with the same seeds, 0, 1, 2 ...; leave seed out and set --seeds")
    changed = [change.partition("=")[0] for change in changes]
    if both := next((key for key in keys if any(_same_key(key, other) for other in changed)), None):
        raise ValueError(f"{both} has values in --vary and one for all arms; leave one of the two out")
    if len(set(sources)) < len(sources):
        raise ValueError("a recipe is named twice; name each once")
    arms = len(sources)
    for _, chosen in axes:
        arms *= len(chosen)
    if arms < 2:
        raise ValueError(
            f"a comparison needs two arms, and {' '.join(sources)} is one; add --vary KEY=VALUE,VALUE, such as "
            f"--vary mixer=swin,pvt, or name a second recipe"
        )
    if arms * seeds > MOST_CELLS:
        raise ValueError(
            f"{plural(arms, 'arm')} with {plural(seeds, 'seed')} are {arms * seeds:,} trainings; at most "
            f"{MOST_CELLS:,} can be"
        )


def _check_out(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / COMPARISON).is_file():
        raise ValueError(f"{out} holds files that do not belong to a comparison; choose another --out")


def _mixer(source: str, value: str, changes: Sequence[str]) -> tuple[list[str], str]:
    """Return the changes that put a mixer in, and a note where another network than the recipe's has to take it.

    Args:
        changes: KEY=VALUE that the user gives beside it; the network that they name stays.
    """
    recipe = resolve(source).recipe
    key = "model" if isinstance(recipe, Classification) else "backbone"
    typed = [change.partition("=")[2] for change in changes if change.startswith(f"{key}=")]
    network = typed[-1] if typed else str(getattr(recipe, key))
    change = f"{key}_args.mixer={value}"
    if typed or network.startswith(WITH_MIXERS):
        return [change], ""
    note = f"{network} has no token mixer to replace, so every arm trains {PICO} with its own; {key}= names another"
    return [f"{key}={PICO}", change], note


def _data(values: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def arm_name(choice: Sequence[tuple[str, object]]) -> str:
    """Return the name of an arm from its keys and values."""
    words = []
    for key, value in choice:
        last = key.rpartition(".")[2]
        words.append(str(value) if last in NAMED_BY_VALUE else f"{last}={value}")
    return ", ".join(words)


def folder_name(name: str) -> str:
    """Return the name of an arm's folder."""
    return re.sub(r"[^\w.+=-]+", "_", name).strip("._")[:80] or "arm"


def _check_arms(arms: Sequence[Arm]) -> None:
    tasks = sorted({arm.recipe.task for arm in arms})
    if len(tasks) > 1:
        raise ValueError(f"the arms are of the tasks {' and '.join(tasks)}, which share no metric; compare one task")
    for field in (lambda arm: arm.name, lambda arm: arm.folder):
        known = [field(arm) for arm in arms]
        if twice := next((one for one in known if known.count(one) > 1), None):
            raise ValueError(f"two arms are called {twice!r}; give recipes of different names, or other values")
    by_recipe = dict[str, Arm]()  # a grid may have thousands of arms, too many to compare them in pairs
    for arm in arms:
        first = by_recipe.setdefault(arm.recipe.model_dump_json(exclude={"name"}), arm)
        if first is not arm:
            raise ValueError(f"the arms {first.name} and {arm.name} are the same recipe; leave one of them out")
