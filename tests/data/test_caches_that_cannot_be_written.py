"""A cache that cannot be written is named, with what names another folder."""

import errno
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from PIL import Image

from fourstage import files
from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import cached_digit_scenes
from fourstage.data.formats import open_dataset
from fourstage.data.labels import huggingface
from fourstage.data.shards import cache as shards

OTHER = r"free space, or name another folder for the cache: put XDG_CACHE_HOME=FOLDER before the command"


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(stream, "jpeg")
    return stream.getvalue()


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    pa: Any = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    folder = tmp_path / "hub/data"
    folder.mkdir(parents=True)
    rows = pa.table({"image": [{"bytes": jpeg(), "path": None}] * 4, "label": [0, 1, 0, 1]})
    for split in ("train", "test"):
        pyarrow.parquet.write_table(rows, folder / f"{split}-00000-of-00001.parquet")
    return str(tmp_path / "hub")


@pytest.fixture
def remote() -> Iterator[str]:
    memory: Any = pytest.importorskip("fsspec").filesystem("memory")
    for split in ("train", "val"):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for i in range(4):
                for name, content in ((f"{i}.jpg", jpeg()), (f"{i}.cls", str(i % 2).encode())):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        memory.pipe_file(f"/cached/{split}-000000.tar", stream.getvalue())
    yield "memory://cached"
    memory.rm("/cached", recursive=True)


USERS: dict[str, Callable[[pytest.FixtureRequest], object]] = {
    "digit scenes": lambda request: cached_digit_scenes(),
    "parquet": lambda request: open_dataset(request.getfixturevalue("parquet"), "train"),
    "shards": lambda request: open_dataset(request.getfixturevalue("remote"), "train"),
}


@pytest.mark.parametrize("user", USERS)
def test_the_remedy_is_named(
    user: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises((ValueError, OSError), match=rf"{tmp_path}/file/fourstage.*\(Not a directory\); {OTHER}$"):
        USERS[user](request)


@pytest.mark.parametrize("user", ["parquet", "shards"])
def test_a_full_disk_is_not_a_fault_of_the_source(
    user: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, *_: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Opened:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __enter__(self) -> IO[bytes]:
            return Full()

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in (huggingface, shards, files):
        monkeypatch.setattr(module, "atomic_file", Opened)
    with pytest.raises(
        OSError, match=rf"{tmp_path}/cache/fourstage.* could not be written \(No space left .*; {OTHER}$"
    ):
        USERS[user](request)


def test_a_command_ends_with_the_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "digit_scenes"]) == 2
    assert OTHER in capsys.readouterr().err
