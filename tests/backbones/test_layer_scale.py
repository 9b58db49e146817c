"""Layer scales, and the branches that take them into their last layer."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import fourstage
from fourstage.backbones.layer_scale import MARKED, LayerScale, scaled
from fourstage.backbones.layers import Mlp

NETWORKS = (
    "unified_convnext_micro",
    "unified_dcn_v3_micro",
    "unified_halo_micro",
    "unified_pvt_micro",
    "unified_pvt_v2_micro",
    "unified_swin_micro",
    "smt_tiny",
)


def random_scale(dim: int) -> LayerScale:
    scale = LayerScale(dim, 1.0)
    nn.init.normal_(scale.scale)
    return scale


def branches(network: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """One branch of each class in the first stage's blocks, with its number of channels."""
    seen: set[type] = set()
    for module in network.get_submodule("stages.0.blocks").modules():
        norm = getattr(module, "norm1", None)
        if isinstance(norm, nn.LayerNorm):
            for name in ("mixer", "attn", "mlp"):
                branch = getattr(module, name, None)
                if branch is not None and type(branch) not in seen:
                    seen.add(type(branch))
                    yield branch, norm.normalized_shape[0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(2, 14, 21), (1, 8, 8)], ids=["many rows", "few rows"])
def test_every_branch_takes_a_scale(name: str, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = fourstage.create_model(name, num_classes=2).eval()
    found = list(branches(network))
    assert len(found) == 2
    for branch, dim in found:
        scale, x_BHWC = random_scale(dim), torch.randn(*size, dim)
        out = {}
        for switch in ("plain", "fast"):
            monkeypatch.setenv("FOURSTAGE_OPS", switch)
            out[switch] = scaled(branch, scale, x_BHWC)
        assert type(branch).forward in MARKED
        torch.testing.assert_close(out["fast"], out["plain"], rtol=1e-4, atol=1e-6)


class Twice(Mlp):
    """A branch of the user's own, which knows nothing of scales."""

    def forward(self, x_BHWC: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return 2 * super().forward(x_BHWC)


class Shifted(LayerScale):
    """A scale of the user's own."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC) + 1


def test_what_a_subclass_does_is_kept() -> None:
    torch.manual_seed(0)
    x_BHWC, twice = torch.randn(2, 5, 5, 8), Twice(8, 16)
    shifted = Shifted(8, 0.5)
    torch.testing.assert_close(scaled(twice, LayerScale(8, 0.5), x_BHWC), Mlp.forward(twice, x_BHWC))
    plain = Mlp(8, 16)
    torch.testing.assert_close(scaled(plain, shifted, x_BHWC), 0.5 * plain(x_BHWC) + 1)
    assert scaled(plain, nn.Identity(), x_BHWC).equal(plain(x_BHWC))


@pytest.mark.parametrize("watched", ["branch", "scale"])
def test_hooks_see_the_map_before_and_after_its_scale(watched: str) -> None:
    torch.manual_seed(0)
    branch, scale, x_BHWC = Mlp(8, 16), random_scale(8), torch.randn(2, 5, 5, 8)
    expected = {"branch": branch(x_BHWC), "scale": branch(x_BHWC) * scale.scale}
    seen: list[Tensor] = []
    {"branch": branch, "scale": scale}[watched].register_forward_hook(lambda *given: seen.append(given[-1]))
    out = scaled(branch, scale, x_BHWC)
    torch.testing.assert_close(seen, [expected[watched]])
    torch.testing.assert_close(out, expected["scale"])


def test_the_scale_of_a_frozen_layer_trains_without_the_layers_input() -> None:
    branch, scale = Mlp(8, 64).requires_grad_(False), random_scale(8)
    widths: list[int] = []
    x_BHWC = torch.randn(2, 9, 9, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: widths.append(x.shape[-1]) or x, lambda x: x):
        out_BHWC = scaled(branch, scale, x_BHWC)
    torch.testing.assert_close(
        torch.autograd.grad(out_BHWC.sum(), scale.scale)[0], branch(x_BHWC).sum((0, 1, 2)), rtol=1e-4, atol=1e-4
    )
    assert max(widths) == 8
