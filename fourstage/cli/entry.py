"""From the words of a command to its exit code."""

import argparse
import os
import sys
from collections.abc import Sequence

from fourstage.cli import analyze, check, compare, data, import_config, runs, slurm, tools
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
VERBS = (  # in the order of `--help`
    tools.add_models,
    runs.add_recipes,
    runs.add_train,
    runs.add_evaluate,
    runs.add_predict,
    runs.add_report,
    data.add_data,
    tools.add_bench,
    analyze.add_analyze,
    compare.add_compare,
    check.add_check,
    tools.add_convert,
    import_config.add_import_config,
    slurm.add_slurm,
    tools.add_doctor,
)


def parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs and their options."""
    top = Parser(prog="fourstage", description="Train, evaluate and compare four-stage vision backbones.")
    top.add_argument("--version", action="store_true", help="print the version and exit")
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for add in VERBS:
        add(verbs)
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
        parser().print_help()
        return 0
    try:
        _check_empty_words(args)
        with sentences():
            return args.run(args)
    except (ValueError, OSError, ImportError) as error:
        if debug:
            raise
        print("\n".join([f"fourstage: {_one_line(error)}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nfourstage: stopped at once; all checkpoints that were saved before are complete", file=sys.stderr)
        return STOPPED["Ctrl-C"]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command. Words after an option may still be changes or images, which argparse alone does not allow."""
    top = parser()
    verb = _check_options(arguments, top)  # first: argparse reports missing words before unknown ones
    args, rest = top.parse_known_args(arguments)
    words = [word for word in rest if not word.startswith("-")]
    if unknown := [word for word in rest if word.startswith("-")]:
        refuse_options(unknown, verb, arguments)
    for field in ("changes", "images", "networks"):
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
            option = f"--{field}" if field in ("out", "data", "weights") else f"one of the {field}"
            raise ValueError(f"{option} is empty, as of a shell variable that is not set; give a path or a name")


def _mute() -> None:
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
