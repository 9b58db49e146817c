"""Other libraries take the networks by their names in timm. Each test runs where its library is installed."""

from typing import Any

import pytest
import torch

import fourstage.timm  # noqa: F401 - registers the networks

pytestmark = pytest.mark.filterwarnings("ignore")  # of these libraries about themselves
FOUR_MAPS = ("unified_swin_micro", "unified_pvt_v2_micro")


def backbone_config(name: str, indices: tuple[int, ...] = (0, 1, 2, 3)) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.TimmBackboneConfig(backbone=name, out_indices=indices, use_pretrained_backbone=False)


@pytest.mark.parametrize("name", FOUR_MAPS)
@pytest.mark.parametrize("decoder", ["FPN", "Unet"])
def test_segmentation_models_pytorch_trains_over_them(decoder: str, name: str) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    network = getattr(smp, decoder)(f"tu-{name}", encoder_weights=None, classes=5)
    logits_BCHW = network(torch.randn(2, 3, 64, 96))
    assert logits_BCHW.shape == (2, 5, 64, 96)
    logits_BCHW.square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.encoder.parameters())


@pytest.mark.parametrize("name", FOUR_MAPS)
def test_transformers_has_the_maps_of_timm(name: str) -> None:
    transformers: Any = pytest.importorskip("transformers")
    backbone = transformers.TimmBackbone(backbone_config(name)).eval()
    image_BCHW = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = backbone(image_BCHW).feature_maps
    assert [(x.shape[2], x.shape[3]) for x in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [x.shape[1] for x in maps] == [*backbone.channels]


def test_transformers_segments_over_them() -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.UperNetConfig(
        backbone_config=backbone_config(FOUR_MAPS[0]), hidden_size=16, num_labels=5, auxiliary_channels=8,
        auxiliary_in_channels=128, pool_scales=[1, 2],
    )  # fmt: skip
    network = transformers.UperNetForSemanticSegmentation(config).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 96)).logits.shape == (1, 5, 64, 96)


def test_transformers_detects_over_them() -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.DeformableDetrConfig(
        backbone_config=backbone_config(FOUR_MAPS[0], (1, 2, 3)), use_timm_backbone=False, backbone=None,
        use_pretrained_backbone=False, d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=7, num_labels=3,
        num_feature_levels=4, disable_custom_kernels=True,
    )  # fmt: skip
    network = transformers.DeformableDetrForObjectDetection(config).eval()
    with torch.no_grad():
        out = network(torch.randn(1, 3, 64, 96))
    assert (out.logits.shape, out.pred_boxes.shape) == ((1, 7, 3), (1, 7, 4))


def test_peft_trains_thin_layers_beside_theirs() -> None:
    timm, peft = pytest.importorskip("timm"), pytest.importorskip("peft")
    network = timm.create_model(FOUR_MAPS[0], num_classes=5)
    model = peft.get_peft_model(network, peft.LoraConfig(target_modules="all-linear", r=2))
    model(torch.randn(1, 3, 64, 64)).square().mean().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
