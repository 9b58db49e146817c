"""Broken files that hypothesis makes: `data check` and training accept or refuse each with one mind, in words.

FOURSTAGE_MADE=1000 makes a thousand for each file instead of a few.
"""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data.hostile import sound
from data.hostile.verdicts import TRUTHS, compare
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fourstage.data.images import decode_image
from fourstage.data.sample import BadImage
from fourstage.data.shards.index import BrokenShardError, index_shard

made = settings(
    max_examples=int(os.environ.get("FOURSTAGE_MADE", "15")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
numbers = st.sampled_from([0, -1, 1.5, float("inf"), float("nan"), 1e300, 10**30, 10**400, 2**63, True])
texts = st.sampled_from(["", "1", "\0", "../x", "/etc", "\ud800", "a" * 5000, "nan", "9" * 400])
odd = st.recursive(
    st.one_of(st.none(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def agrees(root: Path, format: str) -> None:
    """Open, read and check both splits; what is wrong is a ValueError, and both verdicts are the same."""
    task = sound.TASKS.get(format, "classification")
    assert not compare(root, TRUTHS[task])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a document."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))]


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a document with another value at a place."""
    if not path:
        return value
    document = copy.copy(document)
    document[path[0]] = changed(document[path[0]], path[1:], value)
    return document


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    written: dict[str, Path] = {}

    def folder(format: str) -> Path:
        if format not in written:
            written[format] = tmp_path_factory.mktemp("made") / format
            sound.SOUND[format](written[format])
            if format == "imagefolder":
                with Image.open(written[format] / "train/cat/000.png") as image:
                    image.save(written[format] / "train/cat/008.jpg")
        return written[format]

    return folder


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("coco", "annotations/instances_train.json"),
        ("inaturalist", "train2018.json"),
        ("fall", "ILSVRC2011fall_whole_map_train.txt"),
        ("huggingface", "train/state.json"),
    ],
)
def test_any_value_of_a_json_may_be_any_other(format: str, name: str, folders: Callable[[str], Path]) -> None:
    root = folders(format)
    document = json.loads((root / name).read_text())

    @made
    @given(place=st.sampled_from(places(document)), value=odd)
    def inner(place: tuple[Any, ...], value: Any) -> None:
        (root / name).write_text(json.dumps(changed(document, place, value)))
        agrees(root, format)

    inner()


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("coco", "annotations/instances_train.json"),
        ("yolo", "data.yaml"),
        ("yolo", "labels/train/000.txt"),
        ("voc", "Annotations/train000.xml"),
        ("voc", "ImageSets/Main/train.txt"),
        ("lists", "meta/train.txt"),
        ("label_maps", "masks/train/000.png"),
        ("label_maps", "classes.txt"),
        ("imagefolder", "train/cat/000.png"),
        ("imagefolder", "train/cat/008.jpg"),
        ("yolo", "images/train/000.png"),
        ("kaggle", "LOC_val_solution.csv"),
        ("zips", "train.zip"),
        ("shards", "train-000.tar"),
        ("huggingface", "train/data-00000-of-00001.arrow"),
        ("parquet", "data/train-00000-of-00001.parquet"),
        ("cifar", "cifar-10-batches-bin/batches.meta.txt"),
    ],
)
def test_any_byte_of_a_file_may_be_any_other(format: str, name: str, folders: Callable[[str], Path]) -> None:
    root = folders(format)
    whole = (root / name).read_bytes()

    @made
    @given(
        start=st.integers(0, len(whole)),
        removed=st.integers(0, 40),
        added=st.one_of(
            st.binary(max_size=20), st.sampled_from([b"9" * 400, b"[" * 3000, b"\xff\xfe", b"nan", b"-1e999"])
        ),
    )
    def inner(start: int, removed: int, added: bytes) -> None:
        (root / name).write_bytes(whole[:start] + added + whole[start + removed :])
        agrees(root, format)

    inner()
    (root / name).write_bytes(whole)


@made
@given(data=st.binary(max_size=300))
def test_noise_is_no_image_and_no_shard(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="noise"):
        decode_image(data, "noise")
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(BrokenShardError, match=r"a\.tar"):
        index_shard(tmp_path / "a.tar", str(tmp_path / "a.tar"))
