"""Streams that are closed, full, gone or ASCII alone: a training goes on, another command ends as Unix tools do."""

import errno
import io
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run.runs import logged
from test_cli import image_folder

from fourstage import streams
from fourstage.cli import main
from fourstage.progress import Bar
from fourstage.streams import OutputLost, Stream, prepared, print_lines, steady, unattended, wrapped

FAST = ["length=6it", "batch_size=16", "warmup=0it", "evaluate_every=3it", "log_every=1", "device=cpu"]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "fourstage", *words]


def shell(line: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of ours in place of COMMAND in a line of a shell."""
    return subprocess.run(
        ["bash", "-c", line.replace("COMMAND", '"$0" "$@"'), *command(*words)],
        capture_output=True, text=True, check=False, timeout=200, env={**os.environ, **environment},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- a training


@needs_full
def test_a_training_goes_on_with_full_and_with_closed_streams(tmp_path: Path) -> None:
    out = tmp_path / "run"
    data = image_folder(tmp_path / "data", 40, 10)
    words = ("train", "digits_visformer", "--data", str(data), "--out", str(out), *FAST, "workers=0")
    full = shell("COMMAND >/dev/full 2>/dev/full", *words)
    assert (full.returncode, full.stdout, full.stderr) == (0, "", "")
    assert [line["step"] for line in logged(out, "train")] == [1, 2, 3, 4, 5, 6]
    assert (out / "report.html").is_file()
    closed = shell("COMMAND >&- 2>&- <&-; code=$?; exit $code", *words, "--fresh")
    assert closed.returncode == 0
    kept = [path.name for path in tmp_path.iterdir() if path not in (out, data)]
    assert len(kept) == 1  # the earlier run, set aside
    steps = [(line["step"], line["losses"]) for line in logged(out, "train")]
    assert steps == [(line["step"], line["losses"]) for line in logged(tmp_path / kept[0], "train")]


def test_a_training_goes_on_without_its_terminal_and_its_reader(tmp_path: Path) -> None:
    """The terminal is closed: SIGHUP to all processes of it, EIO for all that is written to it."""
    out = tmp_path / "run"
    data = image_folder(tmp_path / "data", 40, 10)
    more = ["length=12it", "evaluate_every=12it", "workers=1"]
    words = ["train", "digits_visformer", "--data", str(data), "--out", str(out), *FAST, *more]
    master, slave = pty.openpty()
    program = (
        "import fcntl, sys, termios\nfrom fourstage.cli import main\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\nsys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    while len(logged(out, "train")) < 2:
        assert process.poll() is None, os.read(master, 4096)
        os.set_blocking(master, False)
        try:
            os.read(master, 65536)
        except BlockingIOError:
            time.sleep(0.01)
    os.close(master)
    assert process.wait(timeout=200) == 0
    assert len(logged(out, "train")) == 12
    assert (out / "report.html").is_file()


def test_hangups_are_ignored_only_while_a_training_runs() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with unattended():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == before
    called: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, frame: called.append(number))
    try:
        with unattended():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert called == [signal.SIGHUP]  # a program's own handler stays


# ------------------------------------------------------------------------------------------------ other commands


def test_a_reader_that_leaves_ends_a_command_silently() -> None:
    done = shell("COMMAND | head -1; exit ${PIPESTATUS[0]}", "recipes")
    assert done.stdout.startswith("recipe")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 where the pipe takes everything before the reader leaves
    gone = shell("COMMAND | true; exit ${PIPESTATUS[0]}", "recipes")
    assert (gone.returncode, gone.stderr) == (141, "")


@needs_full
def test_an_output_that_cannot_be_written_is_an_error_of_one_line() -> None:
    for words in (["recipes"], ["--help"], ["--version"]):
        done = shell("COMMAND >/dev/full", *words)
        assert done.returncode == 2
        assert done.stderr == "fourstage: the standard output could not be written (No space left on device)\n"
    assert shell("COMMAND >&- ", "--version").returncode == 0
    refused = shell("COMMAND 2>/dev/full", "train", "nothing")
    assert (refused.returncode, refused.stdout) == (2, "")


# ------------------------------------------------------------------------------------------------------ characters


class Terminal(io.TextIOWrapper):
    """A terminal that keeps what is written to it."""

    def __init__(self, encoding: str, errors: str = "strict") -> None:
        self.kept = io.BytesIO()
        super().__init__(self.kept, encoding=encoding, errors=errors)

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        return self.kept.getvalue().decode("ascii")


ODD = "katze_\u00e4\u6f22_\udcff.png"  # a name with bytes that are no UTF-8 has such a surrogate


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_a_terminal_does_not_know_are_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with prepared():
        print(ODD)
        print_lines(ODD)
    terminal.flush()
    first, second = terminal.kept.getvalue().decode(encoding).splitlines()
    assert first == second
    assert "\\udcff" in first
    assert first.isascii() == (encoding == "ascii")


@pytest.mark.parametrize("locale", ["C", "POSIX"])
@pytest.mark.parametrize("name", ["LANG", "LC_ALL"])
def test_a_terminal_of_the_c_locale_gets_ascii(name: str, locale: str) -> None:
    """Python writes UTF-8 there; the terminal would show other characters."""
    program = (
        "import sys\nfrom fourstage.progress import Bar\nfrom fourstage.streams import prepared\n"
        "with prepared():\n    print('katze_\\xe4')\n    with Bar('reading', 9) as bar:\n        bar.update(5)"
    )
    master, slave = pty.openpty()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))}
    subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=slave, stderr=slave,
        env={**kept, name: locale, "TERM": "xterm", "COLUMNS": "60"},
    )  # fmt: skip
    shown = os.read(master, 1 << 16)
    os.close(slave)
    os.close(master)
    assert shown.isascii()
    assert b"katze_\\xe4" in shown
    assert b"5/9" in shown


@pytest.mark.parametrize(
    ("environment", "shows"),
    [({"TERM": "xterm"}, "\x1b["), ({"TERM": "dumb"}, "reading 9/9"), ({"TERM": "xterm", "NO_COLOR": "1"}, "9/9")],
)
def test_bars_of_terminals(environment: dict[str, str], shows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TERM", "NO_COLOR", "COLUMNS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal("ascii")
    monkeypatch.setattr(sys, "stderr", terminal)
    with Bar("reading", 9) as bar:
        bar.update(9, "note")
        bar.print_line("a line")
    assert shows in terminal.text()
    assert "a line" in terminal.text()
    assert ("\x1b" in terminal.text()) == (environment["TERM"] == "xterm")
    if "NO_COLOR" in environment:
        assert "\x1b[3" not in terminal.text()


# ------------------------------------------------------------------------------------------------------ one stream


class Broken(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, s: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EIO, "Input/output error"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_a_steady_stream_loses_what_it_cannot_write(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = steady(Broken(error))
    assert steady(stream) is stream
    print("lost", file=stream, flush=True)
    stream.writelines(["a", "b"])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Broken(error))
    print_lines("lost")
    with Bar("reading", 9) as bar:  # also where Python alone is used
        bar.update(9)
        bar.print_line("lost")


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("act", [lambda s: s.write("a"), lambda s: s.flush()], ids=["write", "flush"])
def test_other_streams_say_so_once(error: Exception, act: Callable[[Any], None]) -> None:
    stream = Stream(Broken(error), steady=False)
    with pytest.raises(OutputLost) as caught:
        act(stream)
    assert caught.value.reader_left == isinstance(error, BrokenPipeError)
    act(stream)


def test_streams_are_as_before_after_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    assert main(["--version"]) == 0
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out.startswith("fourstage ")


def test_a_program_without_streams_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pythonw or a service gives it to its programs."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(streams, "open", lambda *_: io.StringIO(), raising=False)
    assert main(["--version"]) == 0
    print_lines("lost")


def test_long_lines_break_between_words_at_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    line, path = "word " * 30, "/a-very-long-path" * 9
    monkeypatch.setenv("COLUMNS", "40")
    broken = wrapped(f"short\n{line}\nsee {path} there").splitlines()
    assert broken[0] == "short"
    assert max(len(part) for part in broken if path not in part) <= 40
    assert " ".join(" ".join(broken).split()) == f"short {line}see {path} there"  # nothing is lost, no path is broken
    assert broken[2].startswith("  word")
    monkeypatch.delenv("COLUMNS")
    assert wrapped(line) == line, "a pipe has no width"
