"""The progress bar of a terminal, by rich. Only `progress.py` imports this file."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from fourstage.streams import steady


def started(
    what: str, total: int, done: int, left: Callable[[], str], *, for_note: int
) -> tuple[Progress, TaskID] | tuple[None, None]:
    """Draw a bar on stderr and return it with its task; nothing where stderr is no terminal.

    Args:
        left: returns the time left, in words.
        for_note: columns from which on a terminal has room for a note.
    """
    console = Console(file=steady(sys.stderr))
    if not console.is_terminal or console.is_dumb_terminal:
        return None, None
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=None),
        _Done(),
        _Left(left),
    ]
    if console.width >= for_note:
        columns.append(TextColumn("{task.fields[note]}", style="dim", table_column=Column(no_wrap=True)))
    progress = Progress(*columns, console=console, expand=True)
    progress.start()
    return progress, progress.add_task(what, total=total, completed=done, note="")


class _Done(ProgressColumn):
    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def render(self, task: Task) -> Text:
        return Text(f"{int(task.completed)}/{int(task.total or 0)}")


class _Left(ProgressColumn):
    def get_table_column(self) -> Column:
        return Column(no_wrap=True)

    def __init__(self, left: Callable[[], str]) -> None:
        super().__init__()
        self.left = left

    def render(self, task: Task) -> Text:
        return Text(self.left())
