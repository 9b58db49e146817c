"""When numbers may be made another way than by calling the modules, or PyTorch's operators, one after the other."""

import torch
from torch import Tensor, nn


def unwatched(*modules: nn.Module) -> bool:
    """Whether nobody hangs on to these modules: no hooks, which may also make weights anew, and not compiled."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        for module in modules
    )


def plain_convs(*modules: nn.Module) -> bool:
    """Whether these are convolutions as they were built. What wraps, shards or parametrises one changes its type."""
    return all(type(module) is nn.Conv2d for module in modules) and unwatched(*modules)


def eager_on_cpu(x: Tensor) -> bool:
    """Whether operators run now, on a CPU: nothing is traced, counted, faked or transformed."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
    )
