"""What timm's own test suite asks of a model, asked of every one of ours.

Shapes and wiring do not depend on numbers, so the networks live on the meta device: all of them, at their own sizes,
in seconds.
"""

from typing import Any

import pytest
import torch
from forms import CLASSIFIERS, FORMS
from forms import build as build_form
from torch import Tensor, nn

import fourstage
from fourstage import registry
from fourstage.backbones.feature_maps import FeatureMaps

NAMES = [name for name in fourstage.list_models() if registry.find(name).name == name]
QUICK = ("micro", "tiny", "tiny_v2", "small_0", "net1", "net7", "b0", "digits")  # the others in `make torture`
every_model = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n.endswith(QUICK) else pytest.mark.torture) for n in NAMES]
)


def build(name: str, **arguments: Any) -> Any:
    with torch.device("meta"):
        return fourstage.create_model(name, **arguments)


def image(model: nn.Module, batch: int = 2) -> Tensor:
    cfg: Any = model.default_cfg
    return torch.empty(batch, *cfg["input_size"], device="meta")


@every_model
def test_forward_backward_features_and_reset(name: str) -> None:
    model = build(name, num_classes=42, drop_path_rate=0.1, drop_rate=0.1).train()
    check_configuration(model, name)
    images, seen = image(model), []
    hook = model.final.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits = model(images)
    hook.remove()
    assert logits.shape == (2, 42)
    logits.mean().backward()
    assert not [key for key, parameter in model.named_parameters() if parameter.grad is None]
    [features] = seen
    model.eval()
    assert features.shape == (2, model.num_features, *model.default_cfg["pool_size"])
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    model.reset_classifier(7)
    assert model.forward_head(features).shape == (2, 7)
    assert model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(0)
    assert model.forward_head(features).shape == (2, model.head_hidden_size)
    model.reset_classifier(0, "")
    assert model.forward_head(features).shape == features.shape
    with pytest.raises(ValueError, match="needs pooled features"):
        model.reset_classifier(5)
    check_feature_maps(model, images)


def check_configuration(model: Any, name: str) -> None:
    cfg, state = model.default_cfg, model.state_dict()
    assert model.num_classes == cfg["num_classes"] == 42
    assert f"{cfg['classifier']}.weight" in state
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0] == 3
    assert len(cfg["mean"]) == len(cfg["std"]) == 3
    assert cfg["architecture"] == name


def check_feature_maps(model: Any, images: Tensor) -> None:
    """Ends the model's life as a classifier."""
    features = FeatureMaps(model)
    height, width = images.shape[-2:]
    with torch.no_grad():
        maps = features(images)
    info = features.feature_info
    for x, channels, stride in zip(maps, info.channels(), info.reduction(), strict=True):
        assert x.shape == (2, channels, height // stride, width // stride)
    assert len(maps) == len(info.module_name()) == len(features.levels)


@pytest.mark.parametrize("form", CLASSIFIERS)
def test_intermediates_are_the_maps(form: str) -> None:
    model: Any = CLASSIFIERS[form]().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        final, maps = model.forward_intermediates(images)
        assert torch.equal(final, model.forward_features(images))
        for ours, plain in zip(maps, model.forward_maps(images), strict=True):
            assert torch.equal(ours, plain)
        [only] = model.forward_intermediates(images, indices=[0], intermediates_only=True, stop_early=True)
        assert torch.equal(only, maps[0])


@pytest.mark.parametrize("form", FORMS)
def test_other_channels_and_the_sentences_about_wrong_images(form: str) -> None:
    model: Any = build_form(form)
    with pytest.raises(ValueError, match="smallest size, 32 x 32"):
        model(torch.empty(1, 3, 16, 16))
    with pytest.raises(ValueError, match="the images have 4 channels and the network takes 3"):
        model(torch.empty(1, 4, 64, 64))


def test_every_argument_reaches_every_family() -> None:
    families = {getattr(build(name), "family").name: name for name in NAMES}  # noqa: B009
    for name in families.values():
        model = build(name, in_chans=5, num_classes=21841, img_size=288, drop_path_rate=0.1, drop_rate=0.1).eval()
        assert model(torch.empty(1, 5, 96, 161, device="meta")).shape == (1, 21841)
        with torch.device("meta"):
            dense: Any = fourstage.create_backbone(name, in_chans=5, drop_path_rate=0.1, out_indices=(0,)).eval()
        assert [x.shape[1] for x in dense(torch.empty(1, 5, 96, 161, device="meta"))] == [dense.levels[0].channels]
        with pytest.raises(ValueError, match=r"did you mean drop_path_rate\?"):
            build(name, drop_path=0.1)


def test_the_numbers_of_intermediates_are_those_of_features() -> None:
    model: Any = fourstage.create_model("visformer_digits").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        final, maps = model.forward_intermediates(images, norm=True)
        assert torch.equal(final, model.forward_features(images))
        assert torch.equal(maps[-1], final)
        for one, other in zip(model.forward_intermediates(images, 2, intermediates_only=True), maps[1:], strict=True):
            assert torch.equal(one, model.forward_maps(images)[-2] if one.shape != maps[-1].shape else one)
            assert one.shape == other.shape
    with pytest.raises(ValueError, match="output_fmt is 'NCHW'"):
        model.forward_intermediates(images, output_fmt="NLC")
