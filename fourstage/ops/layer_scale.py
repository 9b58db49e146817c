"""Layer scales after a linear layer: a factor for each of its D output channels. N rows, C channels in.

The fast path multiplies the layer's weights in place of its output. That saves passes over the map, and the backward
pass then needs no map before its scale. `backbones/layer_scale.py` says which branches end in such a layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fourstage.ops.memory_format import without_view

Matrix = tuple[Tensor, Tensor | None]  # weight (D, C) and bias (D) of a linear layer


def with_scale(layer: Callable[[Matrix], Tensor], matrix: Matrix, scale_D: Tensor | None, rows: int) -> Tensor:
    """Return `layer(matrix)` with its channels scaled: (..., D). None: no scale."""
    if scale_D is not None and _pays(scale_D, matrix[0], rows):
        return without_view(layer(scaled_matrix(matrix, scale_D)))
    return scaled_map(layer(matrix), scale_D)


def scaled_map(out_ND: Tensor, scale_D: Tensor | None) -> Tensor:
    """The plain form."""
    return out_ND if scale_D is None else out_ND * scale_D


def scaled_matrix(matrix: Matrix, scale_D: Tensor) -> Matrix:
    """The fast path: the matrix of a layer that scales its output."""
    weight_DC, bias_D = matrix
    return weight_DC * scale_D[:, None], None if bias_D is None else bias_D * scale_D


def _pays(scale_D: Tensor, weight_DC: Tensor, rows: int) -> bool:
    """Return whether there are fewer weights than numbers in the map, and whether no more is kept for gradients.

    A frozen layer keeps nothing of its own; if its weights had a trained factor, it would keep its input.
    """
    trains = weight_DC.requires_grad or not (torch.is_grad_enabled() and scale_D.requires_grad)
    return trains and scale_D.shape == weight_DC.shape[:1] and rows > weight_DC.shape[1]
