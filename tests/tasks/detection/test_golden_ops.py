"""Boxes, anchors, matching, losses, suppression, regions and masks give MMDetection's numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.fill import read_manifest
from torch import Tensor
from torchvision.ops import nms

from fourstage.backbones.layers import Level
from fourstage.tasks.detection import matching
from fourstage.tasks.detection.anchors import AnchorGrid, octave_scales
from fourstage.tasks.detection.box_head import DetectionLimits, select
from fourstage.tasks.detection.boxes import BoxCoder, box_iou, generalized_iou, grouped_nms
from fourstage.tasks.detection.losses import divide, focal_sum, giou_sum, smooth_l1_sum
from fourstage.tasks.detection.masks import SmallMasks, crop_masks
from fourstage.tasks.detection.matching import BACKGROUND, AdaptiveMatcher, OverlapMatcher, ThresholdMatcher
from fourstage.tasks.detection.rois import RoIPool

FOLDER = Path(__file__).parents[2] / "golden" / "heads"
META = read_manifest(FOLDER / "ops.json.gz")["meta"]
Golden = Callable[[str], Tensor]


@pytest.fixture(scope="module")
def golden() -> Golden:
    files: dict[str, np.ndarray] = {}
    for name in ("ops_boxes", "ops_loss_nms", "ops_roi_mask_attn"):
        with np.load(FOLDER / f"{name}.npz") as file:
            files |= dict(file)
    return lambda key: torch.from_numpy(np.asarray(files[key]))


def assert_sampled(actual: Tensor, golden: Golden, name: str, pixels: float | None = None) -> None:
    assert list(actual.shape) == golden(f"{name}/shape").tolist()
    rtol, atol = (1e-4, 1e-4 * float(golden(f"{name}/stats")[1])) if pixels is None else (0, pixels)
    ours = actual.detach().reshape(-1)[golden(f"{name}/idx").long()]
    torch.testing.assert_close(ours, golden(f"{name}/val"), rtol=rtol, atol=atol)


GRIDS = {
    "rpn": ([4, 8, 16, 32, 64], (8.0,), (0.5, 1.0, 2.0)),
    "retina": ([8, 16, 32, 64, 128], octave_scales(4, 3), (0.5, 1.0, 2.0)),
    "atss": ([8, 16, 32, 64, 128], octave_scales(8, 1), (1.0,)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_anchors(name: str, golden: Golden) -> None:
    sizes = [(h, w) for h, w in META[f"anchors/{name}"]["featmap_sizes"]]
    grid, device = AnchorGrid(*GRIDS[name]), torch.device("cpu")
    valid = grid.within(sizes, (200, 288), device)
    for i, anchors_N4 in enumerate(grid.boxes(sizes, device)):
        key = f"anchors/{name}/{i}"
        head, tail = golden(f"{key}/head"), golden(f"{key}/tail")
        torch.testing.assert_close(anchors_N4[: len(head)], head, rtol=0, atol=1e-4)
        torch.testing.assert_close(anchors_N4[-len(tail) :], tail, rtol=0, atol=1e-4)
        count, total, within = golden(f"{key}/n_sum_validsum_for_pad200x288").tolist()
        assert len(anchors_N4) == count
        assert int(valid[i].sum()) == within
        assert float(anchors_N4.double().sum()) == pytest.approx(total, rel=1e-6)


STDS = {"s1": (1.0, 1.0, 1.0, 1.0), "s01": (0.1, 0.1, 0.2, 0.2), "s0033": (0.033, 0.033, 0.067, 0.067)}


@pytest.mark.parametrize("name", STDS)
def test_deltas(name: str, golden: Golden) -> None:
    coder, anchors = BoxCoder(STDS[name]), golden("coder/proposals")
    torch.testing.assert_close(coder.encode(anchors, golden("coder/gt")), golden(f"coder/encode_{name}"))
    deltas = golden(f"coder/deltas_{name}")
    torch.testing.assert_close(
        coder.decode(anchors, deltas, (256, 320)), golden(f"coder/decode_{name}"), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(coder.decode(anchors, deltas), golden(f"coder/decode_noclip_{name}"), rtol=0, atol=1e-3)


def test_deltas_of_all_classes(golden: Golden) -> None:
    deltas = golden("coder/deltas_multi").unflatten(1, (-1, 4))
    boxes = BoxCoder(STDS["s01"]).decode(golden("coder/proposals")[:20, None], deltas, (256, 320))
    assert_sampled(boxes.flatten(1), golden, "coder/decode_multi", pixels=1e-3)


def test_overlaps(golden: Golden) -> None:
    proposals, truths = golden("coder/proposals"), golden("coder/gt")
    torch.testing.assert_close(box_iou(proposals[:40], truths[:30]), golden("iou/iou"))
    torch.testing.assert_close(generalized_iou(proposals, truths), golden("iou/giou_aligned"))


@pytest.mark.parametrize("name", ["rpn", "retina", "rcnn05_lowq", "rcnn05", "rcnn07"])
def test_matching(name: str, golden: Golden) -> None:
    rule, truths = META[f"assign/{name}"], golden("assign/gt_bboxes")
    if name in GRIDS:
        sizes = [(h, w) for h, w in META[f"anchors/{name}"]["featmap_sizes"]]
        boxes_N4 = torch.cat(AnchorGrid(*GRIDS[name]).boxes(sizes, torch.device("cpu")))
    else:
        boxes_N4 = golden("assign/rcnn/priors")
    rescue = rule.get("match_low_quality", True)
    matcher = OverlapMatcher(ThresholdMatcher(rule["pos_iou_thr"], rule["neg_iou_thr"], rule["min_pos_iou"], rescue))
    expected = golden(f"assign/{name}/gt_inds").long()  # -1 ignored, 0 background, else index + 1
    ours = matcher([boxes_N4], truths)
    assert torch.equal(torch.where(ours == BACKGROUND, 0, torch.where(ours >= 0, ours + 1, -1)), expected)


@pytest.mark.parametrize("pairs", [1, 4000, 2**23])  # boxes at a time: one, two, all
def test_adaptive_matching(pairs: int, golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "PAIRS", pairs)
    sizes = [(h, w) for h, w in META["anchors/atss"]["featmap_sizes"]]
    anchors = AnchorGrid(*GRIDS["atss"]).boxes(sizes, torch.device("cpu"))
    ours = AdaptiveMatcher(9)(anchors, golden("assign/gt_bboxes"))
    assert torch.equal(ours + 1, golden("assign/atss/gt_inds").long())


def with_gradient(x: Tensor, loss: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    x = x.clone().requires_grad_()
    value = loss(x)
    return value.item(), torch.autograd.grad(value, x)[0]


def weighted(golden: Golden, each: Callable[[Tensor, Tensor], Tensor], scale: float) -> Callable[[Tensor], Tensor]:
    """A loss of boxes in which every one has its own weight."""
    target, weight = golden("loss/target4") * scale, golden("loss/weight")
    return lambda x: torch.stack([w * each(a[None], b[None]) for a, b, w in zip(x, target, weight, strict=True)]).sum()


def check_loss(name: str, golden: Golden, x: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
    value, gradient = with_gradient(x, loss)
    np.testing.assert_allclose(value, golden(f"loss/{name}").sum(), rtol=1e-4)
    assert_sampled(gradient, golden, f"loss/{name}/grad")


def test_focal_loss(golden: Golden) -> None:
    labels, weight = golden("loss/labels"), golden("loss/weight")
    rows = (labels < 80).nonzero().squeeze(1)

    def plain(x: Tensor) -> Tensor:
        return focal_sum(x, torch.ones(()), x[rows, labels[rows]])

    def of_used(x: Tensor) -> Tensor:  # every weight other than 0 or 1 is the same as so many sums
        parts = [w * focal_sum(r[None], torch.ones(()), r[label : label + 1]) for r, label, w in zip(x, labels, weight)]  # noqa: B905
        return torch.stack(parts).sum()

    value, gradient = with_gradient(golden("loss/logits"), plain)
    np.testing.assert_allclose(value, golden("loss/focal_none").sum(), rtol=1e-4)
    assert_sampled(gradient, golden, "loss/focal_none/grad")
    check_loss("focal", golden, golden("loss/logits"), lambda x: divide(of_used(x), 7.0))


def test_what_is_not_used_does_not_count() -> None:
    x = torch.randn(4, 5)
    used = torch.tensor([1.0, 0, 0, 1])[:, None]
    torch.testing.assert_close(focal_sum(x, used, x[:0, 0]), focal_sum(x[[0, 3]], torch.ones(()), x[:0, 0]))


GIOU_SCALE = 10.0  # of the boxes whose loss was recorded: it does not depend on that, its gradient does
BOX_LOSSES: dict[str, tuple[Any, float]] = {
    "l1": (smooth_l1_sum, 1.0),
    "smooth_l1_b1": (lambda a, b: smooth_l1_sum(a, b, 1.0), 1.0),
    "smooth_l1_b19": (lambda a, b: smooth_l1_sum(a, b, 1 / 9), 1.0),
    "giou": (giou_sum, 2.0),
}


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_box_losses(name: str, golden: Golden) -> None:
    each, factor = BOX_LOSSES[name]
    scale = GIOU_SCALE if name == "giou" else 1
    total = weighted(golden, each, scale)
    check_loss(name, golden, golden("loss/pred4") * scale, lambda x: divide(total(x), 13.0) * factor)


def test_giou_of_every_pair(golden: Golden) -> None:
    target = golden("loss/target4") * GIOU_SCALE
    check_loss("giou_none", golden, golden("loss/pred4") * GIOU_SCALE, lambda x: giou_sum(x, target))


def test_mask_loss(golden: Golden) -> None:
    bits = np.unpackbits(golden("loss/mask_target_packbits").numpy(), axis=1)[:, : 28 * 28]
    target = torch.from_numpy(bits.reshape(-1, 28, 28)).float()
    logits = golden("loss/mask_logits")
    value, _ = with_gradient(logits, lambda x: F.binary_cross_entropy_with_logits(x, target))
    np.testing.assert_allclose(value, golden("loss/mask_bce").item(), rtol=1e-4)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_suppression(threshold: float, golden: Golden) -> None:
    boxes, scores, ids = (golden(f"nms/{name}") for name in ("boxes", "scores", "ids"))
    assert torch.equal(nms(boxes, scores, threshold), golden(f"nms/plain_{threshold}").long())
    assert torch.equal(grouped_nms(boxes, scores, ids, threshold), golden(f"nms/batched_{threshold}").long())


def test_suppression_in_one_group_is_plain(golden: Golden) -> None:
    boxes, scores = golden("nms/boxes"), golden("nms/scores")
    one = torch.zeros(len(boxes), dtype=torch.int64)
    assert torch.equal(grouped_nms(boxes, scores, one, 0.5), golden("nms/batched_0.5_agnostic").long())


def test_selection_over_classes(golden: Golden) -> None:
    boxes_RK4, scores_RC = golden("nms/multi_boxes").unflatten(1, (-1, 4)), golden("nms/multi_scores")
    rows = torch.arange(len(boxes_RK4)).float()

    class Given(BoxCoder):
        """Boxes are there already; what stands for deltas says which."""

        def decode(self, anchors_N4: Tensor, deltas_N4: Tensor, size: Any = None) -> Tensor:
            return deltas_N4

    found = select(
        rows[:, None].expand(-1, 4), scores_RC.log(), boxes_RK4, Given(), (0, 0), DetectionLimits(), lambda b: b
    )
    dets = golden("nms/multi_dets")
    assert found.labels_N.tolist() == golden("nms/multi_labels").tolist()
    torch.testing.assert_close(found.boxes_N4, dets[:, :4])
    torch.testing.assert_close(found.scores_N, dets[:, 4], rtol=0, atol=2e-5)


LEVELS = [Level(8, stride) for stride in (4, 8, 16, 32)]
MAPS = [
    torch.from_numpy(np.random.default_rng(300 + i).standard_normal((2, 8, 256 // s.stride, 320 // s.stride))).float()
    for i, s in enumerate(LEVELS)
]


@pytest.mark.parametrize(("size", "samples"), [(7, 0), (14, 0), (7, 2)])
def test_regions(size: int, samples: int, golden: Golden) -> None:
    rois = golden("roi/rois")
    one_level = RoIPool(LEVELS[:1], size, samples)(MAPS, rois)
    assert_sampled(one_level, golden, f"roi/align_s{size}_sr{samples}_stride4")
    pool = RoIPool(LEVELS, size, samples)
    assert pool.level_of(rois[:, 1:]).tolist() == golden("roi/levels").tolist()
    assert_sampled(pool(MAPS, rois), golden, f"roi/extract_s{size}_sr{samples}")


def test_gradient_of_regions(golden: Golden) -> None:
    x = MAPS[0].clone().requires_grad_()
    out = RoIPool(LEVELS[:1], 7)([x], golden("roi/rois"))
    (out * (torch.arange(out.numel()) % 7).reshape(out.shape)).sum().backward()
    assert x.grad is not None
    assert_sampled(x.grad, golden, "roi/align_grad_weight_arange_mod7")


def test_masks_are_cut_out(golden: Golden) -> None:
    with np.load(FOLDER / "mask_rcnn_fpn.npz") as file:
        bits = np.unpackbits(file["gt/0/masks_packbits"], axis=1)
    masks_GHW = torch.from_numpy(bits.reshape(-1, 256, 320).astype(bool))
    expected = np.unpackbits(golden("mask/target_packbits").numpy(), axis=1)[:, : 28 * 28].reshape(-1, 28, 28)
    ours = crop_masks(masks_GHW, golden("mask/target_boxes"), golden("mask/target_inds"), 28)
    np.testing.assert_array_equal(ours.numpy(), expected)


def test_masks_are_pasted(golden: Golden) -> None:
    small, boxes = golden("mask/paste_in")[:, 0], golden("mask/target_boxes")
    masks = SmallMasks(small, boxes, (256, 320)).full_size()
    area = golden("mask/paste_thr_area")
    assert (masks.sum(dim=(1, 2)) - area).abs().max() <= 2
    expected = golden("mask/paste_full/val")
    clear = (expected - 0.5).abs() > 1e-4
    ours = masks.reshape(-1)[golden("mask/paste_full/idx").long()]
    assert torch.equal(ours[clear], (expected >= 0.5)[clear])
