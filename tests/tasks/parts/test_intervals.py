"""Intervals against values worked out by hand, and resamples against the score of the same images."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from fourstage.tasks.detection import coco_ap
from fourstage.tasks.parts.intervals import FEWEST, RESAMPLES, affordable_resamples, bootstrap, wilson
from fourstage.tasks.segmentation import miou


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        (8, 10, 49.02, 94.33),  # (0.8 + 3.8415 / 20) / 1.38415 = 0.7168; 1.96 / 1.38415 * sqrt(0.016 + 0.0096) = 0.2266
        (10, 10, 72.25, 100.0),  # 1 / (1 + 3.8415 / 10) = 0.7225
        (0, 10, 0.0, 27.75),
        (12, 12, 75.75, 100.0),
    ],
)
def test_wilson_by_hand(right: int, images: int, low: float, high: float) -> None:
    assert wilson(right, images) == pytest.approx((low, high), abs=0.01)


def test_wilson_is_that_of_scipy() -> None:
    for images in (1, 7, 360, 50_000):
        for right in {0, 1, images // 3, images - 1, images}:
            known = binomtest(right, images).proportion_ci(method="wilson")
            assert wilson(right, images) == pytest.approx((100 * known.low, 100 * known.high), abs=1e-9)


@pytest.mark.parametrize(("right", "images"), [(1, 0), (-1, 5), (6, 5)])
def test_a_share_of_nothing_has_no_interval(right: int, images: int) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        wilson(right, images)


def test_the_bootstrap_of_two_images_reaches_from_one_to_the_other() -> None:
    """A quarter of the resamples holds the first image alone, and a quarter the second: both are in the 95 %."""
    values_N = np.array([10.0, 70.0])
    found = bootstrap(2, lambda chosen_N: {"mean": float(values_N[chosen_N].mean()), "none": math.nan})
    assert found == {"mean": (10.0, 70.0)}


def test_the_bootstrap_has_the_width_of_the_standard_error() -> None:
    values_N = np.random.default_rng(1).normal(50, 10, 400)
    [(low, high)] = bootstrap(400, lambda n: {"mean": float(values_N[n].mean())}, resamples=2000).values()
    assert high - low == pytest.approx(2 * 1.96 * values_N.std() / 20, rel=0.06)
    assert low < values_N.mean() < high


def test_the_same_images_give_the_same_interval_which_includes_their_metric() -> None:
    def measure(chosen_N: np.ndarray) -> dict[str, float]:
        return {"different": float(len(np.unique(chosen_N)))}  # that of the images is larger than that of any resample

    first, again = bootstrap(30, measure), bootstrap(30, measure)
    assert first == again
    assert first["different"][1] == 30


def test_large_data_has_fewer_resamples_and_larger_data_none() -> None:
    assert affordable_resamples(1000, 10**8) == RESAMPLES
    assert affordable_resamples(900_000, 10**8) == 111  # COCO: 5,000 images, 80 classes, 100 detections an image
    assert affordable_resamples(2_000_000, 10**8) == FEWEST
    assert affordable_resamples(2_000_001, 10**8) == 0


def detection_records(images: int) -> dict[str, Any]:
    """Images with more objects each, most of which are detected, some as another class, and a mask each."""
    from fourstage.data.objects.rle import encode_mask

    draw = np.random.default_rng(0)
    records: dict[str, Any] = {}
    for image in range(images):
        count = 1 + image % 4
        corner = draw.integers(0, 40, (count, 2))
        boxes = np.concatenate([corner, corner + draw.integers(10, 40, (count, 2))], axis=1)
        masks = []
        for x1, y1, x2, y2 in boxes.tolist():
            mask_HW = np.zeros((90, 120), bool)
            mask_HW[y1:y2, x1:x2] = True
            masks.append(encode_mask(mask_HW)["counts"])
        labels = draw.integers(0, 3, count)
        truth = {
            "boxes": boxes.tolist(), "labels": labels.tolist(), "crowd": [False] * count, "masks": masks,
            "areas": ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist(), "size": [90, 120],
        }  # fmt: skip
        guess = np.where(draw.random(count) < 0.3, (labels + 1) % 3, labels)
        moved = (boxes + draw.integers(-3, 4, boxes.shape)).tolist()
        scores = draw.random(count).round(2).tolist()
        records[f"{image:03}"] = {
            "boxes": moved, "labels": guess.tolist(), "scores": scores, "masks": masks, "truth": truth
        }  # fmt: skip
    return records


@pytest.mark.parametrize("limits", [coco_ap.LIMITS, coco_ap.MMDET_LIMITS])
def test_resampled_ap_is_the_score_of_the_resampled_images(limits: tuple[int, ...]) -> None:
    records, classes = detection_records(8), ("a", "b", "c")
    ordered = list(records.values())
    for iou_type in ("box", "mask"):
        measure = coco_ap.resampled_map(ordered, classes, limits, iou_type)
        for chosen in ([0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 3, 3, 3, 6, 7], [5] * 8):
            again = {f"{place:03}": ordered[i] for place, i in enumerate(chosen)}
            expected = coco_ap.score(again, classes, limits=limits)[f"{iou_type}_map"]
            assert measure(np.array(chosen)) == {f"{iou_type}_map": pytest.approx(expected, abs=1e-9)}
            single = np.mean([coco_ap.score({"0": ordered[i]}, classes, limits=limits)["box_map"] for i in chosen])
        assert single == pytest.approx(coco_ap.score({"0": ordered[5]}, classes, limits=limits)["box_map"])


def test_intervals_of_ap_include_the_score_and_are_wide_for_few_images() -> None:
    widths = []
    for images in (8, 80):
        records = detection_records(images)
        score, found = coco_ap.score(records, "abc"), coco_ap.intervals(records, "abc")
        assert found.of.keys() == {"box_map", "mask_map"}
        assert found.method == "bootstrap over images, 200 resamples"
        for name, (low, high) in found.of.items():
            assert 0 <= low <= score[name] <= high <= 100
        widths.append(found.of["box_map"][1] - found.of["box_map"][0])
    assert 1.5 * widths[1] < widths[0]


def test_data_without_objects_and_data_that_is_too_large_have_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    records = detection_records(3)
    for record in records.values():
        record["truth"] = {key: [] for key in record["truth"]} | {"size": [90, 120]}
    assert coco_ap.intervals(records, "abc").of == {}
    monkeypatch.setattr(coco_ap, "WORK", 100)
    assert coco_ap.intervals(detection_records(3), "abc").of == {}
    monkeypatch.setattr(miou, "WORK", 100)
    assert miou.intervals({"ss": [{"pairs": [0], "pixels": [9]}]}, 2).of == {}


def test_intervals_of_miou_by_hand() -> None:
    """Two classes. Image A: all of its 100 pixels right. Image B: 900 pixels of class 0, all taken for class 1."""
    a, b = {"pairs": [0, 3], "pixels": [50, 50]}, {"pairs": [1], "pixels": [900]}
    found = miou.intervals({"ss": [a, b]}, 2)
    # A alone: 100 %. B alone: 0 %. Both: class 0 has 50 of 950, class 1 has 50 of 950, not the mean of 100 and 0.
    assert miou.means(miou.summed([a, b], 2))["miou"] == pytest.approx(100 * 50 / 950)
    assert found.of["miou_ss"] == (0.0, 100.0)
    assert found.of["aacc_ss"] == (0.0, 100.0)


def test_marginals_give_the_means_of_the_matrix() -> None:
    draw = np.random.default_rng(2)
    counts = []
    for _ in range(5):
        pairs = np.flatnonzero(draw.random(36) < 0.4)
        counts.append({"pairs": pairs.tolist(), "pixels": draw.integers(1, 99, len(pairs)).tolist()})
    for chosen in ([0, 1, 2, 3, 4], [2, 2, 2, 0, 1]):
        marginals_3C = sum(miou._marginals(counts[i], 6) for i in chosen)
        assert isinstance(marginals_3C, np.ndarray)
        expected = miou.means(miou.summed([counts[i] for i in chosen], 6))
        assert miou._means_of_marginals(marginals_3C) == pytest.approx(expected, nan_ok=True)
    both = miou.intervals({"ss": counts, "ms_flip": counts}, 6).of
    assert both["miou_ss"] == both["miou_ms_flip"]
    assert len(both) == 6
