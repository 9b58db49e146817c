"""Hostile checkpoints are refused and leave no trace; damaged ones cost a sentence."""

import argparse
import collections
import contextlib
import copyreg
import os
import pickle
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from golden.checkpoints.hostile import (
    BOMBS,
    CODE,
    FUNCTIONS,
    NEST,
    PROGRAMS,
    RUN,
    WRITERS,
    Call,
    Stored,
    call,
    inside,
    pickled,
    refusal,
    then,
    write_bare,
    write_legacy,
    write_zip,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fourstage.weights.reading.safe import Foreign, read_checkpoint


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with victims and traps; whatever an attack runs leaves `marker` or takes `victim` away."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").mkdir()
    (tmp_path / "evil.py").write_text(CODE)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Call(eval, CODE)))
    return tmp_path


@pytest.fixture
def extension() -> Any:
    copyreg.add_extension("posix", "system", 240)
    yield
    copyreg.remove_extension("posix", "system", 240)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("container", WRITERS)
@pytest.mark.parametrize("attack", PROGRAMS)
def test_attack_is_refused_and_nothing_runs(attack: str, container: str, trap: Path) -> None:
    program = PROGRAMS[attack] if container == "bare" else inside(PROGRAMS[attack])
    sentence = refusal(WRITERS[container](trap / "a.pth", program))
    assert not (trap / "marker").exists()
    assert (trap / "victim").exists()
    if attack in FUNCTIONS:
        wanted = attack.replace("__builtin__", "builtins").replace("numpy.core.multiarray", "numpy._core.multiarray")
        assert f"was refused because it would call {wanted}," in sentence
        assert "only tensors and plain containers" in sentence


REAL = """os.system posix.system builtins.eval builtins.exec numpy.testing._private.utils.runstring inst obj ext1"""


@pytest.mark.parametrize("attack", [*REAL.split(), "stack_global os.system", "dotted torch", "getattr of import"])
@pytest.mark.usefixtures("extension")
def test_the_attacks_are_real(attack: str, trap: Path) -> None:
    program = PROGRAMS[attack]
    if "runstring" in attack:
        program = program.replace(b"\ntR.", b"\n}tR.")
    if attack == "getattr of import":
        program = then(program, RUN)
    pickle.loads(program)
    assert (trap / "marker").exists()


def test_attack_deep_inside_honest_content(trap: Path) -> None:
    for new_format in (True, False):
        content = {"model": {"a": torch.ones(2)}, "args": argparse.Namespace(hook=[{"x": Call(os.system, RUN)}])}
        torch.save(content, trap / "a.pth", _use_new_zipfile_serialization=new_format)
        assert "posix.system" in refusal(trap / "a.pth")
        assert not (trap / "marker").exists()


def test_methods_of_notes_are_never_called(trap: Path) -> None:
    """A note's state is kept, not applied, whatever it is called."""
    program = b"\x80\x02cevil\nClass\n)\x81}Vname\nVos.system\nsV__class__\nVa\nsV__setstate__\nVb\nsb."
    note = read_checkpoint(write_zip(trap / "a.pth", b"\x80\x02}Va\n" + program[2:-1] + b"s.")).content["a"]
    assert (type(note), note.name) == (Foreign, "evil.Class")
    assert note.state == {"name": "os.system", "__class__": "a", "__setstate__": "b"}


def test_nothing_is_imported(trap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trap / "evil_module.py").write_text(CODE)
    monkeypatch.syspath_prepend(trap)
    for path in (
        write_zip(trap / "a.pth", call("evil_module\nClass", "a")),
        write_legacy(trap / "b.pth", call("evil_module\nf")),
    ):
        refusal(path)
    assert not (trap / "marker").exists()


# ---------------------------------------------------------------- hostile sizes

V2, V3 = torch._utils._rebuild_tensor_v2, torch._utils._rebuild_tensor_v3  # pyright: ignore[reportAttributeAccessIssue]
FOUR = np.arange(4, dtype=np.float32).tobytes()
HOSTILE_TENSORS: dict[str, tuple] = {
    "past the end": (Stored(4), 0, (5,), (1,)),
    "offset": (Stored(4), 4, (1,), (1,)),
    "huge offset": (Stored(4), 2**62, (1,), (1,)),
    "negative offset": (Stored(4), -1, (1,), (1,)),
    "stride": (Stored(4), 0, (2,), (4,)),
    "huge stride": (Stored(4), 0, (2,), (2**63 - 1,)),
    "overflowing stride": (Stored(4), 0, (3, 3), (2**62, 2**62)),
    "negative stride": (Stored(4), 3, (4,), (-1,)),
    "negative size": (Stored(4), 0, (-1,), (1,)),
    "expanded": (Stored(4), 0, (2**40,), (0,)),
    "expanded twice": (Stored(4), 0, (2**20, 2**20), (0, 0)),
    "two lengths": (Stored(4), 0, (2, 2), (1,)),
    "floats": (Stored(4), 0.0, (2.0,), (1.0,)),
    "bools": (Stored(4), False, (True,), (True,)),
    "many dimensions": (Stored(4), 0, (1,) * 65, (1,) * 65),
    "no storage": ("0", 0, (1,), (1,)),
    "more than stored": (Stored(5), 0, (5,), (1,)),
    "less than stored": (Stored(3), 0, (3,), (1,)),
    "more than the file": (Stored(2**40), 0, (1,), (1,)),
    "negative count": (Stored(-4), 0, (1,), (1,)),
    "count of text": (Stored("4"), 0, (1,), (1,)),
    "other width": (Stored(4, kind=torch.DoubleStorage), 0, (4,), (1,)),
    "absent": (Stored(4, key="1"), 0, (4,), (1,)),
    "path": (Stored(4, key="../data.pkl"), 0, (4,), (1,)),
    "nested key": (Stored(4, key=((1,),)), 0, (4,), (1,)),
    "not a storage class": (Stored(4, kind=nn.Linear), 0, (4,), (1,)),
    "quantised": (Stored(4, kind=torch.QInt32Storage), 0, (4,), (1,)),
    "other tag": (Stored(4, tag="file"), 0, (4,), (1,)),
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
def test_tensors_outside_of_their_storage_are_refused(kind: str, container: str, tmp_path: Path) -> None:
    arguments = (*HOSTILE_TENSORS[kind], False, collections.OrderedDict())
    program = pickled({"a": Call(V2, *arguments)}, legacy=container == "legacy")
    write = write_zip if container == "zip" else write_legacy
    assert "Traceback" not in refusal(write(tmp_path / "a.pth", program, {"0": FOUR}))
    honest = pickled(
        {"a": Call(V2, Stored(4), 1, (3,), (1,), False, collections.OrderedDict())}, legacy=container == "legacy"
    )
    assert read_checkpoint(write(tmp_path / "a.pth", honest, {"0": FOUR})).weights()["a"].tolist() == [1, 2, 3]


def test_typed_views_of_untyped_bytes_are_bounded(tmp_path: Path) -> None:
    stored = Stored(16, kind=torch.UntypedStorage)
    for dtype, size in ((torch.float64, 3), (torch.complex128, 2), (torch.qint8, 1)):
        program = pickled({"a": Call(V3, stored, 0, (size,), (1,), False, {}, dtype)})
        refusal(write_zip(tmp_path / "a.pth", program, {"0": FOUR}))


def test_storages_have_one_size_and_as_many_bytes(tmp_path: Path) -> None:
    whole = Call(V2, Stored(4), 0, (4,), (1,), False, {})
    wider = Call(V2, Stored(4, kind=torch.DoubleStorage), 0, (4,), (1,), False, {})
    assert "two sizes" in refusal(write_zip(tmp_path / "a.pth", pickled([whole, wider]), {"0": FOUR}))
    short = Call(V2, Stored(4, kind=torch.ByteStorage), 0, (4,), (1,), False, {})
    assert "not of the size" in refusal(write_zip(tmp_path / "a.pth", pickled({"a": short}), {"0": b"a"}))
    program = pickled({"a": whole}, legacy=True)
    path = write_legacy(tmp_path / "a.pth", program, {"0": FOUR})
    data = path.read_bytes()
    path.write_bytes(data[:-24] + (3).to_bytes(8, "little") + data[-16:])
    assert "not of the size" in refusal(path)
    assert "storages that it names" in refusal(write_legacy(path, program, {"1": FOUR}))
    assert "storages that it names" in refusal(write_legacy(path, program))


def test_storages_cannot_claim_more_than_the_file(tmp_path: Path) -> None:
    content = {"a": Call(V2, Stored(2**38), 0, (1,), (1,), False, {})}
    for path in (write_zip(tmp_path / "a.pth", pickled(content)), write_legacy(tmp_path / "b.pth", pickled(content))):
        assert " bytes are missing" in refusal(path)


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("archive/data.pkl", pickled({}))
    assert "compressed" in refusal(tmp_path / "a.pth")


def test_conjugated_views_are_refused_not_misread(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, dtype=torch.complex64).conj()}, tmp_path / "a.pth")
    assert "conjugated" in refusal(tmp_path / "a.pth")


class Array:
    def __init__(self, shape: Any, code: str, data: Any, version: int = 1) -> None:
        self.state = (version, shape, np.dtype(code), False, data)

    def __reduce__(self) -> tuple:
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), self.state  # pyright: ignore


@pytest.mark.parametrize(
    ("shape", "code", "data"),
    [((5,), "f4", FOUR), ((2**62,), "i1", b""), ((-1,), "f4", FOUR), ((2**40,), "U0", b""), ((1,), "O", [1]),
     ((1,), "V4", b"abcd"), ((1,), "M8[s]", b"12345678"), ((4.0,), "f4", FOUR), ((4,), "f4", 3),
     ((1,) * 70, "f4", FOUR[:4])],
)  # fmt: skip
def test_hostile_arrays_are_refused(shape: Any, code: str, data: Any, tmp_path: Path) -> None:
    refusal(write_zip(tmp_path / "a.pth", pickled({"a": Array(shape, code, data)})))
    honest = read_checkpoint(write_zip(tmp_path / "a.pth", pickled({"a": Array((2, 2), "f4", FOUR)})))
    np.testing.assert_array_equal(honest.content["a"], [[0, 1], [2, 3]])


@pytest.mark.timeout(20)
@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("bomb", [name for name in BOMBS if name != "memo far away"])
def test_bombs_fizzle(bomb: str, container: str, tmp_path: Path) -> None:
    assert len(refusal(WRITERS[container](tmp_path / "a.pth", BOMBS[bomb]))) < 1000


def test_deep_nesting_and_loops_are_refused(tmp_path: Path) -> None:
    deep = b"}Va\n" + b"]" * 200_000 + b"a" * 199_999 + b"s."
    for program in (deep, b"}p0\nVa\ng0\ns."):
        assert "nested too deeply" in refusal(write_zip(tmp_path / "a.pth", program))
    assert "describes more than" in refusal(write_zip(tmp_path / "a.pth", b"}Vb\n" + NEST + b"s."))
    read_checkpoint(write_zip(tmp_path / "a.pth", b"}Va\n" + b"]" * 60 + b"a" * 59 + b"s."))


def test_what_a_memo_leaves_out_is_harmless(tmp_path: Path) -> None:
    read_checkpoint(write_zip(tmp_path / "a.pth", BOMBS["memo far away"]))


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.pth", pickled({}), {"0": FOUR})
    data = path.read_bytes()
    size = len(FOUR).to_bytes(4, "little")
    path.write_bytes(data.replace(size * 2, (10**6).to_bytes(4, "little") * 2))
    assert "overlap" in refusal(path)


# ---------------------------------------------------------------- random damage


def honest(path: Path, *, legacy: bool) -> bytes:
    content = {
        "model": {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.ones(1, dtype=torch.bfloat16)},
        "numpy": [np.arange(3), np.float64(1)],
        "args": argparse.Namespace(a=[1, 2], path=PurePosixPath("a")),
        "text": {"x": b"ab", "y": {1, 2}},
    }
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path.read_bytes()


def damaged(data: bytes, edits: list[tuple[int, int]], cut: int | None) -> bytes:
    changed = bytearray(data)
    for place, value in edits:
        changed[place % len(data)] = value
    return bytes(changed[: cut % len(data)] if cut is not None else changed)


edits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def survives(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools warns of odd escapes in text
        with contextlib.suppress(ValueError):
            read_checkpoint(path).weights()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@given(edits=edits, cut=st.none() | st.integers(0, 10**6))
@fuzz
def test_damaged_files_cost_at_most_a_sentence(legacy: bool, edits: list, cut: int | None, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    data = honest(path, legacy=legacy)
    path.write_bytes(damaged(data, edits, cut))
    survives(path)


@given(edits=edits, cut=st.none() | st.integers(0, 10**6))
@fuzz
def test_damaged_programs_cost_at_most_a_sentence(edits: list, cut: int | None, tmp_path: Path) -> None:
    """The same inside a sound zip archive, where no checksum helps."""
    path = tmp_path / "a.pth"
    honest(path, legacy=False)
    with zipfile.ZipFile(path) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    storages = {name.removeprefix("data/"): data for name, data in parts.items() if name.startswith("data/")}
    survives(write_zip(path, damaged(parts["data.pkl"], edits, cut), storages))


@given(program=st.binary(max_size=60))
@fuzz
def test_random_programs_cost_at_most_a_sentence(program: bytes, tmp_path: Path) -> None:
    survives(write_zip(tmp_path / "a.pth", program + b"."))
    survives(write_bare(tmp_path / "b.pth", program))
