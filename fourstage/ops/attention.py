"""Attention: `softmax(q k^T * scale + masks) v`. `products.py` says which product computes it."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops import products
from fourstage.ops.eager import may_run_fast
from fourstage.ops.shapes import known_true
from fourstage.ops.softmax import softmax

MOST = 2**16 - 1  # images, and heads, of one call: CUDA's limit on two axes of a grid
SMALL = 2**22  # attention weights that fit a cache, so that two products may leave them in memory between them


def attend(q: Tensor, k: Tensor, v: Tensor, masks: Iterable[Tensor] = (), *, scale: float | None = None) -> Tensor:
    """Return the attention of q, k and v, each (..., cells, head_dim) with at least two axes in front.

    Args:
        masks: are added to the products; each broadcasts to (..., cells of q, cells of k). A large negative but finite
            number hides a cell, so that a row in which all cells are hidden stays a number.
        scale: default head_dim ** -0.5.
    """
    masks = list(masks)
    if products.current().attention == "plain" and may_run_fast(q, k, v, *masks) and _two_products_pay(q, k, masks):
        return by_two_products(q, k, v, masks, scale)
    return by_fused_kernel(q, k, v, masks, scale)


def by_fused_kernel(q: Tensor, k: Tensor, v: Tensor, masks: list[Tensor], scale: float | None) -> Tensor:
    """The plain form."""
    if known_true(q.shape[0] == 0):  # of an empty batch the kernel gives masks a gradient that it never wrote
        return _softmax_between(q, k, v, masks, scale)
    mask = sum(masks[1:], start=masks[0]) if masks else None
    if q.ndim > 4:  # the fused kernels know batch and heads alone
        front = q.shape[1:-2]
        if mask is not None:
            images = mask.shape[0] if mask.ndim == q.ndim else 1
            mask = mask.expand(images, *front, *mask.shape[-2:]).flatten(1, -3)
        q, k, v = (x.flatten(1, -3) for x in (q, k, v))
        return _fused(q, k, v, mask, scale).unflatten(1, front)
    if mask is not None and mask.ndim == 3:
        mask = mask[None]  # a mask of three axes is not for the kernel of a CPU
    return _fused(q, k, v, mask, scale)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """Call PyTorch's attention, on another device than a CPU for at most `MOST` images and heads at a time."""
    for axis in range(q.ndim - 2):
        if q.device.type != "cpu" and known_true(q.shape[axis] > MOST):
            qs, ks, vs = (x.split(MOST, axis) for x in (q, k, v))
            own = mask is not None and mask.ndim == q.ndim and mask.shape[axis] > 1
            masks = mask.split(MOST, axis) if mask is not None and own else [mask] * len(qs)
            return torch.cat([_fused(*x, scale) for x in zip(qs, ks, vs, masks, strict=True)], axis)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


def by_two_products(q: Tensor, k: Tensor, v: Tensor, masks: list[Tensor], scale: float | None) -> Tensor:
    """Two products with a softmax between them, which is of powers of two where nothing needs gradients."""
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, *masks)):
        return _softmax_between(q, k, v, masks, scale)
    return softmax(partial(_scores, q, k, masks, q.shape[-1] ** -0.5 if scale is None else scale)) @ v


def _scores(q: Tensor, k: Tensor, masks: list[Tensor], scale: float, factor: float) -> Tensor:
    """Return `factor` times the products of queries and keys with their masks."""
    scores = q @ k.transpose(-2, -1)
    scores *= scale * factor  # in place: nothing else needs the product
    for mask in masks:
        scores.add_(mask, alpha=factor)
    return scores


def _softmax_between(q: Tensor, k: Tensor, v: Tensor, masks: list[Tensor], scale: float | None) -> Tensor:
    weights = q @ k.transpose(-2, -1)
    weights *= q.shape[-1] ** -0.5 if scale is None else scale  # in place: nothing else needs the product
    for mask in masks:
        weights += mask
    return weights.softmax(-1) @ v


def _two_products_pay(q: Tensor, k: Tensor, masks: list[Tensor]) -> bool:
    """Return whether two products may be faster than PyTorch's attention.

    With gradients, its fused kernel takes no mask and is the faster one without masks. Without gradients, two products
    need weights that fit a cache.
    """
    weights = q.numel() // q.shape[-1] * k.shape[-2]
    return bool(masks) if torch.is_grad_enabled() else weights <= SMALL


Product = Callable[[Tensor, Tensor, Tensor, list[Tensor], float | None], Tensor]
PRODUCTS: dict[str, Product] = {"fused": by_fused_kernel, "plain": by_two_products}
