"""`export`: a network as a file for other runtimes."""

import argparse
import sys
from typing import TYPE_CHECKING

from fourstage.cli.parsing import Verbs, add_imports, add_verb, print_table
from fourstage.streams import wrapped

if TYPE_CHECKING:
    from fourstage.export.proof import Proof

FAILED = 1  # exit code: the file deviates from the network, and was not written


def add_export(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "export",
        _run_export,
        help,
        ["fourstage export runs/mine", "fourstage export runs/mine --format openvino --dynamic batch --out mine.xml"],
    )
    verb.add_argument(
        "source", metavar="RUN|FILE|MODEL|RECIPE", help="a run folder, a checkpoint, a model or a recipe, as in predict"
    )
    verb.add_argument("--format", metavar="FORMAT", default="onnx", help="onnx, torch or openvino; default: onnx")
    verb.add_argument(
        "--dynamic",
        metavar="AXES",
        default="",
        help="axes of any size, separated by commas: batch,height,width; default: one image of a fixed size",
    )
    verb.add_argument("--half", action="store_true", help="store large weights in float16; compute in float32")
    verb.add_argument(
        "--output", metavar="WHAT", default="logits", help="of a segmentor: logits, or labels for a label map"
    )
    verb.add_argument("--size", metavar="HEIGHTxWIDTH", help="pixels of the images; default: those of the recipe")
    verb.add_argument(
        "--data", metavar="PATH", help="data whose validation images prove the file; default: the run's, else noise"
    )
    verb.add_argument("--weights", metavar="FILE", help="the checkpoint for a model or a recipe")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="which weights of the checkpoint")
    verb.add_argument("--dense", action="store_true", help="export a model as the backbone that returns feature maps")
    verb.add_argument("--out", metavar="FILE", help="the file to write; default: the name of the source")
    verb.add_argument("--force", action="store_true", help="replace an existing file")
    add_imports(verb, "a Python file of your own that the network is built from; may be repeated")


def _run_export(args: argparse.Namespace) -> int:
    from fourstage.bench.options import parse_size
    from fourstage.run.export import export_network

    written = export_network(
        args.source,
        args.out,
        format=args.format,
        dynamic=args.dynamic.replace(",", " ").split(),
        half=args.half,
        output=args.output,
        size=None if args.size is None else parse_size(args.size),
        data=args.data,
        weights=args.weights,
        which=args.which,
        dense=args.dense,
        force=args.force,
        imports=args.imports,
    )
    proof = written.proof
    if proof.rows:
        print_table(*_table(proof))
    if proof.note:
        print(wrapped(proof.note))
    if proof.failure:
        what = "fails its proof" if proof.stopped else "deviates from its network"
        text = f"{written.path.name} {what}: {proof.failure}; no file was written"
        print(f"fourstage: {text}", file=sys.stderr)
        return FAILED
    size = f"{written.size / 1e6:.1f} MB"
    print(wrapped(f"wrote {written.path} ({size}), proved by {proof.runtime}; the proof is in {written.proof_path}"))
    return 0


def _table(proof: "Proof") -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rows of a proof, the largest allowed deviations last."""
    names, counts = [*proof.worst], any(row.detections is not None for row in proof.rows)
    rows = []
    for row in proof.rows:
        cells = [row.images, " x ".join(map(str, row.shape)), *([str(row.detections)] if counts else [])]
        rows.append([*cells, *(f"{row.deviations[name]:.1e}" for name in names)])
    most = [f"{getattr(proof.tolerance, name):.1e}" for name in names]
    return ["images", "shape", *(["detections"] if counts else []), *names], [
        *rows,
        ["at most", "", *([""] if counts else []), *most],
    ]
