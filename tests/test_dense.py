"""Detectors and segmentors by name, and the checkpoints that fill them: OpenMMLab's, a classifier's, ours."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import torch
from golden.fill import read_manifest
from torch import Tensor, nn

import fourstage
from fourstage.methods import get_method
from fourstage.tasks.detection.mask_rcnn import MaskRCNN
from fourstage.weights.rules import Rule, matching_rules, rename


def foreign_names(method: str) -> tuple[Rule, ...]:
    row = get_method(method)
    assert row is not None
    assert row.names is not None
    return resolve_name(row.names)


def is_segmentor(method: str) -> bool:
    row = get_method(method)
    return row is not None and row.task == "segmentation"


def theirs(method: str, model: nn.Module) -> dict[str, Tensor]:
    """A state dict with the original's names: those of the table that become the model's keys."""
    state = {
        key: torch.randn(value.shape) if value.is_floating_point() else torch.full_like(value, 7)
        for key, value in model.state_dict().items()
    }
    rules = foreign_names(method)
    out = {key: value for key, value in state.items() if key.startswith("backbone.")}
    for key in candidates(method):
        ours = rename({key: torch.zeros(0)}, rules) if len(matching_rules(rules, key)) == 1 else {}
        for name in ours.keys() & state.keys():
            out[key] = state[name]
    around = {key for key in state if not key.startswith("backbone.")}
    assert len(out) - sum(key.startswith("backbone.") for key in out) == len(around)
    return out


def candidates(method: str) -> list[str]:
    """Names that MMDetection and MMSegmentation give to necks and heads."""
    ends = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    stems = [f"neck.{part}.{i}.conv" for part in ("lateral_convs", "fpn_convs") for i in range(5)]
    if method in ("upernet", "semantic_fpn"):
        convs = ["bottleneck", "fpn_bottleneck", *(f"psp_modules.{i}.1" for i in range(4))]
        convs += [f"{part}.{i}" for part in ("lateral_convs", "fpn_convs") for i in range(3)]
        convs += [f"scale_heads.{i}.{k}" for i in range(4) for k in (0, 2, 4)]
        stems += [f"decode_head.{conv}.{part}" for conv in convs for part in ("conv", "bn")]
        stems += ["decode_head.conv_seg", "auxiliary_head.conv_seg"]
        stems += [f"auxiliary_head.convs.0.{part}" for part in ("conv", "bn")]
    else:
        stems += [f"bbox_head.{tower}.{i}.conv" for tower in ("cls_convs", "reg_convs") for i in range(4)]
        stems += [
            "bbox_head.retina_cls",
            "bbox_head.retina_reg",
            *(f"rpn_head.rpn_{p}" for p in ("conv", "cls", "reg")),
        ]
        stems += [f"bbox_head.{tower}.{i}.gn" for tower in ("cls_convs", "reg_convs") for i in range(4)]
        stems += [f"bbox_head.atss_{part}" for part in ("cls", "reg", "centerness")]
        stems += [f"neck.0.{part}.{i}.conv" for part in ("lateral_convs", "fpn_convs") for i in range(5)]
        for block in (f"neck.1.dyhead_blocks.{i}" for i in range(2)):
            convs = [f"{block}.spatial_conv_{place}" for place in ("high", "mid", "low")]
            stems += [f"{conv}.{part}" for conv in convs for part in ("conv", "norm")]
            stems += [f"{block}.{part}" for part in ("spatial_conv_offset", "scale_attn_module.1")]
            stems += [f"{block}.task_attn_module.{conv}.conv" for conv in ("conv1", "conv2")]
        for stage in ("", "0.", "1.", "2."):
            box, mask = f"roi_head.bbox_head.{stage}", f"roi_head.mask_head.{stage}"
            stems += [f"{box}{part}" for part in ("fc_cls", "fc_reg", "shared_fcs.0", "shared_fcs.1")]
            stems += [f"{box}shared_convs.{i}.{part}" for i in range(4) for part in ("conv", "bn")]
            stems += [f"{mask}{part}" for part in ("upsample", "conv_logits", *(f"convs.{i}.conv" for i in range(4)))]
    names = [f"{stem}.{end}" for stem in stems for end in ends]
    if method == "atss":
        names += [f"bbox_head.scales.{i}.scale" for i in range(5)]
    if method == "sparse_rcnn":
        manifest = read_manifest(Path(__file__).parent / "golden" / "heads" / "sparse_rcnn.json.gz")
        names += [key for key in manifest["params"] if not key.startswith("neck.")]
    return names


METHODS: dict[str, dict[str, Any]] = {
    "dino": {"channels": 16, "queries": 20, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "hidden": 16},
    "upernet": {"channels": 16, "auxiliary_channels": 16},
    "semantic_fpn": {"neck_channels": 16, "channels": 16},
    "retinanet": {"channels": 16},
    "atss": {"channels": 64, "convs": 1, "dyhead": 2},
    "sparse_rcnn": {"proposals": 9, "stages": 2, "channels": 16, "hidden": 32, "filter_channels": 8},
    "mask_rcnn": {"channels": 16, "fc_channels": 32, "mask_channels": 16},
    "cascade_mask_rcnn": {"channels": 16, "fc_channels": 32, "mask_channels": 16, "heads": "4conv1fc"},
}


def build(method: str, num_classes: int = 5, **more: object) -> nn.Module:
    create: Any = fourstage.create_segmentor if is_segmentor(method) else fourstage.create_detector
    return create(method, "visformer_digits", num_classes, **{**METHODS[method], **more})


@pytest.mark.parametrize("method", [method for method in METHODS if method != "dino"])  # tests/weights has its own
def test_a_checkpoint_with_the_originals_names_fills_everything(method: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(method)
    state = theirs(method, model)
    torch.save(
        {"meta": {"CLASSES": ("a",)}, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "m.pth"
    )
    report = fourstage.load_checkpoint(model, tmp_path / "m.pth")
    assert report.read == len(model.state_dict())
    assert not report.fresh
    rules: tuple[Rule, ...] = foreign_names(method)
    ours = rename({k: v for k, v in state.items() if not k.startswith("backbone.")}, rules)
    for key, value in model.state_dict().items():
        assert torch.equal(value, (state if key.startswith("backbone.") else ours)[key]), key
    again = build(method)
    torch.save(model.state_dict(), tmp_path / "ours.pth")
    assert fourstage.load_checkpoint(again, tmp_path / "ours.pth").renamed == 0
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_other_classes_are_refused_unless_the_head_may_be_new(method: str, tmp_path: Path) -> None:
    model = build(method)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    with pytest.raises(ValueError, match="has another number of classes"):
        fourstage.load_checkpoint(build(method, 7), tmp_path / "m.pth")
    other = build(method, 7)
    report = fourstage.load_checkpoint(other, tmp_path / "m.pth", fresh_head=True)
    assert report.fresh
    assert all(key in other.state_dict() for key in report.fresh)
    assert report.read + len(report.fresh) == len(model.state_dict())


@pytest.mark.parametrize(
    ("method", "file", "network"),
    [
        ("dino", {"queries": 12}, {"queries": 20}),
        ("dino", {"heads": 2}, {"heads": 4}),
        ("sparse_rcnn", {"proposals": 7}, {"proposals": 9}),
        ("retinanet", {"ratios": [0.5, 1.0]}, {"ratios": [1.0]}),
        ("mask_rcnn", {"class_agnostic": False}, {"class_agnostic": True}),
    ],
)
def test_other_rows_of_the_same_classes_are_no_other_classes(
    method: str, file: dict[str, Any], network: dict[str, Any], tmp_path: Path
) -> None:
    small: dict[str, Any] = {"channels": 32}
    if method == "dino":
        small |= {"encoder_layers": 1, "decoder_layers": 1, "hidden": 32, "queries": 12, "heads": 2}
    elif method == "sparse_rcnn":
        small |= {"stages": 1, "hidden": 32, "filter_channels": 4, "proposals": 7}

    def made(settings: dict[str, Any], classes: int = 5) -> nn.Module:
        return fourstage.create_detector(method, "visformer_digits", classes, **{**small, **settings})

    torch.save(made(file).state_dict(), tmp_path / "m.pth")
    with pytest.raises(ValueError, match=rf"does not fit this {method}: .* rows .*; build it as the file was trained"):
        fourstage.load_checkpoint(made(network), tmp_path / "m.pth")
    with pytest.raises(ValueError, match="has another number of classes"):
        fourstage.load_checkpoint(made(file, 3), tmp_path / "m.pth")
    assert fourstage.load_checkpoint(made(network), tmp_path / "m.pth", fresh_head=True).fresh


def test_a_classifiers_checkpoint_fills_the_backbone(tmp_path: Path) -> None:
    classifier = fourstage.create_model("visformer_digits", num_classes=10)
    torch.save({"model": classifier.state_dict()}, tmp_path / "c.pth")
    model = fourstage.create_segmentor(
        "upernet", "visformer_digits", 5, checkpoint_path=tmp_path / "c.pth", channels=16
    )
    backbone = model.get_submodule("backbone").state_dict()
    own = classifier.state_dict()
    shared = [key for key in backbone if key in own]
    assert len(shared) > 30
    assert all(torch.equal(backbone[key], own[key]) for key in shared)


@pytest.mark.parametrize(
    ("file", "method", "names"),
    [
        ("mask_rcnn", "upernet", "ours"),
        ("mask_rcnn", "upernet", "of a run"),
        ("mask_rcnn", "upernet", "theirs"),
        ("upernet", "retinanet", "theirs"),
        ("upernet", "semantic_fpn", "ours"),
        ("retinanet", "mask_rcnn", "theirs"),
    ],
)
def test_a_training_may_start_with_the_backbone_of_another_methods_network(
    file: str, method: str, names: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    trained, fresh = build(file, 3), build(method)
    state = theirs(file, trained) if names == "theirs" else trained.state_dict()
    prefix = "network." if names == "of a run" else ""
    torch.save({"model": {prefix + key: value for key, value in state.items()}}, tmp_path / "m.pth")
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=rf"m\.pth (is not a checkpoint of {method}: |has no {method} under the names|does not fit this {method})",
    ):
        fourstage.load_checkpoint(fresh, tmp_path / "m.pth")
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())

    report = fourstage.load_checkpoint(fresh, tmp_path / "m.pth", fresh_head=True)
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, (state if key.startswith("backbone.") else before)[key]), key
    around = [key for key in state if not key.startswith("backbone.")]
    assert set(report.dropped) == set(around)
    assert f"{len(around)} left out (" in str(report)
    assert report.read == sum(key.startswith("backbone.") for key in state)
    assert not any(key.startswith("backbone.") for key in report.fresh)
    assert report.fresh


def test_another_methods_network_over_another_backbone_is_refused(tmp_path: Path) -> None:
    small = fourstage.create_detector("retinanet", "visformer_tiny", 3, channels=16)
    torch.save(small.state_dict(), tmp_path / "m.pth")
    model = build("upernet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"m\.pth is a checkpoint of visformer_tiny, not of visformer_digits"):
        fourstage.load_checkpoint(model, tmp_path / "m.pth", fresh_head=True)
    wide = build("mask_rcnn", channels=32)  # the same method, built otherwise, is a mistake still
    torch.save(wide.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth does not fit this mask_rcnn"):
        fourstage.load_checkpoint(build("mask_rcnn"), tmp_path / "w.pth", fresh_head=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    model, other = build("mask_rcnn"), build("retinanet")
    torch.save(model.state_dict(), tmp_path / "m.pth")
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(
        ValueError,
        match=r"is not a checkpoint of retinanet: |has no retinanet under the names|does not fit this retinanet",
    ):
        fourstage.load_checkpoint(other, tmp_path / "m.pth")
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    missing = {key: value for key, value in model.state_dict().items() if "mask_head" not in key}
    torch.save(missing, tmp_path / "half.pth")
    with pytest.raises(ValueError, match="missing from the file"):
        fourstage.load_checkpoint(model, tmp_path / "half.pth")


def test_names_and_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="did you mean mask_rcnn"):
        fourstage.create_detector("mask_rcn", "visformer_digits", 5)
    with pytest.raises(ValueError, match="a mask_rcnn needs a backbone and num_classes"):
        fourstage.create_detector("mask_rcnn")
    with pytest.raises(ValueError, match="did you mean channels"):
        fourstage.create_segmentor("upernet", "visformer_digits", 5, chanels=3)


@pytest.mark.parametrize("num_classes", ["80", 2.5, True, 0, -3])
@pytest.mark.parametrize("method", METHODS)
def test_a_number_of_classes_that_is_none_is_told_before_the_backbone_is_built(method: str, num_classes: Any) -> None:
    create: Any = fourstage.create_segmentor if is_segmentor(method) else fourstage.create_detector
    with pytest.raises(ValueError, match=f"num_classes must be an integer of at least 1; got {num_classes!r}"):
        create(method, "timm/there_is_none", num_classes)


@pytest.mark.parametrize("name", ["nothere.pth", "runs/nothere.pt"])
def test_a_checkpoint_that_is_not_there_is_told(name: str) -> None:
    for create in (fourstage.create_detector, fourstage.create_segmentor):
        with pytest.raises(FileNotFoundError, match=name):
            create(name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backbone", ["timm/resnet10t", "visformer_tiny"])
def test_any_backbone_goes_into_any_method(backbone: str, method: str) -> None:
    """Of timm, and one that begins at stride 8."""
    create: Any = fourstage.create_segmentor if is_segmentor(method) else fourstage.create_detector
    model = create(method, backbone, 3, **METHODS[method])
    assert model.backbone.levels[0].stride == (4 if "timm" in backbone else 8)


def test_a_detector_that_was_built_by_its_class_is_filled_too(tmp_path: Path) -> None:
    model = build("mask_rcnn")
    torch.save({"state_dict": theirs("mask_rcnn", model)}, tmp_path / "m.pth")
    backbone = fourstage.create_backbone("visformer_digits")
    other = MaskRCNN(backbone, 5, channels=16, fc_channels=32, mask_channels=16)
    assert not fourstage.load_checkpoint(other, tmp_path / "m.pth").fresh
