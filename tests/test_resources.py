"""Memory and disks that run out, and processes that are gone, are named in one sentence."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fourstage import resources
from fourstage.resources import sentence_of, sentences, size_text


def torch_allocates() -> None:
    torch.empty(1 << 50)


def numpy_allocates() -> None:
    np.empty(1 << 50)


def python_allocates() -> None:
    bytearray(1 << 60)


def raised(act: Callable[[], None]) -> str:
    with pytest.raises(ValueError, match="ran out") as caught, sentences("type this"):
        act()
    return str(caught.value)


@pytest.mark.parametrize("act", [torch_allocates, numpy_allocates, python_allocates])
def test_every_allocator_of_the_cpu(act: Callable[[], None]) -> None:
    sentence = raised(act)
    assert sentence.startswith("the memory of this machine ran out (")
    assert sentence.endswith("; type this")
    assert "are free now" in sentence or "may use" in sentence
    assert "\n" not in sentence
    if act is not python_allocates:
        assert "TB more were needed" in sentence


def test_the_dynamic_linker_without_memory() -> None:
    with (
        pytest.raises(ValueError, match=r"the memory of this machine ran out \(.*\); type this"),
        sentences("type this"),
    ):
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")
    assert sentence_of(ImportError("No module named 'timm'")) is None


GPU = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
]


@pytest.mark.parametrize("error", GPU, ids=str)
def test_every_allocator_of_a_gpu(error: RuntimeError) -> None:
    sentence = sentence_of(error, "type this")
    assert sentence is not None
    assert sentence.startswith("the memory of the GPU ran out")
    assert sentence.endswith("; type this")
    assert ("2.1 GB more were needed" in sentence) == ("GiB" in str(error))


LOST = [
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:3001",
    "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store",
    "Broken pipe in gloo/transport/tcp",
]


@pytest.mark.parametrize("text", LOST)
def test_a_process_that_is_gone(text: str) -> None:
    sentence = sentence_of(RuntimeError(text))
    assert sentence is not None
    assert sentence.startswith("another process of this run has ended (")
    assert "/pytorch/" not in sentence


def test_other_errors_stay_as_they_are() -> None:
    for error in (RuntimeError("shape mismatch"), OSError(errno.ENOENT, "No such file", "a"), KeyError("memory")):
        assert sentence_of(error) is None
        with pytest.raises(type(error)) as caught, sentences():
            raise error
        assert caught.value is error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_its_file(number: int, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    sentence = sentence_of(OSError(number, os.strerror(number), str(path)))
    assert sentence is not None
    assert sentence.startswith(f"{path} could not be written: ")
    assert "are free" in sentence
    nameless = sentence_of(OSError(number, os.strerror(number)), folder=tmp_path)
    assert nameless is not None
    assert nameless.startswith(f"a file in {tmp_path} could not be written: ")


def test_sizes_are_short() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 123456, 25 << 30)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "123 kB",
        "26.8 GB",
    ]


def test_kills_and_limits_are_read_from_both_forms_of_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CGROUPS", tmp_path)
    (tmp_path / "memory.events").write_text("low 0\nmax 7\noom 3\noom_kill 12345\noom_group_kill 0\n")
    (tmp_path / "memory.max").write_text("2000000000\n")
    if not list(resources._group_files("memory.max")):
        pytest.skip("this system has no control groups of the second version")
    assert resources.count_memory_kills() == 12345
    assert resources.memory_limit() == 2_000_000_000
    assert resources.memory_text() == "this process group may use 2.0 GB"
    (tmp_path / "memory.max").write_text("max\n")
    assert resources.memory_limit() is None


SMALL_DISK = """
mount -t tmpfs -o size=16k tmpfs "$1" || exit 77
exec "$0" -W error -c '
import shutil
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from fourstage.data.shards.write import write_shards
from fourstage.engine.log import RunLog
from fourstage.engine.state import save_state
from fourstage.files import write_text
from fourstage.predict.outputs import JsonRows

folder = Path(sys.argv[1])

def log():
    with RunLog(folder) as log:
        for step in range(1000):
            log.write({"kind": "train", "step": step, "total": 0.5})

def rows():
    with JsonRows(folder / "rows.jsonl", as_list=False) as rows:
        for _ in range(1000):
            rows.add({"boxes": [0] * 1000})

def shards():
    write_shards("digits", folder / "shards")

for act in (
    lambda: write_text(folder / "a.txt", "x" * 100_000),
    lambda: save_state(folder / "state.pt", {"fourstage": 1, "model": torch.zeros(100_000)}),
    rows,
    shards,
    log,
):
    try:
        act()
    except (OSError, ValueError) as error:
        print(error)
    shutil.rmtree(folder / "shards", ignore_errors=True)
' "$1"
"""


def test_every_writer_names_a_full_disk(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", SMALL_DISK, sys.executable, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip("this system lets nobody mount a small disk")
    lines = done.stdout.splitlines()
    names = ["a.txt", "state.pt", "rows.jsonl", "a file in", "log.jsonl"]
    assert len(lines) == len(names), done.stdout + done.stderr
    for line, name in zip(lines, names, strict=True):
        assert name in line.partition(" could not be written: ")[0]
        assert "the disk is full" in line
        assert "of 16.4 kB are free" in line
    assert "400 kB are needed" in lines[1]
    assert done.stderr == ""
    assert done.returncode == 0


def test_an_allocation_beyond_a_limit_of_the_system(tmp_path: Path) -> None:
    """The limit of a shell (`ulimit -v`), which lets the allocator of torch fail at sizes that exist."""
    code = (
        "import resource, torch\nfrom fourstage.resources import sentences\n"
        "resource.setrlimit(resource.RLIMIT_AS, (20 << 30, 20 << 30))\n"
        "kept = []\nwith sentences('type this'):\n    while True: kept.append(torch.empty(1 << 31, dtype=torch.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ValueError: the memory of this machine ran out")
    assert "2.1 GB more were needed" in done.stderr
