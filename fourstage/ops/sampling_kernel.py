"""Deformable sampling by kernels of Triton, forward and backward. Only the form `triton` imports this file.

B images, H x W cells, h heads of d channels, L levels; Q queries, each with P points a head and a level. N rows of a
program, out of the B * Q * h rows of the result, with D channels each, where D is d rounded up to a power of two.

A program computes some rows at one level. All arithmetic is in the precision of the locations. The gradient of a map
is added up by atomic operations in no fixed order. Where PyTorch must be deterministic, the gather form computes the
gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from fourstage.ops.second_gradients import needs_plain_form, of_plain_form

FAR = tl.constexpr(2.0**24)  # cells; locations are clamped to it, which is outside any map and still an int32
OUTSIDE = tl.constexpr(-2)  # a cell that is outside of any map, as the one after it
VARYING = ("rows", "queries", "level", "height", "width")  # a kernel that is compiled for one value serves all values
FAILURES = (ImportError, OSError, RuntimeError, TritonError)  # a C compiler, registers or memory are missing

Plain = Callable[..., Tensor]  # the gather form of locations, weights and all maps


@dataclass(frozen=True)
class Launch:
    """How the work is divided: the elements of a program, which are rows times channels, and its warps."""

    elements: int
    warps: int


FORWARD, BACKWARD = Launch(1024, 4), Launch(512, 4)


# ----------------------------------------------------------------------------------------------------- kernels


@triton.jit
def _place(at_ptr, cell_ptr, real_N, HAS_CELLS: tl.constexpr):
    """Return the cell before each coordinate and the distance from that cell, which is below 1."""
    at_N = tl.load(at_ptr, mask=real_N, other=0.0)
    low_N = tl.floor(at_N)
    after_N = at_N - low_N
    low_N = tl.where(low_N > -FAR, low_N, -FAR)  # a comparison with NaN is false, so NaN is far outside too
    low_N = tl.where(low_N < FAR, low_N, FAR)
    cell_N = low_N.to(tl.int32)
    if HAS_CELLS:
        cell_N += tl.load(cell_ptr, mask=real_N, other=0).to(tl.int32)
    return tl.where(real_N, cell_N, OUTSIDE), after_N


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    out_ptr, sum_ptr, map_ptr, at_ptr, weight_ptr, cell_ptr,
    rows, queries, level, height, width,
    map_b, map_y, map_x, map_h, cell_b, cell_q, cell_h, cell_l, cell_p, cell_xy,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, DIM: tl.constexpr,
    HAS_CELLS: tl.constexpr, HAS_SUM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the weighted sum of one level's samples, added to the sum of the levels before it."""
    n_N = tl.program_id(0).to(rows.dtype) * BLOCK_N + tl.arange(0, BLOCK_N)  # 64 bits where rows need them
    offset_D = tl.arange(0, BLOCK_D)
    real_N, real_D = n_N < rows, offset_D < DIM
    # 64 bits, since numbers of a head or of a query may be more than 2**31 apart
    head_N, query_N = (n_N % HEADS).to(tl.int64), (n_N // HEADS % queries).to(tl.int64)
    image_N = (n_N // HEADS // queries).to(tl.int64)
    map_N = map_ptr + image_N * map_b + head_N * map_h
    cells_N = cell_ptr + image_N * cell_b + query_N * cell_q + head_N * cell_h + level * cell_l
    point_N = (n_N.to(tl.int64) * LEVELS + level) * POINTS
    element_ND = n_N.to(tl.int64)[:, None] * DIM + offset_D[None, :]
    real_ND = real_N[:, None] & real_D[None, :]
    sum_ND = tl.zeros([BLOCK_N, BLOCK_D], dtype=at_ptr.dtype.element_ty)
    if HAS_SUM:
        sum_ND += tl.load(sum_ptr + element_ND, mask=real_ND, other=0.0)
    for p in range(POINTS):
        at_N, cell_N = at_ptr + (point_N + p) * 2, cells_N + p * cell_p
        x_N, right_N = _place(at_N, cell_N, real_N, HAS_CELLS)
        y_N, down_N = _place(at_N + 1, cell_N + cell_xy, real_N, HAS_CELLS)
        weight_N = tl.load(weight_ptr + point_N + p, mask=real_N, other=0.0)
        for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            i_N, j_N = y_N + corner // 2, x_N + corner % 2
            share_N = weight_N * (down_N if corner // 2 else 1 - down_N) * (right_N if corner % 2 else 1 - right_N)
            from_N = map_N + i_N.to(tl.int64) * map_y + j_N.to(tl.int64) * map_x
            inside_N = (i_N >= 0) & (i_N < height) & (j_N >= 0) & (j_N < width)
            inside_ND = inside_N[:, None] & real_D[None, :]
            v_ND = tl.load(from_N[:, None] + offset_D[None, :], mask=inside_ND, other=0.0).to(sum_ND.dtype)
            sum_ND += share_N[:, None] * v_ND
    tl.store(out_ptr + element_ND, sum_ND.to(out_ptr.dtype.element_ty), mask=real_ND)


@triton.jit(do_not_specialize=VARYING)
def backward_kernel(
    grad_ptr, map_ptr, at_ptr, weight_ptr, cell_ptr, to_map_ptr, to_at_ptr, to_weight_ptr,
    rows, queries, level, height, width,
    map_b, map_y, map_x, map_h, cell_b, cell_q, cell_h, cell_l, cell_p, cell_xy,
    HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, DIM: tl.constexpr,
    HAS_CELLS: tl.constexpr, TO_MAP: tl.constexpr, TO_POINTS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add to the gradient of one level's map, which is contiguous, and write those of its locations and weights."""
    n_N = tl.program_id(0).to(rows.dtype) * BLOCK_N + tl.arange(0, BLOCK_N)  # 64 bits where rows need them
    offset_D = tl.arange(0, BLOCK_D)
    real_N, real_D = n_N < rows, offset_D < DIM
    # 64 bits, since numbers of a head or of a query may be more than 2**31 apart
    head_N, query_N = (n_N % HEADS).to(tl.int64), (n_N // HEADS % queries).to(tl.int64)
    image_N = (n_N // HEADS // queries).to(tl.int64)
    map_N = map_ptr + image_N * map_b + head_N * map_h
    to_map_N = to_map_ptr + (image_N * height * width * HEADS + head_N) * DIM
    cells_N = cell_ptr + image_N * cell_b + query_N * cell_q + head_N * cell_h + level * cell_l
    point_N = (n_N.to(tl.int64) * LEVELS + level) * POINTS
    element_ND = n_N.to(tl.int64)[:, None] * DIM + offset_D[None, :]
    real_ND = real_N[:, None] & real_D[None, :]
    grad_ND = tl.load(grad_ptr + element_ND, mask=real_ND, other=0.0).to(at_ptr.dtype.element_ty)
    for p in range(POINTS):
        at_N, cell_N = at_ptr + (point_N + p) * 2, cells_N + p * cell_p
        x_N, right_N = _place(at_N, cell_N, real_N, HAS_CELLS)
        y_N, down_N = _place(at_N + 1, cell_N + cell_xy, real_N, HAS_CELLS)
        weight_N = tl.load(weight_ptr + point_N + p, mask=real_N, other=0.0)
        to_weight_N = tl.zeros([BLOCK_N], dtype=grad_ND.dtype)
        to_x_N, to_y_N = to_weight_N, to_weight_N
        for corner in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
            i_N, j_N = y_N + corner // 2, x_N + corner % 2
            along_y_N = down_N if corner // 2 else 1 - down_N
            along_x_N = right_N if corner % 2 else 1 - right_N
            inside_N = (i_N >= 0) & (i_N < height) & (j_N >= 0) & (j_N < width)
            inside_ND = inside_N[:, None] & real_D[None, :]
            if TO_POINTS:
                from_N = map_N + i_N.to(tl.int64) * map_y + j_N.to(tl.int64) * map_x
                v_ND = tl.load(from_N[:, None] + offset_D[None, :], mask=inside_ND, other=0.0).to(grad_ND.dtype)
                product_N = tl.sum(grad_ND * v_ND, axis=1)
                to_weight_N += along_y_N * along_x_N * product_N
                to_x_N += (2 * (corner % 2) - 1) * along_y_N * product_N
                to_y_N += (2 * (corner // 2) - 1) * along_x_N * product_N
            if TO_MAP:
                to_N = to_map_N + (i_N.to(tl.int64) * width + j_N) * (HEADS * DIM)
                v_ND = (weight_N * along_y_N * along_x_N)[:, None] * grad_ND
                tl.atomic_add(to_N[:, None] + offset_D[None, :], v_ND, mask=inside_ND, sem="relaxed")
        if TO_POINTS:
            tl.store(to_weight_ptr + point_N + p, to_weight_N, mask=real_N)
            tl.store(to_at_ptr + (point_N + p) * 2, weight_N * to_x_N, mask=real_N)
            tl.store(to_at_ptr + (point_N + p) * 2 + 1, weight_N * to_y_N, mask=real_N)


INTERPRETED = not isinstance(forward_kernel, triton.JITFunction)  # TRITON_INTERPRET=1: NumPy computes, on the CPU


# ---------------------------------------------------------------------------------------------------- launches


def sample(maps: Sequence[Tensor], at: Tensor, weight: Tensor, cells: Tensor | None, plain: Plain) -> Tensor:
    """Return what `deformable_sample` does, from tensors of any memory layout on one GPU.

    Args:
        plain: the gather form; it computes gradients of gradients, batches of gradients and deterministic gradients.

    Shapes:
        maps, at, weight, cells: as in `deformable_sample`, with weights in the precision of the locations.
        Returns (B, Q, h * d) in the dtype of the maps.
    """
    return cast(Tensor, _Sample.apply(at, weight, cells, plain, *maps))


class _Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, at: Tensor, weight: Tensor, cells: Tensor | None, plain: Plain, *maps: Tensor) -> Tensor:
        ctx.save_for_backward(at, weight, cells, *maps)
        ctx.plain = plain
        return _forward([_with_whole_rows(x) for x in maps], at.contiguous(), weight.contiguous(), cells)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        at, weight, cells, *maps = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], *ctx.needs_input_grad[4:]]
        if needs_plain_form(grads[0]) or torch.are_deterministic_algorithms_enabled():
            found = of_plain_form(
                lambda at, weight, *maps: ctx.plain(maps, at, weight, cells), [at, weight, *maps], wanted, grads[0]
            )
            return found[0], found[1], None, None, *found[2:]
        to_at, to_weight, to_maps = _backward(
            grads[0].contiguous(),
            [_with_whole_rows(x) for x in maps],
            at.contiguous(),
            weight.contiguous(),
            cells,
            points=wanted[0] or wanted[1],
            maps_wanted=wanted[2:],
        )
        return to_at, to_weight, None, None, *to_maps


def _with_whole_rows(map_BHWhd: Tensor) -> Tensor:
    return map_BHWhd if map_BHWhd.stride(-1) == 1 else map_BHWhd.contiguous()


def _forward(maps: Sequence[Tensor], at: Tensor, weight: Tensor, cells: Tensor | None) -> Tensor:
    """Run the kernel level after level. The sum stays in the precision of the locations until the last one."""
    batch, queries, heads, levels = at.shape[:4]
    shape = batch, queries, heads * maps[0].shape[-1]
    sum_BQC = at.new_empty(shape if levels > 1 else 0)
    out_BQC = at.new_empty(shape, dtype=maps[0].dtype)
    for level in range(levels):
        into = out_BQC if level == levels - 1 else sum_BQC
        tensors = (into, sum_BQC, maps[level], at, weight)
        _launch(forward_kernel, FORWARD, tensors, (), maps[level], at, cells, level, HAS_SUM=level > 0)
    return out_BQC


def _backward(
    grad_BQC: Tensor,
    maps: Sequence[Tensor],
    at: Tensor,
    weight: Tensor,
    cells: Tensor | None,
    *,
    points: bool,
    maps_wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Return the gradients of locations and weights, which are computed together, and of the maps that need one."""
    to_at, to_weight = (torch.empty_like(x) if points else x.new_empty(0) for x in (at, weight))
    to_maps: list[Tensor | None] = []
    for level, (map_BHWhd, wanted) in enumerate(zip(maps, maps_wanted, strict=True)):
        to_map = at.new_zeros(map_BHWhd.shape if wanted else 0)
        tensors, results = (grad_BQC, map_BHWhd, at, weight), (to_map, to_at, to_weight)
        flags = {"TO_MAP": wanted, "TO_POINTS": points}
        _launch(backward_kernel, BACKWARD, tensors, results, map_BHWhd, at, cells, level, **flags)
        to_maps.append(to_map.to(map_BHWhd.dtype) if wanted else None)
    return (to_at, to_weight, to_maps) if points else (None, None, to_maps)


def _launch(
    kernel: Any,
    launch: Launch,
    tensors: Sequence[Tensor],
    results: Sequence[Tensor],
    map_BHWhd: Tensor,
    at: Tensor,
    cells: Tensor | None,
    level: int,
    **flags: bool,
) -> None:
    """Start enough programs for all rows. The cells' pointer comes between the tensors and the results."""
    (batch, queries, heads, levels, points, _), (height, width, dim) = (
        at.shape,
        (*map_BHWhd.shape[1:3], map_BHWhd.shape[4]),
    )
    rows = batch * queries * heads
    if rows * dim == 0:
        return
    block_d = triton.next_power_of_2(dim)
    block_n = max(1, launch.elements // block_d)
    steps = (0,) * 6 if cells is None else cells.expand(at.shape).stride()
    with torch.cuda.device_of(at):
        kernel[(triton.cdiv(rows, block_n),)](
            *tensors, at if cells is None else cells, *results,
            rows, queries, level, height, width,
            *map_BHWhd.stride()[:4], *steps,
            HEADS=heads, LEVELS=levels, POINTS=points, DIM=dim,
            HAS_CELLS=cells is not None, BLOCK_N=block_n, BLOCK_D=block_d,
            num_warps=launch.warps, enable_fp_fusion=True,
            **flags,
        )  # fmt: skip
