"""Arguments and methods that timm's networks have, beside those that timm's own suite asks for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from forms import FORMS
from torch import Tensor, nn

import fourstage
from fourstage.backbones.base import Classifier
from fourstage.build import placed
from fourstage.recipe import resolve

FAMILIES = (
    "smt_tiny",
    "scalable_vit_small",
    "unified_dcn_v3_micro",
    "visformer_tiny",
    "swin_visformer_tiny_v2",
    "swin_tiny",
)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("create", [fourstage.create_model, fourstage.create_backbone])
def test_a_network_is_built_on_a_device_and_in_a_type(name: str, create: Any) -> None:
    on_meta = create(name, device="meta")
    assert all(tensor.is_meta for tensor in on_meta.state_dict().values())
    half = create(name, device="meta", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} <= {torch.bfloat16, torch.int64}
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_networks_for_the_meta_device_are_built_there() -> None:
    """One that is built elsewhere first needs the memory."""
    with placed("meta", None, filled=False):
        assert torch.empty(1).is_meta
    with placed("cpu", torch.bfloat16, filled=True) as place:
        assert torch.empty(1).device.type == "cpu"
        assert torch.empty(1).dtype == torch.float32
        with pytest.raises(ValueError, match=r"the network cannot have device=cpu and dtype=torch\.bfloat16"):
            place(nn.Linear(1, 1, device="meta"))  # it is moved to the device, and this one has nothing to move


def test_values_do_not_depend_on_where_a_network_is_built_and_weights_are_filled_first(tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = fourstage.create_model("visformer_digits")
    torch.manual_seed(3)
    placed = fourstage.create_model("visformer_digits", device=torch.device("cpu"), dtype=torch.float64)
    torch.save(plain.state_dict(), tmp_path / "weights.pth")
    filled = fourstage.create_model(
        "visformer_digits", checkpoint_path=tmp_path / "weights.pth", dtype=torch.float64, features_only=True
    )
    assert next(filled.parameters()).dtype == torch.float64
    for key, value in plain.state_dict().items():
        assert torch.equal(placed.state_dict()[key], value.double() if value.is_floating_point() else value)
        if key.startswith("stages"):
            assert torch.equal(filled.state_dict()[f"model.{key}"].to(value.dtype), value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"device": "nowhere"}, r"device is a name such as 'cpu', 'cuda:0' or 'meta'; got 'nowhere'"),
        ({"device": 1.5}, "device is a name"),
        ({"dtype": torch.int64}, r"dtype is a type of real numbers, such as torch.bfloat16; got torch.int64"),
        ({"dtype": "bfloat16"}, "dtype is a type of real numbers"),
    ],
)
def test_a_wrong_device_or_type_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    for create in (fourstage.create_model, fourstage.create_backbone):
        with pytest.raises(ValueError, match=sentence):
            create("visformer_digits", **arguments)


def test_a_detector_is_not_built_in_two_places() -> None:
    with pytest.raises(
        ValueError, match=r"backbone_args has device, and the other layers of a detector would be elsewhere"
    ):
        fourstage.create_detector("retinanet", "visformer_digits", 3, backbone_args={"device": "meta"})
    built = fourstage.create_backbone("visformer_digits")
    with pytest.raises(ValueError, match="the backbone is built already"):
        fourstage.create_backbone(built, device="meta")


def test_a_recipe_has_its_own_keys_for_both() -> None:
    for key, theirs in (("device", "device"), ("dtype", "precision")):
        with pytest.raises(ValueError, match=f"model_args must not contain {key}, which follows .*; write {theirs}="):
            resolve("digits_visformer", [f"model_args.{key}=meta"])
        with pytest.raises(ValueError, match=f"backbone_args must not contain {key}, which follows from the recipe"):
            resolve("digit_scenes_mask_rcnn", [f"backbone_args.{key}=meta"])


@pytest.mark.parametrize("form", FORMS)
def test_new_values_are_those_of_a_new_network(form: str) -> None:
    torch.manual_seed(0)
    new, network = FORMS[form](), FORMS[form]()
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
    network.init_weights()
    pairs = zip((*new.parameters(), *new.buffers()), (*network.parameters(), *network.buffers()), strict=True)
    for expected, value in pairs:
        check_same_kind(expected.detach(), value.detach())
    with pytest.raises(ValueError, match="one mode, '', "):
        network.init_weights("jax")


@pytest.mark.parametrize("form", FORMS)
def test_without_a_reset_layers_keep_what_the_family_leaves(form: str) -> None:
    network, expected = FORMS[form](), FORMS[form]()
    for tensor in (*network.parameters(), *expected.parameters()):
        tensor.data.fill_(7)
    torch.manual_seed(0)
    network.init_weights(needs_reset=False)
    torch.manual_seed(0)
    expected.apply(expected.family.init)
    for ours, theirs in zip(network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def check_same_kind(expected: Tensor, value: Tensor) -> None:
    """Constants are equal, and random numbers have the same spread."""
    if not expected.is_floating_point() or not expected.numel() or expected.min() == expected.max():
        assert torch.equal(value, expected)
    else:
        assert torch.isfinite(value).all()
        if expected.numel() >= 500:
            assert 0.7 < float(value.std() / expected.std()) < 1.4


@pytest.mark.parametrize("name", FAMILIES)
def test_another_size_is_recorded_as_if_the_network_were_built_for_it(name: str) -> None:
    model: Any = fourstage.create_model(name, device="meta").eval()
    names = list(model.state_dict())
    model.set_input_size((384, 448))
    built: Any = fourstage.create_model(name, img_size=(384, 448), device="meta")
    assert model.default_cfg == model.pretrained_cfg == built.default_cfg
    assert list(model.state_dict()) == names
    assert model(torch.empty(1, 3, 384, 448, device="meta")).shape == (1, 1000)
    model.set_input_size()
    assert model.default_cfg["input_size"] == (3, 384, 448)
    assert (
        model.default_cfg["pool_size"] == model.forward_maps(torch.empty(1, 3, 384, 448, device="meta"))[-1].shape[2:]
    )
    for other in ({"window_size": 12}, {"patch_size": 8}):
        with pytest.raises(ValueError, match="give img_size alone"):
            model.set_input_size(224, **other)
    with pytest.raises(ValueError, match="below the smallest image"):
        model.set_input_size(16)


@pytest.mark.parametrize("name", ["visformer_digits", "unified_pico"])
def test_a_saved_classifier_is_built_by_the_name_of_its_folder(name: str, tmp_path: Path) -> None:
    network: Any = fourstage.create_model(name, num_classes=4, in_chans=1).eval()
    fourstage.save_pretrained(network, tmp_path / "saved")
    images = torch.randn(2, 1, 32, 32)
    there = f"local-dir:{tmp_path / 'saved'}"
    assert torch.equal(fourstage.create_model(there, pretrained=True).eval()(images), network(images))
    assert not torch.equal(fourstage.create_model(there).eval()(images), network(images))
    assert fourstage.create_model(there, pretrained=True, num_classes=9)(images).shape == (2, 9)
    maps = fourstage.create_model(there, pretrained=True, features_only=True, out_indices=(0,)).eval()(images)
    assert torch.equal(maps[0], network.forward_maps(images)[0])
    fourstage.save_pretrained(fourstage.create_backbone(name), tmp_path / "maps")
    maps_file = str(tmp_path / "maps")
    with pytest.raises(
        ValueError, match=rf"a dense backbone, and create_model .*; type from_checkpoint\('{maps_file}'\)"
    ):
        fourstage.create_model(f"local-dir:{maps_file}")
    assert isinstance(fourstage.from_checkpoint(maps_file), nn.Module)
    with pytest.raises(ValueError, match="has weights of its own; leave checkpoint_path out"):
        fourstage.create_model(there, checkpoint_path=tmp_path / "weights.pth")


def test_a_classifier_by_the_name_of_its_folder_keeps_the_names_of_its_classes(tmp_path: Path) -> None:
    names = ("ant", "bee", "cow")
    first, second = tmp_path / "first", tmp_path / "second"
    fourstage.save_pretrained(fourstage.create_model("visformer_digits", num_classes=3), first, class_names=names)
    network: Any = fourstage.create_model(f"local-dir:{first}", pretrained=True)
    assert network.class_names == names
    fourstage.save_pretrained(network, second)
    again: Any = fourstage.from_checkpoint(second)
    assert again.class_names == names
    other = fourstage.create_model(f"local-dir:{first}", pretrained=True, num_classes=5)
    assert not hasattr(other, "class_names")


def test_a_file_that_does_not_describe_its_network_is_refused_with_what_builds_it(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(fourstage.create_model("visformer_digits").state_dict(), file)
    call = rf"type create_model\('visformer_digits', checkpoint_path='{file}'\)"
    with pytest.raises(ValueError, match=call):
        fourstage.create_model(f"local-dir:{file}")
    for name, source in ((f"local-dir:{tmp_path}", str(tmp_path)), ("hf-hub:user/name", "hf-hub:user/name")):
        with pytest.raises(ValueError, match=rf"type create_backbone\(NAME, checkpoint_path='{source}'\)"):
            fourstage.create_detector("retinanet", name, 3)


@pytest.mark.parametrize("create", [fourstage.create_model, fourstage.create_backbone])
def test_weights_are_not_read_for_a_network_without_memory(create: Any, tmp_path: Path) -> None:
    torch.save(create("visformer_digits").state_dict(), tmp_path / "weights.pth")
    for start in ({"checkpoint_path": tmp_path / "weights.pth"}, {"pretrained": True}):
        with pytest.raises(ValueError, match="on the meta device has no memory for weights; leave out pretrained"):
            create("visformer_digits", device="meta", **start)


def test_a_type_that_layers_cannot_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def to(*_: object, **__: object) -> None:
        raise RuntimeError('"copy_kernel" not implemented for it')

    monkeypatch.setattr(Classifier, "to", to)
    with pytest.raises(ValueError, match=r'cannot have dtype=torch.bfloat16 \("copy_kernel" not implemented for it\)'):
        fourstage.create_model("visformer_digits", dtype=torch.bfloat16)


@pytest.mark.parametrize("create", [fourstage.create_model, fourstage.create_backbone])
def test_another_size_is_saved(create: Any, tmp_path: Path) -> None:
    for name, size in (("square", 64), ("wide", (64, 96))):
        network = create("visformer_digits")
        network.set_input_size(size)
        fourstage.save_pretrained(network, tmp_path / name)
        again: Any = fourstage.from_checkpoint(tmp_path / name)
        assert again.default_cfg == network.default_cfg


def test_another_size_is_not_saved_for_a_network_that_is_sized_by_it(tmp_path: Path) -> None:
    network: Any = fourstage.create_backbone("swin_tiny", ape=True)
    network.set_input_size(64)
    with pytest.raises(
        ValueError, match=r"for images of 64 x 64 pixels has other .* build it with img_size=\(64, 64\)"
    ):
        fourstage.save_pretrained(network, tmp_path / "saved")


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_described_by_the_names_of_transformers(name: str) -> None:
    images = torch.empty(1, 3, 64, 64, device="meta")
    for network in (
        fourstage.create_backbone(name, out_indices=(1, -1), device="meta"),
        fourstage.create_model(name, features_only=True, out_indices=(1, -1), device="meta"),
    ):
        described: Any = network.eval()
        last = len(fourstage.create_backbone(name, device="meta").get_submodule("stages")._modules)
        assert described.channels == [x.shape[1] for x in described(images)]
        assert described.out_features == ["stage2", f"stage{last}"]
