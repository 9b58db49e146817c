"""A file that deviates is refused, and what cannot be exported gets one sentence."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from export.written import built, export
from tasks.detection.scenes import small
from torch import nn

from fourstage.export import onnx_file, proof
from fourstage.export.graphs.build import graph_of
from fourstage.export.proof import FLOAT32, HALF, Images, Proof, Row, noise_images
from fourstage.export.trace import first_sides, trace
from fourstage.export.write import check_format, check_out
from fourstage.exported import onnx_runtime
from fourstage.exported.description import Suppression
from fourstage.tasks.detection.detector import Detections
from fourstage.tasks.detection.masks import SmallMasks
from fourstage.tasks.detection.two_stage import TwoStage


@pytest.fixture
def _broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file gets wrong biases."""
    from onnx import TensorProto, numpy_helper

    whole = onnx_file.onnx_model

    def broken(*args: Any) -> Any:
        model = whole(*args)
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 1 and tensor.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(tensor) + np.arange(tensor.dims[0], dtype=np.float32)
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return model

    monkeypatch.setattr(onnx_file, "onnx_model", broken)


@pytest.mark.usefixtures("_broken")
@pytest.mark.parametrize("name", ["classifier", "semantic_fpn"])
def test_a_file_that_deviates_is_not_written(name: str, tmp_path: Path) -> None:
    written = export(built(name), tmp_path / "x.onnx", size=(64, 96))
    assert written.proof.failure
    assert not [*tmp_path.iterdir()]


@pytest.mark.usefixtures("_broken")
def test_a_file_that_deviates_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_text("before")
    assert export(built("semantic_fpn"), path, output="labels", size=(64, 96)).proof.failure
    assert path.read_text() == "before"


@pytest.mark.parametrize("opens", [True, False])
def test_a_file_that_its_runtime_cannot_run_fails_its_proof(
    opens: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any, inputs: Any) -> Any:
        raise self.not_computed(inputs[0], RuntimeError("k is larger than the axis"))

    monkeypatch.setattr(onnx_runtime.OnnxRuntime, "compute", fails)
    if not opens:
        monkeypatch.setattr(onnx_file, "write_onnx", lambda model, path, description: path.write_bytes(b"no model"))
    path = tmp_path / "x.onnx"
    stopped = export(built("semantic_fpn"), path, size=(64, 96)).proof.failure
    reason = "cannot compute an input of 1 x 3 x 64 x 96 (k is larger" if opens else "is not an ONNX file"
    assert stopped.startswith(f"{path} {reason}")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["classifier", "retinanet"])
def test_a_runtime_that_stops_ends_a_proof(name: str) -> None:
    class Stops:
        name = "x"
        description = SimpleNamespace(suppression=Suppression())

        def run(self, *args: Any) -> Any:
            raise ValueError("x.onnx cannot compute this")

    network, runtime = built(name), cast(Any, Stops())
    assert proof.prove(runtime, graph_of(network), network, noise_images([(1, 96, 128)])).failure.startswith("x.onnx")


def test_a_number_that_is_not_one_exceeds_every_tolerance() -> None:
    row = Row("x", (1, 3, 8, 8), {"values": float("nan")})
    assert "nan" in row.exceeds(HALF)
    assert Proof("onnxruntime", FLOAT32, (Row("x", (1,), {"values": 1e-4}), row)).failure
    assert not Row("x", (1,), {"values": 1e-4}).exceeds(FLOAT32)


def _row(found: Mapping[str, list[Any]], most: int = 100, threshold: float = 0.0) -> Row:
    """Compare two true detections with those of a file."""
    wanted = Detections(
        torch.tensor([[0.0, 0.0, 20.0, 20.0], [40.0, 0.0, 60.0, 20.0]]), torch.tensor([0, 1]), torch.tensor([0.9, 0.6])
    )
    outputs = {name: np.array([value], np.int64 if name == "labels" else np.float32) for name, value in found.items()}
    images = Images("x", torch.zeros(1, 3, 64, 64), (64, 64))
    return proof._detection_row(images, outputs, [wanted], Suppression(threshold, most=most), near=1e-3)


BOXES = [[0, 0, 20, 20], [40, 0, 60, 20]]


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "deviations"),
    [
        (BOXES, [0.9, 0.6], [0, 1], (0, 0, 0)),
        ([[0, 0, 20, 21.5], [40, 0, 60, 20]], [0.9, 0.6], [0, 1], (1.5, 0, 0)),
        (BOXES, [0.9, 0.5], [0, 1], (0, 0.1, 0)),
        (BOXES, [0.9, 0.6], [0, 0], (0, 0, 0.5)),
        (BOXES[:1], [0.9], [0], (0, 0, 1 / 3)),
        ([[20, 20, 50, 50], [40, 0, 60, 20]], [0.9, 0.6], [0, 1], (0, 0, 0.5)),
    ],
)
def test_detections_are_matched_by_class_and_place(
    boxes: Any, scores: Any, labels: Any, deviations: tuple[float, ...]
) -> None:
    row = _row({"boxes": boxes, "scores": scores, "labels": labels})
    assert tuple(row.deviations[name] for name in ("boxes", "scores", "unmatched")) == pytest.approx(deviations)


def test_masks_that_differ_are_a_deviation() -> None:
    boxes_14, labels_1, scores_1 = torch.tensor([[0.0, 0.0, 20.0, 20.0]]), torch.tensor([0]), torch.tensor([0.9])
    masks = SmallMasks(torch.full((1, 4, 4), 0.5), boxes_14, (64, 64), 0.5)
    outputs = {"boxes": boxes_14, "scores": scores_1, "labels": labels_1, "masks": torch.full((1, 4, 4), 0.5)}
    outputs["masks"][0, 1, 2] = 0.75
    row = proof._detection_row(
        Images("x", torch.zeros(1, 3, 64, 64), (64, 64)),
        {name: value[None].numpy() for name, value in outputs.items()},
        [Detections(boxes_14, labels_1, scores_1, masks)],
        Suppression(),
        near=1e-3,
    )
    assert row.deviations == {"boxes": 0.0, "scores": 0.0, "masks": 0.25, "unmatched": 0.0}
    assert "probabilities of masks 0.25" in row.exceeds(FLOAT32)


def test_the_last_place_of_a_full_list_may_go_to_another_object() -> None:
    boxes = [[0, 0, 20, 20], [0, 40, 20, 60]]
    for last, alone in ((0.6005, 0.0), (0.7, 0.25)):
        row = _row({"boxes": boxes, "scores": [0.9, last], "labels": [0, 1]}, most=2)
        assert row.deviations["unmatched"] == alone


def test_a_detection_at_the_threshold_may_be_below_it_in_the_file() -> None:
    both = {"boxes": BOXES, "scores": [0.9, 0.6], "labels": [0, 1]}
    for first, alone in ((0.9, 1 / 3), (0.89, 0.0)):  # matched scores that deviate by 0.01 say how near is near
        found = {name: values[:1] for name, values in both.items()} | {"scores": [first]}
        assert _row(found, threshold=0.59).deviations["unmatched"] == pytest.approx(alone)


@pytest.mark.parametrize(
    ("scores", "lowest", "threshold"),
    [
        ([np.linspace(1, 0, 101)], 0.0, 0.505),  # between the 50th and the 51st
        ([np.array([0.4, -1, -1])], 0.001, 0.001),
        ([np.array([0.4])], 0.0, 0.0),  # the one pair is compared
        ([np.full(100, -1.0)], 0.001, 0.001),
        ([np.linspace(1, 0, 101), np.array([0.4]), np.array([0.2])], 0.0, 0.0),
    ],
)
def test_a_lowered_threshold_is_below_some_scores_of_the_file(
    scores: list[np.ndarray], lowest: float, threshold: float
) -> None:
    assert proof._lower([{"scores": one[None]} for one in scores], lowest) == pytest.approx(threshold)


def test_a_network_without_any_score_is_compared_with_a_note(tmp_path: Path) -> None:
    detector: Any = small("mask_rcnn").eval()
    detector.box_head.classify.bias.data[-1] += 30.0  # all is background
    written = export(detector, tmp_path / "x.pt2", "torch", size=(96, 128))
    assert not written.proof.failure
    assert written.proof.note.startswith("no score is above 0.001, so that no detection was compared")
    assert written.proof.rows[0].detections == 0


def test_an_untrained_network_with_many_classes_is_compared() -> None:
    graph = graph_of(small("mask_rcnn", classes=1203).eval())
    assert 0 < graph.lowest < 1 / 1204


def test_noise_is_the_same_each_time() -> None:
    first, second = (noise_images([(1, 40, 50)])[0].images_BCHW for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == (1, 3, 40, 50)


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_a_network_that_detects_nothing_is_compared_below_its_threshold(name: str, tmp_path: Path) -> None:
    detector: Any = small(name).eval()
    if name == "mask_rcnn":
        detector.box_head.classify.bias.data[-1] += 5.0  # all is background, by 0.007 for each class
    written = export(detector, tmp_path / "x.onnx", size=(96, 128))
    assert "above the threshold" in written.proof.note
    assert written.proof.rows[0].detections
    assert not written.proof.failure


def test_detectors_without_an_export_are_named() -> None:
    own: Any = type(
        "Own", (TwoStage,), {"method": "own", "__init__": nn.Module.__init__, "detect": None, "losses": None}
    )
    known = "atss, cascade_mask_rcnn, dino, mask_rcnn, retinanet, sparse_rcnn"
    with pytest.raises(ValueError, match=f"own has no export; export a detector of {known}, or"):
        graph_of(own())


def test_labels_are_of_segmentors() -> None:
    with pytest.raises(ValueError, match="--output labels is for segmentors"):
        graph_of(built("classifier"), "labels")


def test_sides_that_no_detector_reads_are_refused() -> None:
    with pytest.raises(ValueError, match="a width of 100 pixels is not a multiple of 32"):
        trace(graph_of(built("retinanet")), (96, 100))


def test_axes_that_there_are_not() -> None:
    with pytest.raises(ValueError, match="there is no axis 'depth'"):
        trace(graph_of(built("classifier")), (64, 64), ("batch", "depth"))


def test_formats_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no format 'tflite'; choose onnx, torch, openvino"):
        check_format("tflite")
    with pytest.raises(ValueError, match=r"must end in \.xml"):
        check_out(tmp_path / "x.onnx", "openvino")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing for x\.onnx"):
        check_out(tmp_path / "missing" / "x.onnx", "onnx")
    (tmp_path / "x.onnx").mkdir()
    for folder in (tmp_path, tmp_path / "x.onnx"):
        with pytest.raises(IsADirectoryError, match=r"is a folder; name a file in it that ends in \.onnx"):
            check_out(folder, "onnx")
    (tmp_path / "y.bin").touch()
    with pytest.raises(ValueError, match=r"y\.bin exists: add --force to replace it"):
        check_out(tmp_path / "y.xml", "openvino", force=False)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"needs onnxscript, which is missing .* type: .*install.*\[export\]"):
        check_format("onnx")


def test_a_folder_that_takes_no_files_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(dir: Path) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("fourstage.export.write.TemporaryFile", full)
    with pytest.raises(OSError, match=r"no file can be made in .* \(Read-only file system\); name another --out"):
        check_out(tmp_path / "x.onnx", "onnx")


def test_dynamic_sides_begin_at_the_images_of_the_network_where_those_are_smaller() -> None:
    detector, classifier = graph_of(built("atss")), graph_of(built("classifier"))
    assert first_sides(classifier, (48, 32))[:2] == [32, 64]
    assert first_sides(classifier, (224, 224))[0] == 64
    assert first_sides(detector, (128, 128))[0] == 128 < min(detector.smallest_sides)
    assert first_sides(detector, (800, 1344)) == sorted({*detector.smallest_sides, 800})


@pytest.mark.parametrize("tied", [False, True])
def test_queries_that_score_alike_are_no_deviation(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network: Any = built("dino")
    images = noise_images([(1, 128, 160), (2, 96, 128)])
    gap = proof.queries_gap(network, images[0])
    assert 0 < gap < 1
    assert network.queries == 60
    monkeypatch.setattr(proof, "queries_gap", lambda network, some: 1e-6 if tied and some is images[1] else gap)
    monkeypatch.setattr(proof, "TIE", min(1.0, gap / 2 / FLOAT32.scores))
    near, far = (Row("x", (1,), {"boxes": 0.0, "scores": score, "unmatched": 0.0}) for score in (1e-5, 2e-3))
    rows, note = proof._without_ties(network, [near, far], images, FLOAT32)
    assert rows == ([near] if tied else [near, far])
    assert ("1 of 2 rows are left out" in note) == tied
    assert proof._without_ties(network, [far], images[1:], FLOAT32)[0] == [far]  # something has to be compared
