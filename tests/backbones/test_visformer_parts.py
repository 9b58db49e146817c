"""What Visformer alone has. The originals' numbers are in test_golden_backbones.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fourstage
from fourstage.backbones import visformer


def test_position_embeddings_are_read_as_they_are_at_the_native_size_and_resized_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = visformer.tiny(img_size=64).eval()
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
    model = visformer.classifier(visformer.DIGITS, img_size=img_size).eval()
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    with torch.inference_mode():
        maps = model.forward_maps(torch.randn(1, 3, height, width))
    positions = [p for name, p in model.named_parameters() if name.endswith(".position")]
    assert [x.shape[-2:] for x in maps] == [p.shape[-2:] for p in positions]


def test_qk_scale_factor_multiplies_queries_and_keys_each() -> None:
    torch.manual_seed(0)
    usual, half = visformer.Attention(32, 2, -0.25), visformer.Attention(32, 2, -0.5)
    assert usual.scale == pytest.approx(16**-0.5)
    assert half.scale == pytest.approx(1 / 16)
    x_BCHW = torch.randn(1, 32, 3, 5)
    q, k, v = usual.qkv(x_BCHW).unflatten(1, (3, 2, 16)).flatten(-2).unbind(1)
    weight = ((q * 16**-0.25).transpose(-1, -2) @ (k * 16**-0.25)).softmax(-1)
    by_hand = usual.proj((v @ weight.transpose(-1, -2)).flatten(1, 2).unflatten(-1, (3, 5)))
    torch.testing.assert_close(usual(x_BCHW), by_hand, rtol=1e-4, atol=1e-6)


def test_the_demo_network_is_small() -> None:
    model = fourstage.create_model("visformer_digits")
    assert 1e6 < sum(p.numel() for p in model.parameters()) < 2e6
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
