"""Cross-entropy of resized logits without the resized logits.

At 512 x 512 pixels and 150 classes the logits of one image are 157 MB, and a loss in the plain order keeps them, their
logarithms and gradients. Here a few rows of pixels at a time are made, compared and turned into gradients of the coarse
rows that they came from, all in the processor's cache. The numbers are those of the plain order but for rounding.

B images, C classes, h x w cells of the logits, H x W pixels, n rows of cells and m rows of pixels in a strip.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 1 << 19  # logits that are made at a time: 2 MB


def resized_cross_entropy(logits_BChw: Tensor, labels_BHW: Tensor, ignore: int, align_corners: bool) -> Tensor:
    """The sum over all pixels.

    Args:
        logits_BChw: (B, C, h, w), in float32 or better, resized to the label maps bilinearly.
        labels_BHW: (B, H, W) integers.
        ignore: the label that adds nothing.
        align_corners: of the resizing.

    Raises:
        ValueError: label maps of more or fewer images than the logits.
    """
    if len(logits_BChw) != len(labels_BHW):
        raise ValueError(
            f"logits of {len(logits_BChw)} images, label maps of {len(labels_BHW)}; give those of the same"
        )
    height, width = logits_BChw.shape[2], labels_BHW.shape[2]
    across = logits_BChw.contiguous(memory_format=torch.channels_last)
    across = F.interpolate(across, size=(height, width), mode="bilinear", align_corners=align_corners)
    return _Down.apply(across.permute(0, 2, 3, 1).contiguous(), labels_BHW.long(), ignore, align_corners)


class _Down(torch.autograd.Function):
    """The resizing of columns, and the loss. What is kept is the gradient, of the size of the argument."""

    @staticmethod
    def forward(ctx: Any, rows_BhWC: Tensor, labels_BHW: Tensor, ignore: int, align_corners: bool) -> Tensor:
        images, _, width, classes = rows_BhWC.shape
        grads_BhWC = torch.zeros_like(rows_BhWC) if ctx.needs_input_grad[0] else None
        total = rows_BhWC.new_zeros((), dtype=torch.float64)
        with torch.autocast(rows_BhWC.device.type, enabled=False):
            strips = list(_strips(rows_BhWC, labels_BHW.shape[1], align_corners))
            for b in range(images):
                for cells, pixels, weight_mn in strips:
                    made = weight_mn @ rows_BhWC[b, cells].reshape(-1, width * classes)
                    labels_P = labels_BHW[b, pixels].reshape(-1)
                    logs_PC = F.log_softmax(made.view(-1, classes), dim=1)
                    total += F.nll_loss(logs_PC, labels_P, ignore_index=ignore, reduction="sum")
                    if grads_BhWC is not None:
                        grad_PC = _grad(logs_PC, labels_P, ignore)
                        grads_nX = grads_BhWC[b, cells].view(-1, width * classes)
                        grads_nX.addmm_(weight_mn.T, grad_PC.view(len(weight_mn), -1))
        ctx.save_for_backward(grads_BhWC)
        return total.to(rows_BhWC.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():  # by create_graph=True
            raise RuntimeError("this loss has no second derivative; resize the logits and take F.cross_entropy instead")
        (grad,), (grads_BhWC,) = grads, ctx.saved_tensors
        return grads_BhWC * grad, None, None, None


def _grad(logs_PC: Tensor, labels_P: Tensor, ignore: int) -> Tensor:
    """Of the loss with respect to the logits, in the place of their logarithms."""
    ignored_P = labels_P == ignore
    grad_PC = logs_PC.exp_()
    at_P1 = labels_P.masked_fill(ignored_P, 0)[:, None]
    grad_PC.scatter_add_(1, at_P1, grad_PC.new_full((), -1.0).expand(len(at_P1), 1))
    return grad_PC.masked_fill_(ignored_P[:, None], 0.0) if ignored_P.any() else grad_PC


def _strips(rows_BhWC: Tensor, to: int, align_corners: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """Rows of cells, the rows of pixels that they make, and what each of the first adds to each of the second."""
    _, height, width, classes = rows_BhWC.shape
    one = torch.eye(height, dtype=rows_BhWC.dtype, device=rows_BhWC.device)
    weight_Hh = F.interpolate(one[None], size=to, mode="linear", align_corners=align_corners)[0].T
    step = max(1, STRIP // (width * classes))
    for first in range(0, to, step):
        pixels = slice(first, min(first + step, to))
        used = weight_Hh[pixels].any(dim=0).nonzero()
        cells = slice(int(used[0]), int(used[-1]) + 1)
        yield cells, pixels, weight_Hh[pixels, cells]
