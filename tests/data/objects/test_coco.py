import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from fourstage.data.objects.coco import Coco
from fourstage.data.objects.rle import decode_mask, encode_mask
from fourstage.data.sample import BadImage, NoSplitError, Split

Picture = Callable[..., Path]
SQUARE = [[10, 5, 20, 5, 20, 15, 10, 15]]


def annotation(box: Sequence[float], category: int = 7, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0} | more


def content(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [
            {"id": 1, "file_name": "b.png", "height": 40, "width": 48},
            {"id": 5, "file_name": "a.png", "height": 40, "width": 48},
        ],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


@pytest.fixture
def write(tmp_path: Path, picture: Picture) -> Callable[..., Path]:
    """Writes two images and a json with the given annotations, as both splits."""

    def write(annotations: list[dict[str, Any]], **parts: Any) -> Path:
        for name in ("a", "b"):
            picture(f"train2017/{name}.png")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        text = json.dumps(content(annotations) | parts)
        for split in ("train", "val"):
            (tmp_path / f"annotations/instances_{split}2017.json").write_text(text)
        return tmp_path

    return write


masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


@given(mask_HW=masks)
def test_run_lengths_keep_every_pixel(mask_HW: np.ndarray) -> None:
    size = (mask_HW.shape[0], mask_HW.shape[1])
    encoded = json.loads(json.dumps(encode_mask(mask_HW)))
    decoded = decode_mask(encoded, size)
    assert decoded is not None
    assert np.array_equal(decoded, mask_HW)
    flat = mask_HW.flatten(order="F")  # the uncompressed form: lengths of runs down the columns, zeros first
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat])))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    decoded = decode_mask({"size": list(size), "counts": counts}, size)
    assert decoded is not None
    assert np.array_equal(decoded, mask_HW)


def test_polygons_are_united_and_short_ones_left_out() -> None:
    both = decode_mask(
        [[1, 1, 5, 1, 5, 5, 1, 5], [10, 1, 15, 1, 15, 5, 10, 5], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]], (20, 20)
    )
    assert both is not None
    assert both.sum() == 16 + 20
    assert decode_mask([[1, 2, 3, 4]], (20, 20)) is None


def test_labels_are_positions_in_the_list_of_categories(write: Callable[..., Path]) -> None:
    dataset = Coco(
        write([annotation([1, 2, 30, 20]), annotation([4, 5, 6, 7], 3), annotation([0, 0, 9, 9], 8)]), "train"
    )
    assert dataset.classes == ("cat", "dog")
    assert (dataset.category_ids, dataset.image_ids) == ((7, 3), (1, 5))
    assert [dataset.id(i) for i in range(2)] == ["b.png", "a.png"]  # the order of the json
    sample = dataset.sample(0)
    assert sample.original_size == (40, 48)
    assert sample.objects is not None
    assert sample.objects.labels_N.tolist() == [0, 1]
    assert sample.objects.boxes_N4.tolist() == [[1, 2, 31, 22], [4, 5, 10, 12]]
    assert sample.objects.masks_NHW is None


def test_which_annotations_count(write: Callable[..., Path]) -> None:
    kept = [[-5, -5, 10, 10], [40, 30, 100, 100], [3, 3, 1, 8]]  # unclipped, and one pixel wide
    dropped = [[48, 3, 5, 5], [3, 3, 0.5, 8], [3, 3, 8, -2]]
    listed = [annotation(box) for box in (*kept, *dropped)]
    listed += [
        annotation([1, 1, 9, 9], ignore=1),
        annotation([1, 1, 9, 9], area=0),
        annotation([1, 1, 9, 9], image_id=9),
    ]
    objects = Coco(write(listed), "train").objects(0)
    assert objects.boxes_N4.tolist() == [[x, y, x + w, y + h] for x, y, w, h in kept]
    assert objects.boxes_N4.dtype == torch.float32
    assert objects.labels_N.dtype == torch.int64


def test_masks_crowds_and_images_without_objects(write: Callable[..., Path]) -> None:
    crowd = {"size": [40, 48], "counts": [0, 80, 40 * 46]}
    listed = [
        annotation([10, 5, 10, 10], segmentation=SQUARE),
        annotation([0, 0, 2, 40], iscrowd=1, segmentation=crowd),
        annotation([10, 5, 10, 10], segmentation=[[1, 2, 3, 4]]),
    ]
    dataset = Coco(write(listed), "train")
    objects = dataset.sample(0).objects
    assert objects is not None
    assert objects.masks_NHW is not None
    assert objects.masks_NHW.dtype == torch.bool
    assert objects.masks_NHW.sum(dim=(1, 2)).tolist() == [100, 80, 0]
    assert objects.crowd_N.tolist() == [False, True, True]  # polygons too short to enclose anything count as a crowd
    empty = dataset.sample(1).objects
    assert empty is not None
    assert empty.masks_NHW is not None
    assert (empty.boxes_N4.shape, empty.masks_NHW.shape) == ((0, 4), (0, 40, 48))


def test_an_object_without_a_mask_takes_none_of_the_others(write: Callable[..., Path]) -> None:
    dataset = Coco(write([annotation([10, 5, 10, 10], segmentation=SQUARE), annotation([1, 1, 9, 9])]), "train")
    assert dataset.has_masks
    objects = dataset.objects(0)
    assert objects.masks_NHW is not None
    assert objects.masked_N is not None
    assert objects.masks_NHW.sum(dim=(1, 2)).tolist() == [100, 0]
    assert objects.masked_N.tolist() == [True, False]
    assert not objects.crowd_N.any()
    assert "1 object of" in dataset.note
    assert "the mask loss and the mask score leave it out" in dataset.note
    reference = dataset.reference(0)
    assert reference["masked"] == [True, False]
    assert reference["areas"][1] == pytest.approx(81)
    all_drawn = Coco(write([annotation([10, 5, 10, 10], segmentation=SQUARE)]), "train")
    assert all_drawn.objects(0).masked_N is None
    assert "masked" not in all_drawn.reference(0)


@pytest.mark.parametrize("split", ["train", "val"])
def test_objects_that_are_all_crowd_regions_are_refused_as_such(
    split: Split, write: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = Coco(write([annotation([1, 1, 9, 9], iscrowd=1), annotation([2, 2, 9, 9], iscrowd=1)]), "train")
    with pytest.raises(
        ValueError, match=r"each of the 2 objects of .*json is marked iscrowd=1, which CVAT's brush"
    ) as e:
        dataset.refuse_unlearnable(split)
    command = str(e.value).partition("write 0 instead: ")[2]
    subprocess.run(shlex.split(command), check=True)
    Coco(dataset.place.annotations.parents[1], "train").refuse_unlearnable(split)


@pytest.mark.parametrize(
    ("listed", "split", "said"),
    [
        ([], "train", "has no object of a listed class, and so nothing to learn from"),
        ([], "val", "nothing to score against"),
        ([annotation([1, 1, 9, 9], category_id=99)], "train", "has no object of a listed class"),
        ([annotation([100, 1, 9, 9])], "train", "none of the 1 objects of .* trains: they are ignored"),
        ([annotation([1, 1, 9, 9], ignore=1)], "train", "none of the 1 objects"),
    ],
)
def test_objects_of_which_none_trains_or_scores(
    listed: list[Any], split: Split, said: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(ValueError, match=said):
        Coco(write(listed), "train").refuse_unlearnable(split)


def test_annotations_beside_the_images(tmp_path: Path, picture: Picture) -> None:
    for split in ("train", "valid"):
        for name in ("a", "b"):
            picture(f"{split}/{name}.png")
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content([annotation([1, 2, 30, 20])])))
    assert len(Coco(tmp_path, "train")) == len(Coco(tmp_path, "val")) == 2
    assert Coco(tmp_path, "val").sample(1).id == "a.png"


def test_a_missing_split_is_said_in_one_sentence(write: Callable[..., Path]) -> None:
    root = write([])
    (root / "annotations/instances_train2017.json").unlink()
    sentence = r"no annotations for the train split: annotations/instances_train\*\.json or train/"
    with pytest.raises(NoSplitError, match=sentence):
        Coco(root, "train")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "no list called 'images'"),
        ('{"images": [], "annotations": {}}', "no list called 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', r"images\[0\] needs the keys id, file_name"),
        ('{"images": [], "annotations": [3], "categories": []}', r"annotations\[0\] needs the keys"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": [], "name": "a"}]}',
            r"categories\[0\]: \[\] is not an id",
        ),
        ('{"images": [], "annotations": [], "categories": []', "is not valid JSON"),
        ("[" * 10**6, "is not valid JSON"),
        ('{"images": ' + "[" * 10**6, "is not valid JSON"),
        ('\udcff{"images"', "is not valid JSON"),
    ],
)
def test_json_that_is_not_cocos_is_said_in_one_sentence(text: str, sentence: str, write: Callable[..., Path]) -> None:
    root = write([])
    (root / "annotations/instances_train2017.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=sentence) as caught:
        Coco(root, "train")
    assert "instances_train2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_other_encodings_are_read(encoding: str, write: Callable[..., Path]) -> None:
    root = write([annotation([1, 2, 30, 20])])
    path = root / "annotations/instances_train2017.json"
    path.write_bytes(path.read_text().replace('"cat"', '"k\u00e4tzchen"').encode(encoding))
    assert Coco(root, "train").classes[0] == "kätzchen"


def test_a_box_that_is_no_box_is_named(write: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"annotations\[0\] has the box \[1, 2, 3\]"):
        Coco(write([annotation([0, 0, 1, 1]) | {"bbox": [1, 2, 3]}]), "train")


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [10, 10], "counts": [0, 100]},
        {"size": [40, 48], "counts": [0, 100]},
        {"size": [40, 48], "counts": "zzzz"},
        {"size": [40, 48]},
        {"counts": "04"},
        [["a", "b", "c", "d", "e", "f"]],
        [3, 4],
    ],
)
def test_a_mask_that_cannot_be_decoded_is_named(segmentation: Any, write: Callable[..., Path]) -> None:
    dataset = Coco(write([annotation([1, 1, 9, 9], id=77, segmentation=segmentation)]), "train")
    with pytest.raises(ValueError, match="annotation 77 of image 1") as caught:
        dataset.sample(0)
    assert "\n" not in str(caught.value)


def test_an_image_of_another_size_is_a_bad_image(write: Callable[..., Path], picture: Picture) -> None:
    root = write([])
    picture("train2017/b.png", 20, 30)
    with pytest.raises(BadImage, match=r"it is 30 x 20, but .* says 48 x 40"):
        Coco(root, "train").sample(0)


def test_images_are_turned_as_their_exif_says(write: Callable[..., Path], tmp_path: Path) -> None:
    root, exif = write([], images=[{"id": 1, "file_name": "turned.jpg", "height": 40, "width": 20}]), Image.Exif()
    exif[0x0112] = 6  # a quarter turn, as telephones write it
    Image.new("RGB", (40, 20)).save(tmp_path / "train2017/turned.jpg", exif=exif)
    assert Coco(root, "train").sample(0).original_size == (40, 20)


def test_of_several_years_the_one_with_images_is_taken(write: Callable[..., Path]) -> None:
    root = write([])
    text = (root / "annotations/instances_train2017.json").read_text()
    for year in ("2014", "2099"):
        (root / f"annotations/instances_train{year}.json").write_text(text)
    (root / "train2014").mkdir()
    assert Coco(root, "train").place.images == root / "train2017"
