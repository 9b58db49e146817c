"""Files that are either whole or not there, and the state of a training in one of them."""

import contextlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

PLAIN = (bool, int, float, str, type(None))


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that no one ever sees half of it, not after a power cut either.

    The content goes to a file beside it, is synced to the disk, and takes the name in one step. What had the name
    before stays good until then.

    Raises:
        OSError: the folder cannot be written or the disk is full; says which file is untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        _remove(aside)
        if isinstance(error.__context__, KeyboardInterrupt):  # torch's writer takes it for an error of its own
            raise KeyboardInterrupt from None
        kept = f"{path} is still the last good one" if path.exists() else f"no {path.name} was written before"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise OSError(
            f"{path} could not be written ({reason}); {kept}; free space or mend the folder and start again"
        ) from None
    except BaseException:
        _remove(aside)
        raise


def _remove(path: Path) -> None:
    """Remove a file where that is possible; why it was not written is the error that matters."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text."""
    write_whole(path, lambda file: file.write(text.encode("utf-8")))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save tensors and plain containers; see `write_whole`."""
    _check_plain(state, "state")
    write_whole(path, lambda file: torch.save(state, file))


def _check_plain(value: object, where: str) -> None:
    """Fail now, not when the file is needed: what is saved must be readable without running code."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) in PLAIN, f"{where} has a key of type {type(key).__name__}"
            _check_plain(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item, where)
    else:
        assert isinstance(value, torch.Tensor) or type(value) in PLAIN, f"{where} is a {type(value).__name__}"


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote; tensors and plain containers only, so a file cannot run code.

    Raises:
        ValueError: the file is not such a state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise  # missing, or not to be read: the system says why
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError):  # what torch meets in odd bytes
        raise ValueError(f"{path} is damaged, or is not a checkpoint of a run; start anew with --fresh") from None
    if not isinstance(state, dict) or "fourstage" not in state:
        raise ValueError(f"{path} is not a checkpoint of a run; start anew with --fresh")
    return state


def _sync_folder(folder: Path) -> None:
    """Make a rename itself survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
