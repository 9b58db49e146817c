"""Where numbers stopped being finite: which layer, weight or gradient was the first."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NOWHERE = "made once more, the step was finite: the arithmetic here does not give the same numbers twice"


def first_bad_number(task: nn.Module, batches: Sequence[Any], autocast: torch.autocast) -> str:
    """Run `batches` forward and backward, and say what was the first to be infinite or NaN; "" if nothing was.

    Gradients are gone afterwards; weights and buffers of norms may have seen the batches once more.
    """
    for name, parameter in task.named_parameters():
        if not _finite(parameter):
            return f"the weights {name} are not finite themselves"
    found: list[str] = []
    hooks = [module.register_forward_hook(_watch(name, found)) for name, module in task.named_modules() if name]
    try:
        for batch in batches:
            with autocast:
                losses = task.forward(batch)
            if found:
                return found[0]
            if bad := [name for name, loss in losses.items() if not _finite(loss)]:
                return f"{bad[0]} is the first, and what all layers gave was finite"
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
    bad = [name for name, p in task.named_parameters() if p.grad is not None and not _finite(p.grad)]
    task.zero_grad(set_to_none=True)
    return f"the losses are finite, and the gradient of {bad[-1]} is the first that is not" if bad else ""


def _watch(name: str, found: list[str]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if found or all(_finite(tensor) for tensor in _tensors([output])):
            return
        if all(_finite(tensor) for tensor in _tensors(inputs)):
            found.append(f"the first layer that gave it is {name} ({type(module).__name__})")
        else:
            found.append(f"what came into {name} ({type(module).__name__}) was not finite already")

    return look


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
