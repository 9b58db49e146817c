"""Which cells of a window see each other, where windows are shifted or a map does not fill the last of them.

H x W cells; windows of w x w cells, N = w * w, n of them fill the padded map.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fourstage.ops.shapes import ceil_div

KEPT = 2**22  # bytes of the largest table that is kept


@dataclass(frozen=True)
class Visibility:
    """A map that is padded to whole windows and rolled back by `shift`. The last window then holds cells from both
    ends; these do not see each other.

    Attributes:
        height, width: of the map before it is padded, in cells.
        side: w.
        shift: cells.
        see_padding: whether the cells that fill up the last windows are seen.
    """

    height: int
    width: int
    side: int
    shift: int
    see_padding: bool

    def pairs(self, device: torch.device) -> Tensor:
        """Return (n, N, N) bool: which query of a window sees which key."""
        rows_nww, columns_nww = (self._along(cells, device) for cells in (self.height, self.width))
        both = rows_nww[:, None, :, None, :, None] & columns_nww[None, :, None, :, None, :]
        return both.flatten(0, 1).flatten(3, 4).flatten(1, 2)

    def _along(self, cells: int, device: torch.device) -> Tensor:
        """Return (windows, w, w) bool: which queries see which keys, looking along one side of the map."""
        windows = ceil_div(cells, self.side)
        padded = windows * self.side
        at = torch.arange(padded, device=device)
        wrapped = (at >= padded - self.shift) if self.shift else torch.zeros_like(at, dtype=torch.bool)
        end = wrapped.view(windows, self.side)
        visible = end[:, :, None] == end[:, None, :]
        if not self.see_padding:
            real = ((at + self.shift) % padded < cells).view(windows, self.side)
            visible = visible & real[:, None, :]
        return visible

    def hidden(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return (n, 1, N, N): what the products of hidden pairs are lowered by.

        It is finite, so that a row in which all cells are hidden stays a number.
        """
        visible_nNN = self.pairs(device)
        lowered = torch.zeros_like(visible_nNN, dtype=dtype)
        return lowered.masked_fill_(~visible_nNN, torch.finfo(dtype).min / 2)[:, None]

    def kept_hidden(self) -> Tensor:
        """Return `hidden` in float32 on the CPU, computed once for all maps of a size unless it is large."""
        windows = ceil_div(self.height, self.side) * ceil_div(self.width, self.side)
        small = windows * self.side**4 * torch.float32.itemsize <= KEPT
        return (_kept if small else _hidden)(self)


def _hidden(visibility: Visibility) -> Tensor:
    with torch.inference_mode(False):  # these tensors serve trainings too
        return visibility.hidden(torch.float32, torch.device("cpu"))


_kept = lru_cache(maxsize=32)(_hidden)
