"""Laws of half precision: finite values in bfloat16 and float16, with converted weights and under autocast."""

from collections.abc import Sequence

import torch

from fourstage.check.findings import Finding, failed, passed, warned
from fourstage.check.laws import difference, loss_of
from fourstage.check.probes import Probe

LOOSE = {torch.bfloat16: 0.25, torch.float16: 0.1}  # deviation from float32, of the largest value, that is worth a word
MISSING = "not implemented for"  # in PyTorch's message on an operation without a kernel for a type


def bfloat16(probes: Sequence[Probe]) -> Finding:
    """Check bfloat16, which has the range of float32 and three digits."""
    return _finite_in(torch.bfloat16, probes)


def float16(probes: Sequence[Probe]) -> Finding:
    """Check float16, which ends at 65,504."""
    return _finite_in(torch.float16, probes)


def _finite_in(dtype: torch.dtype, probes: Sequence[Probe]) -> Finding:
    name, worst = str(dtype).removeprefix("torch."), 0.0
    for probe in probes:
        x = probe.input()
        with torch.no_grad():
            exact = probe.run(probe.fresh(), x)
            try:
                rounded = probe.run(probe.fresh().to(dtype), x.to(dtype))
            except RuntimeError as error:
                if MISSING not in str(error):
                    raise
                return warned(f"PyTorch has no kernel on the CPU: {error}", f"try {name} on the GPU that you train on")
        if not all(bool(out.isfinite().all()) for out in rounded):
            return failed(f"{probe.where}: NaN or inf", _ADVICE)
        if bad := _under_autocast(probe, dtype):
            return failed(f"{probe.where}: {bad} under autocast", _ADVICE)
        worst = max(worst, *map(difference, rounded, exact))
    if worst > LOOSE[dtype]:
        return warned(f"differs from float32 by {worst:.0%}", "compute sums, softmax and norms in float32")
    return passed(f"finite; within {worst:.1%} of float32")


_ADVICE = "scale before a product or a sum (q / sqrt(d), mean instead of sum), or compute that step in float32"


def _under_autocast(probe: Probe, dtype: torch.dtype) -> str:
    """Return what is not finite in a training pass under autocast."""
    module = probe.fresh().train()
    with torch.autocast("cpu", dtype=dtype):
        outputs = probe.run(module, probe.input())
    if not all(bool(out.isfinite().all()) for out in outputs):
        return "NaN or inf"
    if any(out.requires_grad for out in outputs):
        loss_of(outputs).backward()
    bad = [name for name, p in module.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    return f"NaN or inf in the gradient of {bad[0]}" if bad else ""
