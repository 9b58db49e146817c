"""A network's tensors get the memory of those of the pass before, without new pages."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest

from fourstage.freed_memory import keep_all_freed_memory, keep_freed_memory

PROGRAM = """
import resource, statistics, sys
import torch
import fourstage

torch.set_num_threads(1)
training = sys.argv[1] == "train"
network = fourstage.create_model("official_pvt_v2_b0").train(training)
image_BCHW = torch.zeros(8, 3, 224, 224)
pages = []
with torch.set_grad_enabled(training):
    for passes in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        out = network(image_BCHW)
        if training:
            out.sum().backward()
        pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median_low(pages[3:]))
"""
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the C library of Linux")
FEW, MANY = 5000, 30_000  # pages of 4 KiB


def new_pages(mode: str, settings: Mapping[str, str]) -> int:
    """The pages that the system gives to a step, the median of five after the third, in a process of its own."""
    variables = {
        key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_", "FOURSTAGE_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        capture_output=True,
        text=True,
        check=True,
        env={**variables, "FOURSTAGE_PRODUCTS": "blas,blas,fused", **settings},
    )
    return int(done.stdout)


@LINUX
@pytest.mark.parametrize("mode", ["infer", "train"])
def test_a_step_needs_no_new_pages(mode: str) -> None:
    assert new_pages(mode, {}) < FEW


@LINUX
@pytest.mark.parametrize(
    "settings",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_settings_of_the_user_stay(settings: Mapping[str, str]) -> None:
    assert new_pages("train", settings) > MANY


def settings_of(
    keep: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *, platform: str = "linux", named: str = "mallopt"
) -> list[int]:
    """The numbers of the parameters that are set where the C library has one function, of this name."""
    seen: list[int] = []
    library = SimpleNamespace(**{named: lambda parameter, value: seen.append(parameter)})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", platform)
    keep()
    return seen


@pytest.fixture
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_no_settings")
@pytest.mark.parametrize(
    "keep", [keep_freed_memory.__wrapped__, keep_all_freed_memory], ids=["in a network", "in a run"]
)
def test_where_settings_are_made(keep: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(settings_of(keep, monkeypatch)) == 2
    assert settings_of(keep, monkeypatch, platform="darwin") == []
    assert settings_of(keep, monkeypatch, named="malloc") == []
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "65536")
    assert settings_of(keep, monkeypatch) == []
