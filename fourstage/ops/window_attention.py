"""Attention inside the square windows of a map, shifted or not.

B images, H x W cells; windows of w x w cells, N = w * w, n of them fill a map; h heads of d channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from fourstage.ops.attention import attend
from fourstage.ops.eager import may_run_fast
from fourstage.ops.second_gradients import needs_plain_form, of_plain_form, without_autocast
from fourstage.ops.softmax import softmax
from fourstage.ops.window_masks import Visibility

CHUNK = 2**22  # bytes of attention weights that are computed at a time, so that they stay in a cache
KEPT = 2**22  # bytes of the largest index table that is kept: those of Swin-T at 8192 x 8192 px have 900 MB


@dataclass(frozen=True)
class Windows:
    """How a map is cut.

    Attributes:
        side: w, in cells; whole windows fill the map.
        shift: cells by which the map is rolled back before it is cut.
        heads: h.
        scale: factor on the products of queries and keys.
    """

    side: int
    shift: int
    heads: int
    scale: float


def attend_windows(
    qkv_BHWC: Tensor, windows: Windows, bias_hNN: Tensor, visibility: Visibility | None = None
) -> Tensor:
    """Return (B, H, W, h * d): what each cell takes from the cells of its window.

    Args:
        qkv_BHWC: queries, keys and values of each cell one after the other, C = 3 * h * d.
        bias_hNN: is added to the products of queries and keys.
        visibility: of the cells of a window; None: each sees all.
    """
    bias_hNN = bias_hNN.to(qkv_BHWC.dtype)
    if not may_run_fast(qkv_BHWC, bias_hNN):
        masks = [] if visibility is None else [visibility.hidden(qkv_BHWC.dtype, qkv_BHWC.device)]
        return by_cutting(qkv_BHWC, windows, [bias_hNN, *masks])
    hidden_n1NN = None if visibility is None else visibility.kept_hidden()
    if torch.is_grad_enabled() and (qkv_BHWC.requires_grad or bias_hNN.requires_grad):
        return AttendWindows.apply(qkv_BHWC, bias_hNN, hidden_n1NN, windows)
    return by_chunks(qkv_BHWC, windows, bias_hNN, hidden_n1NN, None)


# ------------------------------------------------------------------------------------------------------ the plain form


def by_cutting(qkv_BHWC: Tensor, windows: Windows, masks: list[Tensor]) -> Tensor:
    """Attend in windows that are cut out of the map."""
    batch, height, width, _ = qkv_BHWC.shape
    side, heads, shift = windows.side, windows.heads, windows.shift
    number = (height // side) * (width // side)
    # one mask for all windows: they count as batch; else a mask of its own for each, shared by the images
    front = (batch * number,) if len(masks) == 1 else (batch, number)
    if shift:
        qkv_BHWC = qkv_BHWC.roll((-shift, -shift), dims=(1, 2))
    qkv = qkv_BHWC.reshape(
        batch, height // side, side, width // side, side, 3, heads, qkv_BHWC.shape[-1] // (3 * heads)
    )
    qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)  # 3, B, windows down, windows across, h, w, w, d
    q, k, v = qkv.reshape(3, *front, heads, side**2, qkv.shape[-1]).unbind(0)
    out = attend(q, k, v, masks, scale=windows.scale)
    out = out.reshape(batch, height // side, width // side, heads, side, side, out.shape[-1])
    out_BHWC = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, height, width, heads * out.shape[-1])
    return out_BHWC.roll((shift, shift), dims=(1, 2)) if shift else out_BHWC


# ------------------------------------------------------------------------------------------------------- the fast form


def by_chunks(
    qkv_BHWC: Tensor, windows: Windows, bias_hNN: Tensor, hidden_n1NN: Tensor | None, weights: Tensor | None
) -> Tensor:
    """The same for some windows at a time, whose weights stay in a cache, without a copy of a whole map.

    Args:
        weights: (B, n, h, N, N) to be filled with the attention weights; None: nobody wants them.
    """
    channels = qkv_BHWC.shape[-1] // 3
    dim = channels // windows.heads
    out_BHWC = qkv_BHWC.new_empty(*qkv_BHWC.shape[:3], channels)
    for images, chunks in _groups(qkv_BHWC.shape, windows, qkv_BHWC.element_size()):
        some_BHWC = qkv_BHWC[images]
        group = Group(windows, some_BHWC.shape[:3])
        place = qkv_BHWC.new_empty(*group.sizes(1), dim)[0]
        for some in chunks:
            q, k, v = group.read(some_BHWC, 3, some)
            kept = q.new_empty(*place[:, some].shape[:2], *bias_hNN.shape) if weights is None else weights[images, some]
            hidden = None if hidden_n1NN is None else hidden_n1NN[some]
            matrices = softmax(partial(_scores, kept, q, k, windows.scale, bias_hNN, hidden))
            torch.bmm(matrices, v, out=place[:, some].view(v.shape))
        group.write(place, out_BHWC[images], 1)
    return out_BHWC


def _scores(
    out: Tensor, q: Tensor, k: Tensor, scale: float, bias_hNN: Tensor, hidden_n1NN: Tensor | None, factor: float
) -> Tensor:
    """Return `factor` times the products of queries and keys with their masks, in the memory of `out`."""
    out.copy_(bias_hNN * factor)
    if hidden_n1NN is not None:
        out += hidden_n1NN  # as it is: a product that is hidden has no size
    return out.view(-1, *bias_hNN.shape[1:]).baddbmm_(q, k.transpose(1, 2), alpha=scale * factor)


class AttendWindows(torch.autograd.Function):
    """`by_chunks` with gradients of the map and of the bias."""

    @staticmethod
    def forward(ctx: Any, qkv_BHWC: Tensor, bias_hNN: Tensor, hidden_n1NN: Tensor | None, windows: Windows) -> Tensor:
        batch, height, width, _ = qkv_BHWC.shape
        number = (height // windows.side) * (width // windows.side)
        weights = qkv_BHWC.new_empty(batch, number, *bias_hNN.shape)
        out_BHWC = by_chunks(qkv_BHWC, windows, bias_hNN, hidden_n1NN, weights)
        ctx.windows = windows
        ctx.save_for_backward(qkv_BHWC, bias_hNN, hidden_n1NN, weights)
        return out_BHWC

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        qkv_BHWC, bias_hNN, hidden_n1NN, weights = ctx.saved_tensors
        if needs_plain_form(grads[0]):
            masks = [] if hidden_n1NN is None else [hidden_n1NN]
            found = of_plain_form(
                lambda qkv_BHWC, bias_hNN: by_cutting(qkv_BHWC, ctx.windows, [bias_hNN, *masks]),
                (qkv_BHWC, bias_hNN),
                ctx.needs_input_grad[:2],
                grads[0],
            )
            return *found, None, None
        return *_gradients(grads[0], qkv_BHWC, bias_hNN, weights, ctx.windows), None, None


def _gradients(
    grad_BHWC: Tensor, qkv_BHWC: Tensor, bias_hNN: Tensor, weights: Tensor, windows: Windows
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the map and of the bias, given that of the output."""
    dim = grad_BHWC.shape[-1] // windows.heads
    found_BHWC, found_bias_hNN = qkv_BHWC.new_empty(qkv_BHWC.shape), torch.zeros_like(bias_hNN)
    for images, chunks in _groups(qkv_BHWC.shape, windows, qkv_BHWC.element_size()):
        some_BHWC, some_grad_BHWC = qkv_BHWC[images], grad_BHWC[images]
        group = Group(windows, some_BHWC.shape[:3])
        places = qkv_BHWC.new_empty(*group.sizes(3), dim)
        for some in chunks:
            q, k, v = group.read(some_BHWC, 3, some)
            (grad,) = group.read(some_grad_BHWC, 1, some)
            dq, dk, dv = (place[:, some].view(v.shape) for place in places)
            matrices = weights[images, some].view(-1, *bias_hNN.shape[1:])
            torch.bmm(matrices.transpose(1, 2), grad, out=dv)
            steps = torch.bmm(grad, v.transpose(1, 2))
            torch.ops.aten._softmax_backward_data.out(steps, matrices, -1, steps.dtype, grad_input=steps)
            found_bias_hNN += steps.view(-1, *bias_hNN.shape).sum(0)
            torch.baddbmm(dq, steps, k, beta=0, alpha=windows.scale, out=dq)
            torch.baddbmm(dk, steps.transpose(1, 2), q, beta=0, alpha=windows.scale, out=dk)
        group.write(places, found_BHWC[images], 3)
    return found_BHWC, found_bias_hNN


def _groups(shape: torch.Size, windows: Windows, size: int) -> Iterator[tuple[slice, list[slice]]]:
    """Yield some images and, for these, some windows at a time, whose weights have up to `CHUNK` bytes.

    Args:
        shape: of the map.
        size: of a number, bytes.
    """
    batch, height, width, _ = shape
    number = (height // windows.side) * (width // windows.side)
    at_a_time = max(1, CHUNK // (windows.heads * windows.side**4 * size))
    images = max(1, at_a_time // number)
    chunks = [slice(start, min(start + at_a_time, number)) for start in range(0, number, at_a_time)]
    for start in range(0, batch, images):
        yield slice(start, start + images), chunks


MakeTable = Callable[["Group", int], Tensor]


@dataclass(frozen=True)
class Group:
    """Images whose windows are read from memory that has the order of the map, and written back to it.

    Attributes:
        shape: (B, H, W) of these images.
        large: the index tables of this group alone, which are too large to be kept.
    """

    windows: Windows
    shape: torch.Size
    large: dict[Any, Tensor] = field(default_factory=dict, compare=False)

    def sizes(self, tensors: int) -> tuple[int, int, int, int]:
        """Return (tensors, B, n, h * N): the rows of d channels in the order of the windows."""
        batch, height, width = self.shape
        side = self.windows.side
        return tensors, batch, (height // side) * (width // side), self.windows.heads * side**2

    def read(self, x_BHWC: Tensor, tensors: int, some: slice) -> tuple[Tensor, ...]:
        """Return the tensors that the channels join, each as (windows * h, N, d), of some windows of each image."""
        dim, order = x_BHWC.shape[-1] // (tensors * self.windows.heads), self.table(to_windows, tensors)[:, :, some]
        rows = x_BHWC.reshape(-1, dim).index_select(0, order.reshape(-1))
        return rows.view(tensors, -1, self.windows.side**2, dim).unbind(0)

    def write(self, rows: Tensor, x_BHWC: Tensor, tensors: int) -> None:
        """Fill the map with (tensors, B, n, h * N, d), the rows in the order of the windows."""
        dim = rows.shape[-1]
        torch.index_select(rows.view(-1, dim), 0, self.table(to_map, tensors), out=x_BHWC.view(-1, dim))

    def table(self, make: MakeTable, tensors: int) -> Tensor:
        """Return `make(self, tensors)`, computed once for this group, or once for all groups like it."""
        if self.shape.numel() * self.windows.heads * tensors * torch.int32.itemsize <= KEPT:
            return kept_table(make, self.windows, self.shape, tensors)
        if (make, tensors) not in self.large:
            self.large[make, tensors] = make(self, tensors)
        return self.large[make, tensors]


@lru_cache(maxsize=128)
def kept_table(make: MakeTable, windows: Windows, shape: torch.Size, tensors: int) -> Tensor:
    return make(Group(windows, shape), tensors)  # a group of its own, since another one may hold large tables too


def to_windows(group: Group, tensors: int) -> Tensor:
    """Return (tensors, B, n, h * N) int32: the row of the map at each place of the windows."""
    batch, height, width = group.shape
    side, heads, shift = group.windows.side, group.windows.heads, group.windows.shift
    with torch.inference_mode(False):  # these tensors serve trainings too
        rows = torch.arange(batch * height * width * tensors * heads, dtype=torch.int32, device="cpu")
        rows = rows.view(batch, height, width, tensors * heads).roll((-shift, -shift), dims=(1, 2))
        rows = rows.view(batch, height // side, side, width // side, side, tensors, heads)
        return rows.permute(5, 0, 1, 3, 6, 2, 4).reshape(group.sizes(tensors))


def to_map(group: Group, tensors: int) -> Tensor:
    """Return (B * H * W * tensors * h) int32: the place in the windows of each row of the map."""
    batch, height, width = group.shape
    side, heads, shift = group.windows.side, group.windows.heads, group.windows.shift
    with torch.inference_mode(False):
        places = torch.arange(batch * height * width * tensors * heads, dtype=torch.int32, device="cpu")
        places = places.view(tensors, batch, height // side, width // side, heads, side, side)
        places = places.permute(1, 2, 5, 3, 6, 0, 4).reshape(batch, height, width, tensors * heads)
        return places.roll((shift, shift), dims=(1, 2)).flatten()
