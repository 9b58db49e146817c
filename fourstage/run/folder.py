"""The run folder: its files, the lock of the process that writes it, and the recipe and environment of the run."""

import json
import os
import platform
import shlex
import sys
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from fourstage.documents import YAML_BYTES
from fourstage.engine.state import PREVIOUS
from fourstage.files import check_no_links, is_unfinished, open_to_lock, read_text, remove_unfinished, typed, write_text
from fourstage.plurals import plural
from fourstage.recipe import FREE, Recipe, Resolved, difference, from_mapping, read_yaml
from fourstage.run.states import Newest, newest_state, read_best
from fourstage.run_folders import no_run

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "faster-coco-eval")


LOCK = ".lock"
RECIPE_SUM = "# CRC-32 of the lines above: "
FOLDERS = ("checkpoints", "samples", "tensorboard", "slurm")
# Files and folders that a run writes. `tracker.json`, `wandb` and `trackio` are of experiment trackers.
WRITTEN = (
    *(LOCK, "recipe.yaml", "changes.json", "environment.json", "computation.json", "bad_images.json", "log.jsonl"),
    *("evaluation.json", "records.jsonl", "report.html", "tracker.json"),
    *FOLDERS,
)
TRACKERS = ("wandb", "trackio")  # their folders, in which they keep links of their own


class RunFolder:
    """A folder with one training in it.

    Its methods raise ValueError where the folder holds other files or a run of another recipe, and OSError where it
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[bytes] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.pt"

    @property
    def previous(self) -> Path:
        """The last checkpoint but one, for a last one that is damaged."""
        return self.checkpoints / PREVIOUS

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.pt"

    @property
    def bad_images(self) -> Path:
        return self.path / "bad_images.json"

    @property
    def computation(self) -> Path:
        return self.path / "computation.json"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    def check_writable(self) -> None:
        """Raise OSError unless the folder can be created or written; creates nothing."""
        existing = next(parent for parent in (self.path, *self.path.absolute().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK) or existing.is_relative_to("/proc"):
            raise OSError(f"{self.path} cannot be written; choose another --out")

    def require_best(self) -> Path:
        """Return the best checkpoint. Raises FileNotFoundError before the run's first evaluation."""
        if not self.best.is_file():
            raise FileNotFoundError(
                f"{self.path} has no best checkpoint yet: it was stopped before its first evaluation; continue it, or "
                f"name a file with --weights"
            )
        return self.best

    def kept(self, which: str) -> tuple[Path, str]:
        """Return the checkpoint that has these weights, "model" or "ema", and their name in it.

        The best checkpoint has only the better ones of the two, under the name "model"; the last one has both.

        Raises:
            FileNotFoundError: before the run's first evaluation.
            ValueError: the run keeps no average of its weights, or its best checkpoint is damaged.
        """
        best = self.require_best()
        try:
            content = read_best(best)
        except ValueError as error:
            raise ValueError(
                f"{error}; continue the run, which makes another one, or take the weights of the last step with "
                f"--weights {typed(self.last)}"
            ) from None
        if which == "model" or content.get("which") == which:
            return best, "model"
        if self.recipe().ema is None:
            raise ValueError(f"{self.path} has no averaged weights: its recipe sets no ema; leave --which out")
        return self.last, which

    def recipe(self) -> Recipe:
        """Return the recipe of the run.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: the recipe is damaged or not of this version.
        """
        path = self.path / "recipe.yaml"
        if not path.is_file():
            raise FileNotFoundError(no_run(self.path))
        text = read_text(path, YAML_BYTES)
        _check_recipe_sum(text, path)
        return from_mapping(read_yaml(text, str(path)), str(path)).recipe

    def begin(self, resolved: Resolved, environment: Mapping[str, Any]) -> None:
        """Create the folder, or check that it holds a run of this recipe; lock it for this process.

        Raises:
            OSError: the folder cannot be written.
            ValueError: it holds a run of another recipe, or another process trains in it.
        """
        self._check_links()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as error:
            raise OSError(f"{self.path} cannot be written ({error.strerror or error}); choose another --out") from None
        remove_unfinished(self.path)
        if (self.path / "recipe.yaml").exists():
            self.check_same(resolved.recipe)
            self._write_recipe(resolved.recipe)  # it may differ in values that are free to change
            return
        changes = {"recipe": resolved.source, "changes": resolved.changes, "fitted": resolved.fitted}
        write_text(self.path / "changes.json", json.dumps(changes, indent=2))
        write_text(self.path / "environment.json", json.dumps(environment, indent=2))
        self._write_recipe(resolved.recipe)

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run, whose recipe is settled."""
        return (self.path / "recipe.yaml").exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint of the training, even if it is damaged."""
        return self.last.exists() or self.previous.exists()

    def _write_recipe(self, recipe: Recipe) -> None:
        text = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, default_flow_style=None)
        write_text(self.path / "recipe.yaml", f"{text}{RECIPE_SUM}{zlib.crc32(text.encode()):08x}\n")

    def name_weights(self, path: str) -> None:
        """Write another path of the file that the training began with, which was moved together with the folder."""
        self._write_recipe(self.recipe().model_copy(update={"weights": path}))

    def check_same(self, recipe: Recipe) -> None:
        """Raise ValueError with the first differences unless the folder holds a run of this recipe."""
        differs = difference(self.recipe(), recipe, ignore=FREE)
        if differs:
            shown = ", ".join(
                f"{key} {_brief(a)} there and {_brief(b)} here" for key, (a, b) in list(differs.items())[:3]
            )
            more = f" and {len(differs) - 3} more" if len(differs) > 3 else ""
            raise ValueError(
                f"{self.path} holds a run of another recipe ({shown}{more}); choose another --out, or add --fresh to "
                f"set that run aside and start again; to continue it with its own values: fourstage train "
                f"{typed(self.path / 'recipe.yaml')} --out {typed(self.path)}"
            )

    def newest(self) -> Newest:
        """Return the state of the newest checkpoint that is not damaged. Only reads: another process may write.

        Raises:
            ValueError: all checkpoints are damaged.
        """
        return newest_state(self.last, self.previous, self.best)

    def state(self) -> dict[str, Any] | None:
        """Return the state to continue from, or None before the first checkpoint; see `newest`."""
        return self.newest().state

    def set_damaged_aside(self) -> None:
        """Rename a damaged last checkpoint, so that it does not become the previous one. The one before takes over."""
        self.last.replace(self.last.with_name(f"{self.last.name}.damaged"))

    def set_aside(self) -> Path | None:
        """Rename the folder so that its name is free; return the new name, or None if there was no folder."""
        if not self.path.exists():
            return None
        self._acquire()
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}-before-{number}")).exists():
            number += 1
        moved = self.path.rename(aside)
        self.release()
        return moved

    def check_usable(self, recipe: Recipe, *, fresh: bool) -> None:
        """Raise ValueError if the path is no run folder, or one of another recipe."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; choose another --out")
        if not self.path.is_dir():
            return
        self._check_links()
        if (self.path / "recipe.yaml").exists():
            if not fresh:
                self.check_same(recipe)
            return
        early = {
            "slurm",
            "checkpoints",
            ".lock",
            "changes.json",
            "environment.json",
        }  # files that exist before recipe.yaml
        if {entry.name for entry in self.path.iterdir() if not is_unfinished(entry)} - early:
            raise ValueError(f"{self.path} holds files that do not belong to a run; choose another --out")

    def _check_links(self) -> None:
        """Raise ValueError where what a run writes would leave the folder, or where a name is taken by something else.

        The folder may come from somebody else.
        """
        check_no_links(self.path, WRITTEN, in_place=(LOCK, self.log.name))
        for path in (self.path / name for name in WRITTEN):
            is_folder, expected = path.is_dir(), path.name in FOLDERS
            if path.exists() and is_folder != expected:
                found, needed = ("folder", "file") if is_folder else ("file", "folder")
                raise ValueError(
                    f"{path} is a {found}, and a run writes a {needed} of this name; remove it, or choose another --out"
                )
        for name in TRACKERS:
            if (self.path / name).is_symlink():
                check_no_links(self.path, [name])

    def release(self) -> None:
        """Release the lock, so that another process may train here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _acquire(self) -> None:
        """Lock the folder until this process ends, with a kind of lock that loader workers do not inherit."""
        if os.name != "posix":
            return
        import fcntl

        self._lock = open_to_lock(self.path / LOCK)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"another process is training in {self.path}; wait for it, or choose another --out"
            ) from None


def _check_recipe_sum(text: str, path: Path) -> None:
    """Raise ValueError where the recipe of a run is not as it was written. Those of older versions have no sum."""
    values, line, last = text.removesuffix("\n").rpartition("\n")
    written = f"{RECIPE_SUM}{zlib.crc32(f'{values}{line}'.encode()):08x}"
    if (last.startswith("#") or "lines above" in last) and last != written:
        raise ValueError(
            f"{path} is damaged, or was changed after the run wrote it; restore it, or remove its last line if you "
            f"changed it on purpose"
        )


def environment(device: torch.device, parameters: int) -> dict[str, Any]:
    """Return what a number depends on beside the recipe: versions, machine and command."""
    return {
        "fourstage": version("fourstage"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "machine": f"{platform.system()} {platform.machine()}, {plural(os.cpu_count() or 1, 'core')}",
        "threads": torch.get_num_threads(),
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": {name: known for name in PACKAGES if (known := installed(name))},
        "parameters": parameters,
    }


def _program() -> str:
    """Return what starts this command line: `python -m fourstage` has the name of a file that nobody can type."""
    name = Path(sys.argv[0]).name
    return "fourstage" if name == "__main__.py" else name


def installed(name: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
