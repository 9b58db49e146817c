"""CIFAR from its own files, and nothing but data from a pickle."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fourstage.data.formats import find_format
from fourstage.data.labels.cifar import Cifar

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
LABELS = [i % 10 for i in range(12)]


def write(path: Path, content: Any, protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    for i in range(1, 6):
        write(folder / f"data_batch_{i}", {b"data": PIXELS[i : i + 2], b"labels": LABELS[i : i + 2]})
    write(folder / "test_batch", {b"data": PIXELS, b"labels": LABELS})
    write(folder / "batches.meta", {b"label_names": [f"class{i}".encode() for i in range(10)]})
    return tmp_path


@pytest.mark.parametrize("below", [False, True])
def test_the_python_files(below: bool, ten: Path) -> None:
    root = ten / "cifar-10-batches-py" if below else ten
    assert find_format(root).name == "CIFAR"
    train, val = Cifar(root, "train"), Cifar(root, "val")
    assert (len(train), len(val)) == (10, 12)
    assert train.classes[9] == "class9"
    assert [train.id(i) for i in (0, 1, 2, 9)] == [
        "data_batch_1/00000", "data_batch_1/00001", "data_batch_2/00000", "data_batch_5/00001",
    ]  # fmt: skip
    sample = train.sample(2)
    assert sample.label == 2
    assert np.array_equal(sample.image, PIXELS[2].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_form_of_pickle(protocol: int, tmp_path: Path) -> None:
    write(tmp_path / "meta", {"fine_label_names": [b"a", b"b"]}, protocol)
    for name in ("train", "test"):
        content = {"data": np.asfortranarray(PIXELS), "fine_labels": [0, 1] * 6, "filenames": [b"x.png"] * 12}
        write(tmp_path / name, content, protocol)
    if protocol == 5:  # numpy makes arrays by another function there, and no file of CIFAR is written so
        with pytest.raises(ValueError, match=r"would run numpy.*_frombuffer"):
            Cifar(tmp_path, "val")
    else:
        val = Cifar(tmp_path, "val")
        assert np.array_equal(val.raw(3), PIXELS[3].reshape(3, 32, 32).transpose(1, 2, 0))


def test_the_binary_files(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("a\nb\n")
    rows = b"".join(bytes([9, i % 2]) + PIXELS[i].tobytes() for i in range(12))
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(rows)
    train = Cifar(tmp_path, "train")
    assert train.labels_N.tolist() == [0, 1] * 6
    assert np.array_equal(train.raw(5), PIXELS[5].reshape(3, 32, 32).transpose(1, 2, 0))
    (folder / "train.bin").write_bytes(rows[:-1])
    with pytest.raises(ValueError, match=r"train.bin ends in the middle of an image: it was cut off"):
        Cifar(tmp_path, "train")


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "evil",
    [
        Evil(eval, ("open('/tmp/never', 'w')",)),
        Evil(getattr, (np.ndarray, "dump")),
        Evil(np.load, ("/tmp/never",)),
        Evil(pickle.loads, (b"",)),
    ],
)
def test_a_pickle_that_wants_more_than_data_is_refused(evil: Evil, ten: Path) -> None:
    write(ten / "cifar-10-batches-py/test_batch", {b"data": PIXELS, b"labels": LABELS, b"extra": evil})
    with pytest.raises(ValueError, match=r"test_batch would run .*; nothing was run: do not trust this file"):
        Cifar(ten, "val")
    assert not Path("/tmp/never").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({b"data": PIXELS.astype(object), b"labels": LABELS}, "is damaged .*an array of"),
        ({b"data": PIXELS.astype(np.float32), b"labels": LABELS}, "is damaged .*an array of"),
        ({b"data": PIXELS[:3], b"labels": LABELS}, "is not a file of CIFAR"),
        ({b"data": PIXELS, b"labels": ["a"] * 12}, "is not a file of CIFAR"),
        ({b"data": PIXELS, b"labels": [10] * 12}, "labels from 10 to 10, and 10 classes"),
        ([1], "holds a list"),
    ],
)
def test_files_that_are_not_cifars(content: Any, told: str, ten: Path) -> None:
    write(ten / "cifar-10-batches-py/test_batch", content)
    with pytest.raises(ValueError, match=told):
        Cifar(ten, "val")


def test_cut_off_and_missing_files(ten: Path) -> None:
    path = ten / "cifar-10-batches-py/data_batch_3"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged .* download it again"):
        Cifar(ten, "train")
    path.unlink()
    with pytest.raises(ValueError, match=r"data_batch_3 cannot be read .* unpack the archive again"):
        Cifar(ten, "train")
