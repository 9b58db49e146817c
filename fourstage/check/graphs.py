"""Laws of recorded graphs: one graph for torch.compile, one exported program for every size."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO

import torch
from torch import Tensor
from torch.export import Dim, export

from fourstage.check.findings import Finding, described, failed, passed
from fourstage.check.laws import RTOL, difference
from fourstage.check.probes import Probe

NOISY = ("torch._dynamo", "torch._export", "torch.export", "torch.fx", "torch._functorch", "torch._subclasses")
BACKEND = "aot_eager"  # records forward as a compiler does, and needs none


def compiles(probes: Sequence[Probe]) -> Finding:
    """Check that torch.compile records one graph, which computes the same."""
    advice = "keep Python values out of forward: no item(), print, or test of a tensor's values"
    for probe in probes:
        module, x = probe.fresh(), probe.input()
        with torch.no_grad(), _quiet():
            expected = _tensors(module(x))
            torch._dynamo.reset()
            try:
                got = _tensors(torch.compile(module, backend=BACKEND, fullgraph=True)(x))
            except Exception as error:  # the compiler, or the user's code in it, may raise anything
                return failed(f"{probe.where}: {described(error)}", advice)
            finally:
                torch._dynamo.reset()
        if (error := max(map(difference, got, expected))) > RTOL:
            return failed(f"{probe.where}: the graph differs by {error:.1g}", "keep no state between calls of forward")
    return passed("one graph, without breaks")


def exports(probes: Sequence[Probe]) -> Finding:
    """Check that torch.export records a program for any batch and size, which computes the same at another size."""
    advice = "compute with x.shape, not with int() of it or sizes kept from the constructor"
    for probe in probes:
        height, width = probe.recorded
        module, x = probe.fresh(), probe.input(probe.recorded)
        free = dict.fromkeys((0, *probe.sides), Dim.DYNAMIC)
        other = probe.input((height + 3, 2 * width + 1), batch=3)
        with torch.no_grad(), _quiet():
            try:
                program = export(module, (x,), dynamic_shapes=(free,), strict=False).module()
                got = _tensors(program(other))
            except Exception as error:  # the exporter, or the user's code in it, may raise anything
                return failed(f"{probe.where}: {described(error)}", advice)
            expected = _tensors(module(other))
        if (error := max(map(difference, got, expected))) > RTOL:
            return failed(f"{probe.where}: the program differs by {error:.1g} at another size", advice)
    return passed("one program for any batch and size")


def _tensors(output: object) -> list[Tensor]:
    values = output if isinstance(output, list | tuple) else [output]
    return [value for value in values if isinstance(value, Tensor)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the compiler's own reports out of the card."""
    before = [(name, logging.getLogger(name).level) for name in NOISY]
    for name, _ in before:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for name, level in before:
            logging.getLogger(name).setLevel(level)
