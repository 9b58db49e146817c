"""`fourstage compare`: train what is missing of a grid, and write the table and the page."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fourstage.analysis.comparison import Comparison
from fourstage.documents import read_json
from fourstage.engine.devices import is_first_process
from fourstage.files import is_address, write_text
from fourstage.recipe import EMBEDDED, FREE, as_begun, difference, resolve
from fourstage.recipe.resolve import RUN_RECIPE, list_recipes
from fourstage.run.compare.assemble import Wishes, assemble, check_tuning, too_few_seeds
from fourstage.run.compare.columns import Images, analyse, place_of
from fourstage.run.compare.costs import Quantity, costs_of, matched, unequal
from fourstage.run.compare.grid import Arm, Cell, Grid, plan
from fourstage.run.compare.initial import follow_move, initial_weights, remove_initial
from fourstage.run.compare.metrics import check_metric
from fourstage.run.compare.runs import Table, common_seeds, grouped, is_finished, read_finished
from fourstage.run.folder import RunFolder
from fourstage.run.train import train
from fourstage.run_folders import COMPARISON
from fourstage.streams import print_lines
from fourstage.user_files import import_files


@dataclass(frozen=True)
class Compared:
    """The end of a comparison.

    Attributes:
        comparison: None where a training was stopped, or only planned.
        files: that were written.
        stopped_by: "Ctrl-C", "SIGTERM" or "another process"; None: nothing stopped it.
    """

    folder: Path
    comparison: Comparison | None = None
    files: tuple[Path, ...] = ()
    stopped_by: str | None = None


@dataclass(frozen=True)
class Planned:
    """A grid that is ready to be trained, with sentences on what to know before."""

    grid: Grid
    reference: Arm
    warnings: tuple[str, ...]


def plan_comparison(
    sources: Sequence[str],
    vary: Sequence[str],
    seeds: int,
    out: str | Path,
    *,
    reference: str | None = None,
    match: Quantity | None = None,
    changes: Sequence[str] = (),
    data: str | Path | None = None,
    imports: Iterable[str | Path] = (),
) -> Planned:
    """Return the grid of a comparison after all checks that need no training.

    Args:
        sources, vary, changes: texts; one may be given alone.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    sources, vary, changes = ((one,) if isinstance(one, str) else tuple(one) for one in (sources, vary, changes))
    grid = plan(sources, vary, seeds, out, changes=changes, data=data, imports=imports)
    for arm in grid.arms:
        _check_data(arm.recipe.data)  # before recipes of earlier runs are compared, and networks are built
    base = named(reference, [arm.name for arm in grid.arms])
    if match is not None:
        grid = matched(grid, match, base)
    costs = costs_of(grid)
    for cell in grid.cells:
        _check_same(cell)
    arm = next(arm for arm in grid.arms if arm.name == base)
    few = too_few_seeds(len(grid.arms) - 1, len(grid.seeds))
    return Planned(grid, arm, (*grid.notes, *few, *unequal(costs, base)))


def named(reference: str | None, arms: Sequence[str]) -> str:
    """Return the reference among the arms: the first one unless it is named.

    Raises:
        ValueError: it is no arm.
    """
    if reference is None:
        return arms[0]
    if reference not in arms:
        raise ValueError(f"--reference {reference} is not an arm of this comparison; its arms are {', '.join(arms)}")
    return reference


def check_wishes(planned: Planned, wishes: Wishes, only: int | None = None) -> None:
    """Raise ValueError where a wish names an arm, a metric or a cell that the grid cannot have."""
    grid = planned.grid
    if only is not None and not 0 <= only < len(grid.cells):
        raise ValueError(f"--cell {only} is outside of this grid; its cells are 0 to {len(grid.cells) - 1}")
    check_tuning(wishes.tuning, [arm.name for arm in grid.arms])
    for arm in grid.arms:
        check_metric(wishes.metric, arm.recipe, arm.name)


def train_cell(planned: Planned, cell: Cell, *, show: bool) -> str | None:
    """Train one cell, or continue it; return what stopped it. A cell that has ended is left as it is.

    Raises:
        ValueError: as `train`, with the arm and the seed in front.
    """
    if is_finished(cell.folder):
        return None
    follow_move(cell)
    changes = [*cell.arm.changes, f"seed={cell.seed}", *initial_weights(cell, planned.reference)]
    try:
        done = train(cell.arm.source, out=cell.folder, changes=changes, imports=planned.grid.imports, show=show)
    except ValueError as error:
        raise ValueError(f"{cell.arm.name}, seed {cell.seed}: {error}") from error
    if done.stopped_by is None:
        remove_initial(cell.folder)
    return done.stopped_by


def compare_grid(planned: Planned, wishes: Wishes, *, only: int | None = None, show: bool = True) -> Compared:
    """Train all cells of a grid that have not ended, then write the table and the page.

    Args:
        only: train this cell alone, counted from 0, and write no table: a task of a Slurm array.
    """
    grid = planned.grid
    check_wishes(planned, wishes, only)
    if only is None or not (grid.out / COMPARISON).is_file():
        write_plan(planned, wishes)
    chosen = grid.cells if only is None else [grid.cells[only]]
    for number, cell in enumerate(chosen, 1):
        if show and not is_finished(cell.folder):
            print_lines(f"\n{number} of {len(chosen)}: {cell.arm.name}, seed {cell.seed}")
        stopped_by = train_cell(planned, cell, show=show)
        if stopped_by is not None:
            return Compared(grid.out, stopped_by=stopped_by)
    if only is not None:
        if is_first_process():  # of a cell that several processes have trained together
            _analyse_cell(chosen[0], grid.out, wishes)
        return Compared(grid.out)
    return _written(_table(planned), grid.out, replace(wishes, reference=planned.reference.name), show=show)


def _analyse_cell(cell: Cell, out: Path, wishes: Wishes) -> None:
    """Measure a cell where it was trained, so that the table need not: it may be written on a machine without a GPU."""
    analyse(read_finished(cell.folder), place_of(out, cell.arm.name, cell.seed), wishes.analyses, Images())


def compare_runs(
    sources: Sequence[str], out: Path, wishes: Wishes, *, imports: Iterable[str | Path] = (), show: bool = True
) -> Compared:
    """Compare finished runs, or those of a comparison that have ended, and write the table and the page.

    Args:
        imports: Python files that the networks of the runs are built from; those in their recipes are not run.

    Raises:
        ValueError: a comparison among several sources, or runs that cannot be compared.
    """
    import_files(imports)
    if len(sources) == 1 and (Path(sources[0]) / COMPARISON).is_file():
        table, missing, wishes = _of_comparison(Path(sources[0]), wishes)
        return _written(table, out, wishes, missing=missing, show=show)
    if several := next((source for source in sources if (Path(source) / COMPARISON).is_file()), None):
        raise ValueError(f"{several} is a comparison; name it alone, or the run folders in it, such as ARM/seed-0")
    return _written(grouped(sources), out, wishes, show=show)


def are_runs(sources: Sequence[str]) -> bool:
    """Return whether the sources are folders. Raises ValueError where only some are, or one is neither."""
    folders = [source for source in sources if Path(source).is_dir()]
    if not folders:
        return False
    if recipes := [source for source in sources if source not in folders]:
        if recipes[0] not in list_recipes() and not Path(recipes[0]).is_file():
            raise ValueError(f"there is no folder {recipes[0]}; name those of finished runs, as {folders[0]} is one")
        raise ValueError(f"{folders[0]} is a folder and {recipes[0]} a recipe; name either recipes or finished runs")
    if other := next(
        (one for one in folders if not any((Path(one) / name).is_file() for name in (COMPARISON, RUN_RECIPE))), None
    ):
        raise ValueError(f"{other} is neither a run folder nor one of `fourstage compare`; name those of finished runs")
    return True


def _check_data(data: str | None) -> None:
    """Raise ValueError where the data of a recipe is a path that does not exist, and no pattern of shards."""
    if data is None or data in EMBEDDED or is_address(data) or set(data) & set("*?[{"):
        return
    if not Path(data).exists():
        raise ValueError(f"{data} does not exist: give the data set with --data PATH")


def _check_same(cell: Cell) -> None:
    """Raise ValueError where the folder of a cell holds a run of another recipe."""
    if not (cell.folder / RUN_RECIPE).is_file():
        return
    resolved = resolve(cell.arm.source, [*cell.arm.changes, f"seed={cell.seed}"], {}, cell.arm.recipe.imports)
    wanted = as_begun(resolved, cell.folder).recipe
    differs = difference(RunFolder(cell.folder).recipe(), wanted, ignore=FREE | {"weights"})
    if differs:
        key, (there, here) = next(iter(differs.items()))
        raise ValueError(
            f"{cell.folder} holds a run of another recipe ({key} {there} there and {here} here); choose another --out"
        )


def write_plan(planned: Planned, wishes: Wishes) -> None:
    """Write the arms and seeds into the folder, by which it is known as a comparison."""
    grid = planned.grid
    grid.out.mkdir(parents=True, exist_ok=True)
    arms = [
        {"name": arm.name, "folder": arm.folder, "source": arm.source, "changes": list(arm.changes)}
        for arm in grid.arms
    ]
    content = {
        "fourstage": 1,
        "arms": arms,
        "seeds": list(grid.seeds),
        "reference": planned.reference.name,
        "tuning": dict(wishes.tuning),
    }
    write_text(grid.out / COMPARISON, json.dumps(content, indent=2))


def _table(planned: Planned) -> Table:
    table: Table = {arm.name: {} for arm in planned.grid.arms}
    for cell in planned.grid.cells:
        table[cell.arm.name][cell.seed] = read_finished(cell.folder)
    return table


def _of_comparison(folder: Path, wishes: Wishes) -> tuple[Table, list[str], Wishes]:
    """Return the runs of a comparison that have ended, the cells that have not, and the wishes with its reference."""
    content: Any = read_json(folder / COMPARISON)
    try:
        places = {
            str(arm["name"]): {
                int(seed): folder / Path(arm["folder"]).name / f"seed-{int(seed)}" for seed in content["seeds"]
            }
            for arm in content["arms"]
        }
        reference, tuning = str(content["reference"]), {str(k): str(v) for k, v in content["tuning"].items()}
        if not places:
            raise LookupError("no arm")
    except (LookupError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{folder}/{COMPARISON} is damaged; run the command of this comparison again") from None
    table = {
        name: {seed: read_finished(place) for seed, place in seeds.items() if is_finished(place)}
        for name, seeds in places.items()
    }
    missing = [f"{name}, seed {seed}" for name, seeds in places.items() for seed in seeds if seed not in table[name]]
    common_seeds(table)
    wishes = replace(wishes, reference=wishes.reference or reference, tuning={**tuning, **wishes.tuning})
    return table, missing, wishes


def _written(table: Table, out: Path, wishes: Wishes, *, missing: Sequence[str] = (), show: bool) -> Compared:
    from fourstage.report.arms import render_comparison_files

    out.mkdir(parents=True, exist_ok=True)
    wishes = replace(wishes, reference=named(wishes.reference, list(table)))
    comparison = assemble(table, out, wishes, missing=missing, show=show)
    files = []
    for name, text in render_comparison_files(comparison).items():
        write_text(out / name, text)
        files.append(out / name)
    return Compared(out, comparison, tuple(files))
