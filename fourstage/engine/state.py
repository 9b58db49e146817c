"""The state of a training in a file, and in the file before it."""

import pickle
from pathlib import Path
from typing import Any

import torch

from fourstage.checksums import is_intact, write_summed
from fourstage.files import open_regular, write_file

PREVIOUS = "previous.pt"  # name of the last checkpoint but one, beside the last one
PLAIN = (bool, int, float, str, type(None))


def save_state(path: Path, state: dict[str, Any], keep: Path | None = None) -> None:
    """Save tensors and plain containers with the sum of the file's bytes; see `write_file`.

    Args:
        keep: the name that the file gets which `path` was before.
    """
    _check_plain(state, "state")
    write_file(
        path, lambda file: write_summed(file, lambda summing: torch.save(state, summing)), keep, needed=_bytes_of(state)
    )


def _bytes_of(value: object) -> int:
    """Return the bytes of all tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes_of, items))


def _check_plain(value: object, where: str) -> None:
    """Fail now, not when the file is needed: a state must be readable without running code."""
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
    """Read a file of `save_state`: tensors and plain containers only, so that a file cannot run code.

    For a file that this machine wrote. `RunFolder.state` reads one that may come from elsewhere.

    Raises:
        ValueError: the file is damaged, or is not such a state.
    """
    try:
        with open_regular(path) as file:
            if is_intact(file) is False:
                raise ValueError("its checksum does not match its bytes")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise  # missing or not readable: the message of the system says why
    except (
        pickle.UnpicklingError,
        RuntimeError,
        ValueError,
        EOFError,
        LookupError,
    ):  # torch raises any of these for damaged bytes
        raise ValueError(f"{path} is damaged, or is not a checkpoint of a run; start again with --fresh") from None
    if not isinstance(state, dict) or "fourstage" not in state:
        raise ValueError(f"{path} is not a checkpoint of a run; start again with --fresh")
    return state
