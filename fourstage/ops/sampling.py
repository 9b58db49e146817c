"""Sampling of maps at learned points and the weighted sum of the samples: the heart of DCNv3 and deformable attention.

B images, H x W cells, h heads of d channels, L levels; Q queries, each with P points a head and a level.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.ops import sampling_choice
from fourstage.ops.eager import TENSORS, is_compiled, is_recorded, may_run_fast, runs_eagerly, switched_on
from fourstage.ops.sampling_choice import Form, is_on_gpu
from fourstage.ops.weighed_reading import plain_reading, read, weighed_reading, weighed_sum

RING = 2  # cells of zeros around a map, enough for all four corners of a point outside
FAR = 2**24  # cells; locations are clamped to it, which is outside any map and still an int32
MEASURED = 2**24  # values that a measurement reads at most, which limits how many images of a batch it takes


def deformable_sample(
    maps: Sequence[Tensor],
    locations_BQhLP2: Tensor,
    weights_BQhLP: Tensor,
    *,
    cells_BQhLP2: Tensor | None = None,
    form: Form | None = None,
) -> Tensor:
    """Sample every level's map at each point, bilinearly, and return the weighted sum of the samples.

    A location is (x, y) in cells of its own level, and cell (0, 0) has its centre at (0, 0): location (3, 2) reads
    `map[:, 2, 3]` as it is. A location that is given as a share of the map's size, as deformable attention has them
    (0 the left edge of the first cell, 1 the right edge of the last), is `share * (W, H) - 0.5` here, which
    `grid_sample` calls `align_corners=False`. Beyond the border the map is 0 and falls to 0 linearly over one cell, as
    if a ring of zeros surrounded it.

    The gradient with respect to a location is that of the square of four cells around it; on the line between two
    squares, that of the right or lower one. All forms follow this rule. Pass the integer cells of a location apart, in
    `cells_BQhLP2`, so that a small offset from a cell far from the origin is not rounded across such a line.

    The arithmetic runs in the precision of the locations and is rounded once, at the end, to that of the maps.

    Args:
        maps: one per level.
        cells_BQhLP2: integers, added to the locations without rounding.
        form: how to compute it; all forms give the same up to rounding. By default the fastest, see `best_form`.
            `triton` needs tensors on a GPU. A compiler or an exporter records another form in its place.

    Shapes:
        maps: (B, H_l, W_l, h, d) each, any H_l and W_l.
        locations_BQhLP2: (B, Q, h, L, P, 2), float32 or float64.
        weights_BQhLP: (B, Q, h, L, P).
        cells_BQhLP2: (B, Q, h, L, P, 2), where B and h may be 1.
        Returns (B, Q, h * d) in the dtype of the maps.

    Raises:
        ValueError: locations in half precision, in which neighbouring cells of a large map have the same place; the
            form `triton` where it does not run.
    """
    dtype = locations_BQhLP2.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"locations in {dtype} cannot tell neighbouring cells of a large map apart; use locations.float()"
        )
    assert len(maps) == locations_BQhLP2.shape[3] == weights_BQhLP.shape[3]
    tensors = maps, locations_BQhLP2, weights_BQhLP.to(dtype), cells_BQhLP2
    if form is None or (form == "triton" and is_recorded()):
        form = best_form(*tensors)
    elif form == "triton" and not sampling_choice.may_run_kernel(*maps, locations_BQhLP2, weights_BQhLP):
        raise ValueError(
            f"the form triton runs eagerly, with the package triton, on a GPU; got tensors on {maps[0].device}; leave "
            f"the form out to take the fastest that runs"
        )
    return compute(form, *tensors)


def best_form(
    maps: Sequence[Tensor], locations_BQhLP2: Tensor, weights_BQhLP: Tensor, cells_BQhLP2: Tensor | None = None
) -> Form:
    """Return the form that suits the device and the mode. The plain form is `grid_sample`.

    | where | form | why |
    | --- | --- | --- |
    | CPU, no gradients | embedding_bag | 2 to 3 times faster than grid_sample |
    | CPU, gradients, one map | grid_sample | the others take 2 to 5 times as long backward |
    | CPU, gradients, several maps | grid_sample_twice | attention to all of them keeps half of the memory |
    | compiled | gather | it fuses; the others stay calls of PyTorch's kernels |
    | exported, traced, transformed | grid_sample | one operator that every runtime and transform knows |
    | GPU | the fastest of all | measured once for each class of shapes |
    | GPU, `torch.use_deterministic_algorithms` | gather | grid_sample raises in backward; `index_select` is exact |

    The environment's `FOURSTAGE_SAMPLING` names a form for all eager computations that are not deterministic on a GPU;
    `triton` has no effect on a CPU. `FOURSTAGE_OPS=plain` means grid_sample wherever nothing is compiled.

    Raises:
        ValueError: `FOURSTAGE_SAMPLING` has an unknown value.
    """
    tensors = (*maps, locations_BQhLP2, weights_BQhLP)
    if torch.are_deterministic_algorithms_enabled() and locations_BQhLP2.device.type != "cpu":
        return "gather"
    if is_compiled():
        return "gather"
    if not (runs_eagerly() and switched_on()):
        return "grid_sample"
    asked = sampling_choice.asked()
    if asked is not None and (asked != "triton" or sampling_choice.may_run_kernel(*tensors)):
        return asked
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    if may_run_fast(*tensors) and not learns:
        return "embedding_bag"
    if learns and len(maps) > 1 and may_run_fast(*tensors):
        return "grid_sample_twice"
    if is_on_gpu(locations_BQhLP2) and locations_BQhLP2.numel() and all(type(x) in TENSORS for x in tensors):
        return measured_form(maps, locations_BQhLP2, weights_BQhLP, cells_BQhLP2, learns=learns)
    return "grid_sample"


def measured_form(
    maps: Sequence[Tensor], locations_BQhLP2: Tensor, weights_BQhLP: Tensor, cells: Tensor | None, *, learns: bool
) -> Form:
    """Return the fastest form for tensors of these shapes, measured on the first images of the batch."""
    tensors = (locations_BQhLP2, weights_BQhLP, *maps)
    batch, *sizes = weights_BQhLP.shape  # Q, h, L, P
    dim, wanted = maps[0].shape[-1], tuple(learns and x.requires_grad for x in tensors)
    images = max(1, MEASURED // max(1, weights_BQhLP[0].numel() * dim))
    rows = min(batch, images) * sizes[0] * sizes[1]
    names: list[Form] = ["grid_sample", "gather"]
    if sampling_choice.may_run_kernel(*tensors):
        names.append("triton")
    if not learns:
        names.append("embedding_bag")

    def run(name: Form) -> None:
        own = [x[:images].detach().requires_grad_(want) for x, want in zip(tensors, wanted, strict=True)]
        out = compute(name, own[2:], own[0], own[1], cells if cells is None or len(cells) == 1 else cells[:images])
        if learns:
            torch.autograd.grad(out, [x for x in own if x.requires_grad], torch.ones_like(out))

    key = (
        locations_BQhLP2.device,
        wanted,
        tuple(x.dtype for x in tensors[1:]),
        (*sizes[1:], dim, cells is None),
        rows.bit_length() // 2,
    )
    return sampling_choice.choose(key, names, run, locations_BQhLP2.device)


def compute(
    form: Form, maps: Sequence[Tensor], locations_BQhLP2: Tensor, weights_BQhLP: Tensor, cells: Tensor | None
) -> Tensor:
    """Return the result of a form, (B, Q, h * d) in the dtype of the maps. Weights have the locations' precision."""
    if form == "triton":
        return by_triton(maps, locations_BQhLP2, weights_BQhLP, cells)
    return by_levels(FORMS[form], maps, locations_BQhLP2, weights_BQhLP, cells)


def by_triton(maps: Sequence[Tensor], locations: Tensor, weights: Tensor, cells: Tensor | None) -> Tensor:
    """All levels by kernels, which write nothing but the result."""
    kernel = sampling_choice.kernel()
    assert kernel is not None
    return kernel.sample(maps, locations, weights, cells, partial(by_levels, by_gather))


def by_levels(
    read: "LevelForm", maps: Sequence[Tensor], locations: Tensor, weights: Tensor, cells: Tensor | None
) -> Tensor:
    """Add up the levels, each computed by a form of one level."""
    cells_L = [None] * len(maps) if cells is None else cells.unbind(3)
    levels = zip(maps, locations.unbind(3), weights.unbind(3), cells_L, strict=True)
    outs = (read(map_BHWhd.to(locations.dtype), at, weight, cell) for map_BHWhd, at, weight, cell in levels)
    return reduce(torch.add, outs).to(maps[0].dtype)


def by_grid_sample(map_BHWhd: Tensor, at_BQhP2: Tensor, weight_BQhP: Tensor, cells: Tensor | None) -> Tensor:
    """The plain form of one level. Returns (B, Q, h * d)."""
    map_NdHW, grid, weight = _by_head(map_BHWhd, at_BQhP2, weight_BQhP, cells)
    if may_run_fast(map_NdHW, weight):
        return _by_image(weighed_sum(read(map_NdHW, grid), weight), map_BHWhd)
    return _by_image(plain_reading(map_NdHW, grid, weight), map_BHWhd)


def by_grid_sample_twice(map_BHWhd: Tensor, at_BQhP2: Tensor, weight_BQhP: Tensor, cells: Tensor | None) -> Tensor:
    """One level whose samples are not kept for the backward pass, which reads them again. Returns (B, Q, h * d)."""
    map_NdHW, grid, weight = _by_head(map_BHWhd, at_BQhP2, weight_BQhP, cells)
    compute = weighed_reading if may_run_fast(map_NdHW, weight) else plain_reading
    return _by_image(compute(map_NdHW, grid, weight), map_BHWhd)


def _by_head(
    map_BHWhd: Tensor, at_BQhP2: Tensor, weight_BQhP: Tensor, cells: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the map of each of N = B * h heads (N, d, H, W), the places in it (N, P, Q, 2) and weights (N, P, Q)."""
    height, width = map_BHWhd.shape[1:3]
    # queries last: along them the operator runs fastest
    at = at_BQhP2.permute(4, 0, 2, 3, 1)
    cells = cells if cells is None else cells.permute(4, 0, 2, 3, 1)
    x_y = [shares_of_side(at[i], side, None if cells is None else cells[i]) for i, side in ((0, width), (1, height))]
    grid = torch.stack(x_y, dim=-1).flatten(0, 1)
    return map_BHWhd.permute(0, 3, 4, 1, 2).flatten(0, 1), grid, weight_BQhP.permute(0, 2, 3, 1).flatten(0, 1)


def _by_image(out_NdQ: Tensor, map_BHWhd: Tensor) -> Tensor:
    """Return (B, Q, h * d) of (B * h, d, Q)."""
    batch, heads, dim = map_BHWhd.shape[0], *map_BHWhd.shape[3:]
    return out_NdQ.reshape(batch, heads * dim, out_NdQ.shape[-1]).transpose(1, 2).contiguous()


def shares_of_side(at: Tensor, side: int, cells: Tensor | None) -> Tensor:
    """Return positions along a side of the map from -1 to 1, as `grid_sample` needs them.

    The operator's own rounding moves them by up to `blur` cells. A point closer than that to a line between cells is
    moved away from it, because the operator could take it for one on the other side, which has another gradient.
    """
    step, blur = 2 / side, 2 * torch.finfo(at.dtype).eps * side
    with torch.no_grad():
        low = at.floor()
        past = (at - low).clamp_(blur, 1 - blur)
        place = past.add_(low if cells is None else low.add_(cells)).add_(0.5).mul_(step).sub_(1)
        rest = place.sub_(at, alpha=step)
    return rest.add(at, alpha=step)  # its gradient is the factor alone


def by_gather(map_BHWhd: Tensor, at_BQhP2: Tensor, weight_BQhP: Tensor, cells: Tensor | None) -> Tensor:
    """One level as rows of a table, picked one corner after the other. Returns (B, Q, h * d)."""
    table = ringed(map_BHWhd)
    parts = []
    for row_BQhP, share_BQhP in corners(map_BHWhd, at_BQhP2, weight_BQhP, cells):
        read = table.index_select(0, row_BQhP.flatten().long()).unflatten(0, row_BQhP.shape)
        parts.append((read * share_BQhP[..., None]).sum(3))
    return (parts[0] + parts[1] + parts[2] + parts[3]).flatten(2)


def by_embedding_bag(map_BHWhd: Tensor, at_BQhP2: Tensor, weight_BQhP: Tensor, cells: Tensor | None) -> Tensor:
    """One level as rows of a table, picked, weighed and added up by one operator. Returns (B, Q, h * d)."""
    batch, queries, heads, points, _ = at_BQhP2.shape
    rows, shares = zip(*corners(map_BHWhd, at_BQhP2, weight_BQhP, cells), strict=True)
    row, share = (torch.cat(x, dim=-1).reshape(-1, 4 * points) for x in (rows, shares))
    out = F.embedding_bag(row, ringed(map_BHWhd), per_sample_weights=share, mode="sum")
    # no view for autograd, so that a caller may change it in place, also with gradients where it was computed without
    return torch.ops.aten._unsafe_view(out, [batch, queries, heads * map_BHWhd.shape[-1]])


def ringed(map_BHWhd: Tensor) -> Tensor:
    """The map in a ring of zeros, as a table: a row of d for each cell and head."""
    return F.pad(map_BHWhd, (0, 0, 0, 0, RING, RING, RING, RING)).reshape(-1, map_BHWhd.shape[-1])


def corners(
    map_BHWhd: Tensor, at_BQhP2: Tensor, weight_BQhP: Tensor, cells: Tensor | None
) -> list[tuple[Tensor, Tensor]]:
    """The four cells around each point: the row of the ringed map's table (int32), and the share of the reading.

    Both are (B, Q, h, P). A place that is not a number has a row too, so that a training run that diverges ends with
    numbers that say so and not in a crash.
    """
    batch, height, width, heads, _ = map_BHWhd.shape
    at = at_BQhP2.movedim(-1, 0).contiguous()
    low = at.detach().floor()
    x, y = (at - low).unbind(0)  # from the left upper corner
    low = low.clamp(-FAR, FAR).nan_to_num(nan=-FAR).int()  # NaN would be 0 on a GPU, a cell of the map
    if cells is not None:
        low = low + cells.movedim(-1, 0).int()
    down = (width + 2 * RING) * heads  # rows from a cell to the one below
    column, line = low[0].clamp(-RING, width) + RING, low[1].clamp(-RING, height) + RING
    image_B1 = torch.arange(batch, dtype=torch.int32, device=at.device)[:, None] * ((height + 2 * RING) * down)
    first_B1h1 = (image_B1 + torch.arange(heads, dtype=torch.int32, device=at.device))[:, None, :, None]
    row = line * down + (column * heads + first_B1h1)
    lower = weight_BQhP * y
    upper = weight_BQhP - lower
    upper_right, lower_right = upper * x, lower * x
    return [
        (row, upper - upper_right),
        (row + heads, upper_right),
        (row + down, lower - lower_right),
        (row + (down + heads), lower_right),
    ]


LevelForm = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
FORMS: dict[Form, LevelForm] = {  # of one level, on any device
    "grid_sample": by_grid_sample,
    "grid_sample_twice": by_grid_sample_twice,
    "gather": by_gather,
    "embedding_bag": by_embedding_bag,
}


def kernel_cells(
    height: int, width: int, kernel: int, *, stride: int = 1, dilation: int = 1, device: torch.device | None = None
) -> Tensor:
    """(Q, kernel^2, 2) int64: the cells that a convolution reads which is padded to keep the size, as (x, y).

    There are Q = ceil(H / stride) * ceil(W / stride) queries, row by row. The points of one run down its columns, the
    left one first: the order of DCNv3's weights.
    """
    reach = (torch.arange(kernel, device=device) - kernel // 2) * dilation
    x_Wk = torch.arange(-(-width // stride), device=device)[:, None] * stride + reach
    y_Hk = torch.arange(-(-height // stride), device=device)[:, None] * stride + reach
    shape = (y_Hk.shape[0], x_Wk.shape[0], kernel, kernel)
    x_y = torch.stack([x_Wk[None, :, :, None].expand(shape), y_Hk[:, None, None, :].expand(shape)], dim=-1)
    return x_y.flatten(2, 3).flatten(0, 1)
