"""`hf-hub:user/name`: the checkpoint in a repository of Hugging Face's hub, fetched into that library's cache."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORM = "hf-hub:USER/NAME, or hf-hub:USER/NAME@REVISION"
CHECKPOINTS = ("model.safetensors", "best.pt", "checkpoints/best.pt", "last.pt", "model.pth", "pytorch_model.bin")
ENDINGS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
CONFIG = "config.json"
CONFIG_BYTES = 2**20
WAIT = 10.0  # seconds for the list of files


@dataclass(frozen=True)
class HubFile:
    """A checkpoint of a repository.

    Attributes:
        path: in the cache.
        architecture: the name of the network by the repository's config.json, as timm writes it; None: it has none.
    """

    path: Path
    architecture: str | None


def fetch(source: str) -> HubFile:
    """Return the checkpoint of a repository, from the cache where the hub does not answer.

    The environment's HF_ENDPOINT names another hub, and HF_HOME the folder of the cache.

    Raises:
        ValueError: a wrong name, no such repository, or no checkpoint in it.
        OSError: the hub does not answer, and nothing is in the cache.
    """
    repository, revision = _parsed(source)
    known = _cached(repository, revision)
    try:
        names = _listed(repository, revision)
        chosen = _checkpoint(source, names)
        path = _download(repository, chosen, revision)
        config = _download(repository, CONFIG, revision) if CONFIG in names else None
    except library_errors() as error:
        if known is not None and not is_missing(error):
            return known
        raise _sentence(source, repository, error) from error
    return HubFile(path, architecture_in(config))


def _parsed(source: str) -> tuple[str, str | None]:
    name = source.partition(":")[2]
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)
    if match is None:
        raise ValueError(f"{source} is not the name of a repository; write {FORM}")
    return match[1], match[2]


def endpoint() -> str | None:
    """Return the address of another hub than Hugging Face's own; None: there is none."""
    return os.environ.get("HF_ENDPOINT") or None  # the library reads it once, when it is imported


def _listed(repository: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint()).model_info(repository, revision=revision, timeout=WAIT)
    return [one.rfilename for one in info.siblings or ()]


def _download(repository: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, revision=revision, endpoint=endpoint(), etag_timeout=WAIT))


def _cached(repository: str, revision: str | None) -> HubFile | None:
    """Return what an earlier call has fetched."""
    from huggingface_hub import try_to_load_from_cache

    def found(name: str) -> Path | None:
        path = try_to_load_from_cache(repository, name, revision=revision)
        return Path(path) if isinstance(path, str) else None

    path = next((path for name in CHECKPOINTS if (path := found(name)) is not None), None)
    return None if path is None else HubFile(path, architecture_in(found(CONFIG)))


def _checkpoint(source: str, names: Sequence[str]) -> str:
    """Return the name of the checkpoint among the files of a repository."""
    usual = next((name for name in CHECKPOINTS if name in names), None)
    if usual is not None:
        return usual
    others = [name for name in names if name.endswith(ENDINGS)]
    if len(others) == 1:
        return others[0]
    found = f"{len(others)} checkpoints, such as {others[0]}" if others else "no checkpoint"
    raise ValueError(
        f"{source} has {found}, and one is needed, best called {CHECKPOINTS[0]}; download the file and give its path"
    )


def architecture_in(config: Path | None) -> str | None:
    """Return the name of the network in a config.json of timm; None: there is none."""
    if config is None or not config.is_file() or config.stat().st_size > CONFIG_BYTES:
        return None
    try:
        content: Any = json.loads(config.read_text())
    except ValueError:
        return None
    name = content.get("architecture") if isinstance(content, dict) else None
    return name if isinstance(name, str) else None


def library_errors() -> tuple[type[Exception], ...]:
    """Return what the library raises where a file does not come; its HTTP client differs between versions."""
    from huggingface_hub import errors

    client: Any = getattr(errors, "HTTPError", OSError)
    return (OSError, client, errors.HFValidationError, errors.LocalEntryNotFoundError)


def is_missing(error: Exception) -> bool:
    """Return whether the hub answered that there is no such repository, revision or file, or not for this user."""
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    return isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | EntryNotFoundError)


def _sentence(source: str, repository: str, error: Exception) -> Exception:
    if is_missing(error):
        return ValueError(
            f"there is no {source} on the hub, or it is private; check the name, or log in with `hf auth login`"
        )
    return OSError(
        f"{source} could not be fetched ({reason_of(error)}); check the connection, or download the checkpoint of "
        f"https://huggingface.co/{repository} elsewhere and give its path"
    )


def reason_of(error: Exception) -> str:
    """Return the first line of an error, for the middle of a sentence."""
    return f"{(str(error).splitlines() or [type(error).__name__])[0].rstrip('.'):.200}"
