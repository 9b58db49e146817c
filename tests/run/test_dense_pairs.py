"""Settings of detection and segmentation that meet in one run."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from run.runs import refused, stop_before

from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.data.embedded.digits import CLASSES
from fourstage.data.sample import BadImage
from fourstage.recipe import resolve
from fourstage.run.task_protocol import protocol_of

SHORT = ["length=4it", "batch_size=4", "warmup=0it", "workers=0", "log_every=1", "evaluate_every=4it"]
SIZE = ["augmentation.scale=[64,64]", "evaluation.scale=[64,64]"]
RETINANET = ["method_args={channels: 16}", *SIZE]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "data"
    write_digit_scenes(root, train=8, val=3, size=64)
    return root


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(scenes, tmp_path / "data"))


def retinanet(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "digit_scenes_retinanet", "--data", str(data), "--out", str(out), *SHORT, *RETINANET, *more]


def as_yolo(coco: Path, root: Path, *, polygons: bool = False) -> Path:
    """Write the scenes in YOLO's layout, which knows the sizes of images by their headers alone."""

    def place(x: float, y: float, w: float, h: float) -> str:
        corners = (x, y, x + w, y, x + w, y + h, x, y + h)
        return " ".join(str(one / 64) for one in (corners if polygons else (x + w / 2, y + h / 2, w, h)))

    for split in ("train", "val"):
        content = json.loads((coco / "annotations" / f"instances_{split}.json").read_text())
        shutil.copytree(coco / split, root / "images" / split)
        (root / "labels" / split).mkdir(parents=True)
        for image in content["images"]:
            lines = [
                f"{one['category_id'] - 1} {place(*one['bbox'])}\n"
                for one in content["annotations"]
                if one["image_id"] == image["id"]
            ]
            (root / "labels" / split / f"{Path(image['file_name']).stem}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {list(CLASSES)}\n")
    return root


def test_a_run_goes_on_without_an_image_whose_header_cannot_be_read_any_more(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = retinanet(as_yolo(scenes, tmp_path / "yolo"), tmp_path / "run", "skip_bad_images=true")
    with monkeypatch.context() as patch:
        stop_before(2, patch)
        main(words)
    image = tmp_path / "yolo" / "images" / "train" / "000001.jpg"
    image.write_bytes(image.read_bytes()[:60])
    capsys.readouterr()
    assert main(words) == 0, capsys.readouterr().err
    assert "000001.jpg cannot be read; images/train/000002.jpg takes its place" in capsys.readouterr().out


def test_copy_paste_without_masks_is_refused_before_an_image_is_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (data / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        for one in content["annotations"]:
            del one["segmentation"]
        path.write_text(json.dumps(content))
    code = main(retinanet(data, tmp_path / "run", "augmentation.copy_paste=true"))
    printed = capsys.readouterr()
    assert code == 2
    assert "no object of" in printed.err
    assert "write augmentation.copy_paste=false" in printed.err
    assert "reading" not in printed.out + printed.err


@pytest.mark.parametrize("filter_empty", [True, False])
def test_copy_paste_takes_objects_of_images_that_train(filter_empty: bool, data: Path) -> None:
    path = data / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] > 6]
    path.write_text(json.dumps(content))
    changes = ["augmentation.copy_paste=true", f"filter_empty={str(filter_empty).lower()}", *RETINANET]
    recipe = resolve("digit_scenes_retinanet", changes, {"data": str(data)}).recipe
    transform: Any = protocol_of(recipe).train_transform()
    partners = transform.steps[0].dataset
    assert len(partners) == (2 if filter_empty else 8)


@pytest.mark.parametrize("skip", [True, False])
def test_copy_paste_leaves_an_unreadable_header_to_the_checks(*, skip: bool, scenes: Path, tmp_path: Path) -> None:
    """They name all faults of the images at once; where other images take the place of bad ones, copy-paste does so."""
    root = as_yolo(scenes, tmp_path / "yolo", polygons=True)
    image = root / "images" / "train" / "000001.jpg"
    image.write_bytes(image.read_bytes()[:60])
    changes = ["augmentation.copy_paste=true", f"skip_bad_images={str(skip).lower()}", *RETINANET]
    recipe = resolve("digit_scenes_retinanet", changes, {"data": str(root)}).recipe
    transform: Any = protocol_of(recipe).train_transform()
    partners = transform.steps[0].dataset
    assert len(partners) == 8
    with nullcontext() if skip else pytest.raises(BadImage, match="000001"):
        for i in range(8):
            partners.sample(i)


def test_single_images_that_a_norm_cannot_take_are_refused_before_anything_is_written(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """UPerNet pools an image to one cell; the same folder then takes a training with other micro-batches."""
    words = ["train", "digit_scenes_upernet", "--data", str(scenes), "--out", str(tmp_path / "run"), *SHORT]
    words += ["method_args={channels: 16, auxiliary_channels: 16}", "augmentation.crop=[64,64]"]
    for more in (["--dry-run"], []):
        refused(main([*words, "accumulation=4", *more]), capsys, "train with two images or more at a time")
        assert not (tmp_path / "run" / "recipe.yaml").exists()
    assert main([*words, "accumulation=2", "--dry-run"]) == 0
