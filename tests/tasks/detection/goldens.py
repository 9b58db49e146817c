"""Detectors as the golden files describe them: fixed maps instead of a backbone, weights by name, truths, samples."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden.dense import check_gradients
from golden.fill import fill_head, read_manifest
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch, Objects
from fourstage.tasks.detection.atss import ATSS
from fourstage.tasks.detection.cascade_mask_rcnn import CascadeMaskRCNN
from fourstage.tasks.detection.detector import Detections, Detector
from fourstage.tasks.detection.mask_rcnn import MaskRCNN
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.detection.sparse_rcnn import SparseRCNN

FOLDER = Path(__file__).parents[2] / "golden" / "heads"
LEVELS = tuple(Level(64 * 2**i, 4 * 2**i) for i in range(4))


class FixedMaps(nn.Module):
    """A backbone whose maps do not depend on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = LEVELS
        self.maps = []
        for i, level in enumerate(LEVELS):
            shape = (2, level.channels, 256 // level.stride, 320 // level.stride)
            values = np.random.default_rng(100 + i).standard_normal(shape)
            self.maps.append(torch.from_numpy(values.astype(np.float32)))

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        assert image_BCHW.shape[2:] == (256, 320)
        return self.maps


BUILD: dict[str, Callable[[nn.Module], Detector]] = {
    "atss_fpn": lambda backbone: ATSS(backbone, 80),
    "atss_dyhead": lambda backbone: ATSS(backbone, 80, dyhead=2),
    "retinanet_fpn": lambda backbone: RetinaNet(backbone, 80),
    "sparse_rcnn": lambda backbone: SparseRCNN(backbone, 80),
    "mask_rcnn_fpn": lambda backbone: MaskRCNN(backbone, 80, regions=10**6),
    "cascade_mask_rcnn_fpn": lambda backbone: CascadeMaskRCNN(backbone, 80, regions=10**6),
    "cascade_mask_rcnn_4conv1fc": lambda backbone: CascadeMaskRCNN(backbone, 80, heads="4conv1fc", regions=10**6),
}


def method_of(detector: Detector) -> str:
    """The method by whose names the golden files are written."""
    assert detector.method is not None
    return detector.method


def keep_all_anchors(detector: Detector) -> Detector:
    """As the goldens do it: nothing is drawn."""
    if isinstance(detector, MaskRCNN | CascadeMaskRCNN):
        detector.rpn.sampler = type(detector.rpn.sampler)(10**6, 0.5)
    return detector


def original_head(manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of neck and heads by the original's names."""
    state = {}
    for key, (shape, _, kind) in manifest["params"].items():
        value = fill_head(key, tuple(shape), kind, manifest["kind_scale"])
        state[key] = torch.from_numpy(np.asarray(value))
    return state


def batch_of(manifest: Mapping[str, Any], golden: Mapping[str, np.ndarray], images_BCHW: Tensor) -> Batch:
    height, width = images_BCHW.shape[2:]
    objects = []
    for i in range(len(images_BCHW)):
        boxes, labels = (torch.from_numpy(golden[f"gt/{i}/{name}"]) for name in ("bboxes", "labels"))
        masks = np.unpackbits(golden[f"gt/{i}/masks_packbits"], axis=1)[:, : height * width]
        masks_NHW = torch.from_numpy(masks.reshape(-1, height, width).astype(bool))
        objects.append(Objects(boxes, labels, torch.zeros(len(labels), dtype=torch.bool), masks_NHW))
    return Batch(
        ids=tuple(str(i) for i in range(len(images_BCHW))),
        images_BCHW=images_BCHW,
        sizes=tuple((meta["img_shape"][0], meta["img_shape"][1]) for meta in manifest["metas"]),
        original_sizes=tuple((meta["ori_shape"][0], meta["ori_shape"][1]) for meta in manifest["metas"]),
        objects=tuple(objects),
    )


def read_golden(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(FOLDER / f"{name}.npz") as golden:
        return read_manifest(FOLDER / f"{name}.json.gz"), dict(golden)


def assert_sampled(
    actual: Tensor,
    golden: Mapping[str, np.ndarray],
    name: str,
    rows: Sequence[int] | None = None,
    *,
    after_rounding: bool = False,
) -> None:
    """Values at the places that the golden file keeps, at its tolerance; of `rows` alone, where they are given.

    Args:
        after_rounding: rounding of many layers before may move one value in fifty further, up to 10 times as far.
    """
    if rows is not None:
        _assert_rows(actual, golden, name, rows)
        return
    assert list(actual.shape) == golden[f"{name}/shape"].tolist(), name
    std = float(golden[f"{name}/stats"][1])
    ours = actual.detach().reshape(-1)[torch.from_numpy(golden[f"{name}/idx"]).long()]
    expected = torch.from_numpy(golden[f"{name}/val"])
    if after_rounding:
        apart = (ours - expected).abs() / (1e-4 * (std + expected.abs()))
        assert apart.max() <= 10, name
        assert (apart <= 1).float().mean() >= 49 / 50, name
    else:
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * std, msg=lambda m: f"{name}: {m}")
    assert abs(float(actual.double().std(correction=0)) - std) < 1e-3 * std, name


def _assert_rows(actual: Tensor, golden: Mapping[str, np.ndarray], name: str, rows: Sequence[int]) -> None:
    shape = golden[f"{name}/shape"].tolist()
    assert list(actual.shape) == [len(rows), *shape[1:]], name
    row, place = np.divmod(golden[f"{name}/idx"], np.prod(shape[1:]))
    position = {r: i for i, r in enumerate(rows)}
    known = [i for i, r in enumerate(row) if r in position]
    assert len(known) > 4, name
    ours = actual.detach().flatten(1)[[position[row[i]] for i in known], place[known]]
    expected = torch.from_numpy(golden[f"{name}/val"][known])
    std = float(golden[f"{name}/stats"][1])
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * std, msg=lambda m: f"{name}: {m}")


def check_detections(
    found: list[Detections],
    golden: Mapping[str, np.ndarray],
    kind: str,
    *,
    masks: bool = True,
    in_any_order: bool = False,
) -> None:
    """Boxes, scores, labels in their order, or in any, and masks."""
    for i, detections in enumerate(found):
        boxes, scores, labels = (golden[f"{kind}/{i}/{name}"] for name in ("bboxes", "scores", "labels"))
        if in_any_order:
            _check_as_set(detections, boxes, scores, labels)
            continue
        order = _order_of_ties(detections, boxes, scores, labels)
        assert detections.labels_N[order].tolist() == labels.tolist()
        np.testing.assert_allclose(detections.boxes_N4[order], boxes, rtol=0, atol=1e-3)
        np.testing.assert_allclose(detections.scores_N[order], scores, rtol=0, atol=2e-5)
        if not masks or f"{kind}/{i}/mask_area" not in golden:
            assert detections.masks is None
            continue
        assert detections.masks is not None
        masks_NHW = detections.masks.full_size()[order]
        assert list(masks_NHW.shape) == golden[f"{kind}/{i}/mask_shape"].tolist()
        np.testing.assert_allclose(masks_NHW.sum(dim=(1, 2)), golden[f"{kind}/{i}/mask_area"], rtol=0, atol=2)
        if f"{kind}/{i}/mask_packbits_first6" in golden:
            bits = np.unpackbits(golden[f"{kind}/{i}/mask_packbits_first6"], axis=1)[:, : masks_NHW[0].numel()]
            assert np.sum(bits != masks_NHW[:6].flatten(1).numpy(), axis=1).max() <= 2


def _order_of_ties(detections: Detections, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[int]:
    """Return the order of detections that is the golden's where its scores are nearer than their tolerance allows to
    tell apart, and the own order everywhere else.
    """
    order = list(range(len(detections.labels_N)))
    if len(order) != len(scores):
        return order
    borders = [0, *(np.flatnonzero(scores[:-1] - scores[1:] > 2 * 2e-5) + 1).tolist(), len(order)]
    for start, end in pairwise(borders):
        left = order[start:end]
        for place in range(start, end):
            apart = [
                np.abs(detections.boxes_N4[one].numpy() - boxes[place]).max()
                if detections.labels_N[one] == labels[place]
                else np.inf
                for one in left
            ]
            order[place] = left.pop(int(np.argmin(apart)))
    return order


def _check_as_set(detections: Detections, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> None:
    """Every detection of either side is one of the other side.

    Rounding grows two or three times from stage to stage, as each box decides where the next stage reads. In float64
    the same network is up to 0.07 pixels away from the golden's float32. So half of the detections must be within
    the tolerances of `check_detections`, and 99 of 100 within 50 times these: the last ones kept are near ties.
    """
    ours = (detections.boxes_N4.numpy(), detections.scores_N.numpy(), detections.labels_N.numpy())
    apart_NN = np.abs(ours[0][:, None] - boxes[None]).max(axis=2) / 1e-3
    apart_NN = np.maximum(apart_NN, np.abs(ours[1][:, None] - scores[None]) / 2e-5)
    apart_NN[ours[2][:, None] != labels[None]] = np.inf
    assert apart_NN.shape == (len(boxes), len(boxes))
    for nearest_N in (apart_NN.min(axis=0), apart_NN.min(axis=1)):
        assert (nearest_N <= 50).mean() >= 0.99
        assert (nearest_N <= 1).mean() >= 0.5


def check_losses(
    detector: Detector, batch: Batch, golden: Mapping[str, np.ndarray], manifest: Mapping[str, Any]
) -> None:
    """Every loss, and the norm of the gradient of their sum by each parameter."""
    detector.zero_grad()
    losses = detector(batch)
    expected = {
        key.removeprefix("loss/"): value.sum()
        for key, value in golden.items()
        if key.startswith("loss/") and "acc" not in key
    }
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.shape == ()
        np.testing.assert_allclose(value.item(), expected[name], rtol=1e-4, err_msg=name)
    torch.stack([*losses.values()]).sum().backward()
    check_gradients(detector, manifest, golden["grad_norm"], method_of(detector))
