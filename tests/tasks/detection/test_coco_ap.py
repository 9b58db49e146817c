"""Average precision: equal to the recorded numbers and to pycocotools'."""

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.objects.coco import Coco
from fourstage.data.objects.rle import encode_mask
from fourstage.tasks.detection.coco_ap import LIMITS, MMDET_LIMITS, UNKNOWN, measure, score, tables

FOLDER = Path(__file__).parents[2] / "golden" / "pipelines"
TRUTH: dict[str, Any] = json.loads((FOLDER / "cocoeval_gt.json").read_text())
EXPECTED: dict[str, Any] = json.loads((FOLDER / "cocoeval_expected.json").read_text())
NAMES = ("map", "map50", "map75", "map_s", "map_m", "map_l")
TWELVE = (*NAMES, "recall{}", "recall{}", "recall{}", "recall_s", "recall_m", "recall_l")
CLASSES = ("dog", "car", "person")  # in the order of the json


def recorded_masks(boxes_N4: np.ndarray, kinds: list[int], height: int, width: int) -> list[str]:
    y, x = np.mgrid[:height, :width] + 0.5
    masks = []
    for (x1, y1, x2, y2), kind in zip(boxes_N4.astype(np.float64), kinds, strict=True):
        if kind:
            inside = ((x - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2 + ((y - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2 <= 1
        else:
            inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        masks.append(encode_mask(inside)["counts"])
    return masks


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The recorded predictions with their truth, as records."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    wanted = [category for category in TRUTH["categories"] if category["name"] in CLASSES]
    (root / "annotations/instances_val.json").write_text(json.dumps(TRUTH | {"categories": wanted}))
    dataset = Coco(root, "val")
    assert dataset.classes == CLASSES
    records: dict[str, dict[str, Any]] = {}
    for index, id in enumerate(dataset.image_ids):
        [found] = [p for p in EXPECTED["predictions"] if p["img_id"] == id]
        boxes_N4 = np.array(found["bboxes_xyxy"], dtype=np.float32).reshape(-1, 4)
        records[dataset.id(index)] = {
            "boxes": boxes_N4.tolist(),
            "labels": found["labels"],
            "scores": np.array(found["scores"], dtype=np.float32).tolist(),
            "masks": recorded_masks(boxes_N4, found["kind"], *dataset.size(index)),
            "truth": dataset.reference(index),
        }
    return records


@pytest.mark.parametrize(
    ("limits", "name"), [(MMDET_LIMITS, "maxDets_100_300_1000"), (LIMITS, "maxDets_1_10_100")], ids=["mmdet", "coco"]
)
def test_the_recorded_numbers(limits: tuple[int, ...], name: str, recorded: dict[str, Any]) -> None:
    got = score(recorded, CLASSES, limits=limits)
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        names = [f"{kind}_{metric}" for metric in TWELVE]
        for i, limit in enumerate(limits, 6):
            names[i] = names[i].format(limit)
        for metric, value in zip(names, EXPECTED["stats12"][theirs][name], strict=True):
            assert got[metric] == pytest.approx(100 * value if value > -1 else UNKNOWN, abs=1e-9), metric
    assert len(got) == 24


def test_what_mmdetection_printed(recorded: dict[str, Any]) -> None:
    got = score(recorded, CLASSES, limits=MMDET_LIMITS)
    for kind, theirs in (("box", "bbox"), ("mask", "segm")):
        for ours, name in zip(NAMES, ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"), strict=True):
            value = got[f"{kind}_{ours}"]
            rounded = round(value / 100, 3) if value != UNKNOWN else UNKNOWN
            assert rounded == EXPECTED["coco_metric_result"][f"coco/{theirs}_{name}"]


def test_any_order_gives_the_same_bits(recorded: dict[str, Any]) -> None:
    shuffled = list(recorded.items())
    random.Random(1).shuffle(shuffled)
    assert score(dict(shuffled), CLASSES) == score(recorded, CLASSES)
    through_json = json.loads(json.dumps(recorded))
    assert score(through_json, CLASSES) == score(recorded, CLASSES)
    assert through_json == json.loads(json.dumps(recorded))  # nothing is written on the records


def made_up(images: int, classes: int, seed: int, *, masks: bool) -> dict[str, dict[str, Any]]:
    """Objects on whole pixels, and predictions that are near some of them, with many equal scores."""
    rng = np.random.default_rng(seed)

    def boxes(count: int, near: np.ndarray | None = None) -> np.ndarray:
        if near is None or not len(near):
            corner_N2 = rng.integers(0, 150, (count, 2))
            return np.concatenate([corner_N2, corner_N2 + rng.integers(1, 110, (count, 2))], axis=1).clip(0, 200)
        moved = near[rng.integers(0, len(near), count)] + rng.integers(-4, 5, (count, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        return moved.clip(0, 200)

    def encoded(of: np.ndarray) -> list[str]:
        canvas, out = np.zeros((200, 200), dtype=bool), []
        for x1, y1, x2, y2 in of:
            mask = canvas.copy()
            mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.9
            out.append(encode_mask(mask)["counts"])
        return out

    records: dict[str, dict[str, Any]] = {}
    for i in range(images):
        true = boxes(int(rng.integers(0, 7)))
        found = np.concatenate([boxes(int(rng.integers(0, 12)), true), boxes(int(rng.integers(0, 4)))])
        areas = ((true[:, 2] - true[:, 0]) * (true[:, 3] - true[:, 1])).tolist()
        truth = {
            "image_id": i * 3, "size": [200, 200], "boxes": true.tolist(), "areas": areas,
            "labels": rng.integers(0, classes, len(true)).tolist(), "crowd": (rng.random(len(true)) < 0.15).tolist(),
        }  # fmt: skip
        records[f"{i}.jpg"] = {
            "boxes": found.tolist(), "labels": rng.integers(0, classes, len(found)).tolist(),
            "scores": (rng.integers(0, 8, len(found)) / 8).tolist(), "truth": truth,
        }  # fmt: skip
        if masks:
            truth["masks"], records[f"{i}.jpg"]["masks"] = encoded(true), encoded(found)
    return records


def by_pycocotools(records: dict[str, dict[str, Any]], classes: int, kind: str, limits: tuple[int, ...]) -> np.ndarray:
    """(12,) in units of 1."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for record in records.values():
        truth = record["truth"]
        for part, into in ((truth, objects), (record, found)):
            for i, (x1, y1, x2, y2) in enumerate(part["boxes"]):
                one = {"image_id": truth["image_id"], "category_id": part["labels"][i]}
                if kind == "mask":
                    one["segmentation"] = {"size": [200, 200], "counts": part["masks"][i]}
                if kind == "box" or part is truth:
                    one["bbox"] = [x1, y1, x2 - x1, y2 - y1]
                if part is truth:
                    one |= {"id": len(objects) + 1, "area": truth["areas"][i], "iscrowd": int(truth["crowd"][i])}
                else:
                    one["score"] = record["scores"][i]
                into.append(one)
    with contextlib.redirect_stdout(io.StringIO()):
        truth_set = coco.COCO()
        images = [{"id": r["truth"]["image_id"], "height": 200, "width": 200} for r in records.values()]
        truth_set.dataset = {
            "images": images, "annotations": objects, "categories": [{"id": k} for k in range(classes)], "info": {},
        }  # fmt: skip
        truth_set.createIndex()
        one = evaluation.COCOeval(truth_set, truth_set.loadRes(found), "bbox" if kind == "box" else "segm")
        one.params.maxDets = list(limits)
        one.evaluate()
        one.accumulate()
        one.summarize()
    return np.array(one.stats)


@pytest.mark.parametrize("kind", ["box", "mask"])
@given(seed=st.integers(0, 2**31), limits=st.sampled_from([LIMITS, MMDET_LIMITS, (1, 2, 100)]))
@settings(max_examples=15, deadline=None)
def test_equal_to_pycocotools(kind: str, seed: int, limits: tuple[int, ...]) -> None:
    records = made_up(8, 3, seed, masks=kind == "mask")
    if not any(record["boxes"] for record in records.values()):
        return
    theirs = by_pycocotools(records, 3, kind, limits)
    got = score(records, ("a", "b", "c"), limits=limits)
    names = [f"{kind}_{name}" for name in TWELVE]
    for i, limit in enumerate(limits, 6):
        names[i] = names[i].format(limit)
    for name, value in zip(names, theirs, strict=True):
        assert got[name] == pytest.approx(100 * value if value > -1 else UNKNOWN, abs=1e-10), name


def test_exact_detections_score_100_and_none_score_0() -> None:
    records = made_up(6, 2, 3, masks=True)
    for record in records.values():
        truth = record["truth"]
        record |= {key: truth[key] for key in ("boxes", "labels", "masks")}
        record["scores"] = [0.5] * len(truth["boxes"])
    got = score(records, ("a", "b"))
    assert got["box_map"] == got["mask_map"] == got["box_map50"] == pytest.approx(100)
    for record in records.values():
        record |= {"boxes": [], "labels": [], "masks": [], "scores": []}
    got = score(records, ("a", "b"))
    assert got["box_map"] == got["mask_map"] == got["mask_recall100"] == 0


def test_objects_without_a_mask_neither_count_nor_make_mistakes_in_the_score_of_masks() -> None:
    records = made_up(6, 2, 3, masks=True)
    for record in records.values():
        truth = record["truth"]
        record |= {key: list(truth[key]) for key in ("boxes", "labels", "masks")}
        record["scores"] = [0.5] * len(truth["boxes"])
    full = score(records, ("a", "b"))
    counts = [row["count"] for row in tables(records, ("a", "b"))["per_class"]]
    record = next(record for record in records.values() if record["truth"]["crowd"].count(False) > 1)
    truth = record["truth"]
    lost = truth["crowd"].index(False)
    truth["masked"] = [i != lost for i in range(len(truth["boxes"]))]
    truth["masks"][lost] = encode_mask(np.zeros(truth["size"], dtype=bool))["counts"]
    got = score(records, ("a", "b"))
    assert got["box_map"] == full["box_map"] == pytest.approx(100)
    assert got["mask_map"] == pytest.approx(100)  # the mask that is predicted there is inside the box
    assert [row["count"] for row in tables(records, ("a", "b"))["per_class"]] == counts
    del record["boxes"][lost], record["labels"][lost], record["masks"][lost], record["scores"][lost]
    got = score(records, ("a", "b"))
    assert got["mask_map"] == pytest.approx(100)
    assert got["box_map"] < 100


def test_a_truth_without_objects_is_unknown() -> None:
    empty = {"image_id": 1, "size": [10, 10], "boxes": [], "labels": [], "crowd": [], "areas": []}
    record = {"boxes": [[0.0, 0, 5, 5]], "labels": [0], "scores": [0.5], "truth": empty}
    got = score({"a": record}, ("a",))
    assert set(got.values()) == {UNKNOWN}
    assert tables({"a": record}, ("a",))["per_class"][0] == {"name": "a", "count": 0} | {
        f"box_{key}": None for key in (*NAMES, "recall")
    }


def test_the_table_of_classes_averages_to_the_metrics(recorded: dict[str, Any]) -> None:
    found = tables(recorded, CLASSES)
    json.dumps(found)
    assert [row["name"] for row in found["per_class"]] == list(CLASSES)
    assert sum(row["count"] for row in found["per_class"]) == sum(
        not a["iscrowd"] for a in TRUTH["annotations"] if a["category_id"] in (18, 3, 1)
    )
    got = score(recorded, CLASSES)
    for name in ("box_map", "mask_map50"):
        values = [row[name] for row in found["per_class"] if row[name] is not None]
        assert np.mean(values) == pytest.approx(got[name])
    curve = found["curves"]["box"]
    assert len(curve["recall"]) == len(curve["mean"]["0.50"]) == 101
    assert np.mean(curve["mean"]["0.50"]) * 100 == pytest.approx(got["box_map50"], abs=0.01)
    assert (np.diff(curve["per_class"]["car"]) <= 0).all()  # the envelope falls


def test_boxes_alone_where_masks_are_missing(recorded: dict[str, Any]) -> None:
    boxes = {id: {key: value for key, value in record.items() if key != "masks"} for id, record in recorded.items()}
    assert set(measure(boxes, CLASSES)) == {"box"}
    assert score(boxes, CLASSES)["box_map"] == score(recorded, CLASSES)["box_map"]


@pytest.mark.parametrize("limits", [(), (0, 10), (10, 1)])
def test_impossible_limits_raise(limits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="limits on detections must ascend"):
        score({}, ("a",), limits=limits)


def test_records_without_ground_truth_raise() -> None:
    with pytest.raises(ValueError, match=r"the image a\.jpg has no ground truth"):
        score({"a.jpg": {"boxes": [], "labels": [], "scores": []}}, ("a",))
