"""Linear layers and attention, computed the fastest way that the machine has.

On a CPU PyTorch has several ways to the same product, which differ in the last bits and, by machine, up to several
times in speed:

| way | what computes it | gradients |
| --- | --- | --- |
| blas | `F.linear`: the BLAS library that PyTorch was built with | yes |
| convolution | a 1x1 convolution over channels-last memory, by oneDNN | yes |
| onednn | oneDNN's own linear layer, with GELU in the same pass | no |
| fused | `F.scaled_dot_product_attention` | yes |
| plain | attention as two products and a softmax between them | yes |

Which are taken is measured once in a process, by the first layer that has a choice; the environment's
`FOURSTAGE_PRODUCTS=blas,blas,fused` sets training, inference and attention by hand, and a run that continues takes the
ways that it began with. Only float32 on a CPU has a choice, and only while PyTorch runs eagerly: traced graphs,
autocast and other devices get `F.linear` and `F.scaled_dot_product_attention`. N rows, C channels in, D channels out.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 128  # rows below which the preparation of other ways costs more than they save
FRESH = 2**25  # bytes from which the C library (glibc) asks the system for memory, and gives it back, at every call
PART = 5 * 2**20  # bytes that stay in a cache
SMALL = 2**22  # attention weights that still fit a cache, so that they may lie in memory between two products


@dataclass(frozen=True)
class Ways:
    """What this process takes: linear layers with gradients and without, attention."""

    training: str
    inference: str
    attention: str

    def __str__(self) -> str:
        return f"{self.training},{self.inference},{self.attention}"


class Linear(nn.Linear):
    """`nn.Linear` over the last axis, the fastest way: (..., C) to (..., D)."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, gelu=False)


class LinearGelu(nn.Linear):
    """A linear layer and GELU after it, in one pass where the machine has it: (..., C) to (..., D)."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias, gelu=True)


def linear(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, *, gelu: bool) -> Tensor:
    """`F.linear(x, weight, bias)`, and GELU of it if asked for; N stands for any number of axes."""
    way = "blas"
    if has_choice(x_NC) and x_NC.numel() >= FEW * x_NC.shape[-1]:
        way = ways().training if torch.is_grad_enabled() else ways().inference
    return LINEAR[way](x_NC, weight_DC, bias_D, gelu)


def attend(q: Tensor, k: Tensor, v: Tensor, masks: Iterable[Tensor] = (), *, scale: float | None = None) -> Tensor:
    """`softmax(q k^T * scale + masks) v`, for q, k, v of (..., cells, head_dim) with at least two axes in front.

    Args:
        masks: are added to the products; each broadcasts to (..., cells of q, cells of k). What shall not be seen has a
            large negative but finite number, so that a row that sees nothing stays a number.
        scale: default head_dim ** -0.5.
    """
    masks = list(masks)
    weights = q.numel() // q.shape[-1] * k.shape[-2]
    # with gradients the fused kernel takes no mask, and without one it is the better of the two
    open_to_both = has_choice(q) and (masks if torch.is_grad_enabled() else weights <= SMALL)
    return ATTENTION[ways().attention if open_to_both else "fused"](q, k, v, masks, scale)


def attend_plain(q: Tensor, k: Tensor, v: Tensor, masks: list[Tensor], scale: float | None) -> Tensor:
    weights = q @ k.transpose(-2, -1)
    weights *= q.shape[-1] ** -0.5 if scale is None else scale  # in place: nothing else needs the product
    for mask in masks:
        weights += mask
    return weights.softmax(-1) @ v


def attend_fused(q: Tensor, k: Tensor, v: Tensor, masks: list[Tensor], scale: float | None) -> Tensor:
    mask = sum(masks[1:], start=masks[0]) if masks else None
    if q.ndim > 4:  # the fused kernels know batch and heads alone
        front = q.shape[1:-2]
        mask = mask if mask is None else mask.expand(*front, *mask.shape[-2:]).flatten(0, -3)
        q, k, v = (x.flatten(1, -3) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).unflatten(1, front)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def by_rows(layer: Callable[[Tensor], Tensor], x_NC: Tensor, width: int) -> Tensor:
    """`layer(x)` for a layer that sees each row alone and widens it to `width` channels on the way.

    Where that would take so much memory on a CPU that the system hands it out anew for every call, some rows go first:
    these fit the cache, and the time for fresh pages is saved. The numbers are the same.
    """
    rows = x_NC.numel() // x_NC.shape[-1]
    size = rows * width * x_NC.element_size()
    if x_NC.device.type != "cpu" or torch.compiler.is_compiling() or size <= FRESH:
        return layer(x_NC)
    parts = x_NC.reshape(rows, -1).split(max(FEW, rows * PART // size))
    return torch.cat([layer(part) for part in parts]).view(*x_NC.shape[:-1], -1)


def has_choice(x: Tensor) -> bool:
    """Whether there is more than one way for this tensor, here and now."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch._C._len_torch_dispatch_stack() == 0  # counters and the like know F.linear
        and not torch._C._are_functorch_transforms_active()  # so does vmap
    )


def by_blas(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    out_ND = F.linear(x_NC, weight_DC, bias_D)
    return F.gelu(out_ND) if gelu else out_ND


def by_convolution(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    rows, channels = x_NC.numel() // x_NC.shape[-1], x_NC.shape[-1]
    images = 1 if torch.get_num_threads() > 1 else 16  # one thread alone goes to oneDNN from 16 images on
    if rows % images:
        return by_blas(x_NC, weight_DC, bias_D, gelu)
    columns = x_NC.reshape(images, rows // images, 1, channels).movedim(-1, 1)  # rows as cells of long images
    out = F.conv2d(columns, weight_DC[:, :, None, None], bias_D)
    out_ND = out.movedim(1, -1).reshape(*x_NC.shape[:-1], len(weight_DC))
    return F.gelu(out_ND) if gelu else out_ND


def by_onednn(x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor | None, gelu: bool) -> Tensor:
    after, how = ("gelu", "none") if gelu else ("none", "")  # "none": the exact GELU, not that by tanh
    return torch.ops.mkldnn._linear_pointwise(x_NC, weight_DC, bias_D, after, [], how)


Product = Callable[[Tensor, Tensor, Tensor | None, bool], Tensor]
LINEAR: dict[str, Product] = {"blas": by_blas, "convolution": by_convolution, "onednn": by_onednn}
TRAINING = ("blas", "convolution")  # the ways of linear layers that have gradients
ATTENTION = {"fused": attend_fused, "plain": attend_plain}


@cache
def measured() -> Ways:
    """The ways that a short measurement found to be the fastest here."""
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        x, weight, bias = torch.randn(784, 384), torch.randn(384, 384), torch.randn(384)
        q, k, v = torch.randn(3, 64, 3, 49, 32).unbind(0)  # an image in windows
        mask = torch.randn(3, 49, 49)
        return Ways(
            training=_quickest(TRAINING, lambda way: _train(LINEAR[way], x, weight, bias)),
            inference=_quickest(inference_ways(), lambda way: _infer(lambda: LINEAR[way](x, weight, bias, True))),
            attention=_quickest(tuple(ATTENTION), lambda way: _infer(lambda: ATTENTION[way](q, k, v, [mask], None))),
        )


def ways() -> Ways:
    """What `take` was given, else what the environment's `FOURSTAGE_PRODUCTS` asks for, else the fastest."""
    if _taken:
        return _taken[0]
    asked = os.environ.get("FOURSTAGE_PRODUCTS", "")
    return take(asked) if asked else measured()


def take(asked: str) -> Ways:
    """Compute by these ways from now on, such as another process had them: `str` of its `ways()`.

    Raises:
        ValueError: not three ways that there are here.
    """
    names = tuple(name.strip() for name in asked.split(","))
    known = (TRAINING, inference_ways(), tuple(ATTENTION))
    if len(names) != 3 or not all(name in choice for name, choice in zip(names, known, strict=True)):
        raise ValueError(
            f"FOURSTAGE_PRODUCTS names how to train ({', '.join(known[0])}), infer ({', '.join(known[1])}) and attend "
            f"({', '.join(known[2])}), such as blas,blas,fused; got {asked!r}"
        )
    _taken[:] = [Ways(*names)]
    return _taken[0]


_taken: list[Ways] = []


def inference_ways() -> tuple[str, ...]:
    return (*TRAINING, "onednn") if has_onednn() else TRAINING


def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _quickest(names: tuple[str, ...], run: Callable[[str], None]) -> str:
    """The name with the shortest of several runs, taken in turns; the first one unless another gains a twentieth."""
    best = dict.fromkeys(names, float("inf"))
    for turn in range(6):
        for name in names:
            start = perf_counter()
            run(name)
            if turn:
                best[name] = min(best[name], perf_counter() - start)
    return min(names, key=lambda name: best[name] * (0.95 if name != names[0] else 1.0))


def _train(product: Product, x_NC: Tensor, weight_DC: Tensor, bias_D: Tensor) -> None:
    with torch.enable_grad():
        leaves = x, weight, bias = [tensor.detach().requires_grad_() for tensor in (x_NC, weight_DC, bias_D)]
        torch.autograd.grad(product(x, weight, bias, False).sum(), leaves)


def _infer(run: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        run()
