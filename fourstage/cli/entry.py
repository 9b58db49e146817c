"""From the words of a command to its exit code."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pkgutil import resolve_name
from typing import NamedTuple

from fourstage.cli.parsing import (
    STOPPED,
    Parser,
    options_of,
    verbs_of,
)
from fourstage.cli.unknown_options import check_changes, check_files, refuse_options
from fourstage.cores import set_waiting
from fourstage.resources import sentences
from fourstage.streams import OutputLost, prepared

BROKEN_PIPE = 141  # exit code: 128 + the number of SIGPIPE, as in shells


class Verb(NamedTuple):
    """One row of `--help`, and where its options are: imported and built only for the verb that is typed."""

    name: str
    help: str
    add: str  # "module:function" below `fourstage.cli`


VERBS = (  # in the order of `--help`
    Verb("models", "list models with parameters, MACs and published accuracy", "tools:add_models"),
    Verb("recipes", "list recipes with their published numbers, or the keys of a recipe", "runs:add_recipes"),
    Verb("train", "train from a recipe, or resume a stopped run", "runs:add_train"),
    Verb("evaluate", "score a checkpoint on the validation split", "runs:add_evaluate"),
    Verb("predict", "predict images and videos with a trained network", "runs:add_predict"),
    Verb("demo", "open a page in the browser that predicts the images dropped on it", "demo:add_demo"),
    Verb("report", "compare several runs on one page", "runs:add_report"),
    Verb("data", "check, shard and show data sets", "data:add_data"),
    Verb("bench", "measure throughput, latency, memory and cost of models side by side", "tools:add_bench"),
    Verb(
        "analyze",
        "analyse networks: receptive fields, similarity, activation maps, attention, robustness",
        "analyze:add_analyze",
    ),
    Verb("compare", "train variants of a recipe over seeds and compare them, or finished runs", "compare:add_compare"),
    Verb("check", "check a token mixer or backbone of your own, beside the built-in mixers", "check:add_check"),
    Verb("convert", "convert a checkpoint of any source to .safetensors with our names", "tools:add_convert"),
    Verb("export", "write a file for ONNX Runtime, OpenVINO or torch, and compare outputs", "export:add_export"),
    Verb("verify", "check a checkpoint against what its source publishes", "hub:add_verify"),
    Verb("push", "upload a trained network with its model card to Hugging Face's hub", "hub:add_push"),
    Verb(
        "import-config",
        "write a recipe from a configuration of MMDetection or MMSegmentation",
        "import_config:add_import_config",
    ),
    Verb("slurm", "write and submit an sbatch file that trains or evaluates", "slurm:add_slurm"),
    Verb("doctor", "report versions, devices and problems, with their solutions", "tools:add_doctor"),
)


def parser(words: Collection[str] | None = None) -> argparse.ArgumentParser:
    """Build the parser of all verbs and their options.

    Args:
        words: of a command; verbs that are not among them have no options, only their line. None: all have.
    """
    top = Parser(prog="fourstage", description="Train, evaluate and compare four-stage vision backbones.")
    top.add_argument("--version", action="store_true", help="print the version and exit")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for verb in VERBS:
        if words is None or verb.name in words:
            resolve_name(f"fourstage.cli.{verb.add}")(verbs, verb.help)
        else:
            verbs.add_parser(verb.name, help=verb.help, add_help=False)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a mistake of the user is code 2 and one sentence."""
    with prepared():
        try:
            try:
                return _main(argv)
            finally:
                sys.stdout.flush()
        except OutputLost as lost:
            if lost.reader_left:
                return BROKEN_PIPE  # silently, as other tools: `fourstage models | head -1`
            print(f"fourstage: {lost}", file=sys.stderr)
            return 2


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if "torch" not in sys.modules:  # torch reads it once, when it is imported
        set_waiting()
    from fourstage.engine.slurm import translate

    translate()  # srun starts several processes, as torchrun does
    if os.environ.get("RANK", "0") != "0":  # only the first of several processes prints
        _mute()
    arguments = [argument for argument in arguments if argument != "--debug"]
    args = parse(arguments)
    if args.version:
        from importlib.metadata import version

        print(f"fourstage {version('fourstage')}")
        return 0
    if args.verb is None:
        parser(()).print_help()
        return 0
    try:
        _check_empty_words(args)
        with sentences():
            return args.run(args)
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print(
            "\n".join([f"fourstage: {_without_library(error) or _one_line(error)}", *getattr(error, "__notes__", ())]),
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("\nfourstage: stopped at once; all checkpoints that were saved before are complete", file=sys.stderr)
        return STOPPED["Ctrl-C"]


def _without_library(error: Exception) -> str:
    """Return the sentence for a command that needs torch or a library of an extra; empty for other errors."""
    if not isinstance(error, ModuleNotFoundError):
        return ""
    from fourstage.extras import install, without_library

    if error.name != "torch":
        return without_library(error)
    return f"torch is missing, and only predictions from .onnx and .xml files work without it; type: {install()}"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command. Words after an option may still be changes, images, networks or runs, unlike in argparse."""
    top = parser(arguments)
    verb = _check_options(arguments, top)  # first: argparse reports missing words before unknown ones
    args, rest = top.parse_known_args(arguments)
    words = [word for word in rest if not word.startswith("-")]
    if unknown := [word for word in rest if word.startswith("-")]:
        refuse_options(unknown, verb, arguments)
    for field in ("changes", "images", "networks", "runs"):
        if hasattr(args, field):
            getattr(args, field).extend(words)
            check_changes(getattr(args, "changes", ()), verb, arguments)
            check_files(getattr(args, "images", ()), verb, arguments)
            return args
    if words:
        verb.error(f"{words[0]!r} is not expected here")
    return args


def _check_options(arguments: Sequence[str], top: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser of the verb that is typed. End with an error for an option that it does not have."""
    verb, unknown = top, list[str]()
    for word in arguments:
        if word == "--":
            break
        if word.startswith("--"):
            name = word.partition("=")[0]
            if not any(option.startswith(name) for option in options_of(verb)):  # argparse completes a beginning
                unknown.append(word)
        elif (verbs := verbs_of(verb)) and not word.startswith("-"):
            if word not in verbs:
                break
            verb = verbs[word]
    if unknown:
        refuse_options(unknown, verb, arguments)
    return verb


def _check_empty_words(args: argparse.Namespace) -> None:
    """Raise ValueError for an empty path or name: `--out ""` would otherwise be the folder of the shell."""
    for field in ("out", "data", "source", "weights", "images", "networks", "runs"):
        value = getattr(args, field, None)
        if value == "" or (isinstance(value, list) and "" in value):
            positional = f"one of the {field}" if isinstance(value, list) else f"the {field}"
            option = f"--{field}" if field in ("out", "data", "weights") else positional
            raise ValueError(f"{option} is empty, perhaps because a shell variable is not set; give a path or a name")


def _mute() -> None:
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
