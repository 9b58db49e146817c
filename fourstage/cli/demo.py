"""The verb demo."""

import argparse

from fourstage.cli.parsing import Verbs, add_imports, add_verb


def add_demo(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "demo",
        _run_demo,
        help,
        ["fourstage demo runs/mine", "fourstage demo runs/mine --port 8000 --device cpu"],
    )
    verb.add_argument(
        "source",
        metavar="RUN|FILE|MODEL|RECIPE",
        help="as in `fourstage predict`: a run folder, a checkpoint, hf-hub:USER/NAME, a model or a recipe",
    )
    verb.add_argument(
        "--weights", metavar="FILE", help="the checkpoint for a named model or recipe; default: the published one"
    )
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument("--tile", type=int, metavar="PIXELS", help="predict large images in tiles, such as 640")
    verb.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    verb.add_argument(
        "--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone; 0.0.0.0 lets other machines in"
    )
    verb.add_argument("--port", type=int, default=7860, help="default: 7860")
    add_imports(verb, "a file that registers what the network of a checkpoint is built from; may be repeated")


def _run_demo(args: argparse.Namespace) -> int:
    from fourstage.demo import serve

    serve(
        args.source,
        weights=args.weights,
        which=args.which,
        tile=args.tile,
        device=args.device,
        imports=args.imports,
        host=args.host,
        port=args.port,
    )
    return 0
