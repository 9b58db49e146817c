"""Models by themselves, and this machine: models, bench, convert, doctor."""

import argparse

from fourstage.cli.parsing import Verbs, add_verb, only_changes, print_table


def add_models(verbs: Verbs) -> None:
    verb = add_verb(verbs, "models", _run_models, "names, parameters, MACs and published accuracy")
    verb.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="wildcard, such as 'swin*'")


def _run_models(args: argparse.Namespace) -> int:
    from fourstage.bench.count import model_rows
    from fourstage.progress import Bar

    with Bar("counting", 1) as bar:
        rows = model_rows(args.pattern, bar.of)
    if not rows:
        raise ValueError(f"no model's name matches {args.pattern!r}; `fourstage models` lists all")
    print_table(["model", "M parameters", "G MACs", "without attention", "image px", "published top-1 %"], rows)
    return 0


def add_bench(verbs: Verbs) -> None:
    verb = add_verb(verbs, "bench", _run_bench, "images per second, latency, memory and cost of models, side by side")
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
    print_table(*table(found))
    print("\n".join(["", *map(sentence, comparisons), written.conditions()]))
    return 0


def add_convert(verbs: Verbs) -> None:
    verb = add_verb(verbs, "convert", _run_convert, "a checkpoint of any of the sources as .safetensors in our names")
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

    words = [word.replace("=", ": ", 1) for word in only_changes(args.changes)]
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


def add_doctor(verbs: Verbs) -> None:
    add_verb(verbs, "doctor", _run_doctor, "versions, devices, what would not work here and what mends it")


def _run_doctor(args: argparse.Namespace) -> int:
    from fourstage.doctor import examine

    lines, healthy = examine()
    print("\n".join(lines))
    return 0 if healthy else 1
