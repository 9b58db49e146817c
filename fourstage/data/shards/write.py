"""`fourstage data shard`: a classification data set as WebDataset shards, with the bytes of its image files unchanged.

classes.txt                     a name a line, in the order of the labels
train-000000.tar  val-...tar    for each sample KEY.jpg, KEY.cls (the label) and KEY.json (id and class name)
.fourstage/*.npz                where each image is, so that no shard is read before it is needed
shards.json                     the settings, and whether the work is complete
"""

import contextlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.data.formats import open_dataset
from fourstage.data.images import EXTENSIONS, open_image
from fourstage.data.limits import decoded, text_lines
from fourstage.data.order import hash_order
from fourstage.data.sample import BadImage, Dataset, NoSplitError, Progress, Split
from fourstage.data.shards.dataset import STATE
from fourstage.data.shards.index import FOLDER, index_shard, local_index, save_index
from fourstage.files import atomic_file, remove_unfinished, typed
from fourstage.resources import sentences

LARGEST = 256 << 20  # bytes of a shard by default; some 2,300 images of ImageNet


@dataclass(frozen=True)
class Written:
    """The content of the folder."""

    images: dict[str, int]  # by split
    shards: dict[str, int]


@dataclass(frozen=True)
class _Limits:
    size: int | None  # bytes
    count: int | None  # samples

    def full(self, samples: int, size: int, more: int) -> bool:
        """Whether a sample of `more` bytes begins another shard."""
        over = self.size is not None and size + more > self.size
        return samples > 0 and (over or samples == self.count)


def write_shards(
    source: str | Path,
    folder: str | Path,
    *,
    max_size: int | None = None,
    count: int | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write both splits of a data set as shards; an earlier try that was interrupted is continued.

    The samples are shuffled once, by a hash of their ids: whoever reads mixes neighbouring shards only. A shard takes
    its name when it is complete.

    Args:
        source: what `open_dataset` takes.
        max_size: most bytes of a shard; 256 MB if neither this nor `count` is given. A larger image has its own shard.
        count: samples of a shard.
        progress: called with (samples written, samples in all).

    Raises:
        ValueError: a source without one label an image, an image that is missing, a folder with something else in it,
            limits that make no sense.
    """
    size, count = _limit(max_size), _limit(count)
    limits = _Limits(LARGEST if size is None and count is None else size, count)
    splits = _open(source, progress)
    _check_names(splits["train" if "train" in splits else "val"].classes)
    folder, progress = Path(folder), progress or (lambda done, total: None)
    state = {
        "source": {split: _fingerprint(dataset) for split, dataset in splits.items()},
        "max_size": limits.size,
        "count": limits.count,
    }
    with sentences(folder=folder):
        _begin(folder, state, splits["train" if "train" in splits else "val"].classes)
        return _write(folder, state, splits, limits, progress)


def _limit(value: int | None) -> int | None:
    """Return a limit as an integer. Raises ValueError for one that makes no sense."""
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise ValueError(
            f"a shard needs room: --max-size and --count must be 1 or more, without a fraction; got {value!r:.40}"
        )
    return int(value)


def _write(
    folder: Path, state: dict[str, Any], splits: Mapping[Split, Dataset], limits: _Limits, progress: Progress
) -> Written:
    total, done, shards = sum(map(len, splits.values())), 0, {}
    for split, dataset in splits.items():
        shards[split] = _write_split(folder, split, dataset, limits, lambda i, before=done: progress(before + i, total))
        done += len(dataset)
    written = Written({split: len(dataset) for split, dataset in splits.items()}, shards)
    _write_json(folder / STATE, {**state, "finished": True, "images": written.images, "shards": written.shards})
    return written


def parse_size(text: str) -> int:
    """Bytes: `500000000`, or with KB, MB or GB. Raises ValueError for anything else."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([KMG]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"{text!r:.60} is not a size; write a number of bytes, or for example 500MB")
    return int(float(found[1]) * 1000 ** ("", "K", "M", "G").index(found[2].upper()))


def _open(source: str | Path, progress: Progress | None) -> dict[Split, Dataset]:
    """Open both splits; a source with validation images only has one."""
    splits: dict[Split, Dataset] = {}
    with contextlib.suppress(NoSplitError):
        splits["train"] = open_dataset(source, "train", progress=progress)
    splits["val"] = open_dataset(source, "val", progress=progress)
    for dataset in splits.values():
        if "label" not in dataset.truths:
            raise ValueError(
                f"{source} has no class for each image: shards are for classification data, such as train/<class>/*.jpg"
            )
    return splits


def _check_names(classes: Sequence[str]) -> None:
    """Raise ValueError for a class whose name `classes.txt` cannot hold: it would be read as another one."""
    times = Counter(classes)
    for name in classes:
        try:
            same = text_lines(decoded(name.encode(), STATE).encode(), STATE) == [name]
        except ValueError:  # half of a character, or a control character
            same = False
        if not same or times[name] > 1:
            raise ValueError(
                f"the class {name!r:.80} cannot be a line of classes.txt, which is text with a name of its own for "
                f"each class and without space around it; rename the class"
            )


def _fingerprint(dataset: Any) -> str:
    """Return a hash of all ids and labels, in their order."""
    digest = sha256("\n".join(dataset.classes).encode("utf-8", "surrogateescape"))
    for index in range(len(dataset)):
        digest.update(f"{dataset.id(index)} {dataset.labels_N[index]}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _begin(folder: Path, state: dict[str, Any], classes: Sequence[str]) -> None:
    """Create the folder, or accept one that the same command began; nothing is ever overwritten."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a new or empty folder for the shards")
    if folder.is_dir():
        remove_unfinished(folder)  # from a process that was killed
    if folder.is_dir() and any(folder.iterdir()):
        _check_same(folder, state)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / STATE, {**state, "finished": False})
    (folder / FOLDER).mkdir(exist_ok=True)
    with atomic_file(folder / "classes.txt") as file:
        file.write("".join(f"{name}\n" for name in classes).encode("utf-8", "surrogateescape"))


def _check_same(folder: Path, state: dict[str, Any]) -> None:
    """Raise ValueError unless `folder` holds the beginning of the same work."""
    try:
        before = json.loads((folder / STATE).read_bytes())
    except (OSError, ValueError):
        raise ValueError(f"{folder} holds other files: name a new or empty folder for the shards") from None
    if not isinstance(before, dict) or {key: before.get(key) for key in state} != state:
        raise ValueError(
            f"{folder} holds shards of other data or of another size: name another folder, or delete this one"
        )
    if before.get("finished"):
        raise ValueError(
            f"{folder} already holds these shards, complete; `fourstage data check {typed(folder)}` reads them"
        )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def _write_split(folder: Path, split: str, dataset: Any, limits: _Limits, progress: Any) -> int:
    """Write the shards of one split and return their number."""
    order = hash_order([dataset.id(index) for index in range(len(dataset))])
    shard = done = 0
    while done < len(order):
        path = folder / f"{split}-{shard:06d}.tar"
        if path.is_file():  # of an earlier try; only complete ones have their name
            done += len(local_index(path, folder / FOLDER / f"{path.name}.npz"))
        else:
            done += _write_shard(path, dataset, order, done, limits, progress)
        progress(done)
        shard += 1
    return shard


def _write_shard(path: Path, dataset: Any, order: Sequence[int], first: int, limits: _Limits, progress: Any) -> int:
    """Write one shard, from position `first` of the order on, and return its number of samples."""
    taken = 0
    with atomic_file(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for place in range(first, len(order)):
            members = list(_members(dataset, order[place], place))
            size = sum(tarfile.BLOCKSIZE * (2 + (len(data) - 1) // tarfile.BLOCKSIZE) for _, data in members)
            if limits.full(taken, archive.offset, size):
                break
            for name, data in members:
                head = tarfile.TarInfo(name)  # no time, no owner: the same data gives the same bytes
                head.size = len(data)
                archive.addfile(head, BytesIO(data))
            taken += 1
            progress(first + taken)
    save_index(index_shard(path, str(path)), path, path.parent / FOLDER / f"{path.name}.npz")
    return taken


def _members(dataset: Any, index: int, place: int) -> Iterator[tuple[str, bytes]]:
    """Yield the files of one sample. Keys are numbers: names of images may have dots, which end a key."""
    data, id, label = dataset.raw(index), dataset.id(index), int(dataset.labels_N[index])
    if isinstance(data, np.ndarray):
        data, ending = _png(data), "png"
    else:
        ending = id.rpartition(".")[2].lower()
        ending = ending if f".{ending}" in EXTENSIONS else _suffix_of(data, dataset.where(index))
    note = {"source_id": id, "label": label, "class": dataset.classes[label]}
    yield f"{place:08d}.{ending}", data
    yield f"{place:08d}.cls", str(label).encode()
    yield f"{place:08d}.json", json.dumps(note).encode()


def _png(image_HW3: np.ndarray) -> bytes:
    from PIL import Image

    file = BytesIO()
    Image.fromarray(image_HW3).save(file, "PNG")
    return file.getvalue()


def _suffix_of(data: bytes, where: str) -> str:
    """Return the suffix for an image whose id has none."""
    with open_image(BytesIO(data), name=where) as image:
        ending = (image.format or "").lower()
    ending = {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif"}.get(ending, ending)
    if f".{ending}" not in EXTENSIONS:
        raise BadImage(where, f"{ending.upper()} is not an image format of data sets")
    return ending
