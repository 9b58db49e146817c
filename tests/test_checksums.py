"""The sum of a checkpoint: other readers do not see it, and no damaged byte gets past it."""

import io
import random
import zipfile
from pathlib import Path

import pytest
import torch

from fourstage.checksums import LENGTH, is_intact, write_summed
from fourstage.weights.reading.safe import read_checkpoint


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    state = {"model": {f"w{i}": torch.randn(40, 30) for i in range(5)}, "step": 3}
    with (tmp_path / "a.pt").open("xb") as file:
        write_summed(file, lambda summing: torch.save(state, summing))
    return (tmp_path / "a.pt").read_bytes()


def test_other_readers_read_a_file_with_a_sum(content: bytes, tmp_path: Path) -> None:
    assert is_intact(io.BytesIO(content)) is True
    assert torch.load(io.BytesIO(content), weights_only=True)["step"] == 3
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    assert read_checkpoint(tmp_path / "a.pt").content["step"] == 3


def test_a_file_without_a_sum_is_read(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(3)}}, tmp_path / "b.pt")
    with (tmp_path / "b.pt").open("rb") as file:
        assert is_intact(file) is None
    assert read_checkpoint(tmp_path / "b.pt").weights()["w"].sum() == 3
    assert is_intact(io.BytesIO(b"")) is None


def test_every_damage_is_noticed(content: bytes, tmp_path: Path) -> None:
    random.seed(0)
    places = [*random.sample(range(len(content)), 300), *range(len(content) - LENGTH - 22, len(content)), *range(40)]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.randrange(8)
        assert is_intact(io.BytesIO(damaged)) is False, place
    for damaged in (content[:1000] + bytes(512) + content[1512:], content[:500] + content[600:], b"x" + content):
        assert is_intact(io.BytesIO(damaged)) is False
    for cut in (1, 10, LENGTH, LENGTH + 10, 2000):
        (tmp_path / "cut.pt").write_bytes(content[:-cut])
        with pytest.raises(ValueError, match=r"damaged|incomplete"):
            read_checkpoint(tmp_path / "cut.pt")
    (tmp_path / "flipped.pt").write_bytes(content[:1500] + bytes([content[1500] ^ 1]) + content[1501:])
    with pytest.raises(ValueError, match=r"flipped\.pt is damaged, its bytes do not have the sum"):
        read_checkpoint(tmp_path / "flipped.pt")
