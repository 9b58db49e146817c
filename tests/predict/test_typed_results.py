"""What a result becomes: pictures, JSON, COCO's rows, the objects of supervision."""

import json
import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predict.networks import CLASSES, TASKS, predictor

from fourstage.data.class_names import COCO, COCO_IDS
from fourstage.data.objects.rle import decode_mask
from fourstage.predict.images import from_array
from fourstage.predict.masks import ObjectMasks
from fourstage.predict.results import LabelMapResult, ObjectResult
from fourstage.tasks.detection.masks import SmallMasks

PHOTO = np.random.default_rng(0).integers(0, 255, (70, 110, 3), dtype=np.uint8)


def objects(**changes: Any) -> ObjectResult:
    """Three objects of known places; the last one is below the score that pictures show."""
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [50.0, 5.0, 70.0, 15.0], [0.0, 0.0, 9.0, 9.0]])
    small = SmallMasks(torch.ones(3, 4, 4), boxes, (70, 110))
    values: dict[str, Any] = {
        "source": from_array(PHOTO, 1),
        "size": (70, 110),
        "class_names": CLASSES,
        "labels": np.array([2, 0, 1]),
        "scores": np.array([0.9, 0.5, 0.1], np.float32),
        "boxes": boxes.numpy(),
        "object_masks": ObjectMasks(small, ((0,), (1,), (2,))),
    }
    return ObjectResult(**{**values, **changes})


def label_map() -> LabelMapResult:
    map_HW = np.full((70, 110), 2, np.uint8)
    map_HW[:20, :30] = 0
    return LabelMapResult(
        from_array(PHOTO, 1), (70, 110), CLASSES, np.array([2, 0]), map_HW, np.array([7100, 600]) / 7700
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_result_becomes_json_and_a_picture(task: str, tmp_path: Path) -> None:
    result: Any = predictor(task)(PHOTO)
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    for name in ("out.png", "new/out.JPG", "out.webp"):
        with Image.open(result.save(tmp_path / name)) as picture:
            assert min(picture.size) >= 70
    with Image.open(BytesIO(result._repr_png_())) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(result.picture().convert("RGB")))
    assert result.frame_picture().shape[2] == 3
    with pytest.raises(ValueError, match=r"'out\.pdf'; end its name in \.png, \.jpg"):
        result.save(tmp_path / "out.pdf")


def test_objects_by_name() -> None:
    result = objects()
    assert result.names == ["owl", "cat", "dog"]
    assert result.text == "owl 90%   cat 50%"
    assert result.masks is not None
    assert result.masks.shape == (3, 70, 110)
    assert result.masks[0, 30, 20]
    assert not result.masks[0, 10, 20]
    assert result.to_dict()["objects"][1]["box"] == [50.0, 5.0, 70.0, 15.0]
    assert objects(object_masks=None).masks is None
    assert "mask" not in objects(object_masks=None).to_dict()["objects"][0]


def test_pictures_show_objects_from_a_score_on() -> None:
    drawn = [np.asarray(objects(shown_score=score).picture()) for score in (0.3, 0.05, 0.95)]
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    kept = objects(
        labels=np.array([2, 0]),
        scores=np.array([0.9, 0.5]),
        boxes=objects().boxes[:2],
        object_masks=None,
        shown_score=0,
    )
    np.testing.assert_array_equal(np.asarray(objects(object_masks=None).picture()), np.asarray(kept.picture()))


def test_rows_are_what_coco_tools_read(tmp_path: Path) -> None:
    from faster_coco_eval import COCO as TRUTH

    rows = objects().to_coco(7)
    assert [row["category_id"] for row in rows] == [3, 1, 2]
    assert rows[0]["bbox"] == [10.0, 20.0, 20.0, 40.0]
    content: dict[str, Any] = {"images": [{"id": 7, "height": 70, "width": 110}], "annotations": []}
    truth = TRUTH({**content, "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]})
    (tmp_path / "results.json").write_text(json.dumps(rows))
    assert len(truth.loadRes(str(tmp_path / "results.json")).anns) == 3
    assert [row["category_id"] for row in objects().to_coco(category_ids=["a", None, "c"])] == ["c", "a"]
    assert [row["category_id"] for row in objects(training_ids=(7, 8, 40)).to_coco()] == [40, 7, 8]
    assert objects(class_names=COCO, labels=np.array([79, 0, 1])).to_coco()[0]["category_id"] == COCO_IDS[79]
    with pytest.raises(ValueError, match="got 2 category ids for 3 classes"):
        objects().to_coco(category_ids=[1, 2])


def test_a_label_map_becomes_areas() -> None:
    result = label_map()
    rows = result.to_coco("a")
    assert [(row["image_id"], row["category_id"]) for row in rows] == [("a", 3), ("a", 1)]
    np.testing.assert_array_equal(decode_mask(rows[1]["segmentation"], (70, 110)), result.label_map == 0)
    assert result.text == "owl 92.2%   cat 7.8%"


def test_a_label_map_is_saved_with_its_labels(tmp_path: Path) -> None:
    with Image.open(label_map().save_label_map(tmp_path / "map.png")) as picture:
        np.testing.assert_array_equal(np.asarray(picture), label_map().label_map)
    with pytest.raises(ValueError, match=r"end its name in \.png"):
        label_map().save_label_map(tmp_path / "map.jpg")


def test_a_classifier_has_no_rows_of_coco() -> None:
    result: Any = predictor("classification")(PHOTO)
    with pytest.raises(ValueError, match="a classifier has neither; use to_dict"):
        result.to_coco()


def test_a_notebook_shows_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    shell, display = ModuleType("IPython"), ModuleType("IPython.display")
    setattr(shell, "get_ipython", lambda: "a notebook")  # noqa: B010
    setattr(display, "display", shown.append)  # noqa: B010
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    result = objects()
    result.show()
    assert shown == [result]


def test_masks_of_several_pieces_are_their_union() -> None:
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [25.0, 20.0, 50.0, 60.0], [60.0, 0.0, 80.0, 30.0]])
    pieces = SmallMasks(torch.ones(3, 4, 4), boxes, (70, 110))
    masks = ObjectMasks(pieces, ((0, 1), (2,)))
    alone = pieces.full_size().numpy()
    np.testing.assert_array_equal(masks.full_size(), np.stack([alone[0] | alone[1], alone[2]]))


# --------------------------------------------------------------------------------------------------------- supervision


def test_without_supervision_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ValueError, match=r"type: .*pip.* install .*\[supervision\]"):
        objects().to_supervision()


@pytest.mark.filterwarnings("default")  # of a library that is not ours
def test_objects_as_detections_of_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    result = objects()
    detections = result.to_supervision()
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_allclose(detections.xyxy, result.boxes)
    np.testing.assert_array_equal(detections.mask, result.masks)
    assert detections.data["class_name"].tolist() == result.names
    assert len(detections[detections.confidence > 0.3]) == 2
    empty = objects(
        labels=np.zeros(0, int), scores=np.zeros(0), boxes=np.zeros((0, 4)), object_masks=None
    ).to_supervision()
    assert len(empty) == 0
    drawn = supervision.BoxAnnotator().annotate(PHOTO.copy(), detections)
    assert not np.array_equal(drawn, PHOTO)


@pytest.mark.filterwarnings("default")
def test_other_results_in_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    areas = label_map().to_supervision()
    assert areas.xyxy.tolist() == [[0, 0, 110, 70], [0, 0, 30, 20]]
    assert areas.class_id.tolist() == [2, 0]
    classes: Any = predictor("classification")(PHOTO)
    assert isinstance(classes.to_supervision(), supervision.Classifications)
    assert classes.to_supervision().get_top_k(1)[0][0] == classes.labels[0]
