"""Attention inside windows that every other block shifts (Swin, https://arxiv.org/abs/2103.14030).

B images, H x W cells, C channels; w cells a window's side, N = w * w; n windows an image; h heads of d channels.
"""

import torch
from torch import Tensor, nn

from fourstage.backbones.layer_scale import takes_scale
from fourstage.ops.matmul import linear
from fourstage.ops.shapes import ceil_div, crop_to, known_true, pad_to
from fourstage.ops.window_attention import Windows, attend_windows
from fourstage.ops.window_masks import Visibility


class WindowAttention(nn.Module):
    """Multi-head attention inside square windows, with a learned bias for each relative position.

    Two rules exist for maps that the windows do not fit:

    * The classifier's (`dense=False`): where the shorter side of the map is not above the window, the window shrinks
      to that side and nothing shifts; cells that only fill up the last windows are invisible.
    * The detectors' (`dense=True`): the window stays, shifting goes on, and the zeros that fill up the last windows
      are attended to like any cell.

    A shifted window never mixes cells that were not neighbours before the shift.

    Args:
        dim: C.
        window: w; `table` holds (2w - 1)^2 offsets, and a window that shrank reads the inner ones.
        shifted: move the windows by half their side.
        head_dim: d; default C / heads.
        scale: factor on q k^T; default d^-0.5.
        bias: whether the two linear layers have one.

    Shapes:
        x_BHWC: (B, H, W, C), any H and W. Returns the same shape.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: int,
        *,
        shifted: bool,
        dense: bool,
        head_dim: int | None = None,
        scale: float | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.window, self.shifted, self.dense = heads, window, shifted, dense
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.qkv = nn.Linear(dim, 3 * heads * self.head_dim, bias)
        self.proj = nn.Linear(heads * self.head_dim, dim, bias)
        self.table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.offsets_wwww: Tensor
        self.register_buffer("offsets_wwww", self.table.new_empty((window,) * 4, dtype=torch.int64), persistent=False)
        self.init_non_persistent_buffers()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The table: normal with std 0.02, as all families with such tables have it."""
        nn.init.trunc_normal_(self.table, std=0.02)

    def init_non_persistent_buffers(self) -> None:
        """Fill the index table, on the device of the weights."""
        if self.offsets_wwww.device != self.table.device:  # `load_state_dict(assign=True)` moves parameters alone
            self.offsets_wwww = torch.empty_like(self.offsets_wwww, device=self.table.device)
        self.offsets_wwww.copy_(relative_positions(self.window))

    @takes_scale
    def forward(self, x_BHWC: Tensor, scale_C: Tensor | None = None) -> Tensor:
        _, height, width, _ = x_BHWC.shape
        window, shift = self.layout(height, width)
        fits = known_true(height % window == 0) and known_true(width % window == 0)
        if not fits:
            x_BHWC = pad_to(x_BHWC, ceil_div(height, window) * window, ceil_div(width, window) * window)
        hides = shift or not (fits or self.dense)
        visibility = Visibility(height, width, window, shift, see_padding=self.dense) if hides else None
        windows = Windows(window, shift, self.heads, self.scale)
        x_BHWC = attend_windows(linear(self.qkv, x_BHWC), windows, self.bias(window), visibility)
        if not fits:
            x_BHWC = crop_to(x_BHWC, height, width)
        return linear(self.proj, x_BHWC, scale_C)

    def layout(self, height: int, width: int) -> tuple[int, int]:
        """Return the side of the windows and their shift on a map of this size."""
        if not self.dense and (height <= self.window or width <= self.window):
            return min(height, width), 0
        return self.window, self.window // 2 if self.shifted else 0

    def bias(self, window: int) -> Tensor:
        """Return (h, N, N): the bias between the cells of a window of this side, at most `self.window`."""
        offsets_NN = self.offsets_wwww[:window, :window, :window, :window].reshape(window**2, window**2)
        return self.table[offsets_NN].movedim(-1, 0)


def relative_positions(window: int) -> Tensor:
    """(w, w, w, w) int64: row of the bias table for a query cell (y, x) and a key cell (y, x)."""
    at = torch.arange(window, device="cpu")
    apart_ww = at[:, None] - at[None, :] + window - 1  # query minus key, from 0
    return apart_ww[:, None, :, None] * (2 * window - 1) + apart_ww[None, :, None, :]
