"""The metadata of our .safetensors files: text entries beside the tensors, as JSON where they are not text."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fourstage.files import RAISE, limit
from fourstage.weights.catalog import Weight

FORMAT = 2  # 2: of `save_pretrained`, also detectors and segmentors
CONVERTED = 1  # of `fourstage convert`
MOST_NUMBER = 2**20  # of an argument that comes from a file
MOST_PIXELS = 1024  # side of the images that a network from a file is built for


def describe(
    *,
    model: str,
    form: str,
    arguments: Mapping[str, Any],
    source: str,
    sha256: str,
    which: str,
    classes: Sequence[str] | None = None,
    weight: Weight | None = None,
    known_by: str = "",
) -> dict[str, str]:
    """Return the entries for a converted file.

    Args:
        form: "classifier" or "dense".
        arguments: those with which `model` is the network in the file.
        source: name of the original file; `sha256` is that file's.
        which: "model" or "ema".
        weight: the published file that the source is; `known_by` says how it was recognised.
    """
    entries: dict[str, Any] = {
        "format": "pt",  # as other readers of safetensors expect for tensors of PyTorch
        "fourstage_format": CONVERTED,
        "fourstage_version": version("fourstage"),
        "model": model,
        "form": form,
        "arguments": dict(arguments),
        "source_file": source,
        "source_sha256": sha256,
        "which": which,
    }
    entries |= {key: arguments[key] for key in ("num_classes", "img_size") if key in arguments}
    if classes is not None:
        entries["classes"] = list(classes)
    if weight is not None:
        entries |= {
            "published_as": weight.name,
            "known_by": known_by,
            "origin": weight.origin,
            "licence": weight.licence,
            "data": weight.data,
            "metrics": dict(weight.metrics),
        }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}


def arguments_of(entries: Mapping[str, str], model: str, path: Path) -> dict[str, Any]:
    """Return the arguments with which `model` is the network in a file; {} where the file is not one of ours for it.

    Raises:
        ValueError: a newer version wrote it, or its entries are damaged.
    """
    if "fourstage_format" not in entries or entries.get("model") != model:
        return {}
    check_version(entries, path)
    found = value_of(entries, "arguments", path) if "arguments" in entries else {}
    if not isinstance(found, dict):
        raise damaged(path, f"arguments is {found!r:.40}")
    check_numbers(found, path)
    return found


def check_version(entries: Mapping[str, str], path: Path) -> None:
    """Raise ValueError where a newer version wrote the entries."""
    written = value_of(entries, "fourstage_format", path)
    if not isinstance(written, int) or written > FORMAT:
        raise ValueError(
            f"a newer fourstage wrote {path} (format {written!r:.20}, this one knows {FORMAT}); type: pip install "
            f"--upgrade fourstage"
        )


def check_numbers(values: object, path: Path, most: int = MOST_NUMBER, key: str = "") -> None:
    """Raise ValueError for a number in a network's description that no network has: to count to it takes for ever.

    Args:
        values: arguments of a network, in dictionaries and lists.
        path: the file that holds them.
    """
    if isinstance(values, Mapping):
        for name, value in values.items():
            check_numbers(value, path, MOST_PIXELS if name in ("img_size", "image_size") else most, str(name))
    elif isinstance(values, list | tuple):
        for value in values:
            check_numbers(value, path, most, key)
    elif isinstance(values, int | float) and not abs(values) <= limit(most):
        raise ValueError(
            f"{path} describes a network that cannot be built here ({key}={values!r:.40}, and at most "
            f"{limit(most):,} is taken from a file); {RAISE}"
        )


def classes_of(entries: Mapping[str, str]) -> list[str] | None:
    """Return the class names where a file of ours has them."""
    if "fourstage_format" not in entries or "classes" not in entries:
        return None
    try:
        found = json.loads(entries["classes"])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(name, str) for name in found) else None


def damaged(path: Path, what: str) -> ValueError:
    """Return an error about the metadata of a file."""
    return ValueError(f"the metadata of {path} is damaged ({what}); convert its original again")


def value_of(entries: Mapping[str, str], key: str, path: Path) -> Any:
    """Return an entry that is JSON. Raises ValueError where it is damaged."""
    try:
        return json.loads(entries[key])
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise damaged(path, f"{key}: {error}") from error
