"""Weights & Biases and trackio, beside a run's own log: the same numbers under the same names.

A tracker is a guest. It is missed before a training starts, and never stops one.
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

FILE = "tracker.json"  # which run of the tracker belongs to a folder, and what it was sent


class Entry(NamedTuple):
    """The numbers of one line of the log."""

    kind: str  # such as "train": the steps of each kind only rise
    step: int
    numbers: dict[str, float]


class Writer(Protocol):
    """A tracker that has begun."""

    def send(self, step: int, numbers: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class Tracker:
    """Sends a run's numbers to `wandb` or `trackio`, each once, also over restarts; see `begin`."""

    def __init__(self, name: str, path: Path, id: str, sent: dict[str, int], writer: Writer | None) -> None:
        self.name, self.path, self.id, self.sent, self._writer = name, path, id, sent, writer
        self._note(live=writer is not None)

    def send(self, entry: Entry) -> None:
        """Send what was not sent before; after the first failure nothing more."""
        if self._writer is None or entry.step <= self.sent.get(entry.kind, -1):
            return
        try:
            self._writer.send(entry.step, entry.numbers)
        except Exception as error:
            self._writer = None
            with contextlib.suppress(OSError):  # a full disk is told by who must write
                self._note(live=False)
            _warn(f"{self.name} failed ({_brief(error)}); the training and its own log go on without it")
            return
        self.sent[entry.kind] = entry.step

    def close(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.close()
        except Exception as error:
            _warn(f"{self.name} did not end well ({_brief(error)}); the run's own log is whole")
        self._writer = None
        with contextlib.suppress(OSError):
            self._note(live=False)

    def _note(self, *, live: bool) -> None:
        """Keep what the next start must know. A process that is killed leaves `live` behind."""
        from fourstage.engine.state import write_text  # it imports torch

        all_trackers = {**_read(self.path), self.name: {"id": self.id, "sent": self.sent, "live": live}}
        write_text(self.path, json.dumps(all_trackers, indent=2))


def begin(
    name: str, folder: Path, config: Mapping[str, Any], *, written: Iterable[Entry], kept: Iterable[Entry]
) -> Tracker | None:
    """Open the run of a tracker that belongs to a folder, and send what it has missed.

    Args:
        name: "none", "wandb" or "trackio".
        config: the recipe.
        written: all that the folder's log held when this process started.
        kept: what of it the run goes on from; the rest is written once more, and was sent already.

    Raises:
        ValueError: a tracker that is named for the first time is not installed or does not begin.
    """
    if name == "none":
        return None
    before = _read(folder / FILE).get(name)
    known = before or {"id": uuid.uuid4().hex[:10], "sent": {}, "live": False}
    sent: dict[str, int] = dict(known["sent"])
    if known["live"]:  # the process that sent them was killed, and could not say how far it had come
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
                else f"{name} did not begin ({_brief(error)}); {ADVICE[name]} or choose tracker=none"
            ) from None
        _warn(f"{name} did not begin ({_brief(error)}); the training goes on without it, and a later start sends all")
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
    if found is None or found.origin is None:  # a folder of that name, as wandb makes them, is no package
        raise ValueError(
            f'tracker={name} needs a package that is not here: pip install "fourstage[{name}]", or choose tracker=none'
        )


class _Wandb:
    """Honours WANDB_PROJECT, WANDB_MODE and the others."""

    def __init__(self, folder: Path, id: str, config: Mapping[str, Any]) -> None:
        self._run: Any = import_module("wandb").init(
            project=os.environ.get("WANDB_PROJECT", "fourstage"),
            name=folder.name,
            id=id,
            resume="allow",
            dir=str(folder),
            config=dict(config),
            settings={"console": "off"},  # a progress bar is no log
        )
        self._run.define_metric("step")  # its own counter refuses to be set back
        self._run.define_metric("*", step_metric="step")

    def send(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({**numbers, "step": step})

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Honours TRACKIO_PROJECT, TRACKIO_DIR, TRACKIO_SPACE_ID and the others. It finds a run again by its name."""

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
ADVICE = {"wandb": "log in with `wandb login`, set WANDB_MODE=offline,", "trackio": "mend that,"}


def _read(path: Path) -> dict[str, Any]:
    """What `Tracker` noted; nothing of a file that is not whole JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _warn(text: str) -> None:
    print(f"fourstage: {text}", file=sys.stderr, flush=True)


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."
