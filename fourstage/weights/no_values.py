"""Networks on the meta device: names and shapes, which take no memory and little time."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

UNNEEDED = (  # of the initialisation of a network without values
    *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.clamp_, Tensor.log),
    *(nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_),
    *(nn.init.kaiming_normal_, nn.init.kaiming_uniform_, nn.init.xavier_normal_, nn.init.xavier_uniform_),
)


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks on the meta device while the context is open: names and shapes, no values."""
    with torch.device("meta"), _NoValues():
        yield


def check_memory(tensors: Iterable[Tensor], source: str) -> None:
    """Raise ValueError where a network that a file shall fill is on the meta device, which would take it in silence."""
    if any(tensor.is_meta for tensor in tensors):
        raise ValueError(
            f"{source} cannot fill a network on the meta device; call network.to_empty(device='cpu') first"
        )


class _NoValues(TorchFunctionMode):
    """Leaves initialisation out: on the meta device it has no effect, and it takes most of the time."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in UNNEEDED:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
