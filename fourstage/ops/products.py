"""Which product computes linear layers and attention in this process.

On a CPU, PyTorch has several products for the same result. They differ in the last bits and, by machine and by shape,
up to several times in speed:

| name | what computes it | where |
| --- | --- | --- |
| blas | `F.linear`: the BLAS library that PyTorch was built with | everywhere |
| onednn | oneDNN's linear layer, in inference with GELU in the same pass | everywhere, each pass of training alone |
| convolution | a 1x1 convolution over channels-last memory, by oneDNN | everywhere, all passes of training together |
| fused | `F.scaled_dot_product_attention` | attention |
| plain | two products and a softmax between them | attention; that in Swin's windows always |

A linear layer that has gradients has three passes, which may use different products: its output, the gradient of its
input, and that of its weight. The choice depends on the class of the layer's shape, see `shape_class`. There are few
classes and each shape has one, so a choice covers shapes that nobody measured.

`measure.choose_products` chooses once in a process, when the first network is built. It takes the choice that was
measured before on this machine, or measures. `FOURSTAGE_PRODUCTS` sets products by hand, for all classes
(`onednn,onednn,plain`: training, inference, attention) and for single ones (`blas,blas,plain; most-narrow-wide
onednn/onednn/blas,onednn`: passes of training, inference). A run keeps the products that it began with. Before anything
is chosen, PyTorch's own products compute.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

import torch

from fourstage.ops.eager import switched_on

SETTING = "FOURSTAGE_PRODUCTS"
PASSES = ("output", "input", "weight")  # of training: what each one computes, or the gradient of it
ATTENTION = ("fused", "plain")
ROWS = {"fewest": 128, "few": 1024, "some": 4096, "many": 16384, "most": 2**63}  # below this number
NARROW = 256  # channels; more are wide
CLASSES = tuple("-".join(words) for words in product(ROWS, ("narrow", "wide"), ("narrow", "wide")))


@dataclass(frozen=True)
class Ways:
    """The products of one class of linear layers: those of the three passes of training, and that of inference."""

    training: tuple[str, ...] = ("blas", "blas", "blas")
    inference: str = "blas"

    def __str__(self) -> str:
        same = len(set(self.training)) == 1
        return f"{self.training[0] if same else '/'.join(self.training)},{self.inference}"


@dataclass(frozen=True)
class Products:
    """The products of linear layers by class of their shape, and that of attention."""

    linear: Mapping[str, Ways] = field(default_factory=lambda: dict.fromkeys(CLASSES, Ways()))
    attention: str = "fused"

    def __str__(self) -> str:
        usual = Counter(self.linear[name] for name in CLASSES).most_common(1)[0][0]
        others = [f"{name} {self.linear[name]}" for name in CLASSES if self.linear[name] != usual]
        return "; ".join([f"{usual},{self.attention}", *others])


def shape_class(rows: int, channels_in: int, channels_out: int) -> str:
    """Return the name of a shape's class, such as "many-narrow-wide": of its rows, channels in and channels out."""
    size = next(name for name, limit in ROWS.items() if rows < limit)
    return f"{size}-{_width(channels_in)}-{_width(channels_out)}"


def _width(channels: int) -> str:
    return "narrow" if channels <= NARROW else "wide"


_chosen: list[Products] = []  # at most one
_plain = Products()


def current() -> Products:
    """Return the products that this process uses now."""
    return _chosen[0] if _chosen else _plain


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
        ValueError: not products that this machine has.
    """
    _chosen[:] = [checked(names)]
    return _chosen[0]


def checked(names: str | Products) -> Products:
    """Return the products of these names.

    Raises:
        ValueError: not products that this machine has.
    """
    first, *others = str(names).split(";")
    usual, _, attention = first.rpartition(",")
    try:
        linear = dict.fromkeys(CLASSES, _ways(usual))
        for other in others:
            name, _, ways = other.strip().partition(" ")
            if name not in linear:
                raise LookupError
            linear[name] = _ways(ways)
        if attention.strip() not in ATTENTION:
            raise LookupError
    except LookupError:
        given = str(names) if len(str(names)) <= 120 else f"{str(names)[:120]}..."
        raise ValueError(
            f"{SETTING} names the products for training and inference ({', '.join(for_linear())}) and attention "
            f"({', '.join(ATTENTION)}), such as blas,blas,fused; classes of shapes ({', '.join(ROWS)} rows, narrow or "
            f"wide in and out) may follow, such as blas,blas,fused; few-wide-narrow onednn,onednn; got {given!r}"
        ) from None
    return Products(linear, attention.strip())


def _ways(text: str) -> Ways:
    """Return the ways of such a text: `training,inference`. Raises LookupError for any other."""
    training, _, inference = (word.strip() for word in text.partition(","))
    passes = tuple(training.split("/")) if "/" in training else (training,) * len(PASSES)
    mixed = len(set(passes)) > 1 and "convolution" in passes  # a convolution computes all three
    if len(passes) != len(PASSES) or mixed or not {*passes, inference} <= set(for_linear()):
        raise LookupError
    return Ways(passes, inference)


def for_linear() -> tuple[str, ...]:
    """Return the products of linear layers that this machine has."""
    return ("blas", "convolution", "onednn") if has_onednn() else ("blas", "convolution")


def has_onednn() -> bool:
    """Return whether PyTorch was built with oneDNN's linear layer, and its flag lets it compute."""
    return (
        torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
