"""Verbs for models and for this machine: models, bench, convert, doctor."""

import argparse
from typing import TYPE_CHECKING

from fourstage.cli.parsing import Verbs, add_imports, add_verb, print_table

if TYPE_CHECKING:
    from fourstage.bench.options import Options

OWN_NETWORKS = "a Python file that registers networks of your own; may be repeated"


def add_models(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "models",
        _run_models,
        help,
        ["fourstage models 'swin*'"],
    )
    verb.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="wildcard, such as 'swin*'")
    add_imports(verb, "a Python file that registers networks of your own, which are counted now; may be repeated")


def _run_models(args: argparse.Namespace) -> int:
    from fourstage.bench.model_table import HEAD, model_rows
    from fourstage.progress import Bar

    with Bar("counting", 1) as bar:
        rows = model_rows(args.pattern, args.imports, bar.of)
    if not rows:
        raise ValueError(f"no model name matches {args.pattern!r}; `fourstage models` lists all")
    print_table(HEAD, rows)
    return 0


def add_bench(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "bench",
        _run_bench,
        help,
        ["fourstage bench visformer_digits --batch-size 1 --seconds 1"],
    )
    verb.add_argument(
        "networks",
        nargs="+",
        metavar="MODEL",
        help="a name or wildcard, timm/NAME, torchvision/NAME; a detector or segmentor as METHOD:MODEL or a recipe; "
        "an exported file",
    )
    verb.add_argument("--train", action="store_true", help="also measure a training step: forward, backward, AdamW")
    verb.add_argument("--against", metavar="NAME", help="alternate with this model and print the ratio of speeds")
    verb.add_argument(
        "--floor", action="store_true", help="print the time of the matrix products alone, and their share of the time"
    )
    verb.add_argument("--dense", action="store_true", help="measure the dense backbone, which returns feature maps")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    verb.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="autocast to this type"
    )
    verb.add_argument(
        "--channels-last", action="store_true", help="use channels-last memory format for weights and images"
    )
    verb.add_argument("--compile", action="store_true", help="use torch.compile")
    verb.add_argument(
        "--img-size", metavar="PX", help="one side in pixels, or HEIGHTxWIDTH; default: that of each model"
    )
    verb.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images per step; default: 8 on a CPU, 128 on a GPU; detectors and segmentors: 1, in training 2",
    )
    verb.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="time for each model and mode; default: 10"
    )
    verb.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: the setting of torch")
    verb.add_argument("--cpu-time", action="store_true", help="count processor seconds, for a machine that is shared")
    verb.add_argument("--csv", metavar="FILE", help="write a table with the columns of timm's result files")
    verb.add_argument("--jsonl", metavar="FILE", help="append one line per model, with all rounds and the machine")
    add_imports(verb, OWN_NETWORKS)


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
        imports=tuple(args.imports),
    )
    if args.floor:
        return _print_floors(args, options)
    files = {kind: check_output(path) for kind, path in (("csv", args.csv), ("jsonl", args.jsonl)) if path}
    from fourstage.bench.results import Files, sentence, table
    from fourstage.bench.run import bench

    written = Files(options, **files)
    found, comparisons = bench(args.networks, options, against=args.against, done=written.add)
    print_table(*table(found))
    print("\n".join(["", *map(sentence, comparisons), written.conditions()]))
    return 0


def _print_floors(args: argparse.Namespace, options: "Options") -> int:
    if args.against or args.csv or args.jsonl:
        raise ValueError("--floor prints tables of its own; leave out --against, --csv and --jsonl")
    from fourstage.bench import floor

    found = floor.floors(args.networks, options)
    for one in found:
        print_table(*floor.shape_table(one))
        print()
    print_table(*floor.table(found))
    return 0


def add_convert(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "convert",
        _run_convert,
        help,
        ["fourstage convert mine.pth --model visformer_digits --out mine.safetensors"],
    )
    verb.add_argument("file", metavar="FILE", help="a .pth, .pt or .safetensors file; no code in it is run")
    verb.add_argument(
        "--model",
        metavar="NAME",
        required=True,
        help="a name from `fourstage models`, optionally with a tag: NAME.in22k",
    )
    verb.add_argument("--out", metavar="FILE.safetensors", required=True, help="the file to write")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument("--dense", action="store_true", help="convert to the dense backbone, which returns feature maps")
    verb.add_argument("--force", action="store_true", help="replace an existing file")
    verb.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="arguments of the model, such as img_size=384"
    )


def _run_convert(args: argparse.Namespace) -> int:
    from fourstage.recipe import read_yaml

    words = [word.replace("=", ": ", 1) for word in args.changes]
    arguments = read_yaml("\n".join(words), "an argument of the model") if words else {}
    from fourstage.run.convert import convert

    done = convert(
        args.file, args.model, args.out, which=args.which, dense=args.dense, force=args.force, arguments=arguments
    )
    print(done.report)
    if done.weight is not None:
        metrics = ", ".join(f"{name} {value:g}" for name, value in done.weight.metrics.items()) or "no metric"
        print(f"recognised by {done.metadata['known_by']}: {done.weight.name}, {metrics}")
        print(f"licence: {done.weight.licence}, from {done.weight.origin}")
    call = "create_backbone" if args.dense else "create_model"
    print(f"wrote {done.path} ({done.path.stat().st_size / 1e6:.1f} MB); in Python:")
    print(f"fourstage.{call}({done.metadata['model']!r}, checkpoint_path={str(done.path)!r})")
    return 0


def add_doctor(verbs: Verbs, help: str) -> None:
    add_verb(
        verbs,
        "doctor",
        _run_doctor,
        help,
        ["fourstage doctor"],
    )


def _run_doctor(args: argparse.Namespace) -> int:
    from fourstage.doctor import examine

    lines, healthy = examine()
    print("\n".join(lines))
    return 0 if healthy else 1
