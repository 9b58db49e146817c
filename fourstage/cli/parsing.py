"""What all verbs are made with: the parser and its errors, options, changes of a recipe, tables."""

import argparse
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn, TypeAlias

OPTIONS = (
    "--data",
    "--out",
    "--fresh",
    "--dry-run",
    "--weights",
    "--which",
    "--json",
    "--device",
    "--debug",
    "--version",
    "--train",
    "--against",
    "--dense",
    "--dtype",
    "--channels-last",
    "--compile",
    "--img-size",
    "--batch-size",
    "--seconds",
    "--threads",
    "--cpu-time",
    "--csv",
    "--jsonl",
    "--model",
    "--force",
    "--max-size",
    "--count",
    "--recipe",
    "--partition",
    "--gpus",
    "--gpus-per-node",
    "--cpus-per-task",
    "--time",
    "--job-name",
    "--srun-args",
    "--sbatch-args",
)
STOPPED = {"Ctrl-C": 130, "SIGTERM": 143}  # 128 + the signal's number, as shells have it


class Parser(argparse.ArgumentParser):
    """Errors in one sentence, with what was probably meant."""

    def error(self, message: str) -> NoReturn:
        choices = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if choices:
            known = re.findall(r"[\w-]+", choices[2])
            close = get_close_matches(choices[1], known, n=1)
            message = f"there is no {choices[1]!r}, " + (
                f"did you mean {close[0]}" if close else f"choose {choices[2]}"
            )
        self.exit(2, f"fourstage: {message}; `{self.prog} --help` shows how\n")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_verb(verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    """A verb that calls `run`, whose result is the exit code."""
    verb = verbs.add_parser(name, help=help, description=help)
    verb.set_defaults(run=run)
    return verb


def add_changes(verb: argparse.ArgumentParser) -> None:
    """Words after the options that change values of a recipe."""
    verb.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="values that differ from the recipe's"
    )


def only_changes(words: Sequence[str]) -> list[str]:
    """KEY=VALUE words; anything else was meant for somewhere else."""
    for word in words:
        if "=" not in word:
            close = get_close_matches(word, OPTIONS, n=1)
            hint = f"did you mean {close[0]}?" if close else "a change is written key=value"
            raise ValueError(f"{word!r} is not understood here; {hint}")
    return list(words)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns below their titles; where the output is no terminal, nothing is cut off."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(head):
        table.add_column(title, no_wrap=i == 0, overflow="fold")  # names stay whole, to be copied
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width
        console = Console(highlight=False, width=200)
    console.print(table, crop=console.is_terminal)
