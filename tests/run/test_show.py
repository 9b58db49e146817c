"""Sheets of training images show objects and label maps where the augmentation puts them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourstage.cli import main
from fourstage.recipe import resolve
from fourstage.report.pictures import INK, PAPER
from fourstage.run.sheets import LARGE_SIDE
from fourstage.run.show import DEFAULTS, EMBEDDED, WORDS
from fourstage.run.task_protocol import protocol_of

GROUND = (40, 90, 200)  # of every image here
HEIGHT, WIDTH = 60, 100
MEAN = (124, 116, 104)  # what zeros in normalised images are
RED = (160, 64, 64)  # of the outline of class 0
BOX = (20, 10, 45, 40)  # x1 y1 x2 y2
GAP = 20  # between the pictures of a sheet


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), GROUND).save(path)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """One training image with one object, without a mask, and one image without any."""
    root = tmp_path / "coco"
    for split in ("train", "val"):
        images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)]
        for image in images:
            write_image(root / f"{split}2017/{image['file_name']}")
        x1, y1, x2, y2 = BOX
        one = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 750, "iscrowd": 0}
        written = {"images": images, "annotations": [one], "categories": [{"id": 7, "name": "thing"}]}
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(written))
    return root


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Class 1 on the left, class 0 on the right, and a part that is ignored in the middle."""
    root = tmp_path / "masks"
    labels_HW = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels_HW[:, :30], labels_HW[:, 40:60] = 1, 255
    for split in ("train", "val"):
        write_image(root / f"images/{split}/a.png")
        (root / f"masks/{split}").mkdir(parents=True)
        Image.fromarray(labels_HW).save(root / f"masks/{split}/a.png")
    (root / "classes.txt").write_text("sky\ntree\n")
    return root


def cells(sheet: Path, side: int) -> list[np.ndarray]:
    """The pictures of the first row, each (side, side, 3)."""
    pixels_HW3 = np.asarray(Image.open(sheet).convert("RGB"))
    columns = (pixels_HW3.shape[1] - GAP) // (side + GAP)
    return [pixels_HW3[GAP : GAP + side, GAP + (side + GAP) * i :][:, :side] for i in range(columns)]


def where(picture_HW3: np.ndarray, colour: tuple[int, ...]) -> tuple[int, int, int, int]:
    """x1 y1 x2 y2 of the smallest box around all pixels of a colour."""
    rows, columns = np.nonzero((picture_HW3 == colour).all(axis=2))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_boxes_go_where_the_augmentation_puts_them(coco: Path, tmp_path: Path) -> None:
    out, side = tmp_path / "a.png", LARGE_SIDE["detection"]
    changes = [f"augmentation.scale=[{WIDTH},{HEIGHT}]", "hflip=1.0"]
    recipe = ["--recipe", "mask_rcnn_smt_small_coco_1x"]
    assert main(["data", "show", str(coco), *recipe, "--out", str(out), *changes]) == 0
    first, *augmented = cells(out, side)
    assert len(augmented) == 3
    with Image.open(out) as sheet:
        assert sheet.height < 2 * side  # the image without an object is not trained on
    scale, top = side / WIDTH, (side - side * HEIGHT // WIDTH) // 2
    name = 17  # pixels above the box
    x1, y1, x2, y2 = where(first, RED)
    assert (x1, x2) == pytest.approx((scale * BOX[0], scale * BOX[2]), abs=2)
    assert (y1 + name, y2) == pytest.approx((top + scale * BOX[1], top + scale * BOX[3]), abs=3)
    scale, top = side / 128, side // 4  # padded to multiples of 32: 128 x 64
    for picture in augmented:
        x1, y1, x2, y2 = where(picture, RED)
        assert x1 == pytest.approx(scale * (WIDTH - BOX[2]), abs=2)  # mirrored
        assert (y1 + name, y2) == pytest.approx((top + scale * BOX[1], top + scale * BOX[3]), abs=3)
        assert tuple(picture[top + 5, 5]) == GROUND  # the normalisation is undone
        assert tuple(picture[top + 5, side - 5]) == tuple(picture[side - top - 5, 5]) == MEAN  # padding


def test_masks_lie_over_objects(coco: Path, tmp_path: Path) -> None:
    file = coco / "annotations/instances_train2017.json"
    written = json.loads(file.read_text())
    x1, y1, x2, y2 = BOX
    written["annotations"][0]["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    file.write_text(json.dumps(written))
    out = tmp_path / "a.png"
    changes = [f"augmentation.scale=[{WIDTH},{HEIGHT}]", "hflip=0"]
    assert main(["data", "show", str(coco), "--out", str(out), *changes]) == 0
    for picture in cells(out, LARGE_SIDE["detection"])[1:]:
        x, y = (int(LARGE_SIDE["detection"] / 128 * (a + b) / 2) for a, b in ((x1, x2), (y1, y2)))
        inside = picture[LARGE_SIDE["detection"] // 4 + y, x]
        assert inside == pytest.approx(0.55 * np.array(GROUND) + 0.45 * np.array(RED), abs=2)


def test_label_maps_go_where_the_augmentation_puts_them(masks: Path, tmp_path: Path) -> None:
    from fourstage.data.label_maps.folders import LabelMaps

    out, side = tmp_path / "a.png", LARGE_SIDE["segmentation"]
    changes = ["augmentation.scale=null", "ratio=[1,1]", "crop=[64,128]", "most_of_one=1.0", "photometric=false"]
    assert main(["data", "show", str(masks), "--out", str(out), *changes, "hflip=1.0"]) == 0
    plain, original, *augmented = cells(out, side)
    sky, tree = (0.4 * np.array(GROUND) + 0.6 * np.array(colour) for colour in LabelMaps(masks, "train").palette)
    middle, scale = side // 2, side / WIDTH
    assert tuple(plain[middle, int(5 * scale)]) == GROUND
    assert original[middle, int(15 * scale)] == pytest.approx(tree, abs=1)
    assert original[middle, int(80 * scale)] == pytest.approx(sky, abs=1)
    striped = original[middle - 20 : middle + 20, int(42 * scale) : int(58 * scale)]
    assert {tuple(pixel) for pixel in striped.reshape(-1, 3).tolist()} == {GROUND, INK, PAPER}
    assert len(augmented) == 3
    scale = side / 128
    for picture in augmented:
        assert picture[middle, int(85 * scale)] == pytest.approx(tree, abs=1)  # mirrored
        assert picture[middle, int(20 * scale)] == pytest.approx(sky, abs=1)
        padding = picture[middle - 20 : middle + 20, int(102 * scale) : side]
        assert {tuple(pixel) for pixel in padding.reshape(-1, 3).tolist()} == {MEAN, INK, PAPER}


def test_the_legend_has_the_colours_that_are_on_the_sheet(masks: Path, tmp_path: Path) -> None:
    from fourstage.data.label_maps.folders import LabelMaps

    (masks / "classes.txt").write_text("sky\ntree\nsea\n")
    assert main(["data", "show", str(masks), "--out", str(tmp_path / "a.png")]) == 0
    below_HW3 = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))[GAP + LARGE_SIDE["segmentation"] + 30 :]
    shown = {tuple(pixel) for pixel in below_HW3.reshape(-1, 3).tolist()}
    sky, tree, sea = LabelMaps(masks, "train").palette
    assert {tuple(sky), tuple(tree)} <= shown
    assert tuple(sea) not in shown


def test_the_default_recipe_of_a_sheet_is_reported(coco: Path, masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data, truth in ((coco, "objects"), (masks, "label_map_HW")):
        out = data.parent / "a.png"
        assert main(["data", "show", str(data), "--out", str(out)]) == 0
        said = f"the default for data with {WORDS[truth]}; choose another one with --recipe NAME"
        assert capsys.readouterr().out == f"wrote {out}, augmented by {DEFAULTS[truth]}, {said}\n"
    assert main(["data", "show", str(coco), "--recipe", "mask_rcnn_smt_small_coco_1x", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"wrote {out}, augmented by mask_rcnn_smt_small_coco_1x\n"


def test_defaults_learn_from_what_the_data_has() -> None:
    for truth, name in DEFAULTS.items():
        assert truth == protocol_of(resolve(name).recipe).truth
    for data, name in EMBEDDED.items():
        assert resolve(name).recipe.data == data


@pytest.mark.parametrize(
    ("data", "recipe", "said"),
    [
        (
            "masks",
            "mask_rcnn_smt_small_coco_1x",
            "has label maps, but mask_rcnn_smt_small_coco_1x is a detection recipe",
        ),
        ("coco", "smt_tiny_in1k", "is a classification recipe and needs a class for each image"),
        ("coco", "upernet_smt_small_ade20k_160k", "such as --recipe mask_rcnn_smt_small_coco_1x"),
    ],
)
def test_a_recipe_of_another_task_is_answered_in_a_sentence(
    data: str, recipe: str, said: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    folder: Path = request.getfixturevalue(data)
    out = folder.parent / "a.png"
    assert main(["data", "show", str(folder), "--recipe", recipe, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "such as --recipe" in error
    assert not out.exists()
