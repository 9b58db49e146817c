"""`fourstage data check` on data that lists, archives and tables name."""

import json
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourstage.data.checks.check import check, render
from fourstage.data.findings import Finding
from fourstage.data.shards.write import write_shards

Picture = Callable[..., Path]
Steps = list[tuple[int, int]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def lists(picture: Picture, tmp_path: Path) -> Path:
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("n01", "n02", "n03")):
            for i in range(count):
                picture(f"set/{split}/{name}/{i}.png")
                lines[split].append(f"{name}/{i}.png {label}\n")
    (tmp_path / "set/meta").mkdir()
    for split, text in lines.items():
        (tmp_path / f"set/meta/{split}.txt").write_text("".join(text))
    return tmp_path / "set"


def kinds(findings: list[Finding]) -> Counter[str]:
    return Counter(f"{finding.severity}: {finding.title}" for finding in findings)


def zipped(lists: Path) -> Path:
    root = lists.with_name("zipped")
    root.mkdir()
    for split in ("train", "val"):
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for path in sorted((lists / split).rglob("*.png")):
                archive.write(path, path.relative_to(lists / split))
        (root / f"{split}_map.txt").write_text((lists / f"meta/{split}.txt").read_text().replace(" ", "\t"))
    return root


def sharded(lists: Path) -> Path:
    root = lists.with_name("sharded")
    write_shards(lists, root, count=5)
    return root


def tables(lists: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    root = lists.with_name("tables")
    (root / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation")):
        rows = [line.split() for line in (lists / f"meta/{split}.txt").read_text().splitlines()]
        images = [{"bytes": (lists / split / path).read_bytes(), "path": path} for path, _ in rows]
        table = pa.table({"image": images, "label": [int(label) for _, label in rows]})
        pyarrow.parquet.write_table(table, root / f"data/{name}-00000-of-00001.parquet")
    return root


def kaggle(lists: Path) -> Path:
    root = lists.with_name("kaggle")
    (root / "ILSVRC/Data/CLS-LOC").mkdir(parents=True)
    (lists / "train").rename(root / "ILSVRC/Data/CLS-LOC/train")
    (root / "ILSVRC/Data/CLS-LOC/val").mkdir()
    text = "ImageId,PredictionString\n"
    for i, line in enumerate((lists / "meta/val.txt").read_text().splitlines()):
        path = line.split()[0]
        (lists / "val" / path).rename(root / f"ILSVRC/Data/CLS-LOC/val/{i}.JPEG")
        text += f"{i},{path.split('/')[0]} 1 2 3 4\n"
    (root / "LOC_val_solution.csv").write_text(text)
    return root


def fall(lists: Path) -> Path:
    for split in ("train", "val"):
        rows = [line.split() for line in (lists / f"meta/{split}.txt").read_text().splitlines()]
        pairs = [[f"{split}/{path}", int(label)] for path, label in rows]
        (lists / f"ILSVRC2011fall_whole_map_{split}.txt").write_text(json.dumps(pairs))
        (lists / f"meta/{split}.txt").unlink()
    return lists


def inaturalist(lists: Path) -> Path:
    for split in ("train", "val"):
        rows = [line.split() for line in (lists / f"meta/{split}.txt").read_text().splitlines()]
        content = {
            "images": [{"id": i, "file_name": f"{split}/{path}"} for i, (path, _) in enumerate(rows)],
            "annotations": [{"image_id": i, "category_id": int(label)} for i, (_, label) in enumerate(rows)],
            "categories": [{"id": i, "name": f"kind {i}"} for i in range(3)],
        }
        (lists / f"{split}2019.json").write_text(json.dumps(content))
        (lists / f"meta/{split}.txt").unlink()
    return lists


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("ImageNet lists", lambda lists: lists, {}),
        ("ImageNet zip", zipped, {}),
        ("ImageNet-22K", fall, {}),
        ("ImageNet of Kaggle", kaggle, {"warning: wrong extension": 6}),
        ("iNaturalist", inaturalist, {}),
        ("Hugging Face", tables, {}),
        ("WebDataset", sharded, {}),
    ],
)
def test_clean_data(name: str, make: Callable[[Path], Path], expected: dict[str, int], lists: Path) -> None:
    steps: Steps = []
    findings, summary = check(make(lists), lambda done, total: steps.append((done, total)))
    assert kinds(findings) == expected
    assert summary.format == name
    assert [split.images for split in summary.splits.values()] == [12, 6]
    assert sorted(summary.splits["train"].per_class.values()) == [4, 4, 4]
    assert steps[-1] == (18, 18)
    assert "train: 12 images of 48 x 40 pixels" in render(findings, summary)


def test_broken_lists(lists: Path, picture: Picture) -> None:
    (lists / "train/n01/0.png").unlink()
    (lists / "train/n01/1.png").write_bytes((lists / "train/n01/1.png").read_bytes()[:300])
    (lists / "val/n02/0.png").write_bytes((lists / "train/n02/0.png").read_bytes())
    (lists / "val/n03/0.png").write_bytes((lists / "val/n03/1.png").read_bytes())
    (lists / "val/n03/1.png").write_bytes((lists / "val/n01/1.png").read_bytes())
    picture("set/train/n02/tiny.png", 8, 8)
    with (lists / "meta/train.txt").open("a") as file:
        file.write("n02/tiny.png 1\nn02/tiny.png 1\nno label\nn03/gone.png 2\n")
    with (lists / "meta/val.txt").open("a") as file:
        file.write("n01/0.png 3\n")
    findings, summary = check(lists)
    assert kinds(findings) == {
        "error: missing image": 2, "error: unreadable image": 1, "error: broken line": 1, "note: listed twice": 1,
        "error: two labels": 1, "warning: tiny image": 1, "warning: leak": 1, "warning: two classes": 1,
    }  # fmt: skip
    assert summary.splits["train"].images == 12
    text = render(findings, summary)
    assert f"{lists}/train/n03/gone.png is not there, but in {lists}/meta/train.txt: fetch it" in text
    assert f"{lists}/meta/train.txt, line 15: reads 'no label'" in text


def test_labels_that_no_class_has_and_classes_without_images(lists: Path) -> None:
    (lists / "classes.txt").write_text("zero\none\ntwo\nthree\n")
    (lists / "meta/val.txt").write_text("n01/0.png 5\nn01/1.png 5\nn02/0.png 1\n")
    findings, summary = check(lists)
    assert kinds(findings) == {"error: label out of range": 1, "warning: empty class": 1}
    assert "has no image of class 3 (three)" in render(findings, summary)
    (lists / "classes.txt").unlink()
    text = (lists / "meta/train.txt").read_text()
    (lists / "meta/train.txt").write_text("".join(f"{line[:-1]}{int(line[-1]) + 1}\n" for line in text.splitlines()))
    (lists / "meta/val.txt").unlink()
    (lists / "val").rename(lists / "other")
    findings, _ = check(lists)
    assert kinds(findings) == {"warning: empty class": 1, "note: held-out split": 1}
    assert "where labels begin with 1, subtract one" in str(findings[0])


def test_a_zip_without_its_map(lists: Path) -> None:
    root = zipped(lists)
    (root / "train_map.txt").unlink()
    findings, summary = check(root)
    assert kinds(findings) == {"error: cannot be opened": 1}
    assert "train.zip comes without" in str(findings[0])
    assert summary.splits["val"].images == 6


def test_broken_shards(lists: Path) -> None:
    root = sharded(lists)
    for name in ("train-000001.tar", "val-000000.tar"):
        (root / name).write_bytes((root / name).read_bytes()[:3000])
    findings, summary = check(root)
    assert kinds(findings) == {"error: broken shard": 2}
    assert [split.images for split in summary.splits.values()] == [7, 1]
    assert "train-000001.tar is not a complete tar file" in render(findings, summary)


def test_shards_without_a_split(lists: Path) -> None:
    root = sharded(lists)
    for path in root.glob("val-*"):
        path.unlink()
    findings, _ = check(root)
    assert kinds(findings) == {"note: held-out split": 1}
    for path in root.glob("train-*"):
        path.rename(path.with_name(path.name.replace("train", "val")))
    findings, _ = check(root)
    assert kinds(findings) == {"note: no training split": 1, "error: training refuses this data": 1}


def test_shards_at_an_address(lists: Path) -> None:
    memory: Any = pytest.importorskip("fsspec").filesystem("memory")
    for path in sharded(lists).glob("*.t*"):
        memory.pipe_file(f"/checked/{path.name}", path.read_bytes())
    try:
        findings, summary = check("memory://checked")
        assert findings == []
        assert sorted(summary.splits["val"].per_class) == ["n01", "n02", "n03"]
    finally:
        memory.rm("/checked", recursive=True)


def test_cifar(tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(0), tmp_path / "cifar-100-python"
    folder.mkdir()
    pixels = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
    (folder / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"a", b"b"]}, 2))
    for name, rows in (("train", pixels[:3]), ("test", pixels[2:])):
        labels = [i % 2 for i in range(len(rows))]
        (folder / name).write_bytes(pickle.dumps({b"data": rows, b"fine_labels": labels}, 2))
    findings, summary = check(tmp_path)
    assert kinds(findings) == {"warning: leak": 1}
    assert summary.splits["train"].per_class == {"a": 2, "b": 1}
    (folder / "test").write_bytes(b"cut")
    findings, _ = check(tmp_path)
    assert kinds(findings) == {"error: cannot be opened": 1}
