"""Tables as `datasets` writes them, made here by pyarrow alone."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from fourstage.data.formats import find_format, open_dataset  # noqa: E402
from fourstage.data.images import read_image  # noqa: E402
from fourstage.data.labels.listing import Listed  # noqa: E402
from fourstage.data.limits import FOLDERS  # noqa: E402
from fourstage.data.sample import BadImage  # noqa: E402

Picture = Callable[..., Path]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def pictures(picture: Picture) -> list[Path]:
    return [picture(f"source/{i}.png") for i in range(6)]


def table(paths: list[Path], labels: list[Any], features: dict[str, Any] | None = FEATURES) -> Any:
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    made = pa.table({"image": images, "label": labels})
    info = {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if features else None
    return made.replace_schema_metadata(info)


def write_arrow(folder: Path, tables: list[Any]) -> None:
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, one in zip(names, tables, strict=True):
        with (folder / name).open("wb") as file, pa.ipc.new_stream(file, one.schema) as writer:
            writer.write_table(one, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


def opened(root: Path, split: str = "train") -> Listed:
    dataset = open_dataset(root, split)  # pyright: ignore[reportArgumentType]
    assert isinstance(dataset, Listed)
    return dataset


@pytest.fixture
def saved(pictures: list[Path], tmp_path: Path) -> Path:
    root = tmp_path / "saved"
    write_arrow(root / "train", [table(pictures[:3], [0, 1, 0]), table(pictures[3:5], [1, 1])])
    write_arrow(root / "validation", [table(pictures[5:], [1])])
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return root


def test_what_save_to_disk_writes(saved: Path, pictures: list[Path]) -> None:
    assert find_format(saved).name == "Hugging Face"
    train, val = opened(saved), opened(saved, "val")
    assert train.classes == ("cat", "dog")
    assert train.labels_N.tolist() == [0, 1, 0, 1, 1]
    assert [train.raw(i) for i in range(5)] == [path.read_bytes() for path in pictures[:5]]
    assert (val.id(0), len(val)) == ("validation/00000000", 1)
    assert np.array_equal(pickle.loads(pickle.dumps(train)).sample(4).image, read_image(pictures[4]))
    assert "data-00001-of-00002.arrow/row 1" in train.where(4)


def test_parquet_files_are_copied_to_the_cache_once(pictures: list[Path], tmp_path: Path) -> None:
    root = tmp_path / "hub"
    (root / "data").mkdir(parents=True)
    pa.parquet.write_table(table(pictures[:4], [0, 1, 0, 1]), root / "data/train-00000-of-00001.parquet")
    pa.parquet.write_table(table(pictures[4:], [1, 0]), root / "data/test-00000-of-00001.parquet")
    train, val = opened(root), opened(root, "val")
    assert [train.raw(i) for i in range(4)] == [path.read_bytes() for path in pictures[:4]]
    assert val.labels_N.tolist() == [1, 0]
    [cached, _] = sorted((tmp_path / "cache/fourstage/parquet").iterdir())
    written = cached.stat().st_mtime_ns
    opened(root)
    assert cached.stat().st_mtime_ns == written


def test_labels_as_text_and_a_single_table(pictures: list[Path], tmp_path: Path) -> None:
    write_arrow(tmp_path / "one", [table(pictures, ["b", "a"] * 3, None)])
    train, val = opened(tmp_path / "one"), opened(tmp_path / "one", "val")
    assert train.classes == ("a", "b")
    assert (len(train), len(val)) == (4, 2)
    assert "held out" in train.note


def test_what_cannot_be_used(saved: Path, pictures: list[Path], tmp_path: Path) -> None:
    write_arrow(tmp_path / "test", [table(pictures, [-1] * 6)])
    with pytest.raises(ValueError, match=r"gives 6 images the label -1, and the classes are 0 to 1"):
        opened(tmp_path / "test")
    write_arrow(tmp_path / "odd", [pa.table({"text": ["a"], "number": [1]})])
    with pytest.raises(ValueError, match=r"has no column of images, only text, number"):
        opened(tmp_path / "odd")
    for text, sentence in (
        ("{}", r"dataset_dict\.json has no list 'splits'; save the data set again"),
        ('{"splits": 3}', r"dataset_dict\.json has no list 'splits'; save the data set again"),
        ("[]", r"dataset_dict\.json has no list 'splits'; save the data set again"),
        ("{", r"dataset_dict\.json is not valid JSON \(.*\); save the data set again"),
        ("[" * 10**5, r"dataset_dict\.json is not valid JSON \(.*\); save the data set again"),
    ):
        (tmp_path / "dict").mkdir(exist_ok=True)
        (tmp_path / "dict/dataset_dict.json").write_text(text)
        with pytest.raises(ValueError, match=sentence):
            opened(tmp_path / "dict")
    file = saved / "train/data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(
        ValueError, match=r"data-00000-of-00002.arrow is not a complete Arrow file .*; save the data set again"
    ):
        opened(saved)
    file.unlink()
    with pytest.raises(ValueError, match=r"there is no such file"):
        opened(saved)


def test_a_row_without_an_image(pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [
        {"bytes": None, "path": str(pictures[0])},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": None},
    ]
    write_arrow(tmp_path / "t", [pa.table({"image": images * 2, "label": [0, 1] * 3})])
    write_arrow(tmp_path / "v", [pa.table({"image": images, "label": [0, 1, 1]})])
    root = tmp_path / "both"
    root.mkdir()
    (tmp_path / "t").rename(root / "train")
    (tmp_path / "v").rename(root / "test")
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    train = opened(root)
    with pytest.raises(BadImage, match=f"row 0 .* is not in the data folder .* put {FOLDERS}={pictures[0].parent}"):
        train.raw(0)
    monkeypatch.setenv(FOLDERS, str(pictures[0].parent))
    assert train.raw(0) == pictures[0].read_bytes()
    with pytest.raises(BadImage, match=r"row 1 .* no file gone.png"):
        train.raw(1)
    with pytest.raises(BadImage, match=r"row 2 .* the row holds no image"):
        train.raw(2)


def test_files_of_a_split_need_the_same_columns(pictures: list[Path], tmp_path: Path) -> None:
    good = table(pictures[:3], [0, 1, 0], None)
    for name, odd in (
        ("label", good.rename_columns(["image", "tag"])),
        ("image", good.rename_columns(["img", "label"])),
    ):
        write_arrow(tmp_path / name, [good, odd])
        with pytest.raises(ValueError, match=rf"data-00001-of-00002\.arrow has no columns '{name}'"):
            open_dataset(tmp_path / name, "train")


def test_a_label_beyond_all_integers_is_a_sentence(pictures: list[Path], tmp_path: Path) -> None:
    write_arrow(tmp_path / "data", [table(pictures[:3], pa.array([0, 1, 2**63], pa.uint64()))])
    with pytest.raises(ValueError, match="has the label 9223372036854775808 in row 2"):
        open_dataset(tmp_path / "data", "train")
