"""DCNv3 as a mixer: which points it reads, in what order, at any size and precision.

The originals' numbers are in test_golden_backbones.py, the sampling itself in test_sampling.py.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourstage.backbones.mixers import deformable
from fourstage.backbones.mixers.deformable import DeformableMixer

side, seeds = st.integers(1, 12), st.integers(0, 2**31)


def mixer(kernel: int = 3, *, still: bool = False, seed: int = 0) -> DeformableMixer:
    """Two heads of four channels; `still`: points stay on the grid and weigh the same, nothing is projected."""
    torch.manual_seed(seed)
    built = DeformableMixer(8, 2, kernel)
    if still:
        for layer in (built.offset, built.weigh):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (built.value, built.proj):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
    return built


def shifted(x_BHWC: Tensor, right: int, down: int) -> Tensor:
    """What lies `right` and `down` of each cell; beyond the map 0."""
    height, width = x_BHWC.shape[1:3]
    far = F.pad(x_BHWC, (0, 0, 9, 9, 9, 9))
    return far[:, 9 + down : 9 + down + height, 9 + right : 9 + right + width]


@given(height=side, width=side, kernel=st.sampled_from([1, 3, 5]))
@settings(max_examples=15, deadline=None)
def test_points_that_stay_and_weigh_the_same_give_the_mean_of_the_neighbourhood(
    height: int, width: int, kernel: int
) -> None:
    x_BHWC = torch.randn(2, height, width, 8)
    with torch.inference_mode():
        out = mixer(kernel, still=True)(x_BHWC)
    mean = F.avg_pool2d(x_BHWC.movedim(-1, 1), kernel, stride=1, padding=kernel // 2).movedim(1, -1)
    torch.testing.assert_close(out, mean, rtol=1e-5, atol=1e-5)


@given(head=st.integers(0, 1), point=st.integers(0, 8), right=st.integers(-3, 3), down=st.integers(-3, 3))
@settings(max_examples=20, deadline=None)
def test_points_run_down_the_columns_and_move_right_and_down(head: int, point: int, right: int, down: int) -> None:
    built, x_BHWC = mixer(still=True), torch.randn(1, 6, 7, 8)
    with torch.inference_mode():
        built.weigh.bias.view(2, 9)[head, point] = 100.0  # all of the head's weight
        built.offset.bias.view(2, 9, 2)[head, point] = torch.tensor([right, down]).float()
        out = built(x_BHWC).unflatten(-1, (2, 4))[..., head, :]
    expected = shifted(x_BHWC, point // 3 - 1 + right, point % 3 - 1 + down).unflatten(-1, (2, 4))[..., head, :]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-5)


@given(height=side, width=side, seed=seeds)
@settings(max_examples=10, deadline=None)
def test_any_size_and_images_of_a_batch_do_not_see_each_other(height: int, width: int, seed: int) -> None:
    built, x_BHWC = mixer(seed=seed), torch.randn(3, height, width, 8)
    with torch.inference_mode():
        together, alone = built(x_BHWC), torch.cat([built(x) for x in x_BHWC.split(1)])
    assert together.shape == x_BHWC.shape
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@given(height=side, width=side, seed=seeds)
@settings(max_examples=5, deadline=None)
def test_training_and_inference_see_the_same(height: int, width: int, seed: int) -> None:
    built, x_BHWC = mixer(seed=seed), torch.randn(2, height, width, 8)
    with torch.inference_mode():
        expected = built(x_BHWC)
    torch.testing.assert_close(built(x_BHWC).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["bfloat16", "float16", "autocast"])
def test_places_are_float32_in_every_precision(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built, x_BHWC, seen = mixer(), torch.randn(1, 40, 50, 8), []
    nn.init.normal_(built.offset.bias)
    with torch.inference_mode():
        expected = built(x_BHWC)

    def spy(maps: list[Tensor], locations: Tensor, weights: Tensor, **rest: Any) -> Tensor:
        seen.extend([maps[0].dtype, locations.dtype, weights.dtype])
        return sample(maps, locations, weights, **rest)

    sample = deformable.deformable_sample
    monkeypatch.setattr(deformable, "deformable_sample", spy)
    half = torch.float16 if how == "float16" else torch.bfloat16
    if how == "autocast":
        with torch.autocast("cpu", half):
            out = built(x_BHWC)
    else:
        built, x_BHWC = built.to(half), x_BHWC.to(half)
        out = built(x_BHWC)
    assert seen == [half, torch.float32, torch.float32]
    assert out.dtype == half
    assert (out.float() - expected).std() < 0.02 * expected.std()
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in built.parameters())


def test_float64_stays_float64() -> None:
    built, x_BHWC = mixer().double(), torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(built, (x_BHWC,))


def test_one_graph_serves_every_size() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    built = mixer()
    compiled = torch.compile(built, fullgraph=True, dynamic=True, backend=count)
    for shape in ((3, 5, 7), (5, 9, 6), (6, 4, 10)):
        x_BHWC = torch.randn(*shape, 8)
        torch.testing.assert_close(compiled(x_BHWC), built(x_BHWC), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


def test_it_exports_for_every_size() -> None:
    from torch.export import Dim, export
    from torch.fx.experimental import _config as config

    built = mixer().eval()
    batch, height, width = (Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    with config.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
        program = export(built, (torch.randn(3, 5, 7, 8),), dynamic_shapes=({0: batch, 1: height, 2: width},))
    for shape in ((2, 4, 9), (5, 11, 3)):
        x_BHWC = torch.randn(*shape, 8)
        torch.testing.assert_close(program.module()(x_BHWC), built(x_BHWC), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_built_is_answered_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="dim 10 must split evenly over 4 heads"):
        DeformableMixer(10, 4)
    with pytest.raises(ValueError, match="2 x 2 points has no middle"):
        DeformableMixer(8, 2, kernel=2)
