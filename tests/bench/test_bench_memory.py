"""Batches that fit, and peak memory in a process of its own."""

import json
import subprocess
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fourstage.bench import memory
from fourstage.bench import run as bench_run
from fourstage.bench.count import Count
from fourstage.bench.memory import Fit
from fourstage.bench.options import Options
from fourstage.bench.workloads import OutOfMemoryError, Setting, memory_errors
from fourstage.ops import products

ROOM = {"infer": 5, "train": 2}  # images


class Machine:
    """Memory for so many images."""

    def __init__(self, room: dict[str, int]) -> None:
        self.room, self.asked = room, []

    def __call__(self, modes: Sequence[str], batch: int) -> dict[str, int | None]:
        self.asked.append((tuple(modes), batch))
        out: dict[str, int | None] = {}
        for mode in modes:  # as the real ones, it ends where memory does
            if batch > self.room[mode]:
                break
            out[mode] = 1000 * batch
        return out


def test_a_batch_is_halved_until_it_fits_and_that_is_reported() -> None:
    machine, said = Machine(ROOM), []
    fits = memory.fit(machine, ("infer", "train"), 8, said.append)
    assert fits == {"infer": Fit(4, 4000), "train": Fit(2, 2000)}
    assert machine.asked == [(("infer", "train"), 8), (("infer", "train"), 4), (("train",), 2)]
    assert said == [
        "memory is not enough for 8 images (infer); continuing with 4",
        "memory is not enough for 4 images (train); continuing with 2",
    ]


def test_nothing_is_reported_where_all_batches_fit() -> None:
    said: list[str] = []
    assert memory.fit(Machine(ROOM), ("infer",), 5, said.append) == {"infer": Fit(5, 5000)}
    assert said == []


def test_not_even_one_image_fits() -> None:
    with pytest.raises(ValueError, match="a single image"):
        memory.fit(Machine({"infer": 0}), ("infer",), 8, lambda text: None)


def test_the_process_measures_both_modes() -> None:
    peaks = memory.peaks_on_cpu("visformer_digits", Options(img_size=(32, 32), threads=1), ["infer", "train"], 4)
    weights = 2.17e6 * 4
    assert list(peaks) == ["infer", "train"]
    assert peaks["infer"] is not None
    assert peaks["train"] is not None
    assert weights < peaks["infer"] < 40e6
    assert 4 * weights < peaks["train"] < 80e6  # gradients and the optimiser's two states beside the weights


@pytest.mark.parametrize(("code", "printed", "left"), [(-9, '{"infer": 7}\n', {"infer": 7}), (3, "", {})])
def test_a_process_that_memory_ended_gives_what_it_had(
    code: int, printed: str, left: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], code, printed, "")

    monkeypatch.setattr(subprocess, "run", killed)
    assert memory.peaks_on_cpu("visformer_digits", Options(), ["infer", "train"], 4) == left


def test_the_process_computes_by_the_products_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not choose them: there every tensor has new memory, which distorts times."""
    monkeypatch.setattr(products, "_chosen", [products.checked("blas,convolution,plain")])
    seen: list[str] = []

    def run(*_: object, env: dict[str, str], **__: object) -> subprocess.CompletedProcess[str]:
        seen.append(env["FOURSTAGE_PRODUCTS"])
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    memory.peaks_on_cpu("visformer_digits", Options(), ["infer"], 4)
    assert seen == ["blas,convolution,plain"]


def test_a_process_that_fails_otherwise_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: no model is called 'mine'\n")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(ValueError, match="memory of mine failed: ValueError: no model is called 'mine'"):
        memory.peaks_on_cpu("mine", Options(), ["infer"], 4)


def test_the_process_says_by_its_exit_code_that_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from io import StringIO

    def peaks(name: str, options: Options, modes: Sequence[str], batch: int) -> object:
        assert options.img_size == (32, 64)
        assert options.imports == ("mine.py",)
        yield "infer", 11
        torch.empty(10**15)

    request = {
        "name": "a",
        "options": {"img_size": [32, 64], "imports": ["mine.py"]},
        "modes": ["infer", "train"],
        "batch": 4,
    }
    monkeypatch.setattr("sys.stdin", StringIO(json.dumps(request)))
    monkeypatch.setattr(memory, "_peaks", peaks)
    assert memory.main() == memory.NO_MEMORY
    assert json.loads(capsys.readouterr().out) == {"infer": 11}


def test_what_torch_says_of_memory_is_understood() -> None:
    with pytest.raises(OutOfMemoryError), memory_errors():
        torch.empty(10**15)
    with pytest.raises(OutOfMemoryError), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shape"), memory_errors():
        raise RuntimeError("shape mismatch")


def test_on_a_gpu_what_was_there_before_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    peak = {"now": 0}
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peak.update(now=0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak["now"])
    steps: list[str] = []

    def run(mode: str, batch: int) -> object:
        def step() -> None:
            steps.append(mode)
            if mode == "train" and batch > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            first = steps.count(mode) == 1
            peak["now"] = max(peak["now"], 100 + batch + 1000 * first)  # the first step tries kernels out

        return step

    assert memory.peaks_on_cuda(run, 100, ["infer", "train"], 8) == {"infer": 8}
    steps.clear()
    assert memory.peaks_on_cuda(run, 100, ["infer", "train"], 4) == {"infer": 4, "train": 4}


def test_gradients_of_a_step_that_did_not_fit_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would count as memory that was there before."""
    model = nn.Linear(2, 2)
    found: list[bool] = []

    def peaks(run: object, base: int, modes: Sequence[str], batch: int) -> dict[str, int | None]:
        found.append(model.weight.grad is None)
        model(torch.ones(1, 2)).sum().backward()
        return {"infer": 1} if batch > 4 else dict.fromkeys(modes, 1)

    monkeypatch.setattr(memory, "peaks_on_cuda", peaks)
    monkeypatch.setattr(bench_run, "allocated", lambda device: 0)
    monkeypatch.setattr(bench_run, "free_memory", lambda device: None)
    loaded = bench_run.LoadedModel("linear", model, (3, 8, 8), Count(0, 0, 0, 0, 0, (8, 8)), 0)
    setting = Setting(Options(device="cuda", train=True, batch_size=8), torch.device("cuda"))
    bench_run.find_batches(loaded, setting, lambda text: None)
    assert found == [True, True]


def test_what_a_users_file_prints_is_no_result(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import asdict
    from io import StringIO

    def peaks(*_: object) -> object:
        print(3)
        yield "infer", 11

    request = {"name": "a", "options": asdict(Options()), "modes": ["infer"], "batch": 4}
    monkeypatch.setattr("sys.stdin", StringIO(json.dumps(request)))
    monkeypatch.setattr(memory, "_peaks", peaks)
    assert memory.main() == 0
    assert json.loads(capsys.readouterr().out) == {"infer": 11}
