"""The sum of a checkpoint: other readers do not see it, and no damaged byte gets past it."""

import io
import random
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.checksums import LENGTH, SMALL, combined, is_intact, write_summed
from fourstage.weights.reading.safe import read_checkpoint


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    state = {"model": {f"w{i}": torch.randn(40, 30) for i in range(5)}, "step": 3}
    with (tmp_path / "a.pt").open("x+b") as file:
        write_summed(file, lambda summing: torch.save(state, summing))
    return (tmp_path / "a.pt").read_bytes()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=70_000))
def test_sums_of_two_texts_give_the_sum_of_both(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


class _Counting(io.BytesIO):
    """A file in memory that counts the bytes read."""

    read_bytes = 0

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        self.read_bytes += count
        return count


@pytest.mark.parametrize("size", [SMALL - 4, SMALL, SMALL + 4, 40 * SMALL])
def test_sums_of_large_tensors_come_from_the_archive(size: int) -> None:
    state = [torch.randn(size // 4), torch.randn(7), torch.randn(size // 4), torch.zeros(size // 4)]
    file = _Counting()
    write_summed(file, lambda summing: torch.save(state, summing))
    assert not file.read_bytes  # no byte is added up a second time
    assert is_intact(file) is True


@pytest.mark.parametrize("with_descriptors", [True, False])
def test_archives_of_every_writer_have_their_sum(with_descriptors: bool) -> None:
    def save(summing: Any) -> None:
        if with_descriptors:
            with zipfile.ZipFile(summing, "w") as archive:
                archive.writestr("a", bytes(3 * SMALL))
        else:
            summing.write(bytes(SMALL))
            summing.write(bytes(2 * SMALL))
            summing.write(b"PK\5\6" + bytes(18))

    file = io.BytesIO()
    write_summed(file, save)
    assert is_intact(file) is True


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
