"""Triton's kernels of deformable sampling without a GPU: interpreted, compiled, and chosen by a measurement."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ops.sampling_cases import case
from torch.utils.checkpoint import checkpoint

from fourstage.ops import sampling, sampling_choice
from fourstage.ops.sampling import deformable_sample
from fourstage.ops.sampling_choice import Form

pytest.importorskip("triton", reason="torch for CPUs comes without Triton")
HERE = Path(__file__).parent


def test_the_kernels_under_the_interpreter() -> None:
    """In a process of its own: whether Triton interprets is settled when it is imported."""
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    files = [str(HERE / name) for name in ("kernel_cases.py", "test_sampling.py", "test_forms.py")]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        [*words, "-k", "kernel_cases or triton or Triton"],
        capture_output=True,
        text=True,
        env={**alone, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100%" in done.stdout  # tests ran


INTEGERS = (
    "rows", "queries", "level", "height", "width",
    "map_b", "map_y", "map_x", "map_h", "cell_b", "cell_q", "cell_h", "cell_l", "cell_p", "cell_xy",
)  # fmt: skip
ALIGNED = ("map_b", "map_y", "map_x", "map_h")


def machine_code(kernel: Any, map_dtype: str, **flags: bool) -> str:
    """Compile a kernel for an H100 or H200, as a call with a DCNv3 layer's tensors would, and return its PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    dtypes = {"map_ptr": map_dtype, "out_ptr": map_dtype, "grad_ptr": map_dtype, "cell_ptr": "i64"}
    signature = {
        name: f"*{dtypes.get(name, 'fp32')}" if name.endswith("_ptr") else "i32" if name in INTEGERS else "constexpr"
        for name in kernel.arg_names
    }
    sizes = {"HEADS": 4, "LEVELS": 2, "POINTS": 9, "DIM": 24, "BLOCK_N": 32, "BLOCK_D": 32, "HAS_CELLS": True}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if name.endswith("_ptr") or name in ALIGNED
    }
    source = ASTSource(kernel, signature, {**sizes, **flags}, divisible)
    options = {"num_warps": 4, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"]  # ptxas took it
    return compiled.asm["ptx"]


@pytest.mark.parametrize("map_dtype", ["fp32", "bf16", "fp16"])
def test_the_kernels_compile_for_a_gpu(map_dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fourstage.ops import sampling_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    forward = machine_code(sampling_kernel.forward_kernel, map_dtype, HAS_SUM=True)
    backward = machine_code(sampling_kernel.backward_kernel, map_dtype, TO_MAP=True, TO_POINTS=True)
    assert re.search(r"ld\.global\.\S*v[24]\.", forward)  # several channels of a cell in one instruction
    assert ".local" not in forward + backward  # no register spills
    assert re.search(r"(red|atom)\.global\S*\.add\.", backward)


# ------------------------------------------------------------------------------------------------------ the choice


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Form]:
    """Treat the CPU as a GPU without Triton, and return the forms that computed."""
    computed: list[Form] = []
    compute = sampling.compute

    def spy(form: Form, *rest: Any) -> torch.Tensor:
        computed.append(form)
        return compute(form, *rest)

    monkeypatch.setattr(sampling_choice, "_chosen", {})
    monkeypatch.setattr(sampling, "compute", spy)
    monkeypatch.setattr(sampling, "may_run_fast", lambda *_: False)
    monkeypatch.setattr(sampling, "is_on_gpu", lambda _: True)
    return computed


def sample(seed: int = 0, **options: Any) -> torch.Tensor:
    *maps, at, weights = case(seed, [(3, 4)], **options)
    return deformable_sample(maps, at, weights)


def test_forms_are_measured_in_turns_once_for_each_class_of_shapes(measured: list[Form]) -> None:
    sample()
    turns, chosen = measured[:-1], measured[-1]
    assert turns == ["grid_sample", "gather"] * sampling_choice.TURNS
    assert chosen in turns
    measured.clear()
    sample(1)
    assert measured == [chosen]
    measured.clear()
    with torch.no_grad():
        sample()
    assert measured[:-1] == ["grid_sample", "gather", "embedding_bag"] * sampling_choice.TURNS
    measured.clear()
    sample(batch=40)
    assert len(measured) > 1


def test_the_measurement_reads_few_images_of_a_large_batch(
    measured: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "MEASURED", 1)
    batches: list[int] = []
    spy = sampling.compute
    monkeypatch.setattr(
        sampling, "compute", lambda form, maps, *rest: batches.append(len(maps[0])) or spy(form, maps, *rest)
    )
    assert len(sample(batch=4)) == 4
    assert set(batches[:-1]) == {1}
    assert batches[-1] == 4


CLOCK: dict[str, dict[str, float]] = {
    "gather": {"grid_sample": 1.0, "gather": 0.9, "triton": 2.0},
    "triton": {"grid_sample": 1.0, "gather": 0.9, "triton": 0.1},
    "grid_sample": {"grid_sample": 1.0, "gather": 0.97, "triton": 0.96},  # not worth other last bits
}


@pytest.mark.parametrize("best", CLOCK)
def test_the_fastest_form_is_chosen(best: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(sampling_choice, "_chosen", {})
    monkeypatch.setattr(sampling_choice, "perf_counter", lambda: now[0])
    names: tuple[Form, ...] = ("grid_sample", "gather", "triton")

    def run(name: Form) -> None:
        now[0] += CLOCK[best][name]

    assert sampling_choice.choose("key", names, run, torch.device("cpu")) == best


def test_a_form_that_fails_is_not_chosen_and_triton_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_choice, "_chosen", {})
    names: tuple[Form, ...] = ("grid_sample", "triton", "gather")
    runs: list[Form] = []

    def run(name: Form) -> None:
        runs.append(name)
        if name != "grid_sample":
            raise RuntimeError("no C compiler\nand more")

    with pytest.warns(RuntimeWarning, match=r"does not run here \(no C compiler\).*FOURSTAGE_SAMPLING=grid_sample"):
        assert sampling_choice.choose("key", names, run, torch.device("cpu")) == "grid_sample"
    assert runs.count("triton") == runs.count("gather") == 1
    assert sampling_choice.choose("none", ("gather",), run, torch.device("cpu")) == "gather"


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_does_not_see_the_measurement(reentrant: bool, measured: list[Form]) -> None:
    *maps, at, weights = tensors = case(0, [(3, 4)])
    out = checkpoint(
        lambda *maps_at_weights: deformable_sample(maps_at_weights[:1], *maps_at_weights[1:]),
        *tensors,
        use_reentrant=reentrant,
    )
    assert isinstance(out, torch.Tensor)
    out.sum().backward()
    assert len(measured) > 2
    expected = torch.autograd.grad(deformable_sample(maps, at, weights, form="grid_sample").sum(), tensors)
    for x, theirs in zip(tensors, expected, strict=True):
        torch.testing.assert_close(x.grad, theirs)


def test_the_kernel_is_no_form_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    *maps, at, weights = case(0, [(3, 4)])
    with pytest.raises(ValueError, match="on a GPU; got tensors on cpu; leave the form out"):
        deformable_sample(maps, at, weights, form="triton")
    monkeypatch.setenv("FOURSTAGE_SAMPLING", "triton")
    assert sampling.best_form(maps, at, weights) == "grid_sample"


def test_without_triton_its_name_is_refused_and_it_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_choice, "find_spec", lambda _: None)
    sampling_choice.kernel.cache_clear()
    try:
        assert not sampling_choice.may_run_kernel(torch.zeros(1))
        monkeypatch.setenv("FOURSTAGE_SAMPLING", "triton")
        with pytest.raises(ValueError, match="needs the package triton; type: pip install triton"):
            sampling_choice.asked()
    finally:
        sampling_choice.kernel.cache_clear()
