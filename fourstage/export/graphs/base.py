"""What all graphs share: networks as functions from one tensor of images to named tensors, as exported files hold them.

B images, N candidates, P chosen ones, C values. A graph fixes no size: batch, height and width may be symbols while it
is traced.
"""

import torch
from torch import Tensor, nn

from fourstage.exported.description import Kind, Suppression
from fourstage.ops.shapes import ceil_div, known_true


class Graph(nn.Module):
    """A network that an exported file holds: from normalised images (B, 3, H, W) to its outputs.

    Attributes:
        kind: of the outputs, see `exported.description`.
        outputs: their names.
        suppression: what remains to be done for a detector; None for other networks.
        multiple: the sides of the images are multiples of it, in pixels.
        smallest_sides: from which on one graph may serve all sizes, pixels; the first that PyTorch can record is taken.
        lowest: pairs of a detector that score less are not among its outputs.
        reads_sizes: whether `forward` takes the (H, W) of each image without its padding too, (B, 2) whole numbers.
    """

    kind: Kind
    outputs: tuple[str, ...]
    suppression: Suppression | None = None
    multiple: int = 1
    smallest_sides: tuple[int, ...] = (64, 65, 97, 129, 225)
    lowest: float = 0.0
    reads_sizes: bool = False


def round_up(side: int, multiple: int) -> int:
    """Return the next multiple."""
    return ceil_div(side, multiple) * multiple


def best(scores_BN: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` best scores of each row and their places, or all where there are fewer."""
    most = scores_BN.shape[1]
    if isinstance(most, int):
        most = min(most, count)
    elif known_true(most >= count):
        most = count
    else:
        most = torch.sym_min(most, count)
    return scores_BN.topk(most, dim=1)


def rows(x_BNC: Tensor, index_BP: Tensor) -> Tensor:
    """Return (B, P, C): of each image the rows of these indices."""
    return x_BNC.gather(1, index_BP[..., None].expand(-1, -1, x_BNC.shape[2]))
