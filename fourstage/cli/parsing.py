"""The parser with its errors, and helpers for all verbs: changes of a recipe, tables."""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import NoReturn, TypeAlias

STOPPED = {"Ctrl-C": 130, "SIGTERM": 143}  # exit codes: 128 + the number of the signal, as in shells


class Parser(argparse.ArgumentParser):
    """Reports an error in one sentence, with the closest correct word."""

    def error(self, message: str) -> NoReturn:
        choices = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choices:
            known = re.findall(r"[\w-]+", choices[2])
            close = get_close_matches(choices[1], known, n=1)
            message = f"there is no {choices[1]!r}, " + (
                f"did you mean {close[0]}" if close else f"choose {choices[2]}"
            )
        self.exit(2, f"fourstage: {message}; see `{self.prog} --help`\n")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_verb(verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    """Add a verb that calls `run`, whose result is the exit code."""
    verb = verbs.add_parser(name, help=help, description=help)
    verb.set_defaults(run=run)
    return verb


def add_changes(verb: argparse.ArgumentParser) -> None:
    """Add the positional words KEY=VALUE, which change values of a recipe."""
    verb.add_argument(
        "changes",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="change values of the recipe, such as optimisation.lr=1e-3",
    )


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield every long option of a parser and of the verbs below it."""
    for action in parser._actions:
        yield from (option for option in action.option_strings if option.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from options_of(verb)


def closest_option(word: str, parser: argparse.ArgumentParser) -> str | None:
    """Return the option of any verb that is most like a word, if it is not the word itself."""
    options = sorted({*options_of(parser)} - {word})
    return next(iter(get_close_matches(word, options, n=1)), None)


def check_changes(words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """End with an error unless each word is a change KEY=VALUE; another word is often an option without its dashes."""
    for word in words:
        if "=" not in word:
            option = closest_option(word, parser)
            hint = f"did you mean {option}" if option else "a change is written key=value"
            parser.error(f"{word!r} is not expected here, {hint}")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns below their titles; if the output is no terminal, nothing is cut off."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(head):
        table.add_column(title, no_wrap=i == 0, overflow="fold")  # a name in one line can be copied
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width of its own
        console = Console(highlight=False, width=200)
    console.print(table, crop=console.is_terminal)
