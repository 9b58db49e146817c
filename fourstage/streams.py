"""The standard streams: they may be closed, full, gone with their terminal, or know only ASCII.

Any package may import this module. A training writes to steady streams, which lose what they cannot write; the log
file of the run has it as well. Other commands stop, as the tools of Unix do.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TextIO

C_LOCALES = ("C", "POSIX")


class OutputLost(Exception):
    """The standard output cannot be written. No OSError, which would be one of a file."""

    def __init__(self, error: BaseException) -> None:
        self.reader_left = isinstance(error, BrokenPipeError)
        self.reason = getattr(error, "strerror", None) or str(error)
        super().__init__(f"the standard output could not be written ({self.reason})")


class Stream:
    """A text stream whose failure to write is either nothing, or `OutputLost`; all else is as in the stream itself.

    Args:
        steady: lose what cannot be written.
        own: the stream belongs to this command, so that its file descriptor may be replaced after a failure; else the
            interpreter would report what is left in its buffers.
    """

    def __init__(self, stream: Any, *, steady: bool, own: bool = False) -> None:
        self._stream, self.steady, self._own, self._lost = stream, steady, own, False

    def write(self, text: str) -> int:
        if not self._lost:
            try:
                self._stream.write(text)
            except UnicodeError:
                raise
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self._lose(error)
        return len(text)

    def flush(self) -> None:
        if not self._lost:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: BaseException) -> None:
        self._lost = True
        if self._own:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)
        if not self.steady:
            raise OutputLost(error) from None


def steady(stream: TextIO | None) -> Any:
    """Return a stream that loses what it cannot write; None, which a program without a terminal has, is one of them."""
    if isinstance(stream, Stream) and stream.steady:
        return stream
    return Stream(stream if stream is not None else open(os.devnull, "w"), steady=True)  # noqa: PTH123


def print_lines(text: str) -> None:
    """Print lines on the standard output, wrapped; a stream that cannot be written loses them."""
    out = steady(sys.stdout)
    out.write(f"{wrapped(text)}\n")
    out.flush()


def wrapped(text: str) -> str:
    """Return lines broken between words at the width of the terminal; unchanged where the output is no terminal."""
    width = _columns()
    if width is None:
        return text
    import textwrap

    fill = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(fill.fill(line) if len(line) > width else line for line in text.split("\n"))


def _columns() -> int | None:
    """Return the width of the terminal, which COLUMNS overrides; None: there is none."""
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named) > 0:
        return int(named)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


@contextmanager
def prepared() -> Generator[None]:
    """Replace the standard streams for one command: see `Stream`. The standard error is always steady."""
    _open_closed()
    before = sys.stdout, sys.stderr
    for stream in before:
        _allow_all_characters(stream)
    sys.stdout = _wrapped(sys.stdout, steady=False)
    sys.stderr = _wrapped(sys.stderr, steady=True)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def unattended() -> Generator[None]:
    """Go on where the terminal is closed or the standard output cannot be written."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.steady = True
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(hangup)
    if before == signal.SIG_DFL:
        signal.signal(hangup, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(hangup, before)


def _wrapped(stream: TextIO | None, *, steady: bool) -> Any:
    if stream is None:
        stream = open(os.devnull, "w")  # noqa: PTH123, SIM115
    own = stream in (sys.__stdout__, sys.__stderr__)  # not one that a test or a notebook has put there
    return Stream(stream, steady=steady, own=own)


def _open_closed() -> None:
    """Open the null device in place of closed standard streams: else the next file takes their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _allow_all_characters(stream: Any) -> None:
    """Print characters that a stream does not know as escapes; a terminal of the C locale knows ASCII alone."""
    if not hasattr(stream, "reconfigure"):
        return
    if stream.isatty() and _is_c_locale():
        stream.reconfigure(encoding="ascii", errors="backslashreplace")
    elif stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")


def _is_c_locale() -> bool:
    """Return whether the user set the locale C or POSIX. Python itself then takes UTF-8, and sets LC_CTYPE."""
    if "PYTHONIOENCODING" in os.environ or "PYTHONUTF8" in os.environ or not sys.flags.utf8_mode:
        return False
    return (os.environ.get("LC_ALL") or os.environ.get("LANG")) in C_LOCALES
