"""Maps of mixers: weights put back into the map compute what the mixer returns, and distances of known patterns."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fourstage import create_backbone, create_model
from fourstage.analysis.attention import Attention, attention_of, mean_distances, points_of
from fourstage.analysis.maps import mixer_maps
from fourstage.backbones.mixers.deformable import DeformableMixer
from fourstage.backbones.mixers.depthwise import DepthwiseMixer
from fourstage.backbones.mixers.halo import HaloMixer
from fourstage.backbones.mixers.modulation import LocalGlobalAttention, ScaleAwareModulation
from fourstage.backbones.mixers.reduction import ReductionAttention
from fourstage.backbones.mixers.scalable import GlobalAttention, InteractiveWindowAttention, ScalableAttention
from fourstage.backbones.mixers.window import WindowAttention

HEADS, DIM = 2, 8


def values_of(mixer: nn.Module, x_BHWC: Tensor) -> Tensor:
    """Return (keys, h, d): the values of the map of keys, in its order."""
    if isinstance(mixer, WindowAttention | InteractiveWindowAttention):
        v_BHWC = mixer.qkv(x_BHWC).chunk(3, dim=-1)[2]
    elif isinstance(mixer, HaloMixer):
        v_BHWC = mixer.kv(x_BHWC).unflatten(-1, (HEADS, 2, -1))[..., 1, :].flatten(-2)
    elif isinstance(mixer, ReductionAttention):
        v_BHWC = mixer.kv(mixer.reduced(x_BHWC)).chunk(2, dim=-1)[1]
    elif isinstance(mixer, ScalableAttention):
        v_BHWC = mixer.v(mixer.reduced(x_BHWC))
    else:
        assert isinstance(mixer, GlobalAttention | LocalGlobalAttention)
        v_BHWC = mixer.kv(x_BHWC).chunk(2, dim=-1)[1]
    return v_BHWC[0].flatten(0, 1).unflatten(-1, (HEADS, -1))


def local_of(mixer: nn.Module, x_BHWC: Tensor) -> Tensor | float:
    """Return what a mixer adds to its attention before the last layer."""
    if isinstance(mixer, InteractiveWindowAttention):
        v_BHWC = mixer.qkv(x_BHWC).chunk(3, dim=-1)[2]
    elif isinstance(mixer, LocalGlobalAttention):
        v_BHWC = mixer.kv(x_BHWC).chunk(2, dim=-1)[1]
    else:
        return 0.0
    return mixer.local(v_BHWC.movedim(-1, 1)).movedim(1, -1)


MIXERS = {
    "window": lambda: WindowAttention(DIM, HEADS, 4, shifted=False, dense=False),
    "shifted": lambda: WindowAttention(DIM, HEADS, 4, shifted=True, dense=False),
    "interactive": lambda: InteractiveWindowAttention(DIM, HEADS, 4),
    "halo": lambda: HaloMixer(DIM, HEADS, 4, 2, dense=False),
    "reduction": lambda: ReductionAttention(DIM, HEADS, 2),
    "no reduction": lambda: ReductionAttention(DIM, HEADS, 1),
    "scalable": lambda: ScalableAttention(DIM, HEADS, 1.25, 2),
    "global": lambda: GlobalAttention(DIM, HEADS, 1.25),
    "local and global": lambda: LocalGlobalAttention(DIM, HEADS),
}


def spread_out(mixer: nn.Module) -> nn.Module:
    """Give a mixer weights that make its attention far from uniform."""
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.7)
    return mixer.eval()


@pytest.mark.parametrize("size", [(8, 8), (6, 11), (9, 4), (3, 3)])
@pytest.mark.parametrize("name", sorted(MIXERS))
def test_the_weights_times_the_values_are_what_the_mixer_returns(name: str, size: tuple[int, int]) -> None:
    mixer, x_BHWC = spread_out(MIXERS[name]()), torch.randn(1, *size, DIM)
    found = attention_of(mixer, x_BHWC)
    with torch.no_grad():
        values = values_of(mixer, x_BHWC)
        out = torch.zeros(1, *size, DIM)
        for row in range(size[0]):
            for column in range(size[1]):
                [group, place] = (found.queries_GN == row * size[1] + column).nonzero()[0].tolist()
                keys = found.keys_GM[group]
                known = keys >= 0
                mixed = torch.einsum("hm,mhd->hd", found.weights_GhNM[group, :, place][:, known], values[keys[known]])
                out[0, row, column] = mixed.flatten()
        expected = mixer(x_BHWC)
        own = mixer.proj(out + local_of(mixer, x_BHWC))  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(MIXERS) - {"reduction", "scalable"}))
def test_the_map_of_a_cell_sums_to_one_and_padding_gets_nothing(name: str) -> None:
    found = attention_of(spread_out(MIXERS[name]()), torch.randn(1, 6, 11, DIM))
    map_hHW = found.of(5, 10)
    assert map_hHW.shape == (HEADS, 6, 11)
    torch.testing.assert_close(map_hHW.sum((1, 2)), torch.ones(HEADS))
    with pytest.raises(ValueError, match="no cell 6, 0"):
        found.of(6, 0)


def test_a_window_sees_its_own_cells_alone() -> None:
    map_hHW = attention_of(spread_out(MIXERS["window"]()), torch.randn(1, 8, 8, DIM)).of(5, 1)
    assert (map_hHW[:, 4:, :4] > 0).all()
    assert map_hHW[:, :4].sum() + map_hHW[:, :, 4:].sum() == 0
    shifted = attention_of(spread_out(MIXERS["shifted"]()), torch.randn(1, 8, 8, DIM)).of(3, 3)
    assert (shifted[:, 2:6, 2:6] > 0).all()
    torch.testing.assert_close(shifted[:, 2:6, 2:6].sum((1, 2)), torch.ones(HEADS))


def test_distances_of_known_patterns() -> None:
    numbers = torch.arange(6)[None]
    to_itself = Attention(torch.eye(6).expand(1, 1, 6, 6), numbers, numbers, (1, 6), (1, 6))
    assert to_itself.mean_distance().item() == 0
    uniform = Attention(torch.full((1, 1, 6, 6), 1 / 6), numbers, numbers, (1, 6), (1, 6))
    expected = np.abs(np.arange(6)[:, None] - np.arange(6)).mean()
    assert uniform.mean_distance().item() == pytest.approx(expected)
    coarse = Attention(torch.full((1, 1, 6, 3), 1 / 3), numbers, torch.arange(3)[None], (1, 6), (1, 3), 2)
    apart = np.hypot(np.arange(6)[:, None] - (np.arange(3) + 0.5) * 2 + 0.5, 0.5)  # rows of keys are centred too
    assert coarse.mean_distance().item() == pytest.approx(apart.mean())
    conv = DepthwiseMixer(4, kernel=3)
    nn.init.ones_(conv.spatial.weight)
    assert mean_distances(conv, torch.zeros(1, 5, 5, 4)).item() == pytest.approx((4 + 4 * 2**0.5) / 9)


def test_points_of_a_fresh_deformable_mixer_are_its_kernel() -> None:
    mixer = DeformableMixer(DIM, HEADS).eval()
    for layer in (mixer.offset, mixer.weigh):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    found = points_of(mixer, torch.randn(1, 5, 7, DIM))
    assert sorted(map(tuple, found.points_QhP2[0, 0].tolist())) == [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    torch.testing.assert_close(found.weights_QhP, torch.full_like(found.weights_QhP, 1 / 9))
    torch.testing.assert_close(found.mean_distance(), torch.full((HEADS,), (4 + 4 * 2**0.5) / 9).double())


@pytest.mark.parametrize(
    "name",
    [
        "smt_tiny",
        "scalable_vit_small",
        "swin_tiny",
        "unified_halo_micro",
        "unified_dcn_v3_micro",
        "unified_pvt_micro",
        "unified_convnext_micro",
    ],
)
def test_every_mixer_of_a_network_has_its_maps(name: str) -> None:
    network = create_backbone(name).eval()
    found = mixer_maps(network, torch.randn(1, 3, 96, 64), (40.0, 10.0), last_of_stage=True)
    assert found
    for one in found:
        assert np.isfinite(one.distances_h).all()
        assert (one.distances_h > 0).all()
        if one.kind == "ScaleAwareModulation":
            assert one.modulator_HW is not None
            assert one.modulator_HW.shape == one.size
            assert one.heads_hHW is not None
            assert one.heads_hHW.shape == (4, *one.size)
        elif one.kind == "DeformableMixer":
            assert one.points_hP2 is not None
            assert one.points_hP2.shape[1:] == (9, 2)
        elif one.kind != "DepthwiseMixer":
            assert one.heads_hHW is not None
            assert one.heads_hHW.shape[1:] == one.size
            assert one.cell == (int(10 / one.stride), int(40 / one.stride))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_smts_modulator_is_the_tensor_that_is_multiplied_with_the_values() -> None:
    mixer = ScaleAwareModulation(8).eval()
    network = create_model("smt_tiny").eval()
    image = torch.randn(1, 3, 64, 64)
    [first, *_] = mixer_maps(network, image, last_of_stage=True)
    kept: list[Tensor] = []
    target = dict(network.named_modules())[first.name]
    assert isinstance(target, type(mixer))
    handle = target.proj.register_forward_pre_hook(lambda _module, given: kept.append(given[0]))
    inputs: list[Tensor] = []
    before = target.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    with torch.no_grad():
        network(image)
        gate_BHWC = kept[0] / target.value(inputs[0])
    handle.remove()
    before.remove()
    assert first.modulator_HW is not None
    np.testing.assert_allclose(first.modulator_HW, gate_BHWC[0].abs().mean(-1).numpy(), rtol=1e-3)


def test_what_has_no_maps_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="has none of this package's mixers"):
        mixer_maps(create_backbone("timm/resnet18"), torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="outside of the image of 64 x 64 pixels"):
        mixer_maps(create_backbone("swin_tiny"), torch.randn(1, 3, 64, 64), (64.0, 0.0))
    with pytest.raises(ValueError, match="has no attention weights"):
        attention_of(nn.Identity(), torch.zeros(1, 2, 2, 1))
