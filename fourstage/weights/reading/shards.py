"""Weights that are one folder: Hugging Face's names for files, and an index over several of them.

An index is a JSON file whose `weight_map` says which file beside it holds which tensor.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from fourstage.documents import read_json
from fourstage.files import RAISE, limit

INDEX_ENDING = ".index.json"
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX_BYTES = 16 * 2**20  # as the header of a .safetensors file
MOST_SHARDS = 1000


def find_weights(folder: Path) -> Path:
    """Return the file of a folder that holds its weights, or their index.

    Raises:
        ValueError: there is none.
    """
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"{folder} is a folder, not a file: name the .pth, .pt or .safetensors file in it (a folder is read where it "
        f"has one of {', '.join(NAMES)})"
    )


def read_shards(index: Path, read: Callable[[Path], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the tensors of all shards that an index names.

    Args:
        read: returns the tensors of one file.

    Raises:
        ValueError: the index is damaged, names files outside its folder, or does not agree with its shards.
    """
    names_by_shard = _shards(index)
    out: dict[str, Tensor] = {}
    for shard, names in names_by_shard.items():
        path = index.parent / shard
        if not path.is_file():
            raise ValueError(
                f"{index} names {shard}, which is not beside it: download all {len(names_by_shard)} of its files"
            )
        tensors = read(path)
        if missing := names - tensors.keys():
            raise ValueError(
                f"{path} has no {min(missing)!r:.80}, which {index.name} expects in it: download both again"
            )
        if extra := tensors.keys() - names:
            raise ValueError(f"{path} has {min(extra)!r:.80}, which {index.name} does not: download both again")
        out.update(tensors)
    return out


def _shards(index: Path) -> dict[str, set[str]]:
    """Return file -> names of its tensors."""
    content = read_json(index, most_bytes=INDEX_BYTES)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map, which says where each tensor is: download it again")
    shards: dict[str, set[str]] = {}
    for name, shard in places.items():
        if not isinstance(shard, str) or not _is_plain(shard):
            raise ValueError(
                f"{index} names {str(shard)[:60]!r} as a file, and its files must be in its own folder, without a path"
            )
        shards.setdefault(shard, set()).add(name)
        if len(shards) > limit(MOST_SHARDS):
            raise ValueError(f"{index} names more than {limit(MOST_SHARDS):,} files; {RAISE}")
    return shards


def _is_plain(name: str) -> bool:
    """Return whether a name is that of a weights' file in the same folder on any system."""
    return bool(name) and name not in (".", "..") and not set(name) & set("/\\:\0") and not name.endswith(".json")
