"""The measured choice is kept in the user's cache; no file there, whatever it holds, does any harm."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from onednn import need_onednn

from fourstage.ops import kept_choice, measure, products

ONE, OTHER = (products.checked(names) for names in ("convolution,blas,plain", "blas,blas,fused"))


@pytest.fixture(autouse=True)
def _empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.delenv("FOURSTAGE_PRODUCTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = list(products._chosen)
    products._chosen.clear()
    yield
    products._chosen[:] = before


def choose(found: products.Products, monkeypatch: pytest.MonkeyPatch) -> products.Products:
    """What a new process uses in which a measurement finds `found`."""
    products._chosen.clear()
    monkeypatch.setattr(measure, "measured", lambda: found)
    return measure.choose_products()


def test_the_next_process_takes_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert kept_choice.read() is None
    assert choose(ONE, monkeypatch) == ONE
    assert choose(OTHER, monkeypatch) == ONE
    assert kept_choice.path().is_relative_to(tmp_path / "cache" / "fourstage")
    assert [path.name for path in kept_choice.folder().iterdir()] == [kept_choice.path().name]  # nothing unfinished


@pytest.mark.parametrize("what", ["processor", "torch", "threads"])
def test_another_machine_measures_for_itself(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(ONE, monkeypatch)
    mine = kept_choice.path()
    content = json.loads(mine.read_text())
    monkeypatch.setattr(kept_choice, "_machine", lambda: {**content, what: "another"})
    assert kept_choice.path() != mine
    assert choose(OTHER, monkeypatch) == OTHER
    monkeypatch.undo()


def test_a_file_under_the_wrong_name_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(ONE, monkeypatch)
    content = json.loads(kept_choice.path().read_text())
    kept_choice.path().write_text(json.dumps({**content, "torch": "1.0"}))
    assert kept_choice.read() is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"null", b"3", b'{"products": 3}', b'{"products": "blas,blas,fused"}',
     b"[" * 10_000, b"1" * 6000, b" " * 10**6],
    ids=lambda content: str(content[:20]),
)  # fmt: skip
def test_a_damaged_file_is_replaced(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    kept_choice.folder().mkdir(parents=True)
    kept_choice.path().write_bytes(content)
    assert kept_choice.read() is None
    assert choose(ONE, monkeypatch) == ONE
    assert kept_choice.read() == ONE


def test_products_that_this_pytorch_lacks_are_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(ONE, monkeypatch)
    file = kept_choice.path()
    file.write_text(file.read_text().replace(str(ONE), "blas,gpu,fused"))
    assert choose(OTHER, monkeypatch) == OTHER


def test_a_pipe_is_not_read() -> None:
    kept_choice.folder().mkdir(parents=True)
    os.mkfifo(kept_choice.path())
    assert kept_choice.read() is None


@pytest.mark.parametrize("where", ["cache", "cache/fourstage", "cache/fourstage/products"])
def test_a_cache_that_cannot_be_written_does_no_harm(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text("a file, where a folder is needed")
    assert choose(ONE, monkeypatch) == ONE
    assert choose(OTHER, monkeypatch) == OTHER


def test_a_user_without_a_home_builds_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", unknown)
    assert choose(ONE, monkeypatch) == ONE
    assert choose(OTHER, monkeypatch) == OTHER


def test_processors_of_arm_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux gives them no name, only numbers of the design; a home folder may serve machines of several kinds."""

    def described(part: str) -> str:
        text = f"processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: {part}\n\nprocessor\t: 1\n"
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        return kept_choice._processor()

    assert described("0xd0c") != described("0xd4f")


@pytest.mark.filterwarnings("ignore:TF32 acceleration:UserWarning")
def test_a_process_without_onednn_chooses_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    need_onednn()
    with torch.backends.mkldnn.flags(enabled=False):
        assert choose(OTHER, monkeypatch) == OTHER
    assert choose(ONE, monkeypatch) == ONE


def test_threads_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = kept_choice.path()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert kept_choice.path() != one
