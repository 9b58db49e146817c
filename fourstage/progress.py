"""A progress bar on stderr, or plain lines where stderr is no terminal."""

import os
import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fourstage.streams import steady

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

STAGE = "FOURSTAGE_STAGE"  # such as "2/3 14,36,50": the second of three commands, and their shares of the time


@dataclass(frozen=True)
class Stage:
    """The place of this command among several in a row, such as those of `make demo`."""

    number: int  # from 1
    shares: tuple[float, ...]  # of the time of all

    @classmethod
    def here(cls) -> "Stage | None":
        """Return what the environment says; None: this command is alone."""
        place, _, shares = os.environ.get(STAGE, "").partition(" ")
        try:
            number, count = (int(word) for word in place.split("/"))
            stage = cls(number, tuple(float(share) for share in shares.split(",")))
        except ValueError:
            return None
        return stage if 1 <= number <= count == len(stage.shares) and min(stage.shares) > 0 else None

    def left_in_all(self, left: float, spent: float) -> float:
        """Return the seconds left for this and all later stages, from those of this one."""
        later = sum(self.shares[self.number :])
        return left + (left + spent) * later / self.shares[self.number - 1]

    def __str__(self) -> str:
        return f"stage {self.number}/{len(self.shares)}"


class Bar:
    """A progress bar with the time left and a note; without a terminal, a plain line every few seconds.

    Args:
        main: whether this takes most of the time of the command; as a stage of several, it then shows their time left.
    """

    def __init__(
        self, what: str, total: int, done: int = 0, *, show: bool = True, every: float = 10.0, main: bool = False
    ) -> None:
        self.stage = Stage.here()
        self._in_all = main
        what = f"{self.stage}  {what}" if self.stage else what
        self.what, self.total, self.done, self.first = what, total, done, done
        self._show, self._every, self._started, self._last_printed = show, every, time.monotonic(), time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._show:  # else nothing needs rich, which benchmarks on a GPU do without
            from fourstage.terminal_bar import started

            for_note = 100 if self.stage and self._in_all else 80
            self._progress, self._task = started(self.what, self.total, self.done, self.left, for_note=for_note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are finished."""
        self.done = done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
        elif self._show and (
            time.monotonic() - self._last_printed > self._every or (done == self.total and self.total > 1)
        ):
            self._last_printed = time.monotonic()
            _print(f"{self.what} {done}/{self.total}  {self.left()}  {note}".rstrip())

    def resize(self, total: int) -> None:
        """Change the total."""
        self.total = total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def of(self, done: int, total: int) -> None:
        """Change the total and show that `done` of it are finished."""
        self.resize(total)
        self.update(done)

    def left(self) -> str:
        """Return the time left at the pace so far, as `1:02:03 left`; as a stage of several, that of all of them."""
        finished = self.done - self.first
        if not finished:
            return "-:-- left"
        spent = time.monotonic() - self._started
        left = spent / finished * (self.total - self.done)
        if self.stage is None or not self._in_all:
            return f"{clock(left)} left"
        before = spent / finished * self.first  # a run that continues
        return f"{clock(self.stage.left_in_all(left, spent + before))} left in all"

    def print_line(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._show:
            return
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            _print(text)


def _print(text: str) -> None:
    print(text, file=steady(sys.stderr), flush=True)


def clock(seconds: float) -> str:
    """Return seconds as text: 3723 as 1:02:03, 62 as 1:02."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
