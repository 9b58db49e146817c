"""A device of its own for tests: it computes on the CPU, and no tensor of the CPU may enter its computations.

What runs here without an error puts its tensors where its inputs are. A tensor that was left on the CPU, a device that
is written into the code and a `.numpy()` without `.cpu()` raise, as they would on a GPU. Values are real, so that code
whose path depends on them runs too.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
# CUDA too lets a CPU tensor index or fill a tensor of the GPU, and copies between devices
MIXES = {"copy_", "index", "index_put", "index_put_", "_index_put_impl_", "set_"}


class PretendTensor(Tensor):
    """A tensor that says that it is on the pretended device, and keeps its values in `held`, a tensor of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendTensor":
        made = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self, **options: Any) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return f"PretendTensor({self.held!r})"

    def tolist(self) -> Any:
        """As on a GPU, whose tensors come to the CPU for this."""
        return self.cpu().tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.tensor(data, **{"dtype": self.dtype, **options}).to(self.device)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


@contextmanager
def pretended_device() -> Generator[torch.device]:
    """Set up the device, once in a process, and let `torch.tensor` and `torch.as_tensor` know it for a while."""
    real = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}
    for name, function in real.items():
        setattr(torch, name, partial(_by_way_of_the_cpu, function))
    try:
        yield _set_up()
    finally:
        for name, function in real.items():
            setattr(torch, name, function)


def _by_way_of_the_cpu(function: Callable[..., Tensor], data: Any, device: Any = None, **options: Any) -> Tensor:
    return function(data, **options) if device is None else function(data, **options).to(device)


def _set_up() -> torch.device:
    if not _libraries:
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
        library = torch.library.Library("_", "IMPL")
        library.fallback(lambda func, *args, **kwargs: _compute(func, args, kwargs), dispatch_key="PrivateUse1")
        library.fallback(torch.library.fallthrough_kernel, dispatch_key="AutocastPrivateUse1")
        _libraries.append(library)
    return torch.device(NAME, 0)


_libraries: list[torch.library.Library] = []


class _Module:
    """What PyTorch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


def _compute(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    leaves = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in leaves if isinstance(x, PretendTensor)]
    name = func.overloadpacket.__name__
    if here and name not in MIXES and any(x.ndim and not isinstance(x, PretendTensor) for x in leaves):
        shapes = [f"{tuple(x.shape)} on {x.device.type}" for x in leaves]
        raise RuntimeError(f"{func} got tensors of two devices: {', '.join(shapes)}")
    inner_args, inner_kwargs = tree_map(_inner, (args, dict(kwargs)))
    target = inner_kwargs.get("device")
    if target is not None:
        inner_kwargs["device"] = torch.device("cpu") if torch.device(target).type == NAME else target
    with torch.inference_mode(False):  # a wrapper cannot be an inference tensor
        out = func(*inner_args, **inner_kwargs)
    stays = bool(here) if target is None else torch.device(target).type == NAME
    if not stays or (name == "copy_" and not isinstance(args[0], PretendTensor)):
        return out
    with torch.inference_mode(False):
        return _outside(out, here)


def _outside(out: Any, here: Sequence[PretendTensor]) -> Any:
    outer = {id(x.held): x for x in here}  # what an operation wrote in place is the tensor that came in
    return tree_map(lambda x: outer.get(id(x), _outer(x)), out)


def _outer(value: Any) -> Any:
    return PretendTensor(value) if isinstance(value, Tensor) else value


def _inner(value: Any) -> Any:
    return value.held if isinstance(value, PretendTensor) else value
