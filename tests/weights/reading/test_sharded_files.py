"""Folders and indices of shards are read as one checkpoint, and name files in their own folder alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fourstage.weights.reading import shards
from fourstage.weights.reading.safe import read_checkpoint

INDEX = "model.safetensors.index.json"
STATE = {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.full((1,), 5.0)}


def sharded(folder: Path, **changes: Any) -> Path:
    """Write STATE as two shards with an index; `changes` go into its weight_map."""
    folder.mkdir(exist_ok=True)
    save_file({"a": STATE["a"], "b": STATE["b"]}, folder / "m-1.safetensors")
    save_file({"c": STATE["c"]}, folder / "m-2.safetensors")
    places = {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors", **changes}
    kept = {key: place for key, place in places.items() if place is not None}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 24}, "weight_map": kept}))
    return folder


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[key], STATE[key]) for key in STATE)


def test_an_index_and_its_folder_are_one_checkpoint(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    for path in (folder, folder / INDEX):
        file = read_checkpoint(path)
        assert same(file.weights())
        assert file.path == folder / INDEX


def test_shards_of_torch_save_are_read_without_code(tmp_path: Path) -> None:
    torch.save({"a": STATE["a"]}, tmp_path / "p-1.bin")
    torch.save({"b": STATE["b"], "c": STATE["c"]}, tmp_path / "p-2.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "p-1.bin", "b": "p-2.bin", "c": "p-2.bin"}}))
    assert same(read_checkpoint(tmp_path).weights())
    torch.save({"b": STATE["b"], "c": print}, tmp_path / "p-2.bin")
    with pytest.raises(ValueError, match=r"p-2.bin was refused because it .*nothing in it was run"):
        read_checkpoint(index)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_stands_for_its_file(name: str, tmp_path: Path) -> None:
    (save_file if name.endswith("tensors") else torch.save)(STATE, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    assert same(read_checkpoint(tmp_path).weights())
    assert read_checkpoint(str(tmp_path)).path == tmp_path / name


def test_a_link_into_a_cache_is_followed(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    folder = sharded(tmp_path / "snapshot")
    (folder / "m-2.safetensors").rename(tmp_path / "blobs/hash")
    (folder / "m-2.safetensors").symlink_to("../blobs/hash")
    assert same(read_checkpoint(folder).weights())


@pytest.mark.parametrize(
    "name",
    ["../m-2.safetensors", "/etc/passwd", "x/../m-2.safetensors", "..", "", "C:\\m.bin", "a\0b", 7, ["m"], INDEX],
)
def test_a_shard_outside_the_folder_is_refused(name: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"index.json names .* files must be in its own folder, without a path"):
        read_checkpoint(sharded(tmp_path / "f", c=name))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"c": "m-3.safetensors"}, "names m-3.safetensors, which is not beside it: download all 2 of its files"),
        ({"d": "m-2.safetensors"}, "m-2.safetensors has no 'd', which model.safetensors.index.json expects in it"),
        ({"b": None}, "m-1.safetensors has 'b', which model.safetensors.index.json does not"),
        ({"b": "m-2.safetensors"}, "download both again"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_checkpoint(sharded(tmp_path, **changes))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000, "\xff"]
)
def test_a_damaged_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=INDEX):
        read_checkpoint(tmp_path)


def test_an_index_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_SHARDS", 1)
    with pytest.raises(ValueError, match=r"names more than 1 files; .*FOURSTAGE_LIMITS"):
        read_checkpoint(sharded(tmp_path))
    monkeypatch.setattr(shards, "INDEX_BYTES", 10)
    with pytest.raises(ValueError, match=r"at most 10 are read; .*FOURSTAGE_LIMITS"):
        read_checkpoint(tmp_path)


def test_an_empty_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    import os

    with pytest.raises(
        ValueError, match=r"is a folder, not a file: name the .pth, .pt or .*has one of model.safetensors, "
    ):
        read_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "m-2.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"c": "m-2.safetensors"}}))
    with pytest.raises(ValueError, match="is not beside it"):
        read_checkpoint(tmp_path)


def test_teacher_and_student_beside_each_other(tmp_path: Path) -> None:
    twins = {name: {"module.a": torch.full((2,), float(i))} for i, name in enumerate(("student", "teacher"))}
    torch.save({**twins, "epoch": 3}, tmp_path / "dino.pth")
    state = read_checkpoint(tmp_path / "dino.pth").weights()
    assert {key: float(value[0]) for key, value in state.items()} == {"teacher.module.a": 1.0, "student.module.a": 0.0}
