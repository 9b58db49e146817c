"""Which form of deformable sampling computes on a GPU: the one that a short measurement finds to be the fastest.

A measurement takes about a tenth of a second, and a few seconds more where Triton compiles a kernel for the first
time. It runs once in a process for each class of shapes, when the first tensors of that class arrive, and it reads
those tensors. `FOURSTAGE_SAMPLING` in the environment names a form by hand.
"""

import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from importlib.util import find_spec
from subprocess import SubprocessError
from time import perf_counter
from types import ModuleType
from typing import Literal, cast, get_args

import torch

from fourstage.ops.eager import TENSORS, runs_eagerly

SETTING = "FOURSTAGE_SAMPLING"
TURNS = 6  # of which the first warms up
MARGIN = 0.95  # a form replaces the first one only if it takes at most this share of its time

Form = Literal["grid_sample", "grid_sample_twice", "gather", "embedding_bag", "triton"]

_chosen: dict[Hashable, Form] = {}


def asked() -> Form | None:
    """Return the form that the environment asks for; None: nothing.

    Raises:
        ValueError: the environment's `FOURSTAGE_SAMPLING` is no form, or Triton's without Triton.
    """
    name = os.environ.get(SETTING, "")
    if not name:
        return None
    if name not in get_args(Form):
        raise ValueError(f"{SETTING} names a form of deformable sampling: {', '.join(get_args(Form))}; got {name!r}")
    if name == "triton" and find_spec("triton") is None:
        raise ValueError(f"{SETTING}=triton needs the package triton; type: pip install triton, or unset {SETTING}")
    return cast(Form, name)


@cache
def kernel() -> ModuleType | None:
    """Return the module of Triton's kernels; None where Triton is not installed or cannot be imported."""
    if find_spec("triton") is None:
        return None
    try:
        from fourstage.ops import sampling_kernel
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        _warn_about_triton(error)
        return None
    return sampling_kernel


def is_on_gpu(tensor: torch.Tensor) -> bool:
    """Return whether forms are measured for a tensor's device."""
    return tensor.is_cuda


def may_run_kernel(*tensors: torch.Tensor) -> bool:
    """Return whether Triton's kernel may compute with these tensors: eagerly, and on one GPU.

    Triton's interpreter, which `TRITON_INTERPRET=1` selects, computes on a CPU too.
    """
    if not runs_eagerly() or any(type(x) not in TENSORS or x.layout is not torch.strided for x in tensors):
        return False
    if len({x.device for x in tensors}) > 1 or not (tensors[0].is_cuda or tensors[0].is_cpu):
        return False
    module = kernel()
    return module is not None and (tensors[0].is_cuda or module.INTERPRETED)


def choose(key: Hashable, names: Sequence[Form], run: Callable[[Form], object], device: torch.device) -> Form:
    """Return the fastest form for a class of shapes, and measure it if nobody did before in this process.

    Args:
        key: the class.
        names: the candidates, the one that surely works first.
        run: computes once with a form.
    """
    if key not in _chosen:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return names[0]
        # a caller's hooks, such as those of activation checkpointing, must not see the measurement's tensors
        with torch.autograd.graph.saved_tensors_hooks(_same, _same):
            _chosen[key] = _quickest(names, run, device)
    return _chosen[key]


def _same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _quickest(names: Sequence[Form], run: Callable[[Form], object], device: torch.device) -> Form:
    """Return the form with the shortest of several runs, taken in turns. A form that fails leaves."""
    best: dict[Form, float] = dict.fromkeys(names, float("inf"))
    for turn in range(TURNS):
        for name in list(best):
            try:
                _wait(device)
                start = perf_counter()
                run(name)
                _wait(device)
            except _failures() as error:
                del best[name]
                if name == "triton":
                    _warn_about_triton(error)
                continue
            if turn:
                best[name] = min(best[name], perf_counter() - start)
    if names[0] in best:
        best[names[0]] *= MARGIN
    return min(best.items(), key=lambda item: item[1])[0] if best else names[0]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _failures() -> tuple[type[Exception], ...]:
    """What a form raises where memory, a C compiler or registers are missing."""
    module = kernel()
    return (RuntimeError, OSError, SubprocessError, ImportError, *(module.FAILURES if module else ()))


def _warn_about_triton(error: Exception) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    warnings.warn(
        f"Triton's kernel of deformable sampling does not run here ({reason}); another form computes. To be rid of "
        f"this warning, set {SETTING}=grid_sample",
        RuntimeWarning,
        stacklevel=2,
    )
