"""Which product computes linear layers and attention in this process.

On a CPU, PyTorch has several products for the same result. They differ in the last bits and, by machine, up to several
times in speed:

| name | what computes it | gradients |
| --- | --- | --- |
| blas | `F.linear`: the BLAS library that PyTorch was built with | yes |
| convolution | a 1x1 convolution over channels-last memory, by oneDNN | yes |
| onednn | oneDNN's own linear layer, with GELU in the same pass | no |
| fused | `F.scaled_dot_product_attention` | yes |
| plain | attention as two products and a softmax between them | yes |

`measure.choose_products` picks the fastest once in a process, when the first network is built. The environment's
`FOURSTAGE_PRODUCTS=blas,blas,fused` sets training, inference and attention by hand. A run that continues uses the
products that it began with. Before anything is chosen, PyTorch's own products compute.
"""

import os
from dataclasses import dataclass

import torch

from fourstage.ops.eager import switched_on

SETTING = "FOURSTAGE_PRODUCTS"
TRAINING = ("blas", "convolution")  # products of linear layers that have gradients
ATTENTION = ("fused", "plain")


@dataclass(frozen=True)
class Products:
    """The products of linear layers with gradients and without, and of attention."""

    training: str = "blas"
    inference: str = "blas"
    attention: str = "fused"

    def __str__(self) -> str:
        return f"{self.training},{self.inference},{self.attention}"


_chosen: list[Products] = []  # at most one


def current() -> Products:
    """Return the products that this process uses now."""
    return _chosen[0] if _chosen else Products()


def description() -> str:
    """Return the names of the products that compute in this process, or "plain" where no fast path runs."""
    return str(current()) if switched_on() else "plain"


def chosen() -> Products | None:
    """Return what was set or measured before, else what the environment asks for, else None.

    Raises:
        ValueError: the environment's `FOURSTAGE_PRODUCTS` names products that this machine lacks.
    """
    if _chosen:
        return _chosen[0]
    wanted = asked()
    return use(wanted) if wanted else None


def asked() -> Products | None:
    """Return what the environment asks for; None: nothing.

    Raises:
        ValueError: the environment's `FOURSTAGE_PRODUCTS` names products that this machine lacks.
    """
    names = os.environ.get(SETTING, "")
    return checked(names) if names else None


def use(names: str | Products) -> Products:
    """Compute with these products from now on, such as another process had them: `str` of its `current()`.

    Raises:
        ValueError: not three products that this machine has.
    """
    _chosen[:] = [checked(names)]
    return _chosen[0]


def checked(names: str | Products) -> Products:
    """Return the products of these names.

    Raises:
        ValueError: not three products that this machine has.
    """
    given = tuple(name.strip() for name in str(names).split(","))
    known = (TRAINING, for_inference(), ATTENTION)
    if len(given) != 3 or not all(name in choice for name, choice in zip(given, known, strict=True)):
        raise ValueError(
            f"{SETTING} names the products for training ({', '.join(known[0])}), inference ({', '.join(known[1])}) and "
            f"attention ({', '.join(known[2])}), such as blas,blas,fused; got {str(names)!r}"
        )
    return Products(*given)


def for_inference() -> tuple[str, ...]:
    """Return the products of linear layers that this machine has without gradients."""
    return (*TRAINING, "onednn") if has_onednn() else TRAINING


def has_onednn() -> bool:
    """Return whether PyTorch was built with oneDNN's linear layer, and its flag lets it compute."""
    return (
        torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
