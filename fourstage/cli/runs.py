"""Recipes and what is done with them: train, evaluate, predict, report."""

import argparse
from pathlib import Path

from fourstage.cli.parsing import STOPPED, Verbs, add_changes, add_verb, only_changes, print_table


def add_recipes(verbs: Verbs) -> None:
    verb = add_verb(verbs, "recipes", _run_recipes, "every experiment that can be repeated by its name")
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
    print_table(["recipe", "task", "trains", "length", "published"], rows)
    return 0


def add_train(verbs: Verbs) -> None:
    verb = add_verb(verbs, "train", _run_train, "train by a recipe; continues by itself where the run folder stands")
    verb.add_argument("recipe", metavar="RECIPE", help="a name from `fourstage recipes`, or your own FILE.yaml")
    verb.add_argument("--data", metavar="PATH", help="folder of the data set, or `digits`; default: the recipe's")
    verb.add_argument("--out", metavar="RUN", help="folder of the run; default: runs/<recipe>")
    verb.add_argument("--fresh", action="store_true", help="set an earlier run in that folder aside, and start anew")
    verb.add_argument("--dry-run", action="store_true", help="check and build everything, and write nothing")
    add_changes(verb)


def _run_train(args: argparse.Namespace) -> int:
    from fourstage.run import train

    changes = only_changes(args.changes)
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


def add_evaluate(verbs: Verbs) -> None:
    verb = add_verb(verbs, "evaluate", _run_evaluate, "score a checkpoint on the validation split")
    verb.add_argument("recipe", metavar="RECIPE|RUN", help="a recipe's name or FILE.yaml, or the folder of a run")
    verb.add_argument("--weights", metavar="FILE", help="the checkpoint; default: the best one of the run")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument("--data", metavar="PATH", help="folder of the data set, or `digits`; default: the recipe's")
    verb.add_argument("--csv", metavar="FILE", help="write the results of each class, as a table")
    verb.add_argument("--json", action="store_true", help="print the metrics as JSON")
    add_changes(verb)


def _run_evaluate(args: argparse.Namespace) -> int:
    from fourstage.report.number_format import plural
    from fourstage.run import evaluate

    found = evaluate(
        args.recipe,
        weights=args.weights,
        data=args.data,
        changes=only_changes(args.changes),
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
    print_table(["metric", "measured", "published"], rows)
    print("\n".join([plural(found.images, "image"), *found.notes, *([f"wrote {args.csv}"] if args.csv else [])]))
    return 0


def add_predict(verbs: Verbs) -> None:
    verb = add_verb(verbs, "predict", _run_predict, "what a trained network sees in your images and videos")
    verb.add_argument(
        "source",
        metavar="RUN|FILE|MODEL|RECIPE",
        help="a run's folder; a checkpoint of a run, of MMDetection or of MMSegmentation; a model or a recipe, by name",
    )
    verb.add_argument("images", nargs="+", metavar="IMAGE|VIDEO", help="image or video files, or folders of them")
    verb.add_argument(
        "--weights", metavar="FILE", help="the checkpoint, where a model or a recipe is named; default: a published one"
    )
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument(
        "--out", metavar="DIR", default="predictions", help="folder of pictures and results; default: predictions"
    )
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    verb.add_argument("--json", action="store_true", help="print JSON")


def _run_predict(args: argparse.Namespace) -> int:
    from fourstage.run import predict

    found = predict(
        args.source,
        args.images,
        weights=args.weights,
        which=args.which,
        out=args.out,
        device=args.device,
        show=not args.json,
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


def add_report(verbs: Verbs) -> None:
    verb = add_verb(verbs, "report", _run_report, "several runs on one page")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    verb.add_argument("--out", metavar="FILE.html", default="report.html", help="default: report.html")


def _run_report(args: argparse.Namespace) -> int:
    from fourstage.engine.state import write_text
    from fourstage.report import render_comparison

    out = Path(args.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out} must end in .html; the report is a page")
    page = render_comparison(args.runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    print(f"wrote {out}")
    return 0
