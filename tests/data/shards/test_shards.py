"""WebDataset shards: what is in them, where they lie, and the order in which they are read."""

import io
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourstage.data.bad_images import without
from fourstage.data.formats import find_format, open_dataset
from fourstage.data.labels.listing import Listed
from fourstage.data.loader import TrainPlan, evaluation_batches, train_batches
from fourstage.data.sample import BadImage
from fourstage.data.shards import index as shard_index
from fourstage.data.shards.cache import ShardCache
from fourstage.data.shards.dataset import expand, find_shards, is_shards
from fourstage.data.shards.index import BrokenShardError, index_shard, local_index
from fourstage.data.transforms.classification import eval_transform
from fourstage.files import is_address

Picture = Callable[..., Path]
Members = list[tuple[str, bytes]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def image(picture: Picture) -> bytes:
    return picture("one.png", 8, 8).read_bytes()


def write(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            head = tarfile.TarInfo(name)
            head.size = len(data)
            archive.addfile(head, io.BytesIO(data))
    return path


def opened(data: str | Path, split: str = "train") -> Listed:
    dataset = open_dataset(data, split)  # pyright: ignore[reportArgumentType]
    assert isinstance(dataset, Listed)
    return dataset


@pytest.fixture
def folder(picture: Picture, tmp_path: Path) -> Path:
    """Three shards of 5, 3 and 4 images, and one of 2."""
    number = 0
    for name, count in (("train-000000", 5), ("train-000001", 3), ("train-000002", 4), ("val-000000", 2)):
        members: Members = []
        for _ in range(count):
            data = picture(f"source/{number}.png", 8, 8).read_bytes()
            members += [(f"{number:04d}.png", data), (f"{number:04d}.cls", str(number % 3).encode())]
            number += 1
        write(tmp_path / f"shards/{name}.tar", members)
    return tmp_path / "shards"


def test_samples_of_shards_are_read_by_their_number(folder: Path, tmp_path: Path) -> None:
    assert find_format(folder).name == "WebDataset"
    train, val = opened(folder), opened(folder, "val")
    assert (len(train), train.shard_sizes, val.shard_sizes) == (12, (5, 3, 4), (2,))
    assert train.labels_N.tolist() == [i % 3 for i in range(12)]
    assert val.classes == train.classes == ("0", "1", "2")
    assert train.id(6) == "train-000001/0006.png"
    assert [train.raw(i) for i in range(12)] == [(tmp_path / f"source/{i}.png").read_bytes() for i in range(12)]
    assert val.sample(1).label == 1
    assert pickle.loads(pickle.dumps(train)).raw(11) == train.raw(11)


def test_an_index_is_made_once_and_again_when_the_shard_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, image: bytes
) -> None:
    made: list[Path] = []
    real = shard_index.index_shard
    monkeypatch.setattr(shard_index, "index_shard", lambda path, name: made.append(path) or real(path, name))
    opened(folder)
    opened(folder)
    assert len(made) == 3
    shard = folder / "train-000001.tar"
    size = shard.stat().st_size
    write(shard, [(f"{i}.jpg", image) if i % 2 else (f"{i - 1}.cls", b"1") for i in range(1, 3)])
    os.utime(shard, ns=(1, 1))
    assert shard.stat().st_size == size  # tar files are padded: the size says little
    assert opened(folder).shard_sizes == (5, 1, 4)
    assert len(made) == 4
    (folder / ".fourstage/train-000000.tar.npz").write_bytes(b"half")
    assert opened(folder).shard_sizes == (5, 1, 4)


def test_where_a_folder_cannot_be_written_the_cache_keeps_the_index(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".fourstage").touch()  # in the way, as a folder without the right to write would be
    opened(folder)
    assert len(list((tmp_path / "cache/fourstage/indices").iterdir())) == 3
    monkeypatch.setattr(shard_index, "index_shard", None)
    assert len(opened(folder)) == 12


@pytest.mark.parametrize("more", [-1000, -512, -412, 0, 1, 300, 512])
def test_a_truncated_shard_is_named(more: int, folder: Path) -> None:
    """Cut in the last sample's image, before its label, in the label's head, its data, or before the end's mark."""
    shard = folder / "train-000001.tar"
    with tarfile.open(shard) as archive:
        last = archive.getmembers()[-1]
    shard.write_bytes(shard.read_bytes()[: last.offset_data + more])
    with pytest.raises(
        ValueError, match=r"train-000001.tar is not a complete tar file .*: it was cut off or damaged, so download"
    ):
        opened(folder)


def test_other_files_are_no_shards(folder: Path) -> None:
    (folder / "train-000001.tar").write_bytes(b"no tar file at all" * 100)
    (folder / "train-000002.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train-000001.tar is not a complete tar file .* \(and 1 more errors"):
        opened(folder)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("a.jpg", b""), ("b.jpg", b""), ("b.cls", b"1")], "holds no label for the sample 'a': a member a.cls"),
        ([("a.txt", b"1"), ("a.cls", b"1")], "holds no image for the sample 'a', only txt, cls"),
        ([("a.jpg", b""), ("a.cls", b"1"), ("b.jpg", b""), ("b.cls", b"1"), ("a.jpg", b""), ("a.cls", b"1")], "twice"),
    ],
)
def test_samples_that_cannot_be_used(members: Members, told: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenShardError, match=told):
        index_shard(write(tmp_path / "x.tar", members), "x.tar")


def test_what_others_write_into_shards(tmp_path: Path, image: bytes) -> None:
    long = "deep/" * 30 + "n01_1"  # a name for which tar needs a second head
    members: Members = [
        ("./", b""), (f"{long}.v2.JPG", image), (f"{long}.cls", b" 2\n"), (".hidden", b""), ("b.json", b'{"label": 1}'),
        ("b.webp", image), ("c.seg.png", image), ("c.json", b'{"label": 0, "source_id": "own/c.v1.png"}'),
    ]  # fmt: skip
    index = index_shard(write(tmp_path / "x-train.tar", members), "x-train.tar")
    assert [bytes(id).decode() for id in index.ids_N] == [f"x-train/{long}.v2.JPG", "x-train/b.webp", "own/c.v1.png"]
    assert index.labels_N.tolist() == [2, 1, 0]
    content = (tmp_path / "x-train.tar").read_bytes()
    assert all(content[o : o + s] == image for o, s in zip(index.offsets_N, index.sizes_N, strict=True))


def test_labels_may_be_names(tmp_path: Path, image: bytes) -> None:
    members = [one for i, name in enumerate("cabca") for one in ((f"{i}.jpg", image), (f"{i}.cls", name.encode()))]
    write(tmp_path / "s/train.tar", members)
    write(tmp_path / "s/val.tar", members[:2])
    assert opened(tmp_path / "s").classes == ("a", "b", "c")
    assert opened(tmp_path / "s", "val").labels_N.tolist() == [2]
    (tmp_path / "s/classes.txt").write_text("c\nb\na\n")
    assert opened(tmp_path / "s").labels_N.tolist() == [0, 2, 1, 0, 2]
    (tmp_path / "s/classes.txt").write_text("c\nb\nd\n")
    with pytest.raises(ValueError, match="gives 2 images the label -1"):
        opened(tmp_path / "s")


def test_shards_without_a_validation_split(folder: Path) -> None:
    (folder / "val-000000.tar").unlink()
    train, val = opened(folder), opened(folder, "val")
    assert len(train) + len(val) == 12
    assert sum(train.shard_sizes) == len(train)
    assert "held out for validation" in val.note
    with pytest.raises(ValueError, match=r"no .tar files"):
        find_shards(folder / "source")


def test_classes_beyond_classes_txt(folder: Path) -> None:
    (folder / "classes.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="gives 4 images the label 2, and the classes are 0 to 1"):
        opened(folder)


def test_tar_files_beside_class_folders_are_archives(tmp_path: Path, picture: Picture, image: bytes) -> None:
    for name in ("a", "b"):
        picture(f"own/train/{name}/1.png")
        picture(f"flat/{name}/1.png")
    for root in ("own", "flat"):
        write(tmp_path / root / "train.tar", [("a.jpg", image), ("a.cls", b"1")])
        assert not is_shards(tmp_path / root)
        assert find_format(tmp_path / root).name == "ImageFolder"
    write(tmp_path / "split/train/000.tar", [("a.jpg", image), ("a.cls", b"1"), ("b.jpg", image), ("b.cls", b"0")])
    assert len(opened(tmp_path / "split")) + len(opened(tmp_path / "split", "val")) == 2


def test_braces() -> None:
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{train-{0..1},val-{00..01}}.tar") == ["train-0.tar", "train-1.tar", "val-00.tar", "val-01.tar"]
    assert expand("plain.tar") == ["plain.tar"]
    for wrong in ("a-{0..1.tar", "a-{5..1}.tar", "a-{0..99999999}.tar"):
        with pytest.raises(ValueError, match=r"brace|must rise"):
            expand(wrong)


def test_a_pattern_on_disk(folder: Path) -> None:
    train = opened(f"{folder}/train-{{000000..000001}}.tar")
    assert len(train) == 5  # of each class one is held out
    assert len(opened(f"{folder}/{{train-{{000000..000001}},val-000000}}.tar")) == 8
    with pytest.raises(ValueError, match=r"there is no .*train-000003.tar \(1 of the 4 shards named are not there\)"):
        opened(f"{folder}/train-{{000000..000003}}.tar")


# ------------------------------------------------------------------------------------------------------------ remote


@pytest.fixture
def remote(folder: Path) -> Iterator[str]:
    """The shards at an address."""
    fsspec = pytest.importorskip("fsspec")
    memory: Any = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        memory.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    yield "memory://bucket/set"
    memory.rm("/bucket", recursive=True)


def test_an_address_gives_the_same_as_the_folder(remote: str, folder: Path) -> None:
    for data in (remote, f"{remote}/{{train-{{000000..000002}},val-000000}}.tar"):
        for split in ("train", "val"):
            near, far = opened(folder, split), opened(data, split)
            assert [near.id(i) for i in range(len(near))] == [far.id(i) for i in range(len(far))]
            assert [near.raw(i) for i in range(len(near))] == [far.raw(i) for i in range(len(far))]
            assert near.shard_sizes == far.shard_sizes


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_share_what_is_fetched(workers: int, remote: str) -> None:
    transform = eval_transform(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    train = opened(remote)
    batches = evaluation_batches(train, transform, batch_size=5, workers=workers)
    assert [id for batch in batches for id in batch.ids] == [train.id(i) for i in range(12)]


def test_published_indices_save_the_fetching(remote: str, folder: Path, tmp_path: Path) -> None:
    memory: Any = pytest.importorskip("fsspec").filesystem("memory")
    for split in ("train", "val"):
        opened(folder, split)
    for path in (folder / ".fourstage").iterdir():
        memory.pipe_file(f"/bucket/set/.fourstage/{path.name}", path.read_bytes())
    train = opened(remote)
    assert not list((tmp_path / "cache/fourstage/shards").glob("*.tar"))
    train.raw(7)
    assert [path.name[:12] for path in (tmp_path / "cache/fourstage/shards").glob("*.tar")] == ["train-000001"]


def test_the_cache_is_bounded_and_forgets_what_was_not_used_for_longest(remote: str, tmp_path: Path) -> None:
    shards = find_shards(remote).shards["train"]
    cache = ShardCache(tmp_path / "bounded", bound=sum(map(ShardCache()._size, shards)) - 1)
    for number, shard in enumerate(shards[:2]):
        os.utime(cache.fetch(shard), (number, number))
    cache._used.clear()
    cache.fetch(shards[0])  # used again, so the other one goes
    kept = {cache.fetch(shards[2]), cache.fetch(shards[0])}
    assert set((tmp_path / "bounded").glob("*.tar")) == kept
    train = opened(remote)
    cache._place(shards[1]).unlink(missing_ok=True)
    assert train.raw(6)


def test_processes_fetch_a_shard_once(remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ShardCache(tmp_path / "shared")
    [shard, *_] = find_shards(remote).shards["train"]
    fetched: list[str] = []
    real = ShardCache._download
    monkeypatch.setattr(
        ShardCache, "_download", lambda self, address, path: fetched.append(address) or real(self, address, path)
    )
    threads = [threading.Thread(target=cache.fetch, args=(shard,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [shard]


def test_a_shard_that_was_replaced_at_its_address_is_fetched_again(remote: str, folder: Path, image: bytes) -> None:
    memory: Any = pytest.importorskip("fsspec").filesystem("memory")
    opened(remote)
    many = [one for i in range(30) for one in ((f"{i}.jpg", image), (f"{i}.cls", b"1"))]
    memory.pipe_file("/bucket/set/train-000001.tar", write(folder / "other.tar", many).read_bytes())
    train = opened(remote)
    assert train.shard_sizes == (5, 30, 4)
    assert train.raw(6) == image


def test_addresses_that_lead_nowhere(remote: str) -> None:
    with pytest.raises(ValueError, match=r"nothing holds no .tar files"):
        opened("memory://nothing")
    with pytest.raises(ValueError, match=r"train-9.tar cannot be reached \(FileNotFoundError.*\); check the address"):
        opened(f"{remote}/train-9.tar")
    with pytest.raises(ValueError, match="nosuch://x cannot be opened"):
        opened("nosuch://x")


# ------------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(("workers", "ranks", "accumulation"), [(0, 1, 1), (2, 1, 2), (0, 2, 1), (1, 2, 2)])
def test_every_sample_once_an_epoch(workers: int, ranks: int, accumulation: int, folder: Path) -> None:
    train, transform = opened(folder), eval_transform(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    for epoch in range(2):
        ids: list[str] = []
        for rank in range(ranks):
            plan = TrainPlan(12, 4, 1, accumulation, rank, ranks, shard_sizes=train.shard_sizes)
            steps = train_batches(
                train, plan, transform, first_step=3 * epoch, last_step=3 * epoch + 3, workers=workers
            )
            ids += [id for parts in steps for batch in parts for id in batch.ids]
        assert sorted(ids) == [train.id(i) for i in range(12)]


def test_shards_less_some_samples_keep_their_groups(folder: Path) -> None:
    train = opened(folder)
    less = without(train, [train.id(i) for i in (1, 5, 6, 7)])
    assert getattr(less, "shard_sizes", None) == (4, 0, 4)
    assert getattr(without(less, [train.id(11)]), "shard_sizes", None) == (4, 0, 3)


def test_a_shard_that_goes_during_a_run_is_told(folder: Path) -> None:
    train = opened(folder)
    shard = folder / "train-000002.tar"
    shard.write_bytes(shard.read_bytes()[:600])
    with pytest.raises(BadImage, match=r"train-000002.tar/.* the shard was cut off; fetch or write it again"):
        train.raw(11)
    shard.unlink()
    with pytest.raises(BadImage, match="no such file"):
        train.raw(11)


def test_an_unfinished_folder_is_not_read(folder: Path) -> None:
    (folder / "shards.json").write_text(json.dumps({"finished": False}))
    with pytest.raises(ValueError, match=r"is incomplete: repeat the same `fourstage data shard`"):
        opened(folder)
    (folder / "shards.json").write_text(json.dumps({"finished": True}))
    assert len(opened(folder)) == 12


def test_an_index_is_arrays(folder: Path) -> None:
    index = local_index(folder / "train-000000.tar")
    assert {type(value) for value in vars(index).values()} == {np.ndarray}
    assert is_address("s3://b/x")
    assert not is_address("/b/x")


def test_shards_are_read_without_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    assert len(local_index(folder / "train-000000.tar").offsets_N)


@pytest.mark.parametrize("text", ["inf", "nan", "much"])
def test_a_size_of_the_cache_is_a_number(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURSTAGE_SHARD_CACHE_GB", text)
    with pytest.raises(ValueError, match=f"FOURSTAGE_SHARD_CACHE_GB is '{text}'; it must be a number"):
        ShardCache(tmp_path)
