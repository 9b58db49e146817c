"""Verbs for recipes and runs: recipes, train, evaluate, predict, report."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from fourstage.cli.parsing import STOPPED, Verbs, add_changes, add_imports, add_verb, alone, print_table, terminal_width
from fourstage.streams import unattended, wrapped

if TYPE_CHECKING:
    from fourstage.recipe import Recipe
    from fourstage.run import Evaluated, Prediction

SOME_UNREADABLE = 1  # exit code of `predict`: some files could not be read, and the others were predicted
WIDE = 130  # columns of a terminal that shows a recipe in one line
OWN_FILES = "a Python file of your own to run, beside those of your recipe; may be repeated"


def add_recipes(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "recipes",
        _run_recipes,
        help,
        ["fourstage recipes '*_in1k'", "fourstage recipes --keys detection"],
    )
    verb.add_argument("pattern", nargs="?", metavar="PATTERN", help="wildcard, such as '*_in1k'")
    verb.add_argument(
        "--keys", nargs="?", const="all", metavar="TASK", help="print every key of a recipe with its meaning"
    )


def _run_recipes(args: argparse.Namespace) -> int:
    if args.keys is not None:
        if args.pattern is not None:
            raise ValueError(f"--keys takes no pattern of recipes; got {args.pattern!r}; leave one of the two out")
        return _print_keys(args.keys)
    from fourstage.recipe import list_recipes, resolve

    names = list_recipes(args.pattern or "*")
    if not names:
        raise ValueError(f"no recipe name matches {args.pattern!r}; `fourstage recipes` lists all")
    recipes = [resolve(name).recipe for name in names]
    print_table(*(_narrow_table(recipes) if terminal_width() < WIDE else _wide_table(recipes)))
    return 0


def _wide_table(recipes: "Sequence[Recipe]") -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rows of recipes, one line each."""
    rows = [
        [one.name, one.task, one.network_name, one.optimisation.length, ", ".join(_published(one)) or "-"]
        for one in recipes
    ]
    return ["recipe", "task", "trains", "length", "published"], rows


def _narrow_table(recipes: "Sequence[Recipe]") -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rows of recipes for a terminal of 80 columns: the network is below the name."""
    rows = [
        [f"{one.name}\n  {one.network_name}", one.optimisation.length, "\n".join(_published(one)) or "-"]
        for one in recipes
    ]
    return ["recipe", "length", "published"], rows


def _published(recipe: "Recipe") -> list[str]:
    return [f"{metric} {value:g}" for metric, value in recipe.expect.items()]


def _print_keys(task: str) -> int:
    from fourstage.recipe.keys import HEAD, TASKS, keys_by_task

    if task not in ("all", *TASKS):
        close = get_close_matches(task, TASKS, n=1)
        hint = f", did you mean {close[0]}" if close else ""
        raise ValueError(
            f"there is no task {task!r}{hint}; write --keys alone, or --keys with one of {', '.join(TASKS)}"
        )
    for name, keys in keys_by_task().items():
        if task in ("all", name) or name not in TASKS:
            print(f"\nKeys of {name}\n")
            print_table(HEAD, [key.cells for key in keys])
    return 0


def add_train(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "train",
        _run_train,
        help,
        [
            "fourstage train digits_visformer --out runs/mine length=2ep",
            "fourstage train digits_visformer --data images --dry-run batch_size=8",
        ],
    )
    verb.add_argument("recipe", metavar="RECIPE", help="a name from `fourstage recipes`, or your own FILE.yaml")
    verb.add_argument("--data", metavar="PATH", help="folder of the data set, or `digits`; default: that of the recipe")
    verb.add_argument("--out", metavar="RUN", help="run folder; default: runs/<recipe>")
    verb.add_argument("--fresh", action="store_true", help="set an earlier run in that folder aside and start again")
    verb.add_argument("--dry-run", action="store_true", help="check and build everything without writing a file")
    add_imports(verb, OWN_FILES)
    add_changes(verb)


def _run_train(args: argparse.Namespace) -> int:
    with unattended():
        return _train(args)


def _train(args: argparse.Namespace) -> int:
    from fourstage.files import shown_path
    from fourstage.report.number_format import brief_text
    from fourstage.run import train

    done = train(
        args.recipe,
        data=args.data,
        out=args.out,
        changes=args.changes,
        imports=args.imports,
        fresh=args.fresh,
        dry_run=args.dry_run,
    )
    if args.dry_run:
        return 0
    if done.stopped_by is not None:
        where = f"step {done.step} of {done.total}"
        print(f"Stopped by {done.stopped_by} at {where}; saved {shown_path(done.folder)}/checkpoints/last.pt.")
        print("The same command continues the run.")
        return STOPPED.get(done.stopped_by, 1)
    metrics, folder = brief_text(done.metrics or {}, done.classes), shown_path(done.folder)
    if done.already_finished:
        print(f"{folder} is finished: {metrics}.\nTo start another run, add --fresh or choose another --out.")
    else:
        print(f"Finished: {metrics}\nBest checkpoint: {folder}/checkpoints/best.pt\nReport: {folder}/report.html")
    return 0


def add_evaluate(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "evaluate",
        _run_evaluate,
        help,
        ["fourstage evaluate runs/mine", "fourstage evaluate runs/mine --csv classes.csv --json"],
    )
    verb.add_argument(
        "recipe",
        metavar="RECIPE|RUN|FILE",
        help="a recipe by name or FILE.yaml, a run folder, a checkpoint, hf-hub:USER/NAME, or an exported file",
    )
    verb.add_argument(
        "--weights",
        metavar="FILE",
        help="a checkpoint, or published weights (pretrained, smt_tiny.in1k); default: the run's best checkpoint",
    )
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument("--data", metavar="PATH", help="folder of the data set, or `digits`; default: that of the recipe")
    verb.add_argument("--csv", metavar="FILE", help="write the results of each class as a table")
    verb.add_argument(
        "--results",
        metavar="PATH",
        help="write the predictions: FILE.json in COCO's format, FILE.csv of classes, or a FOLDER of label maps",
    )
    verb.add_argument("--json", action="store_true", help="print the metrics as JSON")
    add_imports(verb, OWN_FILES)
    add_changes(verb)


def _run_evaluate(args: argparse.Namespace) -> int:
    from fourstage.plurals import plural
    from fourstage.run import evaluate

    with alone(args.json):
        evaluated = evaluate(
            args.recipe,
            weights=args.weights,
            data=args.data,
            changes=args.changes,
            which=args.which,
            csv=args.csv,
            results=args.results,
            imports=args.imports,
            show=not args.json,
        )
    if args.json:
        import json

        print(
            json.dumps(
                {
                    "metrics": evaluated.metrics,
                    "expect": evaluated.expect,
                    "images": evaluated.images,
                    "intervals": evaluated.intervals.of,
                    "interval_method": evaluated.intervals.method,
                    "notes": evaluated.notes,
                }
            )
        )
        return 0
    print_table(["metric", "measured", "95 % interval", "published"], _metric_rows(evaluated))
    written = [f"wrote {path}" for path in (args.csv, args.results) if path]
    print(wrapped("\n".join([plural(evaluated.images, "image"), *evaluated.notes, *written])))
    return 0


def _metric_rows(evaluated: "Evaluated") -> list[list[str]]:
    """Return a row of text for each metric: its name, its value, its interval, and the published value."""
    from fourstage.report.number_format import shown_metrics

    classes = len(evaluated.tables["per_class"])
    rows = []
    for name, value in shown_metrics(evaluated.metrics, classes).items():
        low, high = evaluated.intervals.of.get(name, (None, None))
        interval = "-" if low is None or high is None else f"{low:.2f} to {high:.2f}"
        published = f"{evaluated.expect[name]:.2f}" if name in evaluated.expect else "-"
        rows.append([name, f"{value:.2f}", interval, published])
    return rows


def add_predict(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "predict",
        _run_predict,
        help,
        ["fourstage predict runs/mine photo.png --out predictions"],
    )
    verb.add_argument(
        "source",
        metavar="RUN|FILE|MODEL|RECIPE",
        help="a run folder; a checkpoint of a run, MMDetection or MMSegmentation; hf-hub:USER/NAME; a model or recipe; "
        "an exported file (.onnx, .xml, .pt2)",
    )
    verb.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE|VIDEO|FOLDER",
        help="image or video files, patterns in quotes, or folders, with all folders in them",
    )
    verb.add_argument(
        "--weights", metavar="FILE", help="the checkpoint for a named model or recipe; default: the published one"
    )
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument(
        "--out", metavar="DIR", default="predictions", help="folder for pictures and results; default: predictions"
    )
    verb.add_argument(
        "--ids", metavar="FILE.json", help="a COCO json that lists the images; a detector's results get its ids"
    )
    verb.add_argument(
        "--threshold", type=float, metavar="SCORE", help="lowest score of objects; default: 0.3 in pictures, 0 in files"
    )
    verb.add_argument(
        "--tile", type=int, metavar="PIXELS", help="predict large images in tiles of this side, such as 640"
    )
    verb.add_argument("--overlap", type=float, metavar="SHARE", help="overlap of neighbouring tiles; default: 0.2")
    verb.add_argument("--batch", type=int, default=1, metavar="N", help="images at a time; default: 1")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    verb.add_argument(
        "--precision", choices=("float32", "bfloat16", "float16"), default="float32", help="default: float32"
    )
    add_imports(verb, "a file that registers what the network of a checkpoint is built from; may be repeated")
    verb.add_argument("--json", action="store_true", help="print the predictions as JSON")


def _run_predict(args: argparse.Namespace) -> int:
    from fourstage.plurals import plural
    from fourstage.run import predict

    with alone(args.json):
        predictions = predict(
            args.source,
            args.images,
            weights=args.weights,
            which=args.which,
            out=args.out,
            ids=args.ids,
            threshold=args.threshold,
            batch_size=args.batch,
            tile=args.tile,
            overlap=args.overlap,
            device=args.device,
            precision=args.precision,
            imports=args.imports,
            show=not args.json,
        )
    unreadable = [one for one in predictions if one.error]
    if args.json:
        import json

        content = [
            {"image": str(one.image), "picture": None if one.error else str(one.picture), **one.values}
            for one in predictions
        ]
        print(json.dumps(content, indent=2))
    else:
        _print_predictions([one for one in predictions if not one.error], args.out)
    for one in unreadable:
        print(f"fourstage: {one.error}", file=sys.stderr)
    if unreadable:
        count = plural(len(predictions), "file")
        print(
            f"fourstage: {len(unreadable)} of {count} could not be read; the others are in {args.out}", file=sys.stderr
        )
    return SOME_UNREADABLE if unreadable else 0


def _print_predictions(predictions: "Sequence[Prediction]", out: str) -> None:
    for one in predictions:
        print(wrapped(f"{one.image}: {one.text}"))
    count_videos = sum(one.is_video for one in predictions)
    counts = ((len(predictions) - count_videos, "picture"), (count_videos, "video"))
    written = [f"{count} {what}" if count == 1 else f"{count} {what}s" for count, what in counts if count]
    print(f"{' and '.join(written)} in {out}")


def add_report(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "report",
        _run_report,
        help,
        ["fourstage report runs/mine runs/other --out both.html"],
    )
    verb.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    verb.add_argument("--out", metavar="FILE.html", default="report.html", help="page to write; default: report.html")


def _run_report(args: argparse.Namespace) -> int:
    from fourstage.files import write_text
    from fourstage.report import render_comparison

    out = Path(args.out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {out} must end in .html: the report is a web page")
    page = render_comparison(args.runs)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, page)
    print(f"wrote {out}")
    return 0
