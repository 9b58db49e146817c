"""The command line: a recipe by name, where things are, and single values to change.

Imports of torch wait until a verb needs it, so that help is instant.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn, TypeAlias

OPTIONS = (
    "--data",
    "--out",
    "--fresh",
    "--dry-run",
    "--weights",
    "--which",
    "--json",
    "--device",
    "--debug",
    "--version",
    "--train",
    "--against",
    "--dense",
    "--dtype",
    "--channels-last",
    "--compile",
    "--img-size",
    "--batch-size",
    "--seconds",
    "--threads",
    "--cpu-time",
    "--csv",
    "--jsonl",
    "--model",
    "--force",
    "--max-size",
    "--count",
    "--recipe",
    "--partition",
    "--gpus",
    "--gpus-per-node",
    "--cpus-per-task",
    "--time",
    "--job-name",
    "--srun-args",
    "--sbatch-args",
)
STOPPED = {"Ctrl-C": 130, "SIGTERM": 143}  # 128 + the signal's number, as shells have it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        choices = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choices:
            known = re.findall(r"[\w-]+", choices[2])
            close = get_close_matches(choices[1], known, n=1)
            message = f"there is no {choices[1]!r}, " + (
                f"did you mean {close[0]}" if close else f"choose {choices[2]}"
            )
        self.exit(2, f"fourstage: {message}; `{self.prog} --help` shows how\n")


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = _Parser(prog="fourstage", description="Train, evaluate and compare four-stage vision backbones.")
    top.add_argument("--version", action="store_true", help="print the version and exit")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for add in (_models, _recipes, _train, _evaluate, _predict, _report, _data, _bench, _convert, _slurm, _doctor):
        add(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code: 2 for what a user can get wrong, with one sentence."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    from fourstage.engine import slurm

    slurm.translate()  # under srun there are several processes too
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first speaks
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    arguments = [argument for argument in arguments if argument != "--debug"]
    args = _parse(arguments)
    if args.version:
        from importlib.metadata import version

        print(f"fourstage {version('fourstage')}")
        return 0
    if args.verb is None:
        parser().print_help()
        return 0
    try:
        return args.run(args)
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - whoever read the output has left
            return 141
        if debug:
            raise
        print(f"fourstage: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nfourstage: stopped at once; what was saved before is whole", file=sys.stderr)
        return STOPPED["Ctrl-C"]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse; words after an option may still be changes or images, which argparse alone does not allow."""
    top = parser()
    args, rest = top.parse_known_args(arguments)
    words = [word for word in rest if not word.startswith("-")]
    for unknown in rest:
        if unknown.startswith("-"):
            top.error(f"there is no option {unknown} here{_meant(unknown)}")
    for field in ("changes", "images", "subjects"):
        if hasattr(args, field):
            getattr(args, field).extend(words)
            return args
    if words:
        top.error(f"{words[0]!r} is not understood here")
    return args


def _meant(option: str) -> str:
    """What an unknown option may have been meant for: a value of a recipe, or another option."""
    from fourstage.recipe import TASKS, known_keys

    key = option.lstrip("-").partition("=")[0].replace("-", "_")
    if any(known == key or known.endswith(f".{key}") for schema in TASKS.values() for known in known_keys(schema)):
        return f"; a value of a recipe is written {key}=VALUE, without dashes"
    close = [word for word in get_close_matches(option.partition("=")[0], OPTIONS, n=1) if word != option]
    return f", did you mean {close[0]}?" if close else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


Verbs: TypeAlias = "argparse._SubParsersAction[_Parser]"


def _add(verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=help, description=help)
    verb.set_defaults(run=run)
    return verb


# ------------------------------------------------------------------------------------------------- models, recipes


def _models(verbs: Verbs) -> None:
    verb = _add(verbs, "models", _run_models, "names, parameters, MACs and published accuracy")
    verb.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="wildcard, such as 'swin*'")


def _run_models(args: argparse.Namespace) -> int:
    from fourstage.bench.count import model_rows
    from fourstage.engine.log import Bar

    with Bar("counting", 1) as bar:
        rows = model_rows(args.pattern, bar.of)
    if not rows:
        raise ValueError(f"no model's name matches {args.pattern!r}; `fourstage models` lists all")
    _table(["model", "M parameters", "G MACs", "without attention", "image px", "published top-1 %"], rows)
    return 0


def _recipes(verbs: Verbs) -> None:
    verb = _add(verbs, "recipes", _run_recipes, "every experiment that can be repeated by its name")
    verb.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="wildcard, such as '*_in1k'")


def _run_recipes(args: argparse.Namespace) -> int:
    from fourstage.recipe import list_recipes, resolve

    names = list_recipes(args.pattern)
    if not names:
        raise ValueError(f"no recipe's name matches {args.pattern!r}; `fourstage recipes` lists all")
    rows = []
    for name in names:
        recipe = resolve(name).recipe
        expect = ", ".join(f"{metric} {value:g}" for metric, value in recipe.expect.items()) or "-"
        rows.append([name, recipe.task, recipe.subject, recipe.optimisation.length, expect])
    _table(["recipe", "task", "trains", "length", "published"], rows)
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(head):
        table.add_column(title, no_wrap=i == 0, overflow="fold")  # names stay whole, to be copied
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width: cut nothing off
        console = Console(highlight=False, width=200)
    console.print(table, crop=console.is_terminal)


# -------------------------------------------------------------------------------------- train, evaluate, predict


def _changes(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="values that differ from the recipe's"
    )


def _train(verbs: Verbs) -> None:
    verb = _add(verbs, "train", _run_train, "train by a recipe; continues by itself where the run folder stands")
    verb.add_argument("recipe", metavar="RECIPE", help="a name from `fourstage recipes`, or your own FILE.yaml")
    verb.add_argument("--data", metavar="PATH", help="folder of the data set, or `digits`; default: the recipe's")
    verb.add_argument("--out", metavar="RUN", help="folder of the run; default: runs/<recipe>")
    verb.add_argument("--fresh", action="store_true", help="set an earlier run in that folder aside, and start anew")
    verb.add_argument("--dry-run", action="store_true", help="check and build everything, and write nothing")
    _changes(verb)


def _run_train(args: argparse.Namespace) -> int:
    from fourstage.run import train

    changes = _only_changes(args.changes)
    done = train(args.recipe, data=args.data, out=args.out, changes=changes, fresh=args.fresh, dry_run=args.dry_run)
    if args.dry_run:
        return 0
    if done.stopped_by is not None:
        where = f"step {done.step} of {done.total}"
        print(f"Stopped by {done.stopped_by} at {where}; saved {done.folder}/checkpoints/last.pt.")
        print("The same command continues.")
        return STOPPED.get(done.stopped_by, 1)
    metrics = "  ".join(f"{name} {value:.2f}" for name, value in (done.metrics or {}).items())
    if done.already_finished:
        print(f"{done.folder} is finished: {metrics}. Add --fresh to start another, or choose another --out.")
    else:
        print(
            f"Finished: {metrics}  (best checkpoint, {done.folder}/checkpoints/best.pt)\n"
            f"Report: {done.folder}/report.html"
        )
    return 0


def _evaluate(verbs: Verbs) -> None:
    verb = _add(verbs, "evaluate", _run_evaluate, "score a checkpoint on the validation split")
    verb.add_argument("recipe", metavar="RECIPE|RUN", help="a recipe's name or FILE.yaml, or the folder of a run")
    verb.add_argument("--weights", metavar="FILE", help="the checkpoint; default: the best one of the run")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument("--data", metavar="PATH", help="folder of the data set, or `digits`; default: the recipe's")
    verb.add_argument("--csv", metavar="FILE", help="write the results of each class, as a table")
    verb.add_argument("--json", action="store_true", help="print the metrics as JSON")
    _changes(verb)


def _run_evaluate(args: argparse.Namespace) -> int:
    from fourstage.run import evaluate

    found = evaluate(
        args.recipe,
        weights=args.weights,
        data=args.data,
        changes=_only_changes(args.changes),
        which=args.which,
        csv=args.csv,
        show=not args.json,
    )
    if args.json:
        import json

        print(
            json.dumps({"metrics": found.metrics, "expect": found.expect, "images": found.images, "notes": found.notes})
        )
        return 0
    rows = [
        [name, f"{value:.2f}", f"{found.expect[name]:.2f}" if name in found.expect else "-"]
        for name, value in found.metrics.items()
    ]
    _table(["metric", "measured", "published"], rows)
    print("\n".join([f"{found.images} images", *found.notes, *([f"wrote {args.csv}"] if args.csv else [])]))
    return 0


def _predict(verbs: Verbs) -> None:
    verb = _add(verbs, "predict", _run_predict, "what a trained network sees in your images and videos")
    verb.add_argument(
        "source",
        metavar="RUN|FILE|MODEL|RECIPE",
        help="a run's folder; a checkpoint of a run, of MMDetection or of MMSegmentation; a model or a recipe, by name",
    )
    verb.add_argument("images", nargs="+", metavar="IMAGE|VIDEO", help="image or video files, or folders of them")
    verb.add_argument("--weights", metavar="FILE", help="the checkpoint, where a model or a recipe is named")
    verb.add_argument(
        "--out", metavar="DIR", default="predictions", help="folder of pictures and results; default: predictions"
    )
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    verb.add_argument("--json", action="store_true", help="print JSON")


def _run_predict(args: argparse.Namespace) -> int:
    from fourstage.run import predict

    found = predict(
        args.source, args.images, weights=args.weights, out=args.out, device=args.device, show=not args.json
    )
    if args.json:
        import json

        content = [{"image": str(one.image), "picture": str(one.picture), **one.values} for one in found]
        print(json.dumps(content, indent=2))
        return 0
    for one in found:
        print(f"{one.image}: {one.text}")
    films = sum(one.is_video for one in found)
    counts = ((len(found) - films, "picture"), (films, "video"))
    made = [f"{count} {what}" if count == 1 else f"{count} {what}s" for count, what in counts if count]
    print(f"{' and '.join(made)} in {args.out}")
    return 0


def _report(verbs: Verbs) -> None:
    verb = _add(verbs, "report", _run_report, "several runs on one page")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    verb.add_argument("--out", metavar="FILE.html", default="report.html", help="default: report.html")


def _run_report(args: argparse.Namespace) -> int:
    from fourstage.engine.state import write_text
    from fourstage.report import render_together

    out = Path(args.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out} must end in .html; the report is a page")
    page = render_together(args.runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    print(f"wrote {out}")
    return 0


# --------------------------------------------------------------------------------------------------- data, doctor


def _data(verbs: Verbs) -> None:
    data = verbs.add_parser("data", help="look after data sets", description="look after data sets")
    data.set_defaults(run=lambda args: data.print_help() or 0)
    inner = data.add_subparsers(dest="data_verb", metavar="VERB", parser_class=_Parser)
    check = _add(inner, "check", _run_data_check, "read a data set and say what is wrong with it")
    check.add_argument("path", metavar="PATH", help="folder of the data set, or `digits`, `digit_scenes`")
    shard = _add(inner, "shard", _run_data_shard, "write a classification data set as WebDataset tar shards")
    shard.add_argument("source", metavar="SRC", help="a data set that can be read, or `digits`")
    shard.add_argument("folder", metavar="DST", help="a new folder; one that was interrupted is continued")
    shard.add_argument("--max-size", metavar="BYTES", help="of a shard, such as 500MB; default: 256MB")
    shard.add_argument("--count", type=int, metavar="N", help="images of a shard")
    show = _add(inner, "show", _run_data_show, "a sheet of images as the training sees them")
    show.add_argument("path", metavar="PATH", help="folder of the data set, or `digits`")
    show.add_argument("--recipe", metavar="NAME", help="whose augmentation; default: smt_tiny_in1k, or that of digits")
    show.add_argument("--out", metavar="FILE.png", default="samples.png", help="default: samples.png")
    _changes(show)


def _run_data_check(args: argparse.Namespace) -> int:
    from fourstage.data.check import check, render
    from fourstage.engine.log import Bar

    with Bar("checking", 1) as bar:
        findings, summary = check(args.path, progress=bar.of)
    print(render(findings, summary))
    return 1 if any(finding.severity == "error" for finding in findings) else 0


def _run_data_shard(args: argparse.Namespace) -> int:
    from fourstage.data.shard_write import parse_size, write_shards
    from fourstage.engine.log import Bar

    size = None if args.max_size is None else parse_size(args.max_size)
    with Bar("writing shards", 1) as bar:
        written = write_shards(args.source, args.folder, max_size=size, count=args.count, progress=bar.of)
    for split, images in written.images.items():
        shards = written.shards[split]
        print(f"{split}: {images:,} images in {shards:,} shard{'' if shards == 1 else 's'}")
    print(f"{args.folder} is complete; train with --data {args.folder}")
    return 0


def _run_data_show(args: argparse.Namespace) -> int:
    from fourstage.run.show import show

    print(f"wrote {show(args.path, recipe=args.recipe, out=args.out, changes=_only_changes(args.changes))}")
    return 0


# ---------------------------------------------------------------------------------------------------------- bench


def _bench(verbs: Verbs) -> None:
    verb = _add(verbs, "bench", _run_bench, "images per second, latency, memory and cost of models, side by side")
    verb.add_argument(
        "subjects",
        nargs="+",
        metavar="MODEL",
        help="names or wildcards; timm/NAME, torchvision/NAME; METHOD:MODEL or a recipe: a detector or segmentor",
    )
    verb.add_argument("--train", action="store_true", help="measure a training step too: forward, backward, AdamW")
    verb.add_argument("--against", metavar="NAME", help="take turns with this model, and print how many times as fast")
    verb.add_argument("--dense", action="store_true", help="the network that gives maps, for detection")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    verb.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="autocast to it")
    verb.add_argument("--channels-last", action="store_true", help="memory layout of weights and images")
    verb.add_argument("--compile", action="store_true", help="with torch.compile")
    verb.add_argument("--img-size", metavar="PX", help="a side, or HEIGHTxWIDTH; default: each model's own")
    verb.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images a step; default: 8 on the CPU, 128 on a GPU; of a METHOD 1, in training 2",
    )
    verb.add_argument("--seconds", type=float, default=10.0, metavar="S", help="for each model and mode; default: 10")
    verb.add_argument("--threads", type=int, metavar="N", help="of the CPU; default: as torch has it")
    verb.add_argument("--cpu-time", action="store_true", help="count processor seconds: for a machine that is shared")
    verb.add_argument("--csv", metavar="FILE", help="write a table with the column names of timm's results")
    verb.add_argument("--jsonl", metavar="FILE", help="append a line per model, with all rounds and the machine")


def _run_bench(args: argparse.Namespace) -> int:
    from fourstage.bench.options import Options, check_output, parse_size

    options = Options(
        device=args.device,
        dtype=args.dtype,
        channels_last=args.channels_last,
        compile=args.compile,
        img_size=None if args.img_size is None else parse_size(args.img_size),
        batch_size=args.batch_size,
        seconds=args.seconds,
        threads=args.threads,
        dense=args.dense,
        train=args.train,
        clock="cpu" if args.cpu_time else "wall",
    )
    files = {kind: check_output(path) for kind, path in (("csv", args.csv), ("jsonl", args.jsonl)) if path}
    from fourstage.bench.results import Files, sentence, table
    from fourstage.bench.run import bench

    written = Files(options, **files)
    found, comparisons = bench(args.subjects, options, against=args.against, done=written.add)
    _table(*table(found))
    print("\n".join(["", *map(sentence, comparisons), written.conditions()]))
    return 0


# -------------------------------------------------------------------------------------------------------- convert


def _convert(verbs: Verbs) -> None:
    verb = _add(verbs, "convert", _run_convert, "a checkpoint of any of the sources as .safetensors in our names")
    verb.add_argument("file", metavar="FILE", help="a .pth, .pt or .safetensors file; nothing in it is run")
    verb.add_argument("--model", metavar="NAME", required=True, help="of `fourstage models`, or with a tag: NAME.in22k")
    verb.add_argument("--out", metavar="FILE.safetensors", required=True, help="the file to write")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument("--dense", action="store_true", help="as the network that gives maps, for detection")
    verb.add_argument("--force", action="store_true", help="replace a file that is there")
    verb.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of the network, such as img_size=384"
    )


def _run_convert(args: argparse.Namespace) -> int:
    from fourstage.recipe import read_yaml

    words = [word.replace("=", ": ", 1) for word in _only_changes(args.changes)]
    arguments = read_yaml("\n".join(words), "an argument of the network") if words else {}
    from fourstage.run.convert import convert

    done = convert(
        args.file, args.model, args.out, which=args.which, dense=args.dense, force=args.force, arguments=arguments
    )
    print(done.report)
    if done.weight is not None:
        metrics = ", ".join(f"{name} {value:g}" for name, value in done.weight.metrics.items()) or "no metric"
        print(f"known by {done.metadata['known_by']}: {done.weight.name}, {metrics}")
        print(f"licence: {done.weight.licence}, from {done.weight.origin}")
    call = "create_backbone" if args.dense else "create_model"
    print(f"wrote {done.path} ({done.path.stat().st_size / 1e6:.1f} MB); in Python:")
    print(f"fourstage.{call}({done.metadata['model']!r}, checkpoint_path={str(done.path)!r})")
    return 0


# ---------------------------------------------------------------------------------------------------------- slurm


def _slurm(verbs: Verbs) -> None:
    verb = _add(verbs, "slurm", _run_slurm, "write the file for sbatch that trains or evaluates, and submit it")
    verb.add_argument("command", choices=("train", "evaluate"), metavar="train|evaluate", help="what the job does")
    verb.add_argument("recipe", metavar="RECIPE", help="a name or FILE.yaml; to evaluate, also the folder of a run")
    verb.add_argument("--partition", metavar="P", required=True, help="where the job waits and runs; see `sinfo`")
    verb.add_argument("--gpus", type=int, metavar="N", required=True, help="GPUs of all nodes, a process for each")
    verb.add_argument("--gpus-per-node", type=int, metavar="M", help="default: 8, or all where there are fewer")
    verb.add_argument("--cpus-per-task", type=int, metavar="C", help="CPUs for each process; take workers + 1")
    verb.add_argument("--time", metavar="T", help="such as 2-00:00:00; a run that needs more goes on in the queue")
    verb.add_argument("--job-name", metavar="J", help="default: the recipe's name")
    verb.add_argument("--srun-args", metavar="WORDS", default="", help='for srun; write --srun-args="--mpi=pmix"')
    verb.add_argument("--sbatch-args", metavar="WORDS", default="", help='for sbatch: --sbatch-args="--account=A"')
    verb.add_argument("--dry-run", action="store_true", help="print the file, and submit nothing")
    verb.add_argument("--data", metavar="PATH", help="as for the command itself")
    verb.add_argument("--out", metavar="RUN", help="of train: folder of the run; default: runs/<recipe>")
    verb.add_argument("--weights", metavar="FILE", help="of evaluate: the checkpoint")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="of evaluate")
    verb.add_argument("--csv", metavar="FILE", help="of evaluate")
    verb.add_argument("--json", action="store_true", help="of evaluate")
    _changes(verb)


def _run_slurm(args: argparse.Namespace) -> int:
    from fourstage import slurm

    own = slurm.words_of(args.weights, args.which, args.csv, json=args.json)
    if args.command == "train" and own:
        raise ValueError(f"{own[0]} is an option of evaluate; a training starts from a checkpoint by weights=FILE")
    if args.command == "evaluate" and args.out is not None:
        raise ValueError("evaluate has no --out; the job prints into slurm/")
    job, notes = slurm.prepare(
        slurm.Job(
            args.command,
            args.recipe,
            args.partition,
            args.gpus,
            gpus_per_node=args.gpus_per_node,
            cpus_per_task=args.cpus_per_task,
            time=args.time,
            name=args.job_name,
            srun_args=args.srun_args,
            sbatch_args=args.sbatch_args,
            data=args.data,
            out=args.out,
            options=own,
            changes=tuple(_only_changes(args.changes)),
        )
    )
    print("\n".join(notes), end="\n" if notes else "", file=sys.stderr)
    if args.dry_run:
        print(slurm.script(job), end="")
        return 0
    done = slurm.submit(job)
    print(f"Submitted job {done.id}: {job.name}, {job.gpus} processes on {job.nodes} node{'s' * (job.nodes > 1)}.")
    print(f"File: {done.file}\nOutput: {done.output}")
    return 0


def _doctor(verbs: Verbs) -> None:
    _add(verbs, "doctor", _run_doctor, "versions, devices, what would not work here and what mends it")


def _run_doctor(args: argparse.Namespace) -> int:
    from fourstage.doctor import examine

    lines, healthy = examine()
    print("\n".join(lines))
    return 0 if healthy else 1


def _only_changes(words: Sequence[str]) -> list[str]:
    """KEY=VALUE words; anything else was meant for somewhere else."""
    for word in words:
        if "=" not in word:
            close = get_close_matches(word, OPTIONS, n=1)
            hint = f"did you mean {close[0]}?" if close else "a change is written key=value"
            raise ValueError(f"{word!r} is not understood here; {hint}")
    return list(words)
