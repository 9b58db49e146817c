"""Halo attention against its definition over whole maps. The originals' numbers are in test_golden_backbones.py."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourstage.backbones.mixers.halo import HaloMixer
from fourstage.ops.halo_attention import at_once as all_at_once
from fourstage.ops.halo_attention import by_strips

side, seeds = st.integers(1, 17), st.integers(0, 2**31)


def mixer(block: int, halo: int, *, dense: bool, seed: int = 0) -> HaloMixer:
    """Two heads of four channels."""
    torch.manual_seed(seed)
    return HaloMixer(8, 2, block, halo, dense=dense)


def one_side(queries: int, keys: int, block: int, halo: int) -> tuple[Tensor, Tensor]:
    """(queries, keys): the row of a relative table, and whether the key is in the query's window, along one side."""
    query, key = torch.arange(queries)[:, None], torch.arange(keys)
    first = query // block * block - halo  # of the window
    window = block + 2 * halo
    inside = (key >= first) & (key < first + window)
    return ((key - first) - query % block + window - 1).clamp(0, 2 * window - 2), inside


def by_definition(mixer: HaloMixer, x_BHWC: Tensor) -> Tensor:
    """Every cell looks at every cell, and what is not in its window is hidden."""
    height, width = x_BHWC.shape[1:3]
    if mixer.dense:
        x_BHWC = F.pad(x_BHWC, (0, 0, 0, -width % mixer.block, 0, -height % mixer.block))
    q = mixer.q(x_BHWC).unflatten(-1, (mixer.heads, -1))
    k, v = mixer.kv(x_BHWC).unflatten(-1, (mixer.heads, 2, -1)).unbind(-2)
    row, row_inside = one_side(x_BHWC.shape[1], x_BHWC.shape[1], mixer.block, mixer.halo)
    column, column_inside = one_side(x_BHWC.shape[2], x_BHWC.shape[2], mixer.block, mixer.halo)
    logits = torch.einsum("byxhd,bjihd->bhyxji", q, k) * mixer.head_dim**-0.5
    logits = logits + torch.einsum("byxhd,yjd->bhyxj", q, mixer.height_rel[row])[..., None]
    logits = logits + torch.einsum("byxhd,xid->bhyxi", q, mixer.width_rel[column])[..., None, :]
    hidden = ~(row_inside[:, None, :, None] & column_inside[None, :, None, :])
    weights = logits.masked_fill(hidden, -torch.inf).flatten(-2).softmax(-1).unflatten(-1, k.shape[1:3])
    out_BHWC = torch.einsum("bhyxji,bjihd->byxhd", weights, v).flatten(3)
    return mixer.proj(out_BHWC[:, :height, :width])


@pytest.mark.parametrize("dense", [False, True])
@given(height=side, width=side, block=st.integers(1, 7), halo=st.integers(0, 4), seed=seeds)
@settings(max_examples=25, deadline=None)
def test_it_is_attention_to_a_window_around_each_block(
    dense: bool, height: int, width: int, block: int, halo: int, seed: int
) -> None:
    built, x_BHWC = mixer(block, halo, dense=dense, seed=seed), torch.randn(2, height, width, 8)
    expected = by_definition(built, x_BHWC)
    torch.testing.assert_close(built(x_BHWC), expected, rtol=1e-4, atol=1e-5)  # strip after strip
    built, x_BHWC = built.double(), x_BHWC.double()  # float64 goes all at once
    torch.testing.assert_close(built(x_BHWC), by_definition(built, x_BHWC))


@given(block=st.integers(1, 4), halo=st.integers(0, 5), down=st.integers(1, 3), across=st.integers(1, 3), seed=seeds)
@settings(max_examples=20, deadline=None)
def test_strips_give_what_all_at_once_gives_and_its_gradients(
    block: int, halo: int, down: int, across: int, seed: int
) -> None:
    torch.manual_seed(seed)
    heads, dim, window = 2, 3, block + 2 * halo
    blocks = (2, down, across, heads, block**2)
    shapes = ((*blocks, dim), (2, down * block, across * block, 2 * heads * dim), (*blocks, window), (*blocks, window))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    q, kv, rows, columns = inputs
    at_once = all_at_once(q, kv, rows, columns, halo)
    in_strips = by_strips(q, kv, rows, columns, halo)
    torch.testing.assert_close(in_strips, at_once)
    probe = torch.randn_like(at_once)
    for a, b in zip(
        torch.autograd.grad(in_strips, inputs, probe), torch.autograd.grad(at_once, inputs, probe), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dense", [False, True])
@given(height=side, width=side, seed=seeds)
@settings(max_examples=8, deadline=None)
def test_images_of_a_batch_do_not_see_each_other(dense: bool, height: int, width: int, seed: int) -> None:
    built, x_BHWC = mixer(7, 3, dense=dense, seed=seed), torch.randn(3, height, width, 8)
    with torch.inference_mode():
        together, alone = built(x_BHWC), torch.cat([built(x) for x in x_BHWC.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def noise(x: Tensor, pad: tuple[int, ...], *_: Any) -> Tensor:
    filler = zeros(torch.zeros_like(x), pad, value=1e3)
    return zeros(x, pad) + filler * torch.randn_like(filler)


zeros = F.pad


@pytest.mark.parametrize("at_once", [False, True])
@given(height=side, width=side)
@settings(max_examples=10, deadline=None)
def test_what_fills_up_the_last_blocks_changes_nothing(at_once: bool, height: int, width: int) -> None:
    built, x_BHWC = mixer(7, 3, dense=False), torch.randn(1, height, width, 8)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        if at_once:
            patch.setenv("FOURSTAGE_OPS", "plain")
        expected = built(x_BHWC)
        patch.setattr(F, "pad", noise)
        assert float((built(x_BHWC) - expected).abs().max()) < 1e-6


def test_the_dense_form_attends_to_its_padding_and_the_classifier_does_not() -> None:
    torch.manual_seed(0)
    x_BHWC = torch.randn(1, 7, 16, 8)
    dense, classifier = (mixer(7, 3, dense=dense) for dense in (True, False))
    classifier.load_state_dict(dense.state_dict())
    with torch.inference_mode():
        a, b = dense(x_BHWC), classifier(x_BHWC)
    torch.testing.assert_close(a[:, :, :7], b[:, :, :7], rtol=1e-5, atol=1e-6)  # its window ends before the padding
    assert ((a - b)[:, :, 7:].abs().amax(-1) > 1e-4).all()


def test_native_sizes_are_padded_with_the_halo_alone() -> None:
    pads = []

    def record(x: Tensor, pad: tuple[int, ...]) -> Tensor:
        pads.append(pad)
        return zeros(x, pad)

    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "pad", record)
        for dense in (False, True):
            mixer(7, 3, dense=dense)(torch.randn(1, 14, 7, 8))
    assert pads == [(0, 0, 3, 3, 3, 3)] * 2


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
@pytest.mark.parametrize("dense", [False, True])
def test_half_precision(how: str, dense: bool) -> None:
    built, x_BHWC = mixer(7, 3, dense=dense), torch.randn(1, 16, 20, 8)
    with torch.inference_mode():
        expected = built(x_BHWC)
    half = torch.float16 if how == "float16" else torch.bfloat16
    if how == "autocast":
        with torch.autocast("cpu", half):
            out = built(x_BHWC)
    else:
        built, x_BHWC = built.to(half), x_BHWC.to(half)
        out = built(x_BHWC)
    assert out.dtype == half
    assert (out.float() - expected).std() < 0.02 * expected.std()
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in built.parameters())


def test_one_graph_serves_every_size() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    built = mixer(3, 1, dense=False)
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend=count)
    for shape in ((3, 5, 7), (4, 6, 9), (6, 8, 10), (7, 12, 4)):  # torch takes a single block for a case of its own
        x_BHWC = torch.randn(*shape, 8)
        torch.testing.assert_close(compiled(x_BHWC), built(x_BHWC), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("dense", [False, True])
def test_it_exports_for_every_size(dense: bool) -> None:
    from torch.export import Dim, export
    from torch.fx.experimental import _config as config

    built = mixer(3, 1, dense=dense).eval()
    batch, height, width = (Dim(name, min=1, max=64) for name in ("batch", "height", "width"))
    with config.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        program = export(built, (torch.randn(3, 5, 7, 8),), dynamic_shapes=({0: batch, 1: height, 2: width},))
    for shape in ((1, 6, 9), (5, 11, 1)):
        x_BHWC = torch.randn(*shape, 8)
        torch.testing.assert_close(program.module()(x_BHWC), built(x_BHWC), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_built_is_answered_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="dim 10 must split evenly over 4 heads"):
        HaloMixer(10, 4, dense=False)
