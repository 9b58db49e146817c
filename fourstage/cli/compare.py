"""`compare`: arms of a recipe over seeds, or finished runs, with a table that says what is decided."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fourstage.cli.parsing import STOPPED, Verbs, add_imports, add_verb, names_a_file, print_table
from fourstage.files import real_path
from fourstage.plurals import plural
from fourstage.streams import unattended, wrapped

if TYPE_CHECKING:
    from fourstage.run.compare.assemble import Wishes
    from fourstage.run.compare.compare import Compared, Planned

SEEDS = 6  # the fewest with which a pair can be decided
ANALYSES = "erf,invariance,cka"


def add_compare(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "compare",
        _run_compare,
        help,
        [
            "fourstage compare digits_visformer --vary mixer=swin,pvt --dry-run",
            "fourstage compare digits_visformer --vary lr=1e-3,2e-3 --dry-run",
        ],
    )
    verb.set_defaults(changes_recipe=True)
    verb.add_argument(
        "networks", nargs="+", metavar="RECIPE|RUN|KEY=VALUE",
        help="recipes by name or FILE.yaml, with changes for all arms; or folders of finished runs; or of a comparison",
    )  # fmt: skip
    verb.add_argument(
        "--vary", action="append", default=[], metavar="KEY=A,B,C",
        help="values of a recipe's key, one arm for each, such as mixer=swin,pvt; may be repeated",
    )  # fmt: skip
    verb.add_argument("--seeds", type=int, metavar="N", help=f"trainings of each arm; default: {SEEDS}")
    verb.add_argument("--out", metavar="FOLDER", help="folder of the comparison; default: runs/compare-<recipe>")
    verb.add_argument("--data", metavar="PATH", help="folder of the data set, or `digits`; default: that of the recipe")
    verb.add_argument("--reference", metavar="ARM", help="arm that the others are compared with; default: the first")
    verb.add_argument("--metric", metavar="NAME", help="default: the main metric of the task")
    verb.add_argument(
        "--match-cost",
        choices=("parameters", "macs"),
        help="search widths with which all arms cost as much as the reference",
    )
    verb.add_argument(
        "--tuning", action="append", default=[], metavar="ARM=WORDS",
        help="how much an arm was tuned, such as 'swin=12 trials', for the table; may be repeated",
    )  # fmt: skip
    verb.add_argument(
        "--seconds", type=float, default=3.0, metavar="S",
        help="time to measure throughput and memory of each arm; 0: not measured; default: 3",
    )  # fmt: skip
    verb.add_argument(
        "--analyses", default=ANALYSES, metavar="LIST",
        help="analyses of the trained networks: of erf, invariance, cka; or none; default: all",
    )  # fmt: skip
    verb.add_argument("--dry-run", action="store_true", help="print the plan and its warnings, and train nothing")
    verb.add_argument("--cell", type=int, metavar="I", help="train this cell of the grid alone, counted from 0")
    _add_slurm(verb)
    add_imports(verb, "a Python file of your own to run, such as that of a mixer; may be repeated")


def _add_slurm(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--partition", metavar="P", help="submit the cells as a Slurm array to this partition")
    verb.add_argument(
        "--gpus", type=int, default=1, metavar="N", help="with --partition: GPUs of each cell; default: 1"
    )
    verb.add_argument("--cpus-per-task", type=int, metavar="C", help="with --partition: CPUs for each process")
    verb.add_argument("--time", metavar="T", help="with --partition: time limit of a cell, such as 8:00:00")
    verb.add_argument("--sbatch-args", metavar="WORDS", default="", help="with --partition: options for sbatch")


def _run_compare(args: argparse.Namespace) -> int:
    with unattended():
        return _compare(args)


def _compare(args: argparse.Namespace) -> int:
    from fourstage.run.compare.compare import are_runs, check_wishes, compare_grid, compare_runs

    changes = [word for word in args.networks if "=" in word and not names_a_file(word)]
    sources = [word for word in args.networks if word not in changes]
    wishes = _wishes(args)
    if not sources:
        raise ValueError("name a recipe, such as digits_visformer, or the folders of finished runs")
    if are_runs(sources):
        _check_runs(args, changes)
        return _print(compare_runs(sources, _out(args, sources), wishes, imports=args.imports))
    planned = _plan(args, sources, changes)
    check_wishes(planned, wishes, args.cell)
    if args.partition is not None:
        return _submit(args, planned, sources, changes)
    if args.cell is None or args.dry_run:
        _print_plan(planned)
    if args.dry_run:
        return 0
    return _print(compare_grid(planned, wishes, only=args.cell))


def _wishes(args: argparse.Namespace) -> "Wishes":
    from fourstage.run.compare.assemble import Wishes
    from fourstage.run.compare.columns import check_analyses

    tuning = dict[str, str]()
    for text in args.tuning:
        arm, equals, words = text.rpartition("=")
        if not equals or not arm or not words:
            raise ValueError(f"--tuning is ARM=WORDS, such as 'swin=12 trials'; got {text!r}")
        tuning[arm] = words
    if not 0 <= args.seconds <= 3600:
        raise ValueError(f"--seconds is the time for each arm, from 0 to 3600; got {args.seconds:g}")
    return Wishes(args.reference, args.metric, tuning, args.seconds, check_analyses(args.analyses))


def _check_runs(args: argparse.Namespace, changes: list[str]) -> None:
    """Raise ValueError for options that only a training has."""
    given = {"--vary": args.vary, "--data": args.data, "--match-cost": args.match_cost, "--partition": args.partition}
    given |= {"--seeds": args.seeds is not None, "--dry-run": args.dry_run}
    given |= {"--cell": args.cell is not None, changes[0] if changes else "KEY=VALUE": changes}
    for option, value in given.items():
        if value:
            raise ValueError(
                f"{option} is for trainings, and folders name runs that have ended; leave it out, or name the recipe"
            )


def _out(args: argparse.Namespace, sources: list[str]) -> Path:
    if args.out is not None:
        if not args.out:
            raise ValueError("--out is empty; give a folder for the comparison")
        return Path(args.out)
    from fourstage.run_folders import COMPARISON

    if len(sources) == 1 and (Path(sources[0]) / COMPARISON).is_file():
        return Path(sources[0])
    source = Path(sources[0])
    return Path("runs") / f"compare-{real_path(source).name if source.is_dir() else source.stem}"


def _plan(args: argparse.Namespace, sources: list[str], changes: list[str]) -> "Planned":
    from fourstage.run.compare.compare import plan_comparison

    return plan_comparison(
        sources,
        args.vary,
        _seeds(args),
        _out(args, sources),
        reference=args.reference,
        match=args.match_cost,
        changes=changes,
        data=args.data,
        imports=args.imports,
    )


def _seeds(args: argparse.Namespace) -> int:
    return SEEDS if args.seeds is None else args.seeds


def _print_plan(planned: "Planned") -> None:
    from fourstage.files import shown_path

    grid, names = planned.grid, [arm.name for arm in planned.grid.arms]
    arms = ("; " if any(", " in name for name in names) else ", ").join(names)
    print(
        wrapped(
            f"{plural(len(grid.cells), 'training')} in {shown_path(grid.out)}: {plural(len(grid.seeds), 'seed')} of "
            f"{arms}"
        ),
        flush=True,
    )
    for warning in planned.warnings:
        print(wrapped(f"note: {warning}"), flush=True)


def _submit(args: argparse.Namespace, planned: "Planned", sources: list[str], changes: list[str]) -> int:
    from fourstage import slurm
    from fourstage.run.compare.compare import write_plan

    options = [f"--vary={text}" for text in args.vary] + [f"--seeds={_seeds(args)}"]
    options += [f"--imports={real_path(file)}" for file in args.imports]
    analyses = args.analyses if args.analyses != ANALYSES else None
    given = (("reference", args.reference), ("match-cost", args.match_cost), ("analyses", analyses))
    options += [f"--{name}={value}" for name, value in given if value]
    job = slurm.Array(
        sources=tuple(sources),
        words=(*options, *changes),
        cells=len(planned.grid.cells),
        out=planned.grid.out,
        name=slurm.name_of_folder(planned.grid.out),
        partition=args.partition,
        gpus=args.gpus,
        cpus_per_task=args.cpus_per_task,
        time=args.time,
        sbatch_args=args.sbatch_args,
        data=args.data,
    )
    text = slurm.array_script(job)
    if args.dry_run:
        print(text, end="")
        return 0
    _print_plan(planned)
    write_plan(planned, _wishes(args))
    done = slurm.submit_array(job)
    print(f"Submitted array {done.id} of {job.cells} cells.\nFile: {done.file}\nOutput: {done.output}")
    print("When all have ended, the same command without --partition writes the table.")
    return 0


def _print_tables(compared: "Compared") -> None:
    from fourstage.report.arms.columns import column_table, similarity_table
    from fourstage.report.arms.tables import arm_table, pair_table

    comparison = compared.comparison
    assert comparison is not None
    print()
    print_table(*arm_table(comparison))
    print()
    head, rows = pair_table(comparison)
    print_table(head[:-1], [row[:-1] for row in rows])
    for found in (column_table(comparison), similarity_table(comparison)):
        if found is not None:
            print()
            print_table(*found)
    print()
    for warning in comparison.warnings:
        print(wrapped(f"warning: {warning}"))
    for missing in comparison.missing:
        print(wrapped(f"not ended, and not in the table: {missing}"))
    for remark in comparison.remarks:
        print(wrapped(f"note: {remark}"))
    for row in comparison.pairs:
        print(wrapped(row.sentence))


def _print(compared: "Compared") -> int:
    from fourstage.files import shown_path

    if compared.stopped_by is not None:
        print(f"Stopped by {compared.stopped_by}; the same command continues the comparison.")
        return STOPPED.get(compared.stopped_by, 1)
    if compared.comparison is not None:
        _print_tables(compared)
        print(f"wrote {', '.join(file.name for file in compared.files)} in {shown_path(compared.folder)}")
    return 0
