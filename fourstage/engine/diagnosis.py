"""Find the layer, weight or gradient that is the first with numbers that are not finite."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NOWHERE = "repeated, the step was finite: the arithmetic here is not deterministic"


def first_bad_number(task: nn.Module, batches: Sequence[Any], autocast: torch.autocast) -> str:
    """Run `batches` forward and backward and name the first value that is infinite or NaN; "" if all are finite.

    Gradients are cleared afterwards; the statistics of norms may include the batches once more.
    """
    try:
        return _first_bad_number(task, batches, autocast)
    finally:
        task.zero_grad(set_to_none=True)


def _first_bad_number(task: nn.Module, batches: Sequence[Any], autocast: torch.autocast) -> str:
    """Return what `first_bad_number` returns; gradients stay."""
    for name, parameter in task.named_parameters():
        if not _finite(parameter):
            return f"the weights {name} are not finite"
    reports: list[str] = []
    hooks = [module.register_forward_hook(_watch(name, reports)) for name, module in task.named_modules() if name]
    try:
        for batch in batches:
            with autocast:
                losses = task.forward(batch)
            if reports:
                return reports[0]
            if bad := [name for name, loss in losses.items() if not _finite(loss)]:
                return f"{bad[0]} is the first, and the outputs of all layers are finite"
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    bad = [name for name, p in task.named_parameters() if p.grad is not None and not _finite(p.grad)]
    return f"the losses are finite, and the gradient of {bad[-1]} is the first that is not finite" if bad else ""


def _watch(name: str, reports: list[str]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def inspect(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if reports or all(_finite(tensor) for tensor in _tensors([output])):
            return
        if all(_finite(tensor) for tensor in _tensors(inputs)):
            reports.append(f"the first layer with such an output is {name} ({type(module).__name__})")
        else:
            reports.append(f"the input of {name} ({type(module).__name__}) was already not finite")

    return inspect


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
