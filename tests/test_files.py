"""A file has its old content or its new content, and nothing else stays in its folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from fourstage.files import (
    atomic_file,
    atomic_path,
    cache_folder,
    csv_cell,
    is_unfinished,
    read_at,
    real_path,
    remove_unfinished,
    write_file,
    write_text,
)

FULL_DISK = """
import resource, sys
from pathlib import Path
from fourstage.files import write_file, write_text
path = Path(sys.argv[1])
write_text(path, "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_file(path, lambda file: file.write(bytes(1_000_000)))
except OSError as error:
    print(error)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def explode(file: IO[bytes]) -> None:
    file.write(b"half")
    raise KeyError("no")


def test_a_file_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with atomic_file(tmp_path / "a.txt") as file:
        file.write("new, ä".encode())
        assert (tmp_path / "a.txt").read_text() == "old"
        assert [is_unfinished(path) for path in sorted(tmp_path.iterdir())] == [True, False]
        assert [path.name for path in tmp_path.glob("*.txt")] == [
            "a.txt"
        ]  # a search by suffix meets complete files only
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new, ä"
    assert names(tmp_path) == ["a.txt"]
    with atomic_path(tmp_path / "b.mp4") as new:
        assert new.suffix == ".mp4"  # writers of videos choose the format by it
        new.write_bytes(b"video")
    assert names(tmp_path) == ["a.txt", "b.mp4"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError):
        write_file(tmp_path / "a.txt", explode)
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "b.txt"):
        pass  # nothing was written
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_content_and_folder_are_synced_before_and_after_the_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(handle: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")  # noqa: PTH112 - a link
        sync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_text(tmp_path / "a.txt", "x")
    assert steps == ["file", "rename", "folder"]


def test_a_full_disk_is_reported_in_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    path = tmp_path / "a.txt"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert "could not be written: File too large: the limit of this system on the size of a file" in done.stdout
    assert "is still the last good one" in done.stdout
    assert done.stdout.count("\n") == 1
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"could not be written \(Not a directory\); no a.txt was written before"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_an_interrupt_that_a_writer_hides_stays_an_interrupt(tmp_path: Path) -> None:
    def write(file: IO[bytes]) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise RuntimeError("unexpected pos") from None

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.pt", write)
    assert names(tmp_path) == []


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in (".a.mp4.3f.partial.mp4", ".a.tar.7.partial", "below/.b.npz.1a.partial", "mine.partial.txt", ".hidden"):
        (tmp_path / name).write_text("half")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == [".hidden", "below", "mine.partial.txt"]
    assert names(tmp_path / "below") == []


def test_bytes_are_read_from_a_position(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_at(tmp_path / "a", 3, 4) == b"3456"
    assert read_at(str(tmp_path / "a"), 8, 10) == b"89"


def test_no_cell_of_a_csv_file_is_a_formula() -> None:
    for text in ("=1+1", "+cmd", "-x", "@a", "\tb", "\r=1", " =1"):
        assert csv_cell(text) == f"'{text}"
    for text in ("cat", "-1", "+2.5", "-1e-3", "", "a=b"):
        assert csv_cell(text) == text


def test_a_read_takes_no_memory_beyond_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read_at(tmp_path / "a", 4, 2**62) == b"456789"
    assert read_at(tmp_path / "a", 20, 5) == b""


def test_real_paths(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert real_path(tmp_path / "loop" / "x").name == "x"  # Path.resolve raises RuntimeError
    assert real_path(str(tmp_path / "b" / ".." / "link" / "c")) == tmp_path.resolve() / "a" / "c"


LONG_NAMES = {"one byte": "a" * 251, "three bytes": "あ" * 83, "four bytes": "𝒜" * 62}


@pytest.mark.parametrize("name", [f"{one}.png" for one in LONG_NAMES.values()], ids=LONG_NAMES)
def test_a_name_may_be_as_long_as_the_file_system_allows(name: str, tmp_path: Path) -> None:
    write_text(tmp_path / name, "text")
    with atomic_path(tmp_path / name) as new:
        assert is_unfinished(new)
        new.write_text("new")
    assert names(tmp_path) == [name]


def test_without_a_home_the_cache_is_asked_for_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user without a name in a container: Python knows no home then."""

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(OSError, match=r"no folder .*\(Could not determine home directory\); set XDG_CACHE_HOME"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/fourstage")
