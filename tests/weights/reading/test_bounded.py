"""Files that would fill memory or take for ever: each is one sentence, in little time and memory."""

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from golden.checkpoints.hostile import pickled, refusal, write_legacy

import fourstage
from fourstage.files import LIMITS
from fourstage.weights.reading import unpickle
from fourstage.weights.reading.safe import read_checkpoint

MERSENNE = 2**61 - 1  # integers that differ by it have the same hash


def write_pickle(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
    return path


def repeated(instruction: bytes, count: int) -> bytes:
    return b"\x80\x04(" + instruction * count + b"l."


def keys(program: str) -> bytes:
    """A dict or set of integers that all collide, built without hashing them here."""
    numbers = (b"\x8a\x0a" + (MERSENNE * n).to_bytes(10, "little") for n in range(1, 60_000))
    if program == "dict":
        return b"\x80\x04}(" + b"".join(number + b"N" for number in numbers) + b"u."
    return b"\x80\x04\x8f(" + b"".join(numbers) + b"\x90."


def test_opcodes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpickle, "INSTRUCTIONS", 4_000)
    for instruction in (b"\x8f", b"]", b"}", b"(", b"N0"):  # a set, a list, a dict, a mark, None and its removal
        sentence = refusal(write_pickle(tmp_path / "a.pt", repeated(instruction, 5_000)))
        assert "describes more than 4,000 objects" in sentence
        assert f"{LIMITS}=10" in sentence


BOMB = """
import resource, sys, time
from fourstage.weights.reading.safe import read_checkpoint
started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_checkpoint(sys.argv[1])
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, time.process_time() - started)
"""


@pytest.mark.torture
def test_a_pickle_of_sets_stays_below_two_gigabytes_and_twenty_seconds(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "a.pt", repeated(b"\x8f", 50_000_000))
    done = subprocess.run([sys.executable, "-c", BOMB, str(path)], capture_output=True, text=True, check=True)
    *_, sentence, figures = done.stdout.splitlines()
    assert "describes more than 1,500,000 objects" in sentence
    megabytes, seconds = map(float, figures.split())
    assert megabytes < 2000
    assert seconds < 20


@pytest.mark.parametrize("program", ["dict", "set"])
def test_integer_keys_that_collide_are_counted_before_they_are_hashed(program: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_pickle(path, keys(program))
    started = time.process_time()
    assert "more than 30,000 keys that are not text" in refusal(path)
    assert time.process_time() - started < 5


def test_copies_of_a_dict_count_its_keys_again(tmp_path: Path) -> None:
    numbers = pickle.dumps({MERSENNE * n: 0 for n in range(1, 8000)}, protocol=2)[:-1]
    copies = b"".join(b"ccollections\nCounter\nq\x02h\x01\x85R" for _ in range(10))
    head = numbers.replace(b"}q\x00", b"}q\x01", 1)
    assert "keys that are not text" in refusal(write_pickle(tmp_path / "a.pt", head + copies + b"."))


def test_texts_and_numbers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourstage.weights.reading.safe.PICKLE_BYTES", 10_000)
    content = {"model": {"w": torch.zeros(3)}, "text": "x" * 20_000}
    torch.save(content, tmp_path / "zip.pt")
    assert "bytes beside its tensors, and at most 10,000 are read" in refusal(tmp_path / "zip.pt")
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert "more than 10,000 bytes beside its tensors" in refusal(tmp_path / "legacy.pt")
    torch.save({"model": {"w": torch.arange(9000)}}, tmp_path / "tensors.pt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "tensors.pt").weights()["w"][-1] == 8999
    monkeypatch.setenv(LIMITS, "10")
    assert read_checkpoint(tmp_path / "zip.pt").content["text"] == content["text"]


def test_a_zip_directory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourstage.weights.reading.safe.DIRECTORY_BYTES", 2000)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for number in range(100):
            archive.writestr(f"archive/data/{number}", b"")
    assert "zip directory of" in refusal(tmp_path / "a.pt")


def test_entries_that_share_bytes_are_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(500), "b": torch.ones(500)}}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        first, second = (archive.getinfo(f"a/data/{number}") for number in "01")
    at = content.rindex(second.filename.encode()) - 46  # its entry in the directory
    content[at + 42 : at + 46] = struct.pack("<I", first.header_offset)
    (tmp_path / "a.pt").write_bytes(content)
    assert "overlap" in refusal(tmp_path / "a.pt")


def test_a_flipped_bit_in_a_file_without_a_sum_is_noticed(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(500)}}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        content[archive.getinfo("a/data/0").header_offset + 500] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    assert "the checksum of storage" in refusal(tmp_path / "a.pt")


def test_a_header_of_safetensors_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourstage.weights.reading.safe.HEADER_BYTES", 2**16)
    tensors = {f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(3_000)}
    header = json.dumps(tensors).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "has a header of" in refusal(tmp_path / "a.safetensors")


def test_a_file_of_holes_is_incomplete(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [2**33], "data_offsets": [0, 2**33]}}).encode()
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2**33)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "were never written" in refusal(tmp_path / "a.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pt")
    assert "is a named pipe, not a file" in refusal(tmp_path / "a.pt")


def test_honest_files_are_far_from_the_limits(tmp_path: Path) -> None:
    model = fourstage.create_model("visformer_digits")
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "a.pt")
    counted = unpickle.Machine(2**30, lambda key, memory: None)
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        counted.run(io.BytesIO(archive.read("a/data.pkl")))
    assert counted.instructions > 0.98 * unpickle.INSTRUCTIONS
    assert counted.other_keys > 0.98 * unpickle.OTHER_KEYS


def test_the_machine_of_the_older_format_is_bounded_too(tmp_path: Path) -> None:
    write_legacy(tmp_path / "a.pt", pickled({"model": {n: n for n in range(40_000)}}))
    assert "keys that are not text" in refusal(tmp_path / "a.pt")
