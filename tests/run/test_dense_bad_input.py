"""What dense runs do with odd data: they train on it, or say what is wrong in a sentence before anything is written."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import fourstage
from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.tasks.detection.dino_layers import DecoderLayer

SHORT = ["length=2it", "batch_size=4", "warmup=0it", "workers=0", "log_every=1", "evaluate_every=2it", "device=cpu"]
BOXES = ["augmentation.scale=[64,64]", "evaluation.scale=[64,64]"]
DINO = "{queries: 120, channels: 16, encoder_layers: 1, decoder_layers: 2, heads: 2, hidden: 16, denoising: 6}"
SMALL = {
    "dino": [f"method_args={DINO}", *BOXES],
    "retinanet": ["method_args={channels: 16}", *BOXES],
    "atss": ["method_args={channels: 64, convs: 1}", *BOXES],
    "sparse_rcnn": ["method_args={proposals: 9, stages: 2, channels: 16, hidden: 32, filter_channels: 8}", *BOXES],
    "mask_rcnn": ["method_args={channels: 16, fc_channels: 32, mask_channels: 16, regions: 16}", *BOXES],
    "cascade_mask_rcnn": ["method_args={channels: 16, fc_channels: 32, mask_channels: 16, regions: 16}", *BOXES],
    "upernet": ["method_args={channels: 16, auxiliary_channels: 16}", "augmentation.crop=[64,64]"],
    "semantic_fpn": ["method_args={neck_channels: 16, channels: 16}", "augmentation.crop=[64,64]"],
}
SIDE = 64
Change = Callable[[dict[str, Any]], None]


def scenes_in(root: Path, val: int = 4) -> Path:
    write_digit_scenes(root, train=8, val=val, size=SIDE)
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes_in(tmp_path_factory.mktemp("scenes") / "data")


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(scenes, tmp_path / "data"))


def words(method: str, data: Path, out: Path, *more: str) -> list[str]:
    return ["train", f"digit_scenes_{method}", "--data", str(data), "--out", str(out), *SHORT, *SMALL[method], *more]


def trained(
    method: str, data: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> list[dict[str, float]]:
    """Train two steps; returns the losses of each, all of which are finite."""
    code = main(words(method, data, out, *more))
    assert code == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [line["losses"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 2
    assert all(math.isfinite(value) for step in losses for value in step.values())
    return losses


def refused(method: str, data: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The sentence that a training is refused with; nothing was written."""
    code = main(words(method, data, out, *more))
    err = capsys.readouterr().err
    line = err.strip().splitlines()[-1]
    assert code == 2, err
    assert line.startswith("fourstage: "), err
    assert "Traceback" not in err
    assert not out.exists()
    return line


def change(data: Path, how: Change, *splits: str) -> None:
    """Change the json of splits, all by default."""
    for split in splits or ("train", "val"):
        path = data / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))


# Odd, and fine.


def no_objects(content: dict[str, Any]) -> None:
    content["annotations"] = []


def objects_in_one_image(content: dict[str, Any]) -> None:
    kept = content["annotations"][0]["image_id"]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == kept]


def no_objects_in_half(content: dict[str, Any]) -> None:
    half = {image["id"] for image in content["images"][::2]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in half]


def one_pixel(content: dict[str, Any]) -> None:
    """Boxes of one pixel, one below it, and one without any extent."""
    for number, one in enumerate(content["annotations"]):
        side = (1, 1, 0.5, 0)[number % 4]
        x, y = (min(int(value), SIDE - 2) for value in one["bbox"][:2])
        one["bbox"], one["area"] = [x, y, side, side], side * side
        one["segmentation"] = [[x, y, x + side, y, x + side, y + side, x, y + side]]


def five_hundred(content: dict[str, Any]) -> None:
    """In the first image of a split."""
    draw, image = np.random.default_rng(0), content["images"][0]["id"]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != image]
    for number in range(500):
        (x, y), (w, h) = draw.integers(0, 40, 2).tolist(), draw.integers(3, 20, 2).tolist()
        polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        one = {"id": 10_000 + number, "image_id": image, "category_id": content["categories"][number % 3]["id"]}
        content["annotations"].append(
            {**one, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": polygon}
        )


@pytest.mark.parametrize("method", ["retinanet", "atss", "sparse_rcnn", "mask_rcnn", "cascade_mask_rcnn", "dino"])
def test_images_without_objects_train_and_are_scored(
    method: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The losses stay connected to every parameter: DDP and the optimiser see a gradient for each."""
    change(data, objects_in_one_image, "train")
    change(data, no_objects_in_half, "val")
    losses = trained(method, data, tmp_path / "run", capsys, "filter_empty=false")
    empty = [not any(value for name, value in step.items() if "bbox" in name or "mask" in name) for step in losses]
    assert empty.count(True) == 1  # the step whose images have no object


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_any_object_is_refused(
    split: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(data, no_objects, split)
    line = refused("retinanet", data, tmp_path / "run", capsys, "filter_empty=false")
    assert f"instances_{split}.json has no object of a listed class" in line


@pytest.mark.parametrize("method", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize("odd", [one_pixel, five_hundred])
def test_odd_objects_train_and_are_scored(
    odd: Change, method: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(data, odd)
    trained(method, data, tmp_path / "run", capsys, "filter_empty=false")
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0
    assert "box_map" in json.loads(capsys.readouterr().out)["metrics"]


def test_label_maps_of_one_class_and_of_ignored_pixels_train(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(sorted((data / "masks").rglob("*.png"))):
        value = (255, 0, 1)[number % 3]
        Image.fromarray(np.full((SIDE, SIDE), value, np.uint8)).save(path)
    trained("upernet", data, tmp_path / "run", capsys)
    assert "2 x 4 images (1 epoch), " in capsys.readouterr().out


def test_binary_masks_are_refused_until_the_list_of_classes_says_what_255_means(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "masks").rglob("*.png"):
        with Image.open(path) as image:
            Image.fromarray(np.where(np.asarray(image) > 0, 255, 0).astype(np.uint8)).save(path)
    (data / "masks" / "classes.txt").unlink()
    line = refused("upernet", data, tmp_path / "run", capsys)
    assert "hold only 0 and 255, and 255 means ignored" in line
    (data / "classes.txt").write_text("0: background\n255: digit\n")
    trained("upernet", data, tmp_path / "run", capsys)
    assert "2 classes" in capsys.readouterr().out


def test_queries_follow_the_data(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose fullest image has 500 objects has twice as many queries, and so has what its checkpoint describes."""
    change(data, five_hundred, "train")
    trained("dino", data, tmp_path / "run", capsys, DINO.replace("120", "auto").join(["method_args=", ""]))
    printed = capsys.readouterr().out
    network: Any = fourstage.from_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert network.queries == 1000
    assert "denoising learns from 6 objects of an image, and one has 500" in printed
    assert main(["evaluate", str(tmp_path / "run"), "--json"]) == 0


def without_masks(content: dict[str, Any]) -> None:
    for one in content["annotations"]:
        del one["segmentation"]


@pytest.mark.parametrize(("method", "setting"), [("mask_rcnn", "masks"), ("dino", "denoising")])
def test_null_is_the_default_of_a_setting(
    method: str, setting: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data has no masks, so the default of a Mask R-CNN is boxes alone."""
    change(data, without_masks)
    trained(method, data, tmp_path / "run", capsys, f"method_args.{setting}=null")
    assert ("only boxes are trained" in capsys.readouterr().out) == (method == "mask_rcnn")
    network: Any = fourstage.from_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt")
    assert network.denoising == 100 if method == "dino" else network.mask_head is None


def test_more_objects_than_queries_end_the_run_with_a_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(data, five_hundred, "train")
    assert main(words("dino", data, tmp_path / "run")) == 2
    printed = capsys.readouterr()
    assert "has 500 objects, and each of 120 queries detects one" in printed.out
    assert "500 objects, and this detector 120 queries" in printed.err
    assert "Traceback" not in printed.err


def test_a_number_that_is_none_is_named_with_its_layer(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs that are not finite reach the losses, and the run names the layer that they come from."""
    forward = DecoderLayer.forward
    monkeypatch.setattr(DecoderLayer, "forward", lambda *given: forward(*given) * torch.nan)
    assert main(words("dino", data, tmp_path / "run")) == 2
    err = capsys.readouterr().err
    assert "no longer a finite number" in err
    assert "network.decoder.layers.0 (DecoderLayer)" in err


# Wrong.


def mask_of_another_size(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = {"size": [40, 40], "counts": [100, 200, 1300]}


def mask_of_words(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = [["a", "b", "c", "d", "e", "f"]]


def box_of_words(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = [1, 2, "wide", 4]


def no_categories(content: dict[str, Any]) -> None:
    del content["categories"]


def no_sizes(content: dict[str, Any]) -> None:
    del content["images"][1]["height"]


def other_size(content: dict[str, Any]) -> None:
    content["images"][1]["height"] += 3


def other_file(content: dict[str, Any]) -> None:
    content["images"][1]["file_name"] = "not_here.png"


WRONG: dict[str, tuple[Change, tuple[str, ...]]] = {
    "mask of another size": (mask_of_another_size, ("[40, 40]", "[64, 64]", "annotation")),
    "mask of words": (mask_of_words, ("polygons", "annotation")),
    "box of words": (box_of_words, ("annotations[0]", "wide")),
    "no categories": (no_categories, ("not in COCO format", "categories")),
    "no sizes": (no_sizes, ("images[1]", "height")),
    "other size": (other_size, ("64 x 67", "skip_bad_images")),
    "missing image": (other_file, ("not_here.png", "no such file")),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_coco_json_is_named(
    name: str, split: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how, expected = WRONG[name]
    change(data, how, split)
    line = refused("mask_rcnn", data, tmp_path / "run", capsys)
    for word in (*expected, split):
        assert word in line, line


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"a": 1}', "\x00\x01", '{"images": {}, "annotations": [], "categories": []}']
)
def test_json_that_is_not_coco_is_named(
    text: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "annotations" / "instances_val.json").write_text(text)
    assert "instances_val.json" in refused("retinanet", data, tmp_path / "run", capsys)


@pytest.mark.parametrize("name", ["mask of another size", "other size", "missing image"])
def test_what_is_wrong_with_one_image_can_be_skipped(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(data, WRONG[name][0])
    trained("mask_rcnn", data, tmp_path / "run", capsys, "skip_bad_images=true")
    assert "skipped: 1 of 8 images" in capsys.readouterr().out


# Label maps.


def smaller(path: Path) -> None:
    Image.fromarray(np.zeros((40, 30), np.uint8)).save(path)


def beyond(path: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 77, np.uint8)).save(path)


def colours(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").save(path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


WRONG_MAPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another size": (smaller, "30 x 40"),
    "labels out of range": (beyond, "77"),
    "colours": (colours, "colours (RGB)"),
    "broken": (cut, "cannot be used as a label map"),
}


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", WRONG_MAPS)
def test_a_wrong_label_map_is_named_or_skipped(
    name: str, split: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, word = WRONG_MAPS[name]
    path = sorted((data / "masks" / split).glob("*.png"))[1]
    wrong(path)
    line = refused("semantic_fpn", data, tmp_path / "run", capsys)
    assert all(part in line for part in (str(path), word, "skip_bad_images=true")), line
    if split == "train":
        trained("semantic_fpn", data, tmp_path / "run", capsys, "skip_bad_images=true")
        assert "skipped: 1 of 8 images" in capsys.readouterr().out


def test_a_missing_label_map_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sorted((data / "masks" / "train").glob("*.png"))[0]
    path.unlink()
    assert f"has no label map {path}" in refused("upernet", data, tmp_path / "run", capsys)


# A broken image, in each format.


def as_yolo(data: Path) -> None:
    content = {
        split: json.loads((data / f"annotations/instances_{split}.json").read_text()) for split in ("train", "val")
    }
    names = [category["name"] for category in content["train"]["categories"]]
    labels = {category["id"]: i for i, category in enumerate(content["train"]["categories"])}
    lines = [f"names: {json.dumps(names)}", "train: train", "val: val"]
    (data / "data.yaml").write_text("\n".join(lines))
    for split, said in content.items():
        for image in said["images"]:
            rows = []
            for one in (one for one in said["annotations"] if one["image_id"] == image["id"]):
                x, y, w, h = (value / SIDE for value in one["bbox"])
                rows.append(f"{labels[one['category_id']]} {x + w / 2} {y + h / 2} {w} {h}")
            (data / split / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows))
    shutil.rmtree(data / "annotations")
    shutil.rmtree(data / "masks")


def as_voc(data: Path, *, sizes: bool = True) -> None:
    for split in ("train", "val"):
        said = json.loads((data / f"annotations/instances_{split}.json").read_text())
        names = {category["id"]: category["name"] for category in said["categories"]}
        for image in said["images"]:
            root = ElementTree.Element("annotation")
            if sizes:
                size = ElementTree.SubElement(root, "size")
                ElementTree.SubElement(size, "width").text = ElementTree.SubElement(size, "height").text = str(SIDE)
            for one in (one for one in said["annotations"] if one["image_id"] == image["id"]):
                element = ElementTree.SubElement(root, "object")
                ElementTree.SubElement(element, "name").text = names[one["category_id"]]
                box, (x, y, w, h) = ElementTree.SubElement(element, "bndbox"), one["bbox"]
                for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True):
                    ElementTree.SubElement(box, key).text = str(value)
            ElementTree.ElementTree(root).write((data / split / image["file_name"]).with_suffix(".xml"))
    shutil.rmtree(data / "annotations")
    shutil.rmtree(data / "masks")


def as_voc_without_sizes(data: Path) -> None:
    as_voc(data, sizes=False)


FORMATS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "COCO": ("retinanet", lambda data: None),
    "YOLO": ("retinanet", as_yolo),
    "Pascal VOC": ("retinanet", as_voc),
    "Pascal VOC without sizes": ("retinanet", as_voc_without_sizes),
    "label maps": ("semantic_fpn", lambda data: None),
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("break_it", [cut, Path.unlink])
def test_a_broken_image_is_named_or_skipped(
    break_it: Callable[[Path], None], format: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method, convert = FORMATS[format]
    convert(data)
    listed = break_it is cut or format in (
        "COCO",
        "Pascal VOC",
        "Pascal VOC without sizes",
    )  # else it just is not there
    for split in ("train", "val"):
        path = sorted(path for path in (data / split).iterdir() if path.suffix in (".png", ".jpg"))[1]
        break_it(path)
    if listed:
        line = refused(method, data, tmp_path / "run", capsys)
        assert f"1 of 8 images in train cannot be read, the first: {path.parents[1] / 'train' / path.stem}" in line
        assert "skip_bad_images=true" in line
    trained(method, data, tmp_path / "run", capsys, "skip_bad_images=true")
    assert ("skipped: 1 of 8 images in train" in capsys.readouterr().out) == listed


# The recipe and the data.


@pytest.mark.parametrize("method", ["retinanet", "semantic_fpn"])
def test_another_number_of_classes_is_reported(
    method: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(method, data, tmp_path / "run", capsys, "num_classes=7")
    assert "num_classes=7" in line
    assert f"num_classes={10 if method == 'retinanet' else 11}" in line


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("mask_rcnn", ["backbone=timm/resnet18", "backbone_args.foo=1"], "timm/resnet18 cannot be built with foo=1"),
        ("mask_rcnn", ["method_args.channels=0"], "channels must be an integer of at least"),
        ("mask_rcnn", ["method_args.rpn.scales=[]"], "scales is a list of numbers above 0"),
        ("upernet", ["method_args.channels=-4"], "channels must be an integer of at least"),
        ("upernet", ["method_args.prior=[1,2]"], "method_args.prior=auto"),
        ("upernet", ["method_args.prior=most"], "prior is a list of"),
        ("upernet", ["method_args.dropout=x"], "dropout is a number; got 'x'"),
        ("semantic_fpn", ["method_args.channels=-4"], "channels"),
        ("semantic_fpn", ["num_classes=7"], "num_classes=null for the number that the data has"),
    ],
)
def test_a_network_that_cannot_be_built_is_reported(
    method: str, changes: list[str], expected: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(method, scenes, tmp_path / "run", capsys, *changes)


def test_data_for_another_task_is_reported_before_its_other_faults(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(data / "annotations")
    sorted((data / "masks" / "train").glob("*.png"))[0].unlink()
    line = refused("mask_rcnn", data, tmp_path / "run", capsys)
    assert "has no boxes, but digit_scenes_mask_rcnn is a detection recipe; give" in line


@pytest.mark.parametrize("method", ["mask_rcnn", "upernet"])
def test_a_batch_larger_than_the_data_is_reported(
    method: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(method, data, tmp_path / "run", capsys, "batch_size=64")
    assert "batch_size" in line
    assert "64" in line


def test_a_batch_larger_than_the_filtered_data_is_reported(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(data, no_objects_in_half, "train")
    assert "batch_size" in refused("retinanet", data, tmp_path / "run", capsys, "batch_size=8")


@pytest.fixture(scope="module")
def retinanet(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    out = tmp_path_factory.mktemp("retinanet") / "run"
    assert main(words("retinanet", scenes, out)) == 0
    return out


@pytest.mark.parametrize("method", ["mask_rcnn", "upernet"])
def test_weights_of_another_method(
    method: str, retinanet: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training takes the backbone and says what it left out; an evaluation needs those of its own network."""
    weights = retinanet / "checkpoints" / "best.pt"
    assert main([*words(method, data, tmp_path / "run"), f"weights={weights}"]) == 0
    start = re.search(r"starting from best.pt: (\d+) read, (\d+) left out \(.*dense_head.*\)", capsys.readouterr().out)
    assert start
    assert min(map(int, start.groups())) > 0
    code = main(["evaluate", f"digit_scenes_{method}", "--data", str(data), "--weights", str(weights), *SMALL[method]])
    err = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert err[-1].startswith("fourstage: ")
    assert "best.pt" in err[-1], err[-1]


def test_weights_of_a_classifier_do_not_evaluate_a_detector(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "odd.pt"
    weights.write_bytes(b"no checkpoint")
    line = refused("retinanet", data, tmp_path / "run", capsys, f"weights={weights}")
    assert "odd.pt" in line


@pytest.mark.parametrize(
    ("method", "backbone", "sentence"),
    [
        ("retinanet", "swin_tiny_patch4_window7_224", ""),
        ("upernet", "vit_tiny_patch16_224", ""),
        ("retinanet", "vit_tiny_patch16_224", "maps of strides 16, 16, 16 are not a pyramid"),
        ("semantic_fpn", "vit_tiny_patch16_224", "maps of strides 16, 16, 16 are not a pyramid"),
        ("upernet", "maxvit_pico_rw_256", r"cannot take images of 64 x 64 pixels \(.*give its own size as img_size"),
        ("retinanet", "hiera_tiny_224", r"cannot take images of 64 x 64 pixels"),
    ],
)
def test_a_dry_run_tries_a_network_of_a_fixed_image_size(
    method: str, backbone: str, sentence: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm")
    typed = [*words(method, scenes, tmp_path / "run", f"backbone=timm/{backbone}", "backbone_args={}"), "--dry-run"]
    code = main(typed)
    error = capsys.readouterr().err
    assert code == (2 if sentence else 0), error
    assert "Traceback" not in error
    assert re.search(sentence, error)
    assert not (tmp_path / "run").exists()
