"""Where fast paths may run in place of the plain form. Every fast path asks here first.

A fast path gives the numbers of the plain form up to rounding, on a CPU, sooner. It reads weights from modules instead
of calling them, and it may use kernels that tools do not know, so it runs only where nobody can notice: float32 on a
CPU, eagerly, through modules that are exactly as PyTorch built them. Everywhere else, the plain form runs.

Where the numbers are not all finite, NaN may reach more numbers of the same image than in the plain form, as sums over
a map have terms of weight 0; it never reaches another image. And a fast path may keep inputs and biases for the
backward pass where the plain form keeps a copy or nothing, so that PyTorch refuses a backward pass after these were
changed in place.

`FOURSTAGE_OPS=plain` in the environment turns every fast path off, so that a doubt about a number can be bisected.
"""

import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_exporting
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.modules import module as nn_module

SWITCH = "FOURSTAGE_OPS"
TENSORS = frozenset((Tensor, nn.Parameter))  # a subclass (quantised, sharded, traced) has kernels of its own
CALL = nn.Module.__call__
CONVOLUTION = nn.Conv2d._conv_forward  # what `forward` of a convolution calls
# a fast path replaces these; wrappers, parametrisations, adapters and quantised layers are other types
LAYERS = {
    layer: layer.forward  # as PyTorch defines it, since a tool may patch the class
    for layer in (
        nn.Linear,
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.LayerNorm,
        nn.BatchNorm2d,
        nn.GELU,
        nn.ReLU,
        nn.Dropout,
        nn.Identity,
    )
}


def may_run_fast(*tensors: Tensor | None, modules: Iterable[nn.Module] = ()) -> bool:
    """Return whether a fast path may compute with these tensors in place of calling these modules.

    Args:
        tensors: what the fast path reads beside the modules' parameters; None is ignored.
        modules: the layers whose `forward` the fast path bypasses.

    Raises:
        ValueError: the environment's `FOURSTAGE_OPS` has an unknown value.
    """
    if is_compiling():  # first, so that a compiler reads no further
        return False
    for tensor in tensors:
        if tensor is not None and not _is_plain(tensor):
            return False
    if _is_recorded_or_changed() or not switched_on():
        return False
    return all(map(is_untouched, modules))


def has_fast_paths(device: torch.device) -> bool:
    """Return whether any fast path is for this device, so that its bits depend on the products that were chosen."""
    return device.type == "cpu"


def must_repeat_itself(device: torch.device) -> bool:
    """Return whether only deterministic operators may run (`torch.use_deterministic_algorithms`), on another device
    than a CPU, whose operators always are. Some of PyTorch's for GPUs raise an error then, forward or backward.
    """
    return device.type != "cpu" and torch.are_deterministic_algorithms_enabled()


def uses_onednn(device: torch.device) -> bool:
    """Return whether oneDNN computes the convolutions on a device, unless its flag is off."""
    return device.type == "cpu" and torch.backends.mkldnn.is_available()


def switched_on() -> bool:
    """Return whether the environment allows fast paths.

    Raises:
        ValueError: `FOURSTAGE_OPS` is neither "plain" nor "fast".
    """
    value = os.environ.get(SWITCH) or "fast"
    if value not in ("plain", "fast"):
        raise ValueError(
            f"{SWITCH} is {value!r}; set it to plain to turn every fast path off, or to fast (the default)"
        )
    return value == "fast"


def runs_eagerly() -> bool:
    """Return whether operators run now, one by one: nothing compiles, exports, traces, counts or transforms them."""
    return not (_is_recorded_or_changed() or forward_ad._current_level >= 0)


def _is_recorded_or_changed() -> bool:
    """Return whether operators are compiled, traced, counted or transformed; tangents of tensors do not count."""
    return bool(
        is_compiling()  # true while exporting too
        or is_tracing()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()  # FlopCounterMode, FakeTensorMode
        or torch._C._len_torch_function_stack()
        or is_transformed()
    )


def runs_within_backward() -> bool:
    """Return whether a backward pass calls this, without a compiler, which computes such a part only once."""
    return not is_compiling() and torch._C._current_graph_task_id() != -1


def is_compiled() -> bool:
    """Return whether `torch.compile` makes a graph for this process alone, which may hold any operator."""
    return is_compiling() and not is_exporting()


def is_recorded() -> bool:
    """Return whether operators are recorded into a graph: by a compiler, an exporter or `torch.jit.trace`."""
    return is_compiling() or is_tracing()


def is_transformed() -> bool:
    """Return whether a transform of functions runs: vmap, grad or jvp."""
    return torch._C._are_functorch_transforms_active()


def may_bypass(*containers: nn.Module) -> bool:
    """Return whether the layers in these modules may be called without a call of the modules, which have no hooks."""
    return runs_eagerly() and not any(map(is_watched, containers))


def is_untouched(module: nn.Module) -> bool:
    """Return whether a layer is exactly PyTorch's own: no wrapper, hook, parametrisation, patch or compiled form."""
    if not is_stock(module) or not module.__dict__.keys().isdisjoint(("weight", "bias")):  # set as mere attributes
        return False
    for tensor in module._parameters.values():
        if tensor is not None and not _is_plain(tensor):
            return False
    return not module._buffers or all(map(_is_plain, _statistics(module)))


def is_stock(module: nn.Module) -> bool:
    """Return whether a call of the layer does what PyTorch's own class does, and nothing else."""
    own = type(module)
    if own is nn.Conv2d and own._conv_forward is not CONVOLUTION:
        return False
    return own in LAYERS and own.forward is LAYERS[own] and not is_watched(module)


def is_watched(module: nn.Module) -> bool:
    """Return whether a call of the module does more than its class says: hooks, a patched call or forward, a compiled
    form.
    """
    own = module.__dict__
    return bool(
        own.get("_forward_hooks")
        or own.get("_forward_pre_hooks")
        or own.get("_backward_hooks")
        or own.get("_backward_pre_hooks")
        or own.get("_compiled_call_impl") is not None
        or "forward" in own  # accelerate patches single instances
        or "_conv_forward" in own  # so do tools for seamless tiles
        or nn.Module.__call__ is not CALL
        or nn_module._has_any_global_hook()
    )


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in TENSORS
        and tensor.is_cpu
        and tensor.dtype is torch.float32
        and tensor.layout is torch.strided  # not sparse
        and not _has_tangent(tensor)
    )


def _has_tangent(tensor: Tensor) -> bool:
    """Return whether a tensor has a tangent of forward-mode differentiation.

    Tangents of other tensors do not count: while a checkpoint computes a block again, the gradient of the block's
    output may have one, and the block must take the same form as before.
    """
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def _statistics(module: nn.Module) -> list[Tensor]:
    """Return the buffers that take part in the arithmetic; BatchNorm counts its batches in integers."""
    return [tensor for tensor in module._buffers.values() if tensor is not None and tensor.dtype is not torch.int64]
