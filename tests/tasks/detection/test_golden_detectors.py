"""Neck and heads give MMDetection's numbers: outputs, proposals, detections, masks, losses and gradients."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from golden.dense import load
from goldens import (
    BUILD,
    FixedMaps,
    assert_sampled,
    batch_of,
    check_detections,
    check_losses,
    keep_all_anchors,
    method_of,
    original_head,
    read_golden,
)
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.detection.detector import Detections, Detector
from fourstage.tasks.detection.mask_head import MaskHead
from fourstage.tasks.detection.single_stage import SingleStage
from fourstage.tasks.detection.sparse_rcnn import SparseRCNN
from fourstage.tasks.detection.two_stage import TwoStage

Case = tuple[Detector, Batch, dict[str, Any], dict[str, np.ndarray]]


LONG = ("cascade_mask_rcnn_fpn", "cascade_mask_rcnn_4conv1fc")  # minutes on two processor cores
torture = {name: [pytest.mark.torture] if name in LONG else [] for name in BUILD}
every = pytest.mark.parametrize("case", [pytest.param(name, marks=torture[name]) for name in BUILD], indirect=True)


@pytest.fixture(scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    manifest, golden = read_golden(request.param)
    detector = keep_all_anchors(BUILD[request.param](FixedMaps())).eval()
    load(detector, original_head(manifest), method_of(detector))
    return detector, batch_of(manifest, golden, torch.zeros(2, 3, 256, 320)), manifest, golden


def _heads_of(detector: TwoStage) -> dict[str, nn.Module]:
    parts: dict[str, nn.Module] = {}
    names = {"rpn_head": "rpn", "roi_head.bbox_head": "box_head", "roi_head.mask_head": "mask_head"}
    for theirs, ours in names.items():
        for name, module in detector.named_children():
            if name == ours:
                parts[theirs] = module
            elif name == ours + "s":
                parts |= {f"{theirs}.{i}": head for i, head in module.named_children()}
    return parts


def watched(detector: Detector, batch: Batch, *, rescale: bool = True) -> tuple[dict[str, Tensor], list[Detections]]:
    """What comes out of the parts during detection, by the original's names."""
    parts: dict[str, nn.Module] = {"neck": detector.neck}
    if isinstance(detector.neck, nn.Sequential):
        parts["neck.0"] = detector.neck[0]
    if isinstance(detector, SparseRCNN):
        parts |= {f"roi_head.bbox_head.{i}": head for i, head in enumerate(detector.box_heads)}
        parts |= {f"roi_head.bbox_head.{i}.3": h.get_submodule("self_norm") for i, h in enumerate(detector.box_heads)}
        parts["box_pool"] = detector.box_pool
    if isinstance(detector, SingleStage):
        parts["bbox_head"] = detector.dense_head
    if isinstance(detector, TwoStage):
        parts |= _heads_of(detector)
        parts |= {"box_pool": detector.box_pool, "mask_pool": detector.mask_pool}
    seen: dict[str, Tensor] = {}
    one_head = any(name == "box_head" for name, _ in detector.named_children())
    pooled = iter(("",) if one_head else (f".{i}" for i in range(6)))

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if name == "box_pool":
                seen[f"roi_head.bbox_roi_extractor{next(pooled)}"] = output
            elif name == "mask_pool":
                seen["roi_head.mask_roi_extractor"] = output
            elif isinstance(output, Tensor):
                seen[name] = output
            else:
                for i, x in enumerate(output):
                    several = {f"{name}.{i}": x} if isinstance(x, Tensor) else {}
                    seen.update(several or {f"{name}.{i}.{j}": y for j, y in enumerate(x)})

        return hook

    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    found = detector.detect(batch, rescale=rescale)
    for hook in hooks:
        hook.remove()
    for name, part in parts.items():  # in detection they make the mask of one class alone
        if isinstance(part, MaskHead) and "roi_head.mask_roi_extractor" in seen:
            seen[name] = part(seen["roi_head.mask_roi_extractor"]).detach()
    flat = isinstance(detector, TwoStage)
    return {name: x.flatten(1) if x.ndim == 3 and flat else x for name, x in seen.items()}, found


LATE = re.compile(r"\.[45](\.|$)")  # the last rounds of Sparse R-CNN
ROUNDINGS = 16


def assert_some_rounding_gives(
    names: set[str], detector: Detector, batch: Batch, golden: dict[str, np.ndarray], seen: dict[str, Tensor]
) -> None:
    """Each part gives the original's values, for inputs that are the same up to their last bit, on some threads.

    Six rounds enlarge rounding so far that the exact values, in float64, are outside of the tolerance. On which side a
    processor's are is chance, so other roundings that are as good are tried, and the tolerance stays.
    """
    left, draws, threads = set(names), torch.Generator().manual_seed(0), torch.get_num_threads()
    backbone = detector.backbone
    assert isinstance(backbone, FixedMaps)
    maps = backbone.maps
    try:
        for turn in range(ROUNDINGS):
            left = {name for name in left if not is_sampled(seen[name], golden, f"raw/{name}")}
            if not left:
                return
            torch.set_num_threads(threads if turn % 2 else 1)
            last_bits = [torch.rand(x_BCHW.shape, generator=draws) * 2**-23 * (turn > 0) for x_BCHW in maps]
            backbone.maps = [x_BCHW * (1 + bits) for x_BCHW, bits in zip(maps, last_bits, strict=True)]
            seen, _ = watched(detector, batch)
    finally:
        backbone.maps = maps
        torch.set_num_threads(threads)
    raise AssertionError(f"no rounding gives the original's {sorted(left)}")


def is_sampled(actual: Tensor, golden: dict[str, np.ndarray], name: str) -> bool:
    try:
        assert_sampled(actual, golden, name, after_rounding=True)
    except AssertionError:
        return False
    return True


@every
def test_every_part_gives_the_originals_values(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch, _, golden = case
    if isinstance(detector, TwoStage):  # near ties may come in another order, and regions are compared row by row
        given = [torch.from_numpy(golden[f"proposals/{i}/bboxes"]) for i in range(2)]
        monkeypatch.setattr(detector.rpn, "propose", lambda *_: [(boxes, boxes[:, 0]) for boxes in given])
    if isinstance(detector, SparseRCNN):  # six rounds enlarge the rounding of other products; those have their tests
        monkeypatch.setenv("FOURSTAGE_OPS", "plain")
    seen, found = watched(detector, batch)
    names = {key.rpartition("/")[0].removeprefix("raw/") for key in golden if key.startswith("raw/")}
    assert names <= seen.keys()
    late = {name for name in names if isinstance(detector, SparseRCNN) and LATE.search(name.removeprefix("neck"))}
    for name in sorted(names - late):
        assert_sampled(seen[name], golden, f"raw/{name}")
    assert_some_rounding_gives(late, detector, batch, golden, seen)
    check_detections(found, golden, "pred_ori", in_any_order=isinstance(detector, SparseRCNN))


@pytest.mark.parametrize("case", ["cascade_mask_rcnn_4conv1fc"], indirect=True)
def test_heads_with_convolutions_give_the_originals_values(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch, _, golden = case
    assert isinstance(detector, TwoStage)
    first, count = 60, len(golden["proposals/0/bboxes"])  # proposals of each image, which do not depend on the others
    rows = [i * count + j for i in range(2) for j in range(first)]
    given = [torch.from_numpy(golden[f"proposals/{i}/bboxes"][:first]) for i in range(2)]
    monkeypatch.setattr(detector.rpn, "propose", lambda *_: [(boxes, boxes[:, 0]) for boxes in given])
    monkeypatch.setattr(detector, "finish", lambda *_, **__: [])
    seen, _ = watched(detector, batch)
    names = [key for key in seen if "bbox" in key]
    assert len(names) == 9
    for name in names:
        assert_sampled(seen[name], golden, f"raw/{name}", rows)


@pytest.mark.parametrize("case", ["cascade_mask_rcnn_fpn"], indirect=True)
def test_a_cascade_without_masks_finds_the_originals_boxes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch, _, golden = case
    monkeypatch.setattr(detector, "mask_heads", nn.ModuleList())
    seen, found = watched(detector, batch, rescale=False)
    for name in (key for key in seen if "neck" in key or "rpn_head" in key):
        assert_sampled(seen[name], golden, f"raw/{name}")
    check_detections(found, golden, "pred_net", masks=False)


@every
def test_detections_are_the_originals_in_network_pixels(case: Case) -> None:
    detector, batch, _, golden = case
    found = detector.detect(batch, rescale=False)
    check_detections(found, golden, "pred_net", in_any_order=isinstance(detector, SparseRCNN))


@pytest.mark.parametrize("case", [name for name in BUILD if "mask_rcnn" in name], indirect=True)
def test_proposals_are_the_originals(case: Case) -> None:
    detector, batch, _, golden = case
    assert isinstance(detector, TwoStage)
    with torch.inference_mode():
        logits, deltas = detector.rpn(detector.maps(batch))
        proposed = detector.rpn.propose(logits, deltas, batch, detector.rpn.proposals)
    for i, (boxes_N4, scores_N) in enumerate(proposed):
        their_boxes, their_scores = (torch.from_numpy(golden[f"proposals/{i}/{name}"]) for name in ("bboxes", "scores"))
        torch.testing.assert_close(scores_N, their_scores, rtol=0, atol=2e-5)
        apart_NN = (boxes_N4[:, None] - their_boxes[None]).abs().amax(dim=2)
        apart_NN[(scores_N[:, None] - their_scores[None]).abs() > 2e-5] = torch.inf
        nearest = apart_NN.argmin(dim=1)
        assert apart_NN.amin(dim=1).max() <= 1e-3
        assert len(nearest.unique()) == len(nearest)
        assert (nearest == torch.arange(len(nearest))).float().mean() > 0.98  # others are near ties


@every
def test_losses_and_gradients_are_the_originals(case: Case) -> None:
    detector, batch, manifest, golden = case
    check_losses(detector, batch, golden, manifest)
