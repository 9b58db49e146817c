"""What Visformer alone has. The originals' numbers are in test_golden_backbones.py."""

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import VISFORMER, tiny
from torch import Tensor, nn

import fourstage
from fourstage.backbones import visformer
from fourstage.backbones.layers import Level
from fourstage.weights.load import load_state


def narrow(design: visformer.Design) -> visformer.Design:
    """The same with fewer channels and blocks, for tests."""
    heads = tuple(2 if heads else 0 for heads in design.heads)
    depths = tuple(min(depth, 2) for depth in design.depths)
    widths = tuple(width // 8 for width in design.widths)
    return replace(design, stem=design.stem // 4, widths=widths, depths=depths, heads=heads)


def test_the_steps_to_a_convolutional_network_differ_as_the_table_says() -> None:
    nets = [narrow(visformer.DESIGNS[f"visformer_net{i}"]) for i in range(1, 8)]
    models = [visformer.classifier(net, img_size=64, num_classes=3).eval() for net in nets]
    parts = [{type(part) for part in model.stages.modules()} for model in models]
    assert [nn.BatchNorm2d in x for x in parts] == [False, False, False, True, True, True, True]
    assert [visformer.SpatialMlp in x for x in parts] == [False, False, False, False, True, True, True]
    assert [visformer.Attention in x for x in parts] == [True] * 6 + [False]
    assert [any(n.endswith("position") for n, _ in m.named_parameters()) for m in models] == [True] * 5 + [False] * 2
    assert [m.family.name for m in models] == ["visformer_net1"] + ["visformer"] * 6
    with torch.inference_mode():
        assert all(model(torch.randn(2, 3, 47, 70)).shape == (2, 3) for model in models)
    assert [[len(stage.get_submodule("blocks")._modules) for stage in m.stages] for m in models[1:4]] == [
        [0, 2, 0],
        [2, 2, 2],
        [2, 2, 2],
    ]


def test_the_transformer_on_patches_has_one_map_and_leaves_out_what_fills_no_patch() -> None:
    design = narrow(visformer.DESIGNS["visformer_net1"])
    torch.manual_seed(0)
    model, backbone = visformer.classifier(design, img_size=64).eval(), visformer.dense(design, img_size=64).eval()
    assert backbone.levels == model.levels == (Level(48, 16),)
    assert backbone.family.cells(79, 16) == model.family.cells(79, 16) == 4
    image_BCHW = torch.randn(1, 3, 79, 64)
    with torch.inference_mode():
        [map_BCHW] = model.forward_maps(image_BCHW)
        assert map_BCHW.shape == (1, 48, 4, 4)
        assert torch.equal(map_BCHW, model.forward_maps(image_BCHW[:, :, :64])[0])
        assert [x.shape for x in backbone(image_BCHW)] == [(1, 48, 4, 4)]


def test_layer_norm_looks_at_the_channels_of_each_cell() -> None:
    model = visformer.classifier(narrow(visformer.NET3), img_size=64)
    norm = model.get_submodule("stages.1.blocks.0.norm1")
    x_BCHW = torch.randn(2, 48, 3, 5) * 3 + 1
    mean, variance = x_BCHW.mean(1, keepdim=True), x_BCHW.var(1, correction=0, keepdim=True)
    torch.testing.assert_close(norm(x_BCHW), (x_BCHW - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-5)
    assert isinstance(model.get_submodule("stem.1"), nn.BatchNorm2d)


def test_heads_of_the_first_stage_are_half_as_wide_and_few_groups_make_narrow_convolutions() -> None:
    with torch.device("meta"):
        model = visformer.classifier(visformer.NET5)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["stages.0.blocks.0.attn.qkv.weight"] == (3 * 6 * 16, 192, 1, 1)
    assert shapes["stages.1.blocks.0.attn.qkv.weight"] == (3 * 6 * 64, 384, 1, 1)
    assert shapes["stages.2.blocks.0.mlp.spatial.weight"] == (640, 640, 3, 3)


THEIRS = (  # our names -> the source's, after the stages were counted from 1
    (r"stage(\d)\.blocks\.", r"stage\1."),
    (r"stage(\d)\.embed\.0", r"patch_embed\1.proj"),
    (r"stage(\d)\.position", r"pos_embed\1"),
    (r"expand", r"conv1"),
    (r"reduce", r"conv3"),
    (r"^stem\.1", r"stem.1.bn"),
    (r"^final", r"norm"),
)


def their_names(state: dict[str, Tensor], wrapper: str) -> dict[str, Tensor]:
    """A state dict as the source's networks with LayerNorm have it."""
    out = {}
    for key, value in state.items():
        theirs = re.sub(r"^stages\.(\d)", lambda m: f"stage{int(m[1]) + 1}", key)
        for ours, name in THEIRS:
            theirs = re.sub(ours, name, theirs)
        is_norm = "norm" in theirs
        out[re.sub(r"(norm\d?)\.", rf"\1.{wrapper}", theirs)] = (
            value[:, None, None] if is_norm and not wrapper else value
        )
    return out


@pytest.mark.parametrize("wrapper", ["", "ln."])
@pytest.mark.parametrize("net", [visformer.DESIGNS["visformer_net1"], visformer.NET3])
def test_checkpoints_with_layer_norm_are_read(net: visformer.Design, wrapper: str) -> None:
    """The source's LayerNorm has parameters of (C, 1, 1); in its early versions they are of (C,), under `ln`."""
    torch.manual_seed(0)
    ours, other = (visformer.classifier(narrow(net), img_size=64) for _ in range(2))
    state = their_names(ours.state_dict(), wrapper)
    if net is visformer.DESIGNS["visformer_net1"]:  # has its blocks in the second stage
        state = {key.replace("stage1.", "stage2."): value for key, value in state.items()}
    report = load_state(other, state, source="v.pth")
    assert not report.dropped
    assert not report.fresh
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in other.state_dict().items())


def test_position_embeddings_are_read_as_they_are_at_the_native_size_and_resized_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("visformer", img_size=64).eval()
    sizes = []
    resize = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, size, **kw: sizes.append(size) or resize(x, size, **kw))
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))
        assert not sizes
        model(torch.randn(1, 3, 96, 65))
    assert sizes == [(12, 8), (6, 4), (3, 2)]


@pytest.mark.parametrize("img_size", [33, (40, 95), 224])
def test_native_maps_have_the_size_of_the_position_embeddings(img_size: int | tuple[int, int]) -> None:
    design = replace(VISFORMER, patches=(2, 2, 2))
    model = visformer.classifier(design, img_size=img_size).eval()
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    with torch.inference_mode():
        maps = model.forward_maps(torch.randn(1, 3, height, width))
    positions = [p for name, p in model.named_parameters() if name.endswith(".position")]
    assert [x.shape[-2:] for x in maps] == [p.shape[-2:] for p in positions]


def test_qk_scale_factor_multiplies_queries_and_keys_each() -> None:
    torch.manual_seed(0)
    usual, half = (visformer.Attention(32, 2, 16, exponent) for exponent in (-0.25, -0.5))
    assert usual.scale == pytest.approx(16**-0.5)
    assert half.scale == pytest.approx(1 / 16)
    x_BCHW = torch.randn(1, 32, 3, 5)
    q, k, v = usual.qkv(x_BCHW).unflatten(1, (3, 2, 16)).flatten(-2).unbind(1)
    weight = ((q * 16**-0.25).transpose(-1, -2) @ (k * 16**-0.25)).softmax(-1)
    by_hand = usual.proj((v @ weight.transpose(-1, -2)).flatten(1, 2).unflatten(-1, (3, 5)))
    torch.testing.assert_close(usual(x_BCHW), by_hand, rtol=1e-4, atol=1e-6)


def test_the_demo_network_is_small() -> None:
    model = fourstage.create_model("visformer_digits")
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 2.5e6
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert isinstance(fourstage.create_backbone("visformer_digits").get_submodule("norms.2"), nn.BatchNorm2d)


def test_initial_weights_follow_the_table() -> None:
    torch.manual_seed(0)
    model = fourstage.create_model("visformer_tiny")
    state = model.state_dict()
    assert float(state["head.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert not state["head.bias"].any()
    assert not state["stages.1.embed.0.bias"].any()
    weight = state["stages.2.blocks.0.mlp.expand.weight"]
    assert float(weight.std()) == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)
    assert float(state["stages.1.position"].std()) == pytest.approx(0.02, rel=0.05)
