"""The results of finished runs: metrics, and the predictions for each image."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fourstage.documents import read_json
from fourstage.files import read_bytes
from fourstage.recipe import FREE, Recipe, difference
from fourstage.run.compare.grid import arm_name
from fourstage.run.folder import RunFolder
from fourstage.user_files import files_to_run

RECORD_BYTES = 2**30
NO_SETTING = FREE | {"seed", "weights"}  # keys that make no arm of their own: each seed may begin from a file


@dataclass(frozen=True)
class FinishedRun:
    """A run folder whose training has ended."""

    folder: Path
    recipe: Recipe
    evaluation: Mapping[str, Any]
    environment: Mapping[str, Any]

    @property
    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.evaluation["metrics"].items()}

    @property
    def main_metric(self) -> str:
        return str(self.evaluation["main_metric"])

    @cached_property
    def records(self) -> dict[str, Any]:
        """The prediction and the truth of each validation image, by its id.

        Raises:
            ValueError: the file is damaged.
        """
        lines = read_bytes(self.folder / "records.jsonl", RECORD_BYTES).splitlines()
        try:
            records = [json.loads(line) for line in lines]
            return {record.pop("id"): record for record in records}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise self.damaged_records() from None

    def damaged_records(self) -> ValueError:
        """Return the error on predictions that cannot be read."""
        return ValueError(f"{self.folder}/records.jsonl is damaged; train this run again with --fresh")

    @property
    def seconds(self) -> float | None:
        """The time of the training; None where the log does not say it."""
        timing = (self._logged("train") or {}).get("timing")
        seconds = timing.get("seconds") if isinstance(timing, dict) else None
        return float(seconds) if isinstance(seconds, int | float) else None

    @property
    def evaluations(self) -> int:
        """How many times the training was evaluated: more than once means that the best of them was kept."""
        steps = {str(line.get("step")) for line in self._lines() if line.get("kind") == "evaluation"}
        return len(steps)

    def _logged(self, kind: str) -> dict[str, Any] | None:
        return next((line for line in reversed(list(self._lines())) if line.get("kind") == kind), None)

    def _lines(self) -> Iterator[dict[str, Any]]:
        log = self.folder / "log.jsonl"
        if not log.is_file():
            return
        for line in read_bytes(log, RECORD_BYTES).splitlines():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                yield content


def is_finished(folder: Path) -> bool:
    """Return whether a run folder holds a training that has ended; its report is written last."""
    return all((folder / name).is_file() for name in ("recipe.yaml", "evaluation.json", "records.jsonl", "report.html"))


def read_finished(folder: Path) -> FinishedRun:
    """Read a run folder. The files that its recipe imports are not run; those of their names that have run are taken.

    Raises:
        ValueError, OSError: it is no run folder, its training has not ended, a file is damaged, or a file that the
            recipe imports has not run in this process.
    """
    recipe = RunFolder(folder).recipe()
    recipe = recipe.model_copy(update={"imports": tuple(files_to_run(recipe.imports, (), str(folder)))})
    if not is_finished(folder):
        raise ValueError(f"{folder} has not ended its training; continue it with `fourstage train`, or leave it out")
    evaluation = read_json(folder / "evaluation.json")
    environment = read_json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    metrics = evaluation.get("metrics") if isinstance(evaluation, dict) else None
    fits = isinstance(metrics, dict) and all(type(value) in (int, float) for value in metrics.values())
    if not fits or not isinstance(environment, dict) or not isinstance(evaluation.get("main_metric"), str):
        raise ValueError(f"{folder}/evaluation.json is damaged; train this run again with --fresh")
    return FinishedRun(folder, recipe, evaluation, environment)


Table = dict[str, dict[int, FinishedRun]]  # arm -> seed -> run


def grouped(folders: Sequence[str | Path]) -> Table:
    """Return finished runs as arms and seeds: runs of one arm have the same recipe but for its seed.

    An arm is named by what differs between the arms.

    Raises:
        ValueError: a folder is no finished run, two runs are of the same arm and seed, or all are of one arm.
    """
    groups: list[list[FinishedRun]] = []
    for folder in folders:
        run = read_finished(Path(folder))
        same = (group for group in groups if not setting_difference(group[0].recipe, run.recipe))
        group = next(same, None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    table: Table = {}
    for name, group in zip(_names([group[0].recipe for group in groups]), groups, strict=True):
        table[name] = {}
        for run in group:
            if (other := table[name].get(run.recipe.seed)) is not None:
                raise ValueError(
                    f"{other.folder} and {run.folder} have the same recipe and the same seed, {run.recipe.seed}; name "
                    f"one of them, or train one with another seed"
                )
            table[name][run.recipe.seed] = run
    if len(table) < 2:
        raise ValueError(
            "all these runs have the same recipe but for the seed, and a comparison needs two arms; name the runs of "
            "another recipe too"
        )
    return table


def _names(recipes: Sequence[Recipe]) -> list[str]:
    """Return a name for each recipe: its own where all differ, else the values by which it differs from the first."""
    if len({recipe.name for recipe in recipes}) == len(recipes):
        return [recipe.name for recipe in recipes]
    keys = list(dict.fromkeys(key for one in recipes[1:] for key in setting_difference(recipes[0], one)))
    if len(keys) > 1 and "imports" in keys:  # the files of networks that other keys name
        keys.remove("imports")
    names = []
    for recipe in recipes:
        values = recipe.model_dump(mode="json")
        values["imports"] = " ".join(Path(file).name for file in recipe.imports) or "none"
        names.append(arm_name([(key, _value(values, key)) for key in keys[:3]]))
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names, 1)]


def setting_difference(a: Recipe, b: Recipe) -> dict[str, tuple[Any, Any]]:
    """Return the keys that make two recipes two arms. Files of imports are known by their names, as in a checkpoint."""
    found = difference(a, b, ignore=NO_SETTING)
    if [Path(file).name for file in a.imports] == [Path(file).name for file in b.imports]:
        found.pop("imports", None)
    return found


def _value(values: Mapping[str, Any], key: str) -> Any:
    inner: Any = values
    for word in key.split("."):
        inner = inner.get(word) if isinstance(inner, Mapping) else None
    return inner


def common_seeds(table: Table) -> tuple[int, ...]:
    """Return the seeds that every arm has. Raises ValueError where there is none."""
    seeds = sorted(set.intersection(*(set(runs) for runs in table.values())))
    if not seeds:
        known = "; ".join(f"{name}: {', '.join(map(str, sorted(runs)))}" for name, runs in table.items())
        raise ValueError(f"no seed is in every arm ({known}), and runs are compared seed by seed; train the same seeds")
    return tuple(seeds)
