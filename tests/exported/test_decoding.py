"""The numpy decoders against those of the detectors."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.exported.decoding import decode, grouped_nms
from fourstage.exported.description import Suppression
from fourstage.exported.small_masks import SmallMasks
from fourstage.tasks.detection import boxes as boxes_module
from fourstage.tasks.detection import masks as masks_module
from fourstage.tasks.detection.box_head import DetectionLimits, select
from fourstage.tasks.detection.boxes import BoxCoder


def some_boxes(count: int, rng: np.random.Generator, side: float = 60.0) -> np.ndarray:
    corner_N2 = rng.uniform(0, side, (count, 2))
    return np.concatenate([corner_N2, corner_N2 + rng.uniform(0, 30, (count, 2))], axis=1).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 120),
    groups=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    iou=st.sampled_from([0.1, 0.5, 0.6, 1.0]),
    equal=st.booleans(),
)
def test_suppression_is_that_of_the_detectors(count: int, groups: int, seed: int, iou: float, equal: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes_N4, groups_N = some_boxes(count, rng), rng.integers(0, groups, count)
    boxes_N4[: count // 8, 2:] = boxes_N4[: count // 8, :2]  # without area
    scores_N = np.round(rng.random(count), 1 if equal else 7).astype(np.float32)
    boxes, scores, groups_ = (torch.from_numpy(x) for x in (boxes_N4, scores_N, groups_N))
    want = boxes_module.grouped_nms(boxes, scores, groups_, iou)
    np.testing.assert_array_equal(grouped_nms(boxes_N4, scores_N, groups_N, iou), want.numpy())


@pytest.mark.parametrize("classes_share_a_box", [False, True])
def test_boxes_of_each_class_are_decoded_as_in_two_stage_detectors(classes_share_a_box: bool) -> None:
    rng = np.random.default_rng(0)
    boxes_R4, logits_RC = some_boxes(80, rng), rng.normal(size=(80, 5)).astype(np.float32)
    of_class = 1 if classes_share_a_box else 4
    deltas_RK4 = rng.normal(size=(80, of_class, 4), scale=0.5).astype(np.float32)
    coder, limits = BoxCoder((0.1, 0.1, 0.2, 0.2)), DetectionLimits(per_image=30)

    def place(boxes_N4: torch.Tensor) -> torch.Tensor:
        return boxes_N4 * boxes_N4.new_tensor([1 / 0.5, 1 / 0.25] * 2)

    boxes, logits, deltas = (torch.from_numpy(x) for x in (boxes_R4, logits_RC, deltas_RK4))
    want = select(boxes, logits, deltas, coder, (70, 75), limits, place)
    outputs = {
        "boxes": coder.decode(boxes[:, None], deltas).numpy(),
        "scores": logits.softmax(dim=1)[:, :-1].numpy(),
    }
    got = decode(outputs, Suppression(threshold=0.05, iou=0.5, most=30), (70, 75), (280, 150))
    np.testing.assert_array_equal(got.labels_N, want.labels_N)
    np.testing.assert_array_equal(got.scores_N, want.scores_N)
    np.testing.assert_allclose(got.boxes_N4, want.boxes_N4, rtol=1e-6)
    assert len(got.labels_N) == 30


def test_factors_are_multiplied_after_the_threshold_and_rows_without_a_score_are_no_detections() -> None:
    outputs = {
        "boxes": np.array([[0, 0, 9, 9], [0, 0, 50, 9], [0, 0, 0, 0]], np.float32),
        "scores": np.array([[0.9, 0.0], [0.3, 0.8], [0, 0]], np.float32),
        "factors": np.array([0.1, 1.0, 1.0], np.float32),
    }
    got = decode(outputs, Suppression(threshold=0.2), (20, 20), (40, 40))
    np.testing.assert_allclose(got.scores_N, [0.8, 0.3, 0.09])
    assert got.labels_N.tolist() == [1, 0, 0]
    np.testing.assert_allclose(got.boxes_N4, [[0, 0, 40, 18], [0, 0, 40, 18], [0, 0, 18, 18]])


def test_suppression_in_the_input_and_boxes_without_area() -> None:
    outputs = {
        "boxes": np.array([[0, 0, 10, 10], [0, 0, 10, 9], [5, 5, 5, 9]], np.float16),
        "scores": np.array([0.5, 0.9, 0.7], np.float16),
        "labels": np.array([0, 0, 0], np.int32),
    }
    for where in ("image", "input"):
        rule = Suppression(iou=0.5, where=where, drop_empty=True)
        got = decode(outputs, rule, (20, 20), (40, 80))
        np.testing.assert_allclose(got.boxes_N4, [[0, 0, 40, 18]])
        assert got.labels_N.dtype == np.int64
        assert got.boxes_N4.dtype == np.float32


def test_boxes_may_stay_outside_of_the_image() -> None:
    outputs = {
        "boxes": np.array([[-4, 2, 30, 10]], np.float32),
        "scores": np.array([0.5], np.float32),
        "labels": np.array([0]),
    }
    for clip, wanted in ((True, [0, 4, 40, 20]), (False, [-8, 4, 60, 20])):
        got = decode(outputs, Suppression(clip=clip), (20, 20), (40, 40))
        np.testing.assert_allclose(got.boxes_N4, [wanted])


BOXES = [
    [10.0, 20.0, 30.5, 60.2],
    [-5.0, -5.0, 200.0, 200.0],
    [20.0, 20.0, 20.0, 20.0],
    [300.0, 10.0, 400.0, 50.0],
    [0.2, 0.3, 0.4, 0.5],
    [float("nan"), 0.0, 5.0, 5.0],
]


def test_masks_are_pasted_as_by_the_detectors() -> None:
    rng = np.random.default_rng(0)
    boxes_N4 = np.concatenate([np.array(BOXES, np.float32), some_boxes(40, rng)])
    probabilities_NMM = rng.random((len(boxes_N4), 7, 7), dtype=np.float32)
    want = masks_module.SmallMasks(torch.from_numpy(probabilities_NMM), torch.from_numpy(boxes_N4), (70, 110), 0.4)
    got = SmallMasks(probabilities_NMM, boxes_N4, (70, 110), 0.4)
    np.testing.assert_array_equal(got.full_size(), want.full_size().numpy())
    assert got.run_lengths() == want.run_lengths()
    assert got.full_size()[1].any()
    assert not got.full_size()[3].any()


def test_masks_are_chosen_moved_and_joined_alike() -> None:
    rng = np.random.default_rng(1)
    boxes_N4, cells = some_boxes(5, rng), rng.random((5, 4, 4), dtype=np.float32)
    offset_4 = np.array([3, 7, 3, 7], np.float32)

    def changed(masks: Any) -> np.ndarray:
        two = masks.chosen([3, 1]).moved(offset_4)
        return np.asarray(two.joined([two, masks.chosen([0])], (120, 130)).full_size())

    torch_masks = masks_module.SmallMasks(torch.from_numpy(cells), torch.from_numpy(boxes_N4), (90, 90))
    got = changed(SmallMasks(cells, boxes_N4, (90, 90)))
    np.testing.assert_array_equal(got, changed(torch_masks))
    assert got.shape == (3, 120, 130)
