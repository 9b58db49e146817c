"""What a run writes while it works: lines for programs, curves for TensorBoard and for trackers."""

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from fourstage.engine.tracker import Entry, begin
from fourstage.resources import full_disk_text, is_disk_full


class RunLog:
    """`log.jsonl` and TensorBoard's files in a run folder, and the tracker that the recipe names.

    Args:
        position: bytes in the log when a state was saved; a run that continues from that state first truncates the
            log there, so that no step is logged twice.
        step: step of that state.
        tracker: "none", "wandb" or "trackio"; see engine/tracker.py.
        config: the recipe, for a tracker to show beside the curves.

    Raises:
        ValueError: the tracker is not installed or cannot start.
    """

    def __init__(
        self,
        folder: Path,
        position: int = 0,
        step: int = 0,
        *,
        tracker: str = "none",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        path = folder / "log.jsonl"
        path.touch()
        before = path.read_bytes()
        length = before[:position].rfind(b"\n") + 1 if len(before) < position else position
        os.truncate(path, length)  # a log that was damaged meanwhile keeps its complete lines
        written, kept = (_entries(lines) if tracker != "none" else () for lines in (before, before[:length]))
        self._tracker = begin(tracker, folder, config or {}, written=written, kept=kept)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._board = _tensorboard(folder / "tensorboard", step)
        self._hook = threading.excepthook
        threading.excepthook = self._note_failed_thread

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, and send its numbers to TensorBoard and to the tracker.

        Raises:
            OSError: the disk is full; the message says that the last checkpoint is good.
        """
        try:
            self._file.write(json.dumps(_finite(line)) + "\n")
            self._file.flush()
            if self._board is not None:
                for name, value in _numbers(line):
                    self._board.add_scalar(name, value, line["step"])
        except OSError as error:
            reason = full_disk_text(Path(self._file.name).parent, error) if is_disk_full(error) else error.strerror
            raise OSError(
                f"{self._file.name} could not be written: {reason}; the last checkpoint is good; free space, and start "
                f"again with the same command"
            ) from None
        if self._tracker is not None:
            self._tracker.send(_entry(line))

    def position(self) -> int:
        """Return the length of the log in bytes, after all of it is synced to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # `write` has already reported a full disk
            self._file.close()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
        threading.excepthook = self._hook
        if self._tracker is not None:
            self._tracker.close()

    def _note_failed_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Leave a full disk to `write`: TensorBoard raises the error of its thread there once more."""
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__module__.startswith("tensorboard")):
            self._hook(failed)


def _tensorboard(folder: Path, step: int) -> Any:
    """Return TensorBoard's writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    begun = step > 0 or (folder.is_dir() and any(folder.iterdir()))
    return SummaryWriter(str(folder), purge_step=step + 1 if begun else None)


def _kind(line: Mapping[str, Any]) -> str:
    return line["kind"] if "which" not in line else f"{line['kind']}-{line['which']}"


def _entry(line: Mapping[str, Any]) -> Entry:
    return Entry(_kind(line), line["step"], dict(_numbers(line)))


def _entries(lines: bytes) -> Iterable[Entry]:
    """Yield the lines of a log as entries of a tracker, without damaged lines."""
    for text in lines.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            yield _entry(json.loads(text))


def _numbers(line: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return pairs such as ("train/loss_class", 1.2)."""
    kind = _kind(line)
    flat = {**line, **line.get("losses", {}), **line.get("metrics", {}), **line.get("timing", {})}
    skipped = ("step", "epoch", "kind", "which")
    return [
        (f"{kind}/{key}", value) for key, value in flat.items() if isinstance(value, float | int) and key not in skipped
    ]


def _finite(value: Any) -> Any:
    """Return the value with infinities and NaN as text, because JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def epoch_text(epoch: float) -> str:
    """Return an epoch with two digits after the point at most: 3, 2.5, 0.27; below 0.01 with two significant ones."""
    return f"{epoch:.2g}" if 0 < epoch < 0.01 else f"{epoch:.2f}".rstrip("0").rstrip(".")


def all_metrics(metrics: Mapping[str, float]) -> str:
    """Return each metric with its name and two digits after the point."""
    return "  ".join(f"{name} {value:.2f}" for name, value in metrics.items())


class Meter:
    """Measures the time spent on loading and computing. Its numbers are reported, and no result depends on them."""

    def __init__(self) -> None:
        self._mark = time.monotonic()
        self._images, self._waited, self._worked = 0, 0.0, 0.0
        self._text = ""

    def loading(self) -> None:
        self._mark = time.monotonic()

    def computing(self, images: int) -> None:
        """Mark the end of loading; `images` are processed from here to `done`."""
        now = time.monotonic()
        self._waited += now - self._mark
        self._images += images
        self._mark = now

    def done(self) -> None:
        self._worked += time.monotonic() - self._mark

    def timing(self) -> dict[str, float]:
        """Return images per second, the share of time spent waiting for data, and the seconds since the last call."""
        spent = max(self._waited + self._worked, 1e-9)
        rate, wait = self._images / spent, self._waited / spent
        self._text = f"{rate:.0f} images/s  {wait:.0%} waiting for data"
        self._images, self._waited, self._worked = 0, 0.0, 0.0
        return {"images_per_second": rate, "data_wait": wait, "seconds": spent}

    def note(self) -> str:
        return self._text
