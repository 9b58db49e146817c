"""Weights & Biases and trackio, beside a run's own log: the same numbers under the same names.

A tracker that is not installed is an error before a training starts. A failure later never stops the training.
"""

import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fourstage.documents import read_json
from fourstage.extras import install
from fourstage.files import write_text
from fourstage.streams import steady

FILE = "tracker.json"  # the tracker's run that belongs to a folder, and the steps that were sent


class Entry(NamedTuple):
    """The numbers of one line of the log."""

    kind: str  # such as "train"; the steps of one kind only increase
    step: int
    numbers: dict[str, float]


class Writer(Protocol):
    """A run of a tracker that is open for writing."""

    def send(self, step: int, numbers: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Tracker:
    """Sends the numbers of a run to `wandb` or `trackio`, each one once, also after restarts; see `begin`."""

    def __init__(self, name: str, path: Path, id: str, sent: dict[str, int], writer: Writer | None) -> None:
        self.name, self.path, self.id, self.sent, self._writer = name, path, id, sent, writer
        self._note(live=writer is not None)

    def send(self, entry: Entry) -> None:
        """Send an entry unless it was sent before; after the first failure, send nothing more."""
        if self._writer is None or entry.step <= self.sent.get(entry.kind, -1):
            return
        try:
            self._writer.send(entry.step, entry.numbers)
        except Exception as error:
            self._writer = None
            with contextlib.suppress(OSError):  # the log reports a full disk
                self._note(live=False)
            _warn(f"{self.name} failed ({_brief(error)}); the training and its own log continue without it")
            return
        self.sent[entry.kind] = entry.step

    def close(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except Exception as error:
            _warn(f"{self.name} could not be closed ({_brief(error)}); the run's own log is complete")
        self._writer = None
        with contextlib.suppress(OSError):
            self._note(live=False)

    def _note(self, *, live: bool) -> None:
        """Write the file for the next start. After a process was killed, `live` is still true there."""
        all_trackers = {**_read(self.path), self.name: {"id": self.id, "sent": self.sent, "live": live}}
        write_text(self.path, json.dumps(all_trackers, indent=2))


def begin(
    name: str, folder: Path, config: Mapping[str, Any], *, written: Iterable[Entry], kept: Iterable[Entry]
) -> Tracker | None:
    """Open the tracker's run that belongs to a folder, and send the entries that it lacks.

    Args:
        name: "none", "wandb" or "trackio".
        config: the recipe.
        written: all entries in the folder's log when this process started.
        kept: those up to the restored step; the others were sent already and will be written again.

    Raises:
        ValueError: the tracker of a new run is not installed or cannot start.
    """
    if name == "none":
        return None
    before = _read(folder / FILE).get(name)
    known = before or {"id": uuid.uuid4().hex[:10], "sent": {}, "live": False}
    sent: dict[str, int] = dict(known["sent"])
    if known["live"]:  # a killed process could not note what it had sent
        for entry in written:
            sent[entry.kind] = max(entry.step, sent.get(entry.kind, -1))
    try:
        check_tracker(name)
        writer = WRITERS[name](folder, known["id"], config)
    except Exception as error:
        if before is None:
            raise ValueError(
                str(error)
                if isinstance(error, ValueError)
                else f"{name} could not start ({_brief(error)}); {ADVICE[name]} or choose tracker=none"
            ) from None
        _warn(
            f"{name} could not start ({_brief(error)}); the training continues without it, and the next start sends all"
        )
        writer = None
    tracker = Tracker(name, folder / FILE, known["id"], sent, writer)
    for entry in kept:
        tracker.send(entry)
    return tracker


def check_tracker(name: str) -> None:
    """Raise ValueError unless the tracker that a recipe names is installed."""
    if name == "none" or sys.modules.get(name) is not None:
        return
    found = find_spec(name)
    if found is None or found.origin is None:  # a folder of that name, as wandb creates one, is no package
        raise ValueError(f"tracker={name} is not installed: {install(name)}, or choose tracker=none")


class _Wandb:
    """Respects WANDB_PROJECT, WANDB_MODE and wandb's other variables."""

    def __init__(self, folder: Path, id: str, config: Mapping[str, Any]) -> None:
        self._run: Any = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", "fourstage"),
            name=folder.name,
            id=id,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings={"console": "off"},  # it would record the progress bar as a log
        )
        self._run.define_metric("step")  # its own counter refuses to be set back
        self._run.define_metric("*", step_metric="step")

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Respects TRACKIO_PROJECT, TRACKIO_DIR, TRACKIO_SPACE_ID and the others. Resumes a run by its name."""

    def __init__(self, folder: Path, id: str, config: Mapping[str, Any]) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run: Any = import_module("trackio").init(
                project=os.environ.get("TRACKIO_PROJECT", "fourstage"),
                name=f"{folder.name}-{id}",
                resume="allow",
                config=dict(config),
                embed=False,
            )

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


WRITERS = {"wandb": _Wandb, "trackio": _Trackio}
ADVICE = {"wandb": "log in with `wandb login`, set WANDB_MODE=offline,", "trackio": "correct that,"}


def _read(path: Path) -> dict[str, Any]:
    """Return the notes of `Tracker` by the name of the tracker; damaged ones are left out."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return {name: note for name, note in content.items() if _is_note(note)} if isinstance(content, dict) else {}


def _is_note(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("sent"), dict):
        return False
    steps = all(type(step) is int for step in value["sent"].values())
    return steps and isinstance(value.get("id"), str) and isinstance(value.get("live"), bool)


def _warn(text: str) -> None:
    print(f"fourstage: {text}", file=steady(sys.stderr), flush=True)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
