"""Whole detectors and segmentors of OpenMMLab's, found by what their checkpoints say, and what `predict` writes."""

import json
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from test_dense import candidates
from tiny_networks import SWIN, tiny
from torch import nn
from weights.foreign import MMDETECTION, renamed
from weights.openmmlab import configs

import fourstage
from fourstage import registry
from fourstage.backbones import swin
from fourstage.cli import main
from fourstage.data.class_names import ADE20K, COCO, COCO_IDS, category_ids, names_of
from fourstage.data.images import read_image
from fourstage.data.sample import Sample, collate
from fourstage.data.transforms.detection import evaluation_transform
from fourstage.data.transforms.segmentation import evaluation_transform as as_bytes
from fourstage.methods import get_method
from fourstage.predict.videos import frames_of, read_properties
from fourstage.run import predict
from fourstage.run.complete_checkpoints import fitting_recipes
from fourstage.run.tasks.detection import DetectionProtocol
from fourstage.tasks.detection.box_head import DetectionLimits
from fourstage.tasks.detection.rpn import ProposalLimits
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.task import Segmentation
from fourstage.weights.reading.safe import Checkpoint
from fourstage.weights.rules import Rule, matching_rules, rename

os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"  # before the first video of this process
GOLDEN = Path(__file__).parents[1] / "golden"
CLASSES = ("cat", "dog", "owl")
MEAN, STD = (tuple(value / 255 for value in values) for values in (configs.MEAN, configs.STD))
SMALL = {"channels": 16, "fc_channels": 32, "mask_channels": 16}
SELECTING, PROPOSING = DetectionLimits(0.1, 0.4, 7), ProposalLimits(50, 20, 0.6)
SPARSE = {"proposals": 9, "stages": 2, "channels": 16, "hidden": 32, "filter_channels": 8, "per_image": 7}
RETINA = {"per_level": 40, "score_threshold": 0.1, "iou_threshold": 0.4, "per_image": 7}
DETECTORS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # our method, our arguments, their configuration
    "mask_rcnn": ("mask_rcnn", SMALL, configs.mask_rcnn()),
    "faster_rcnn": ("mask_rcnn", {**SMALL, "masks": False}, configs.mask_rcnn(masks=False)),
    "cascade": ("cascade_mask_rcnn", SMALL, configs.cascade(plain=True)),
    "cascade_4conv": ("cascade_mask_rcnn", {**SMALL, "heads": "4conv1fc", "conv_channels": 16}, configs.cascade()),
    "retinanet": ("retinanet", {"channels": 16, "convs": 2, **RETINA}, configs.retinanet()),
    "atss": ("atss", {"channels": 64, "convs": 1, **RETINA}, configs.atss()),
    "atss_dyhead": (
        "atss",
        {"channels": 64, "dyhead": 2, "kernel": 1, "anchor_offset": 0.5, **RETINA},
        configs.atss(dyhead=True),
    ),
    "sparse_rcnn": ("sparse_rcnn", SPARSE, configs.sparse_rcnn()),
}
SEGMENTORS: dict[str, tuple[dict[str, Any], dict[str, Any], Protocol]] = {
    "upernet": (
        {"channels": 16, "auxiliary_channels": 16},
        configs.upernet(),
        Protocol((128, 96), window=(64, 64), stride=(32, 32)),
    ),
    "semantic_fpn": ({"channels": 16, "neck_channels": 16}, configs.semantic_fpn(), Protocol((128, 96), divisor=32)),
}


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Swin small enough for tests, by a name."""
    registry.list_models()
    build = partial(swin.dense, SWIN)
    monkeypatch.setitem(registry._entries, "swin_mini", registry.Entry("swin_mini", partial(tiny, "swin"), build))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two images whose names are numbers, and not in their order; one is turned by its EXIF."""
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    for name, size in (("000000000042.png", (60, 90, 3)), ("000000000007.jpg", (70, 50, 3))):
        picture = Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8))
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(folder / name, exif=exif if name.endswith("jpg") else b"")
    return [folder / "000000000042.png", folder / "000000000007.jpg"]


def alive(model: nn.Module) -> nn.Module:
    """Weights that tell classes apart, where fresh ones are almost zero."""
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if value.ndim > 1 and not name.startswith("backbone."):
            value.data += torch.randn_like(value) * 0.05
    if (head := getattr(model, "dense_head", None)) is not None:
        nn.init.zeros_(head.classify.bias)
    if (decoder := getattr(model, "decoder", None)) is not None:  # every class is the best one somewhere
        with torch.no_grad():
            decoder.classify.bias -= model.eval()(torch.randn(1, 3, 96, 128)).mean(dim=(0, 2, 3))
    return model.eval()


def their_names(method: str, model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    row = get_method(method)
    assert row is not None
    assert row.names is not None
    rules: tuple[Rule, ...] = resolve_name(row.names)
    inner = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    out = renamed(inner, MMDETECTION, "backbone.")
    for key in candidates(method):
        ours = rename({key: torch.zeros(0)}, rules) if len(matching_rules(rules, key)) == 1 else {}
        for name in ours.keys() & state.keys():
            out[key] = state[name]
    assert len(out) == len(state)
    return out


def checkpoint(path: Path, method: str, model: nn.Module, config: dict[str, Any], *, new: bool = False) -> Path:
    state = their_names(method, model)
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    if new:
        meta: dict[str, Any] = {"cfg": configs.written(configs.of_mmengine(config)), "mmengine_version": "0.10.7"}
        meta["dataset_meta"] = {"classes": CLASSES, "palette": palette}
    else:
        meta = {"config": configs.written(configs.of_mmcv(config)), "CLASSES": CLASSES, "mmdet_version": "2.20.0"}
        meta["PALETTE"] = palette
    torch.save({"meta": meta, "state_dict": state, "optimizer": {"state": {}}}, path)
    return path


def detector(name: str) -> Any:
    method, arguments, _ = DETECTORS[name]
    torch.manual_seed(0)
    return alive(fourstage.create_detector(method, "swin_mini", len(CLASSES), **arguments))


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_found_by_its_checkpoint_alone(
    name: str, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, arguments, config = DETECTORS[name]
    file = checkpoint(tmp_path / "m.pth", method, detector(name), config, new=name in ("mask_rcnn", "cascade_4conv"))
    words = ["predict", str(file), *map(str, photos), "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())

    network: Any = fourstage.create_detector(method, "swin_mini", len(CLASSES), checkpoint_path=file, **arguments)
    if "mask_rcnn" in method:
        network.limits, network.rpn.proposals = SELECTING, PROPOSING
    task, prepare = Detection(network.eval(), CLASSES), evaluation_transform((128, 96), mean=MEAN, std=STD)
    for photo in photos:
        image = read_image(photo, orient=True)
        with torch.inference_mode():
            sample = prepare(Sample("a", image, (image.shape[0], image.shape[1])))
            record = task.predict(collate([sample]))["a"]
        mine = [row for row in rows if row["file_name"] == photo.name]
        assert 0 < len(mine) == len(record["scores"]) <= 7
        assert {row["image_id"] for row in mine} == {int(photo.stem)}
        assert [row["category_id"] - 1 for row in mine] == record["labels"]
        assert [row["category"] for row in mine] == [CLASSES[label] for label in record["labels"]]
        assert [row["score"] for row in mine] == pytest.approx(record["scores"], abs=1e-6)
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (row["bbox"] for row in mine)]
        np.testing.assert_allclose(boxes, record["boxes"], atol=1e-3)
        masks = [row["segmentation"]["counts"] for row in mine if "segmentation" in row]
        assert masks == record.get("masks", [])
        assert all(row["segmentation"]["size"] == list(image.shape[:2]) for row in mine if masks)
        assert (tmp_path / "out" / f"{photo.stem}.png").is_file()
    printed = json.loads(capsys.readouterr().out)
    assert [len(one["objects"]) for one in printed] == [sum(r["file_name"] == p.name for r in rows) for p in photos]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", *(f"{p.stem}.png" for p in photos)}


def test_results_are_what_coco_tools_read(photos: list[Path], tmp_path: Path) -> None:
    from faster_coco_eval import COCO as TRUTH

    method, _, config = DETECTORS["mask_rcnn"]
    file = checkpoint(tmp_path / "m.pth", method, detector("mask_rcnn"), config)
    predict(file, photos, out=tmp_path / "out", show=False)
    truth = TRUTH({
        "images": [{"id": 42, "height": 60, "width": 90}, {"id": 7, "height": 50, "width": 70}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        "annotations": [],
    })  # fmt: skip
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    found = truth.loadRes(str(tmp_path / "out" / "results.json"))
    assert len(found.anns) == len(rows) > 0


def test_results_have_the_category_ids_of_the_data_that_was_trained_on(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered: Any = SimpleNamespace(has_masks=True, category_ids=(7, 3, 40))
    protocol = DetectionProtocol(cast(Any, SimpleNamespace(method="mask_rcnn", method_args={})))
    known = protocol.dataset_metadata(numbered)
    assert json.loads(json.dumps(known)) == {"masks": True, "category_ids": [7, 3, 40]}
    numbered.category_ids = ("a", 3, 40)  # no numbers, no results that COCO's tools read
    assert protocol.dataset_metadata(numbered) == {"masks": True}

    method, _, config = DETECTORS["mask_rcnn"]
    file = checkpoint(tmp_path / "m.pth", method, detector("mask_rcnn"), config)
    build = DetectionProtocol.build_task
    monkeypatch.setattr(DetectionProtocol, "build_task", lambda self, classes, metadata: build(self, classes, known))
    predict(file, photos, out=tmp_path / "out", show=False)
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert rows
    assert all(row["category_id"] == (7, 3, 40)[CLASSES.index(row["category"])] for row in rows)


@pytest.mark.parametrize("name", SEGMENTORS)
def test_a_segmentor_is_found_by_its_checkpoint_alone(name: str, photos: list[Path], tmp_path: Path) -> None:
    arguments, config, protocol = SEGMENTORS[name]
    torch.manual_seed(0)
    model: Any = alive(fourstage.create_segmentor(name, "swin_mini", 3, **arguments))
    file = checkpoint(tmp_path / "m.pth", name, model, config, new=name == "upernet")
    found = predict(file, photos, out=tmp_path / "out", show=False)

    network: Any = fourstage.create_segmentor(name, "swin_mini", 3, checkpoint_path=file, **arguments)
    task = Segmentation(network.eval(), CLASSES, mean=MEAN, std=STD, single=protocol)
    for photo, one in zip(photos, found, strict=True):
        image = read_image(photo, orient=True)
        sample = as_bytes()(Sample("a", image, (image.shape[0], image.shape[1])))
        labels_HW = task.label_maps(collate([sample]))["a"].numpy()
        with Image.open(tmp_path / "out" / f"{photo.stem}_labels.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), labels_HW)
            palette = picture.getpalette()
        assert palette is not None
        assert palette[:9] == [255, 0, 0, 0, 255, 0, 0, 0, 255]  # as the checkpoint has it
        assert {row["class"] for row in one.values["classes"]} == {CLASSES[i] for i in np.unique(labels_HW)}
    assert any(len(one.values["classes"]) > 1 for one in found)
    assert not (tmp_path / "out" / "results.json").exists()


def test_names_for_files_without_any() -> None:
    assert (len(COCO), len(COCO_IDS), len(ADE20K)) == (80, 80, 150)
    assert dict(zip(COCO, COCO_IDS, strict=True))["toothbrush"] == 90
    assert (COCO_IDS[COCO.index("stop sign")], COCO_IDS[COCO.index("backpack")]) == (13, 27)
    assert names_of(80, "detection") == COCO
    assert names_of(80, "segmentation")[79] == "class 79"
    assert category_ids(("a", "b")) == (1, 2)
    assert category_ids(COCO) == COCO_IDS


# ------------------------------------------------------------------------------------------------ names and mistakes


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *expected: str) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err.strip()
    assert err.startswith("fourstage: ")
    assert "\n" not in err
    for word in expected:
        assert word in err, err


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mini.yaml"
    path.write_text(
        "base: mask_rcnn_swin_tiny_coco_1x\nbackbone: swin_mini\nbackbone_args: {}\nevaluation: {scale: [96, 96]}\n"
        "method_args: {channels: 16, fc_channels: 32, mask_channels: 16}\n"
    )
    return path


def test_a_recipe_says_what_a_file_does_not(
    recipe: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, image = tmp_path / "bare.pth", str(photos[0])
    torch.save({"state_dict": their_names("mask_rcnn", detector("mask_rcnn"))}, file)
    refused(
        ["predict", str(file), image], capsys, "does not say which network", "fourstage recipes", f"--weights {file}"
    )
    refused(["predict", "mask_rcnn_smt_small_coco_1x", image], capsys, "add --weights FILE")
    refused(["predict", "mask_rcnn_swin_tinny_coco_1x", image], capsys, "did you mean mask_rcnn_swin_tiny_coco_1x")
    refused(["predict", str(recipe), image], capsys, "add --weights FILE")
    refused(["predict", "smt_tiny_in1k", image, "--weights", str(file)], capsys, "predict smt_tiny IMAGE --weights")
    refused(["predict", str(file), image, "--weights", str(file)], capsys, "already a checkpoint; remove --weights")
    out = ["--out", str(tmp_path / "out")]
    assert main(["predict", str(recipe), image, "--weights", str(file), *out]) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["category"] for row in rows} <= {f"class {i}" for i in range(3)}
    boxes_alone = detector("faster_rcnn")
    torch.save(their_names("mask_rcnn", boxes_alone), file)
    assert main(["predict", str(recipe), image, "--weights", str(file), *out]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "recipe"), [("mask_rcnn", "mask_rcnn_swin_tiny_coco_1x"), ("upernet", "upernet_swin_tiny_ade20k_160k")]
)
def test_a_file_that_says_nothing_is_known_by_its_shapes(method: str, recipe: str) -> None:
    create: Any = fourstage.create_segmentor if method == "upernet" else fourstage.create_detector
    with torch.device("meta"):
        network = create(method, "swin_tiny", 80)
    state = {f"module.{key}": value for key, value in their_names(method, network).items()}
    assert fitting_recipes(Checkpoint(Path("m.pth"), {"state_dict": state}))[0] == recipe
    assert fitting_recipes(Checkpoint(Path("m.pth"), {"state_dict": {"a": torch.zeros(1)}})) == []
    assert fitting_recipes(Checkpoint(Path("m.pth"), {"a": 1})) == []


def test_a_named_recipe_with_weights(photos: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = fourstage.create_segmentor("upernet", "visformer_digits", 150, channels=16, auxiliary_channels=16)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    recipe = tmp_path / "u.yaml"
    recipe.write_text(
        "base: digit_scenes_upernet\nmethod_args: {channels: 16, auxiliary_channels: 16, prior: null}\n"
        "evaluation: {scale: [64, 64]}\n"
    )
    [found] = predict(recipe, photos[0], weights=tmp_path / "w.pth", show=False)
    assert {row["class"] for row in found.values["classes"]} <= set(ADE20K)


def test_a_backbone_alone_predicts_nothing(
    recipe: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": fourstage.create_backbone("swin_mini").state_dict()}, tmp_path / "b.pth")
    words = ["predict", str(recipe), str(photos[0]), "--weights", str(tmp_path / "b.pth")]
    refused(words, capsys, "backbone without the heads", "mask_rcnn")


def test_a_folder_that_is_no_run_folder_is_reported(
    photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    refused(["predict", str(tmp_path / "empty"), str(photos[0])], capsys, "empty is not a run folder")


def test_sizes_that_no_machine_has_are_refused(
    photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configs.mask_rcnn()
    config["neck"] = {**config["neck"], "out_channels": 10**12}
    checkpoint(tmp_path / "m.pth", "mask_rcnn", detector("mask_rcnn"), config)
    refused(["predict", str(tmp_path / "m.pth"), str(photos[0])], capsys, "m.pth", "cannot be built here")


def test_a_configuration_that_is_a_program_is_refused(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "model = dict(type='MaskRCNN')\nx = __import__('os').system('touch MARK')\n"
    torch.save({"meta": {"config": text}, "state_dict": {"a": torch.zeros(1)}}, tmp_path / "m.pth")
    refused(["predict", "m.pth", str(photos[0])], capsys, "m.pth", "'__import__' in line 2", "--weights")
    assert not (tmp_path / "MARK").exists()
    assert not (tmp_path / "predictions").exists()


# -------------------------------------------------------------------------------------------------------------- videos


def film(path: Path, frames: int = 5, code: str = "mp4v", size: tuple[int, int] = (64, 48)) -> Path:
    import cv2

    rng, writer = np.random.default_rng(0), cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10.0, size)
    base = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    for i in range(frames):
        writer.write(np.roll(cv2.resize(base, size), 4 * i, axis=1))
    writer.release()
    return path


@pytest.fixture
def finder(tmp_path: Path) -> Path:
    method, _, config = DETECTORS["faster_rcnn"]
    return checkpoint(tmp_path / "m.pth", method, detector("faster_rcnn"), config)


@pytest.mark.parametrize(("name", "code"), [("a.mp4", "mp4v"), ("b.avi", "MJPG"), ("c.mov", "mp4v")])
def test_every_frame_of_a_video_is_predicted(
    name: str, code: str, finder: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = film(tmp_path / name, code=code)
    out = tmp_path / "out"
    assert main(["predict", str(finder), str(source), str(photos[0]), "--out", str(out)]) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert "5 frames, 0.5 s" in printed.out
    assert f"1 picture and 1 video in {out}" in printed.out
    drawn = out / f"{Path(name).stem}.mp4"
    assert read_properties(drawn).frames == len(list(frames_of(drawn))) == 5
    rows = json.loads((out / "results.json").read_text())
    mine = [row for row in rows if row["file_name"] == name]
    assert {row["frame"] for row in mine} <= set(range(5))
    assert {(row["image_id"], row["seconds"]) for row in mine} <= {(i + 1, i / 10) for i in range(5)}
    for i, frame_HW3 in enumerate(frames_of(source)):  # the same as the frame as an image
        Image.fromarray(frame_HW3).save(tmp_path / "frame.png")
        [alone] = predict(finder, tmp_path / "frame.png", show=False)
        scores = [row["score"] for row in mine if row["frame"] == i]
        assert scores == pytest.approx([one["score"] for one in alone.values["objects"]])
        break
    assert {row["image_id"] for row in rows if row["file_name"] == photos[0].name} <= {6}


def test_a_video_of_label_maps(tmp_path: Path) -> None:
    arguments, config, _ = SEGMENTORS["semantic_fpn"]
    model: Any = alive(fourstage.create_segmentor("semantic_fpn", "swin_mini", 3, **arguments))
    file = checkpoint(tmp_path / "m.pth", "semantic_fpn", model, config)
    film(tmp_path / "a.mp4", size=(66, 50))
    film(tmp_path / "films.mp4", frames=2)
    found = predict(file, [tmp_path / "a.mp4", tmp_path / "films.mp4"], out=tmp_path, show=False)
    assert [one.picture for one in found] == [tmp_path / "a-2.mp4", tmp_path / "films-2.mp4"]  # not over what was given
    assert len(list(frames_of(tmp_path / "a-2.mp4"))) == 5
    assert next(frames_of(tmp_path / "a-2.mp4")).shape == (50, 66, 3)
    lines = [json.loads(line) for line in (tmp_path / "a-2.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(5))
    assert all(sum(one["share"] for one in line["classes"]) == pytest.approx(1) for line in lines)


def as_text(path: Path) -> None:
    path.write_text("no video")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    film(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def no_frames(path: Path) -> None:
    Image.new("RGB", (8, 8)).save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize("broken", [as_text, empty, cut, no_frames])
def test_a_broken_video_is_named_and_does_not_stop_the_others(
    broken: Callable[[Path], None],
    finder: Path,
    photos: list[Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken(tmp_path / "bad.mp4")
    out = tmp_path / "out"
    refused(
        ["predict", str(finder), str(tmp_path / "bad.mp4"), "--out", str(out)],
        capfd, "bad.mp4", "cannot be read as a video", "ffmpeg -i bad.mp4",
    )  # fmt: skip
    assert not out.exists()
    assert main(["predict", str(finder), str(photos[0]), str(tmp_path / "bad.mp4"), "--out", str(out)]) == 1
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("fourstage: ")]
    assert "bad.mp4" in lines[0]
    assert "cannot be read as a video" in lines[0]
    assert lines[1] == f"fourstage: 1 of 2 files could not be read; the others are in {out}"
    assert {path.name for path in out.iterdir()} == {f"{photos[0].stem}.png", "results.json"}


# ------------------------------------------------------------------------------------------- the ids of the data's json


def listed(path: Path, images: dict[str, Any], categories: dict[str, Any]) -> Path:
    """A COCO json without annotations, as that of COCO's test images."""
    sides = {"height": 60, "width": 90}
    content = {
        "images": [{"id": id, "file_name": name, **sides} for name, id in images.items()],
        "categories": [{"id": id, "name": name} for name, id in categories.items()],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("prefix", ["", "photos/", "val/2017/"])
def test_results_have_the_ids_of_the_json(
    prefix: str, finder: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {f"{prefix}{photo.name}": id for photo, id in zip(photos, ("photo-a", 9), strict=True)}
    ids = listed(tmp_path / "a.json", names, {"owl": 30, "cat": "C", "eel": 1})
    words = ["predict", str(finder), str(photos[0].parent), "--out", str(tmp_path / "out"), "--ids", str(ids)]
    assert main(words) == 0
    found = re.search(r"(\d+) detections are of classes", capsys.readouterr().err)
    dogs = int(found[1]) if found else 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["image_id"] for row in rows} == {"photo-a", 9}
    assert {(row["category"], row["category_id"]) for row in rows} <= {("owl", 30), ("cat", "C")}
    owls = sum(row["category"] == "owl" for row in rows)
    listed(ids, names, {"cat": "C"})
    assert main(words) == 0
    assert f"fourstage: {owls + dogs} detections are of classes that {ids} does not list" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == [r for r in rows if r["category"] != "owl"]
    assert all(row["image_id"] == names[f"{prefix}{row['file_name']}"] for row in rows)


def test_ids_that_do_not_fit_are_refused(
    finder: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(finder), *map(str, photos), "--out", str(tmp_path / "out"), "--ids"]
    known, animals = {photo.name: i for i, photo in enumerate(photos)}, {"cat": 1}
    refused([*words, str(tmp_path / "no.json")], capsys, "there is no file", "give --ids the COCO json")
    one = listed(tmp_path / "a.json", {photos[0].name: 1}, animals)
    refused([*words, str(one)], capsys, "1 of 2 images are not in", photos[1].name)
    twice = listed(
        tmp_path / "a.json", {f"{name}/{p.name}": f"{name}{p.name}" for p in photos for name in "ab"}, animals
    )
    refused([*words, str(twice)], capsys, "2 of 2 images are not in")
    other = listed(tmp_path / "a.json", known, {"eel": 1})
    refused([*words, str(other)], capsys, "has none of the network's classes", "eel", "cat, dog, owl")
    same = listed(tmp_path / "a.json", known, animals)
    same.write_text(same.read_text().replace('"categories": [', '"categories": [{"id": 7, "name": "cat"}, '))
    refused([*words, str(same)], capsys, "several categories of one name")
    good = listed(tmp_path / "a.json", known, animals)
    film(tmp_path / "a.mp4", frames=2)
    refused([*words, str(good), str(tmp_path / "a.mp4")], capsys, "a.mp4 is a video, and --ids is for images")
    (tmp_path / "copy").mkdir()
    copied = tmp_path / "copy" / photos[0].name
    copied.write_bytes(photos[0].read_bytes())
    refused([*words, str(good), str(copied)], capsys, f"are both {photos[0].name}")
    assert not (tmp_path / "out").exists()


def test_a_video_that_ends_too_early_is_used_as_far_as_it_goes(finder: Path, tmp_path: Path) -> None:
    source = film(tmp_path / "a.avi", frames=20, code="MJPG")
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 6 // 10])
    [found] = predict(finder, source, out=tmp_path / "out", show=False)
    assert 0 < found.values["frames"] < 20
    assert len(list(frames_of(tmp_path / "out" / "a.mp4"))) == found.values["frames"]
    assert "more frames are stated in the file but cannot be read" in found.text


def test_what_was_interrupted_leaves_nothing_half(
    finder: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fourstage.predict import videos

    def some(path: Path) -> Iterator[np.ndarray]:
        yield next(frames_of(path))
        raise KeyboardInterrupt

    film(tmp_path / "a.mp4")
    predict(finder, photos[0], out=tmp_path / "out", show=False)
    before = (tmp_path / "out" / "results.json").read_text()
    monkeypatch.setattr(videos, "frames_of", some)
    with pytest.raises(KeyboardInterrupt):
        predict(finder, [photos[1], tmp_path / "a.mp4"], out=tmp_path / "out", show=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "000000000007.png",
        "000000000042.png",
        "results.json",
    ]
    assert (tmp_path / "out" / "results.json").read_text() == before


def test_a_folder_may_hold_both(finder: Path, photos: list[Path]) -> None:
    film(photos[0].parent / "a.mp4", frames=2)
    found = predict(finder, photos[0].parent, show=False)
    assert [one.is_video for one in found] == [False, False, True]
    assert found[2].values == {"frames": 2, "seconds": 0.2, "frames_per_second": 10.0}
    assert all(one.picture is None for one in found)
