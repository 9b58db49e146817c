"""Laws of shapes, batches, gradients and repetition that every mixer and backbone must keep.

Each function takes the probes and returns a finding; an error of the user's code becomes a failed line elsewhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import recomputed
from fourstage.check.findings import Finding, described, failed, passed
from fourstage.check.probes import Probe, WrongShapeError

RTOL = 1e-4  # of the largest value
MOST_NAMES = 3


def shapes(probes: Sequence[Probe]) -> Finding:
    """Check that the outputs have the right shape and are finite, at the size that the instance was built for."""
    for probe in probes:
        x = probe.input()
        try:
            with torch.no_grad():
                outputs = probe.run(probe.fresh(), x)
        except WrongShapeError as error:
            return failed(f"{probe.where}: {error}", "return a tensor for each input, of the documented shape")
        if not all(bool(out.isfinite().all()) for out in outputs):
            return failed(f"{probe.where}: NaN or inf for normal noise", "look for a division by zero, a log or a root")
    return passed(f"right and finite{_places(probes)}")


def sizes(probes: Sequence[Probe]) -> Finding:
    """Check odd, narrow and small sizes."""
    broken = []
    for probe in probes:
        module = probe.fresh()
        for size in probe.sizes:
            try:
                with torch.no_grad():
                    probe.run(module, probe.input(size))
            except Exception as error:  # the user's code may raise anything
                broken.append((probe.where, size, described(error)))
    if broken:
        where, (height, width), error = broken[0]
        total = sum(len(probe.sizes) for probe in probes)
        found = f"{len(broken)} of {total} sizes fail, the first at {where}, {height} x {width}: {error}"
        return failed(found, "take H and W from the input's shape, and pad where windows or strides do not fit")
    shown = ", ".join(f"{h} x {w}" for h, w in probes[0].sizes)
    return passed(shown)


def batches(probes: Sequence[Probe]) -> Finding:
    """Check that an image's outputs do not depend on the other images of its batch."""
    for probe in probes:
        module, x = probe.fresh(), probe.input(batch=3)
        with torch.no_grad():
            together = probe.run(module, x)
            alone = [torch.cat(parts) for parts in zip(*(probe.run(module, one) for one in x.split(1)), strict=True)]
        error = max(map(difference, together, alone))
        if error > RTOL:
            advice = "mean, softmax and reshape must leave the batch axis alone; BatchNorm is right in evaluation mode"
            return failed(f"{probe.where}: an image changes by {error:.1g} with others in its batch", advice)
    return passed("three images together equal each alone")


def gradients(probes: Sequence[Probe]) -> Finding:
    """Check that the loss moves every parameter and the input, and that all gradients are finite."""
    for probe in probes:
        module, x = probe.fresh().train(), probe.input().requires_grad_(True)
        loss_of(probe.run(module, x)).backward()
        grads = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
        if missing := [name for name, grad in grads.items() if grad is None or not bool(grad.any())]:
            advice = "use these parameters in forward, or remove them, or set requires_grad to False"
            return failed(f"{probe.where}: no gradient for {_listed(missing)}", advice)
        if x.grad is None or not bool(x.grad.any()):
            return failed(f"{probe.where}: no gradient for the input", "remove detach(), no_grad and rounding")
        named = {**grads, "the input": x.grad}
        if bad := [name for name, grad in named.items() if grad is not None and not bool(grad.isfinite().all())]:
            advice = "a root or a norm at zero has an infinite gradient: add a small eps inside of it"
            return failed(f"{probe.where}: NaN or inf in the gradient of {_listed(bad)}", advice)
    count = sum(1 for _ in probes[0].fresh().parameters())
    return passed(f"{count} parameters and the input" if count else "the input; there are no parameters")


def repeats(probes: Sequence[Probe]) -> Finding:
    """Check that evaluation is the same twice, and so is a training pass with the same seed."""
    for probe in probes:
        module, x = probe.fresh(), probe.input()
        with torch.no_grad():
            first, second = probe.run(module, x), probe.run(module, x)
        if not all(map(torch.equal, first, second)):
            advice = "in evaluation mode drop and draw nothing: test self.training, or use nn.Dropout"
            return failed(f"{probe.where}: two passes in evaluation mode differ", advice)
        passes = [_training_pass(probe, probe.fresh(), x, checkpointed=False) for _ in range(2)]
        if difference_of_passes(*passes):
            advice = "draw from torch's own generator, so that torch.manual_seed repeats it"
            return failed(f"{probe.where}: two training passes with the same seed differ", advice)
    return passed("the same bits twice, in evaluation and in training")


def checkpoints(probes: Sequence[Probe]) -> Finding:
    """Check that activation checkpointing changes neither outputs nor gradients nor buffers."""
    for probe in probes:
        x = probe.input()
        plain, saved = (_training_pass(probe, probe.fresh(), x, checkpointed=flag) for flag in (False, True))
        if names := difference_of_passes(plain, saved):
            advice = (
                "checkpointing runs forward twice: count nothing in it, and keep running statistics in nn.BatchNorm2d"
            )
            return failed(f"{probe.where}: it changes {_listed(names)}", advice)
    return passed("the same outputs, gradients and buffers")


def _training_pass(probe: Probe, module: nn.Module, x: Tensor, *, checkpointed: bool) -> dict[str, Tensor]:
    """Return outputs, gradients and buffers of one training pass by name."""
    module.train()
    x = x.clone().requires_grad_(True)
    torch.manual_seed(1)
    run = _Recomputed(module) if checkpointed else module
    outputs = probe.run(run, x)
    loss_of(outputs).backward()
    grads = {f"the gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    kept = {f"the buffer {name}": buffer.clone() for name, buffer in module.named_buffers()}
    own = {f"output {i}": out.detach() for i, out in enumerate(outputs)}
    return {**own, **grads, **kept, **({} if x.grad is None else {"the gradient of the input": x.grad})}


class _Recomputed(nn.Module):
    """A module under activation checkpointing, with its levels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.levels = getattr(inner, "levels", ())

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self.inner, x)


def difference_of_passes(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Return the names whose tensors differ, or that only one of two passes has."""
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name not in one or name not in other or not _equal(one[name], other[name])]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))


def loss_of(outputs: Sequence[Tensor]) -> Tensor:
    """Return a scalar that moves every value of the outputs by an amount of its own."""
    draw = torch.Generator().manual_seed(2)
    return torch.stack([(out * torch.randn(out.shape, generator=draw)).float().sum() for out in outputs]).sum()


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference over the largest value; inf where one of them is not finite."""
    if not a.numel():
        return 0.0
    a, b = a.float(), b.float()
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        return float("inf")
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))


def _places(probes: Sequence[Probe]) -> str:
    return f", at {len(probes)} stages" if len(probes) > 1 else ""


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
