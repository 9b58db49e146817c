"""A data set as shards, and back: ids, labels and bytes are the same."""

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.embedded.digits import Digits
from fourstage.data.formats import open_dataset
from fourstage.data.images import decode_image
from fourstage.data.labels.listing import Listed
from fourstage.data.shards.write import parse_size, write_shards

Picture = Callable[..., Path]
Content = dict[str, tuple[int, str, bytes]]


def content(data: Path, split: str) -> Content:
    """Id -> label, name of the class, bytes."""
    dataset = open_dataset(data, split)  # pyright: ignore[reportArgumentType]
    labels, raw = dataset.labels_N, dataset.raw  # pyright: ignore[reportAttributeAccessIssue]
    return {dataset.id(i): (int(labels[i]), dataset.classes[labels[i]], raw(i)) for i in range(len(dataset))}


@pytest.fixture
def source(picture: Picture, tmp_path: Path) -> Path:
    for split, count in (("train", 7), ("val", 2)):
        for name in ("a cat", "dog.1"):
            for i in range(count):
                picture(f"source/{split}/{name}/{split}.v{i} ä.{('PNG', 'jpg', 'webp')[i % 3]}", 8, 8 + i)
    return tmp_path / "source"


@pytest.mark.parametrize("limits", [{"count": 3}, {"max_size": 20_000}, {"max_size": 1}, {}])
def test_there_and_back(limits: dict[str, int], source: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    out = tmp_path / "shards"
    written = write_shards(source, out, **limits, progress=lambda done, total: steps.append((done, total)))
    assert written.images == {"train": 14, "val": 4}
    for split in ("train", "val"):
        assert content(out, split) == content(source, split)
        shards = sorted(out.glob(f"{split}-*.tar"))
        assert len(shards) == written.shards[split]
        for shard in shards:
            with tarfile.open(shard) as archive:
                samples = len(archive.getmembers()) // 3
                assert samples <= limits.get("count", 99)
                assert archive.offset <= limits.get("max_size", 1 << 30) or samples == 1
    assert steps[-1] == (18, 18)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_the_shards_are_shuffled_and_always_the_same(source: Path, tmp_path: Path) -> None:
    write_shards(source, tmp_path / "a", count=7)
    write_shards(source, tmp_path / "b", count=7)
    for path in (tmp_path / "a").glob("*.tar"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    train = open_dataset(tmp_path / "a", "train")
    assert isinstance(train, Listed)
    assert set(train.labels_N[:7].tolist()) == {0, 1}


def test_pixels_without_files_are_kept_exactly(tmp_path: Path) -> None:
    write_shards("digits", tmp_path / "d", count=500)
    for split in ("train", "val"):
        digits = Digits(split)
        read = open_dataset(tmp_path / "d", split)
        assert isinstance(read, Listed)
        place = {read.id(i): i for i in range(len(read))}
        assert len(place) == len(digits)
        for i in range(0, len(digits), 50):
            sample = read.sample(place[digits.id(i)])
            assert np.array_equal(sample.image, digits.sample(i).image)
            assert sample.label == digits.labels_N[i]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(source: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write_shards(source, tmp_path / "s", count=5)
    pattern = f"{tmp_path}/s/train-{{000000..000002}}.tar"
    found: Content = {}
    with contextlib.closing(webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False)) as dataset:
        for sample in dataset:
            note = json.loads(sample["json"])
            [image] = [value for key, value in sample.items() if key in ("png", "jpg", "webp")]
            found[note["source_id"]] = (int(sample["cls"]), note["class"], image)
    assert found == content(source, "train")
    gc.collect()  # webdataset leaves closing its files to this


def test_an_interrupted_one_is_continued(source: Path, tmp_path: Path) -> None:
    write_shards(source, tmp_path / "whole", count=3)
    out = tmp_path / "cut"

    def stop(done: int, total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(source, out, count=3, progress=stop)
    assert [path.name for path in sorted(out.glob("*.tar"))] == ["train-000000.tar", "train-000001.tar"]
    assert not list(out.glob(".*.partial*"))
    with pytest.raises(ValueError, match="is incomplete"):
        open_dataset(out, "train")
    before = (out / "train-000000.tar").stat().st_mtime_ns
    write_shards(source, out, count=3)
    assert (out / "train-000000.tar").stat().st_mtime_ns == before
    for path in (tmp_path / "whole").glob("*.tar"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_a_killed_one_is_continued(source: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a shard leaves whole shards, and a part that nobody takes for one."""
    code = (
        "import sys, time\nfrom fourstage.data.shards.write import write_shards\n"
        "def slow(done, total):\n    print(done, flush=True)\n    time.sleep(9 if done == 8 else 0)\n"
        "write_shards(sys.argv[1], sys.argv[2], count=3, progress=slow)"
    )
    out = tmp_path / "cut"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(out)], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.strip() == "8":
                break
        time.sleep(0.1)
        os.kill(run.pid, signal.SIGKILL)
    assert len(list(out.glob("*.tar"))) == 2
    assert list(out.glob(".*.partial*"))
    write_shards(source, out, count=3)
    assert not list(out.glob(".*.partial*"))
    assert content(out, "train") == content(source, "train")


def test_nothing_is_written_over(source: Path, tmp_path: Path, picture: Picture) -> None:
    out = tmp_path / "s"
    write_shards(source, out, count=3)
    with pytest.raises(ValueError, match="already holds these shards, complete"):
        write_shards(source, out, count=3)
    with pytest.raises(ValueError, match="holds shards of other data or of another size"):
        write_shards(source, out, count=4)
    picture("source/train/a cat/new.png")
    with pytest.raises(ValueError, match="holds shards of other data"):
        write_shards(source, out, count=3)
    with pytest.raises(ValueError, match="holds other files: name a new or empty folder"):
        write_shards(source, source, count=3)
    with pytest.raises(ValueError, match="is a file"):
        write_shards(source, picture("file.png"), count=3)


def test_what_cannot_be_sharded(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        write_shards(source, tmp_path / "s", count=0)
    with pytest.raises(ValueError, match="does not exist"):
        write_shards(tmp_path / "nowhere", tmp_path / "s")
    (tmp_path / "coco/train").mkdir(parents=True)
    (tmp_path / "coco/train/_annotations.coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
    shutil.copytree(tmp_path / "coco/train", tmp_path / "coco/valid")
    with pytest.raises(ValueError, match="has no class for each image: shards are for classification data"):
        write_shards(tmp_path / "coco", tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_data_for_evaluation_alone_is_sharded_too(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "train")
    assert write_shards(source, tmp_path / "s").images == {"val": 4}
    assert content(tmp_path / "s", "val") == content(source, "val")


@given(st.integers(1, 10**12))
@settings(max_examples=20, deadline=None)
def test_sizes(size: int) -> None:
    assert parse_size(str(size)) == size
    assert parse_size(f"{size} kb") == 1000 * size


def test_sizes_that_are_none() -> None:
    assert parse_size("1.5GB") == 1_500_000_000
    for wrong in ("much", "-1", "1TB2", ""):
        with pytest.raises(ValueError, match="is not a size; write a number of bytes"):
            parse_size(wrong)


def test_bytes_are_images(source: Path, tmp_path: Path) -> None:
    write_shards(source, tmp_path / "s")
    for label, _, data in content(tmp_path / "s", "train").values():
        assert decode_image(data, "x").shape[0] == 8
        assert label in (0, 1)


@pytest.mark.parametrize("name", ["a\nb", " cat", "cat\u2028", os.fsdecode(b"caf\xe9"), "bell\a"])
def test_a_class_that_is_no_line_is_refused_before_anything_is_written(name: str, source: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (source / split / "a cat").rename(source / split / name)
    with pytest.raises(ValueError, match=r"cannot be a line of classes\.txt"):
        write_shards(source, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_state_of_another_program_is_another_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "shards.json").write_text("[]")
    with pytest.raises(ValueError, match="holds shards of other data"):
        write_shards(source, tmp_path / "s")
