"""The parser with its errors, and helpers for all verbs: changes of a recipe, tables."""

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import NoReturn, TypeAlias

PIPE = 200  # columns of output that is no terminal
STOPPED = {"Ctrl-C": 130, "SIGTERM": 143}  # exit codes: 128 + the number of the signal, as in shells


class Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, with the closest correct word."""

    def error(self, message: str) -> NoReturn:
        choices = re.search(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choices:
            argument, given, known = choices.groups()
            from fourstage.recipe.spelling import nearest

            close = nearest(given, re.findall(r"[\w-]+", known))
            of_option = f" for {argument}" if argument.startswith("-") else ""
            message = f"there is no {given!r}{of_option}, " + (
                f"did you mean {close[0]}" if close else f"choose {known}"
            )
        self.exit(2, f"fourstage: {message}; see `{self.prog} --help`\n")


class HelpFormatter(argparse.HelpFormatter):
    """Wraps the description and keeps the lines of the examples below it."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n  " in text else super()._fill_text(text, width, indent)


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], help: str, examples: Sequence[str]
) -> argparse.ArgumentParser:
    """Add a verb that calls `run`, whose result is the exit code. Its help ends in examples of the command."""
    shown = "\n".join(["examples:" if len(examples) > 1 else "example:", *(f"  {example}" for example in examples)])
    verb = verbs.add_parser(name, help=help, description=help, epilog=shown, formatter_class=HelpFormatter)
    verb.set_defaults(run=run)
    return verb


def add_changes(verb: argparse.ArgumentParser) -> None:
    """Add the positional words KEY=VALUE, which change values of a recipe."""
    verb.set_defaults(changes_recipe=True)
    verb.add_argument(
        "changes",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="change values of the recipe, such as optimisation.lr=1e-3",
    )


def add_imports(verb: argparse.ArgumentParser, help: str) -> None:
    """Add the option that names Python files of the user."""
    verb.add_argument("--imports", metavar="FILE.py", action="append", default=[], help=help)


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield every long option of a parser, without those of the verbs below it."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))


def verbs_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the parsers of the verbs of a parser by their names."""
    below = (action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return next(below, {})


def takes_changes(parser: argparse.ArgumentParser) -> bool:
    """Return whether a verb takes the words of `add_changes`, which are values of a recipe."""
    return bool(parser.get_default("changes_recipe"))


def names_a_file(word: str) -> bool:
    """Return whether there is a file or folder of this name; a change of a recipe may be too long for one."""
    try:
        return Path(word).exists()
    except OSError:
        return False


def alone(json: bool) -> AbstractContextManager[object]:
    """Return the context in which the user's code prints on the standard error, where JSON is the standard output."""
    return redirect_stdout(sys.stderr) if json else nullcontext()


def terminal_width() -> int:
    """Return the columns of the terminal; a pipe, which has no width of its own, counts as `PIPE`."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns below their titles; if the output is no terminal, nothing is cut off."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(head):  # cells are plain text: rich would read `[int, int]` as a style
        table.add_column(title, no_wrap=i == 0, overflow="fold")  # a name in one line can be copied
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width of its own
        console = Console(highlight=False, width=PIPE)
    console.print(table, crop=console.is_terminal)
