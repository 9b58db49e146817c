"""What a line of the report card says, and how an error in the user's code becomes one."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fourstage.user_files import where_raised

PACKAGE = str(Path(__file__).parents[1])
FRAME = re.compile(r'File "([^"]+)", line (\d+)')  # in the messages of PyTorch's compiler

Status = Literal["pass", "warn", "fail", "skip"]
LONGEST = 200  # characters of an error that are shown


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        status: "skip" where a check that this one builds on has failed.
        found: what was measured or seen.
        advice: what to do, one sentence; "" where the check passes.
    """

    status: Status
    found: str
    advice: str = ""


def passed(found: str) -> Finding:
    return Finding("pass", found)


def warned(found: str, advice: str) -> Finding:
    return Finding("warn", found, advice)


def failed(found: str, advice: str) -> Finding:
    return Finding("fail", found, advice)


def guarded(check: Callable[[], Finding], advice: str) -> Finding:
    """Return the finding of a check; an error in the user's code is a failed one with `advice`."""
    try:
        return check()
    except (Exception, SystemExit) as error:  # the user's code may raise anything; its other lines are wanted too
        return failed(described(error), advice)


def described(error: BaseException) -> str:
    """Return an error in one line: its type, the beginning of its message, and where the user's code raised it."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    place = _place(error)
    return f"{type(error).__name__}{': ' if shown else ''}{shown}" + (f" ({place})" if place else "")


def _place(error: BaseException) -> str:
    """Return the file and line of the user's code that an error comes from; "" where it is in none."""
    for file, line in reversed(FRAME.findall(str(error))):  # the compiler's own frames are those of the error
        if _is_own(file):
            return f"{Path(file).name}, line {line}"
    if error.__traceback__ is None:
        return ""
    file, _, line = where_raised(error).rpartition(", ")
    return f"{Path(file).name}, {line}" if _is_own(file) else ""


def _is_own(file: str) -> bool:
    return file.endswith(".py") and "site-packages" not in file and not file.startswith(PACKAGE)
