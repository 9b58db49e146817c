"""The parts of detectors, each by what must hold for it."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import batched_nms, sigmoid_focal_loss

from fourstage.backbones.layers import Level
from fourstage.exported import decoding
from fourstage.ops.nms_mask import nms_mask
from fourstage.tasks.detection import masks as masks_module
from fourstage.tasks.detection import matching
from fourstage.tasks.detection.anchors import AnchorGrid
from fourstage.tasks.detection.box_head import BoxHead, BoxLoss, Samples
from fourstage.tasks.detection.boxes import BoxCoder, box_iou, clip_boxes, grouped_nms
from fourstage.tasks.detection.detector import GroundTruth
from fourstage.tasks.detection.losses import focal_sum
from fourstage.tasks.detection.mask_head import MaskHead
from fourstage.tasks.detection.masks import crop_masks
from fourstage.tasks.detection.matching import (
    BACKGROUND,
    IGNORED,
    AdaptiveMatcher,
    OverlapMatcher,
    Sampler,
    ThresholdMatcher,
    best_of_each_level,
    choose,
)
from fourstage.tasks.detection.rois import RoIPool, to_rois
from fourstage.tasks.detection.single_stage import first_best
from fourstage.tasks.parts.fpn import FPN

seeds = st.integers(0, 2**31)


def some_boxes(n: int, seed: int, side: float = 200.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner, size = (torch.rand(n, 2, generator=generator) * side for _ in range(2))
    return torch.cat([corner, corner + size + 1], dim=1)


@given(n=st.integers(0, 40), seed=seeds, std=st.sampled_from([1.0, 0.1, 0.033]))
@settings(max_examples=40, deadline=None)
def test_decoding_undoes_encoding(n: int, seed: int, std: float) -> None:
    coder, anchors, boxes = BoxCoder((std, std, std, std)), some_boxes(n, seed), some_boxes(n, seed + 1)
    ratio = (boxes[:, 2:] - boxes[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    near = ((ratio < 60) & (ratio > 1 / 60)).all(dim=1)
    back = coder.decode(anchors, coder.encode(anchors, boxes))
    torch.testing.assert_close(back[near], boxes[near], rtol=1e-3, atol=1e-2)


def test_a_wild_delta_gives_a_finite_box_within_the_image() -> None:
    boxes = BoxCoder().decode(some_boxes(4, 0), torch.tensor([[1e4, -1e4, 1e4, -1e4]]), (50, 70))
    assert boxes.isfinite().all()
    assert (boxes <= torch.tensor([70, 50, 70, 50])).all()
    assert boxes.min() >= 0
    sizes = torch.tensor([[50, 70], [10, 20]])
    each = clip_boxes(torch.full((2, 3, 4), 100.0), sizes[:, None])
    assert each[:, 0].tolist() == [[70, 50, 70, 50], [20, 10, 20, 10]]


def brute_match(rule: ThresholdMatcher, anchors: Tensor, boxes: Tensor) -> list[int]:
    iou = box_iou(boxes, anchors)
    out = []
    for n in range(len(anchors)):
        best = float(iou[:, n].max()) if len(boxes) else -1.0
        matched = IGNORED
        if best < rule.negative:
            matched = BACKGROUND
        if best >= rule.positive:
            matched = int(iou[:, n].argmax())
        for g in range(len(boxes)) if rule.rescue else ():
            if iou[g].max() >= rule.lowest and iou[g, n] == iou[g].max():
                matched = g
        out.append(matched)
    return out


@given(
    n=st.integers(0, 30), g=st.integers(0, 9), seed=seeds, rescue=st.booleans(), pairs=st.sampled_from([1, 70, 10**6])
)
@settings(max_examples=60, deadline=None)
def test_matching_is_what_its_words_say_however_many_boxes_at_a_time(
    n: int, g: int, seed: int, rescue: bool, pairs: int
) -> None:
    rule, anchors, boxes = ThresholdMatcher(0.5, 0.4, 0.1, rescue), some_boxes(n, seed), some_boxes(g, seed + 1)
    boxes[: min(g, n) // 2] = anchors[: min(g, n) // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "PAIRS", pairs)
        assert OverlapMatcher(rule)([anchors], boxes).tolist() == brute_match(rule, anchors, boxes)


def test_an_overlap_of_exactly_the_limit_is_enough() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 5], [0, 0, 5, 5], [0, 0, 5, 4]])  # overlaps of 0.5, 0.25 and 0.2
    rule = OverlapMatcher(ThresholdMatcher(0.5, 0.25, rescue=False))
    assert rule([anchors], torch.tensor([[0.0, 0, 10, 10]])).tolist() == [0, IGNORED, BACKGROUND]
    rescued = OverlapMatcher(ThresholdMatcher(0.9, 0.6, 0.5))([anchors], torch.tensor([[0.0, 0, 10, 10]]))
    assert rescued.tolist() == [0, BACKGROUND, BACKGROUND]


def test_a_sample_is_as_large_as_it_should_be_and_has_no_one_twice() -> None:
    matched = torch.tensor([0] * 30 + [BACKGROUND] * 100 + [IGNORED] * 20)
    sampler = Sampler(40, 0.25)
    positive, negative = sampler(matched, np.random.default_rng(0))
    assert (len(positive), len(negative)) == (10, 30)
    assert (matched[positive] == 0).all()
    assert (matched[negative] == BACKGROUND).all()
    for part in (positive, negative):
        assert part.tolist() == sorted(set(part.tolist()))
    few, rest = sampler(torch.tensor([3, BACKGROUND, IGNORED] * 4), np.random.default_rng(0))
    assert (len(few), len(rest)) == (4, 4)


def test_every_one_is_drawn_equally_often() -> None:
    rng, count = np.random.default_rng(0), torch.zeros(20)
    for _ in range(2000):
        count[choose(torch.arange(20), 5, rng)] += 1
    assert (count / 2000 - 0.25).abs().max() < 0.05


@given(n=st.integers(0, 60), groups=st.integers(1, 6), seed=seeds)
@settings(max_examples=30, deadline=None)
def test_suppression_happens_within_groups(n: int, groups: int, seed: int) -> None:
    boxes, generator = some_boxes(n, seed), torch.Generator().manual_seed(seed)
    scores, group = torch.rand(n, generator=generator), torch.randint(groups, (n,), generator=generator)
    kept = grouped_nms(boxes, scores, group, 0.5)
    assert torch.equal(kept, batched_nms(boxes, scores, group, 0.5))


@pytest.mark.parametrize("tenths", range(1, 10))
def test_suppression_spares_an_overlap_of_exactly_the_threshold(tenths: int) -> None:
    """Mmcv compares in float32, so that 6 of 10 cells do not exceed 0.6, the threshold of ATSS."""
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, tenths]])
    scores, group = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    exported = [one.numpy() for one in (boxes, scores, group)]
    for threshold, kept in ((tenths / 10, [0, 1]), (tenths / 10 - 1e-6, [0])):
        assert grouped_nms(boxes, scores, group, threshold).tolist() == kept
        assert nms_mask(boxes[None], scores[None], threshold, 0.0, 9)[0].nonzero().flatten().tolist() == kept
        assert decoding.grouped_nms(exported[0], exported[1], exported[2], threshold).tolist() == kept


@pytest.mark.parametrize("shape", [(7, 5), (2, 6, 4, 3)])
def test_focal_loss_is_that_of_torchvision(shape: tuple[int, ...]) -> None:
    logits = (torch.randn(shape, dtype=torch.float64) * 3).requires_grad_()
    positive = torch.rand(shape) < 0.2
    expected = sigmoid_focal_loss(logits, positive.double(), alpha=0.25, gamma=2, reduction="sum")
    ours = focal_sum(logits, torch.ones(()), logits[positive])
    torch.testing.assert_close(ours, expected)
    for a, b in zip(*(torch.autograd.grad(x, logits) for x in (ours, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_focal_loss_of_huge_logits_is_finite() -> None:
    logits = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    loss = focal_sum(logits, torch.ones(()), logits[:2])
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou"])
@pytest.mark.parametrize("agnostic", [True, False])
def test_a_box_head_trains_the_deltas_of_the_true_class(kind: str, agnostic: bool) -> None:
    loss = BoxLoss(kind, 10.0 if kind == "giou" else 1.0)  # pyright: ignore[reportArgumentType]
    head = BoxHead(4, 3, size=2, channels=8, class_agnostic=agnostic, loss=loss)
    proposals, boxes = some_boxes(4, 0), some_boxes(2, 1)
    labels = torch.tensor([2, 0, 3, 3])  # two positives, two of the background
    samples = Samples(proposals, torch.tensor([1, 0]), torch.tensor([False, False]), labels)
    truth = GroundTruth(boxes, torch.tensor([0, 2]), None)
    logits, deltas = torch.randn(4, 4), torch.randn(4, 1 if agnostic else 3, 4, requires_grad=True)
    losses = head.losses(logits, deltas, [samples], [truth], lambda count: count)
    chosen = torch.stack([deltas[0, 0 if agnostic else 2], deltas[1, 0]])
    wanted = boxes[[1, 0]]
    if kind == "giou":
        from torchvision.ops import generalized_box_iou_loss

        moved = head.coder.decode(proposals[:2], chosen)
        expected = generalized_box_iou_loss(moved, wanted, reduction="sum") * 10 / 4
    else:
        each = F.smooth_l1_loss if kind == "smooth_l1" else F.l1_loss
        expected = each(chosen, head.coder.encode(proposals[:2], wanted), reduction="sum") / 4
    torch.testing.assert_close(losses["loss_bbox"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses["loss_cls"], F.cross_entropy(logits, labels))
    losses["loss_bbox"].backward()
    assert deltas.grad is not None
    touched = (deltas.grad != 0).any(dim=2).nonzero().tolist()
    assert touched == ([[0, 0], [1, 0]] if agnostic else [[0, 2], [1, 0]])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_mask_of_one_class_is_one_of_those_of_all(layout: torch.memory_format) -> None:
    head = MaskHead(6, 5, convs=1, channels=4).double()
    assert head.logits.bias is not None
    nn.init.normal_(head.logits.bias)
    regions, labels = torch.randn(7, 6, 3, 3).double().to(memory_format=layout), torch.tensor([0, 4, 4, 1, 2, 0, 3])
    wanted = head(regions)[torch.arange(7), labels]
    torch.testing.assert_close(head.of_class(regions, labels), wanted, rtol=1e-12, atol=1e-12)


def test_a_mask_head_without_positives_has_a_loss_of_zero_that_reaches_every_layer() -> None:
    """Several processes wait for the gradients of each other."""
    head = MaskHead(6, 5)
    labels = torch.zeros(0, dtype=torch.long)
    none = Samples(torch.zeros(0, 4), labels, labels.bool(), labels)
    loss = head.loss(torch.zeros(0, 6, 14, 14), [none], [])
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_the_mask_loss_is_that_of_the_objects_with_a_mask() -> None:
    torch.manual_seed(0)
    head, x_PCMM = MaskHead(6, 5, convs=1, channels=4), torch.randn(5, 6, 4, 4)
    boxes_P4 = torch.tensor([[0.0, 0, 20, 20], [4, 4, 30, 30], [2, 2, 18, 18], [0, 0, 9, 9], [1, 1, 8, 8]])
    masks_GHW = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks_GHW[0, :15, :15], masks_GHW[2, 5:30, 5:30] = True, True
    labels_P, flags = torch.tensor([1, 2, 3, 4, 0]), torch.zeros(4, dtype=torch.bool)
    some = GroundTruth(torch.zeros(3, 4), torch.zeros(3), masks_GHW, torch.tensor([True, False, True]))
    drawn = GroundTruth(torch.zeros(3, 4), torch.zeros(3), masks_GHW)
    first = Samples(boxes_P4[:3], torch.tensor([0, 1, 2]), flags[:3], labels_P[:3])
    second = Samples(boxes_P4[3:], torch.tensor([0, 0]), flags[:2], labels_P[3:])
    loss = head.loss(x_PCMM, [first, second], [some, drawn])
    kept = torch.tensor([0, 2])
    alone = Samples(boxes_P4[kept], kept, flags[:2], labels_P[kept])
    expected = head.loss(x_PCMM[[0, 2, 3, 4]], [alone, second], [drawn, drawn])
    torch.testing.assert_close(loss, expected)
    none = GroundTruth(some.boxes_G4, some.labels_G, masks_GHW, torch.zeros(3, dtype=torch.bool))
    zero = head.loss(x_PCMM[:3], [first], [none])
    zero.backward()
    assert zero.item() == 0


def test_regions_come_back_in_their_order() -> None:
    levels = [Level(1, s) for s in (4, 8, 16)]
    maps = [torch.full((2, 1, 64 // i, 64 // i), float(i)) for i in (1, 2, 4)]
    boxes = [torch.tensor([[10, 10, 30, 30], [0, 0, 250, 250.0]]), torch.tensor([[20, 20, 150, 150.0]])]
    out = RoIPool(levels, 3)(maps, to_rois(boxes))
    assert out[:, 0, 1, 1].tolist() == [1, 4, 2]
    assert RoIPool(levels, 3)(maps, torch.zeros(0, 5)).shape == (0, 1, 3, 3)


class _Pooled(nn.Module):
    def __init__(self, strides: Sequence[int], samples: int) -> None:
        super().__init__()
        self.pool = RoIPool([Level(3, s) for s in strides], 3, samples)

    def forward(self, rois_R5: Tensor, *maps: Tensor) -> Tensor:
        return self.pool(maps, rois_R5)


@pytest.mark.parametrize("samples", [0, 2])
def test_regions_are_the_same_in_an_exported_graph(samples: int) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 128 // s, 160 // s) for s in (4, 8, 16)]
    corner_R2, side_R2 = torch.rand(30, 2) * 100, 1.1 ** (torch.rand(30, 2) * 75)
    rois_R5 = torch.cat([torch.arange(30.0)[:, None] % 2, corner_R2, corner_R2 + side_R2], dim=1)
    pooled = _Pooled((4, 8, 16), samples)
    assert pooled.pool.level_of(rois_R5[:, 1:]).unique().tolist() == [0, 1, 2]
    graph = torch.export.export(pooled, (rois_R5, *maps)).module()
    torch.testing.assert_close(graph(rois_R5, *maps), pooled(rois_R5, *maps), rtol=0, atol=1e-6)


def test_the_map_of_a_box_follows_from_its_size_whatever_the_first_stride() -> None:
    sides = torch.tensor([20.0, 100, 120, 240, 460, 900])  # 112, 224 and 448 part them
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), sides, sides], dim=1)
    four, three = (RoIPool([Level(1, s) for s in strides], 7) for strides in ((4, 8, 16, 32), (8, 16, 32)))
    assert four.level_of(boxes).tolist() == [0, 0, 1, 2, 3, 3]
    assert three.level_of(boxes).tolist() == [0, 0, 1, 2, 2, 2]
    small = RoIPool([Level(1, s) for s in (2, 4, 8)], 7, finest_scale=14)
    assert small.level_of(boxes).tolist() == [0, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("pixels", [1, 10**8])
def test_cut_masks_fit_their_boxes(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "PIXELS", pixels)
    full = torch.zeros(3, 64, 64, dtype=torch.bool)
    full[0, 10:30, 8:48] = True
    full[2] = True
    boxes = torch.tensor([[8, 10, 48, 30], [0, 0, 64, 64], [8, 10, 88, 30], [5, 5, 20, 20], [8, 0, 48, 40.0]])
    cut = crop_masks(full, boxes, torch.tensor([0, 1, 0, 2, 0]), 28)
    shares = cut.mean(dim=(1, 2))
    torch.testing.assert_close(shares, torch.tensor([1.0, 0, 40 / 56, 1, 0.5]), rtol=0, atol=0.03)
    assert set(cut.unique().tolist()) == {0.0, 1.0}
    assert crop_masks(full, boxes[:0], torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)


def test_anchors_run_over_rows_columns_ratios_and_scales() -> None:
    grid = AnchorGrid([8], scales=(1, 2), ratios=(1.0, 4.0))
    [boxes] = grid.boxes([(2, 3)], torch.device("cpu"))
    assert boxes.shape == (2 * 3 * 4, 4)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    expected = [(x * 8.0, y * 8.0) for y, x in itertools.product(range(2), range(3)) for _ in range(4)]
    assert list(map(tuple, centers.tolist())) == expected
    assert (boxes[:4, 2:] - boxes[:4, :2]).tolist() == [[8, 8], [16, 16], [4, 16], [8, 32]]


LEVELS = [Level(c, s) for c, s in ((3, 4), (4, 8), (5, 16), (6, 32))]


@pytest.mark.parametrize(
    ("extra", "keys", "inputs"), [("pool", 4, []), ("input", 6, [6, 7]), ("output", 6, [7, 7]), ("lateral", 6, [7, 7])]
)
def test_a_pyramid_has_the_maps_that_it_names(extra: str, keys: int, inputs: list[int]) -> None:
    neck = FPN(LEVELS, 7, 6, extra=extra)  # pyright: ignore[reportArgumentType]
    maps = [torch.randn(2, level.channels, -(-75 // level.stride), -(-101 // level.stride)) for level in LEVELS]
    outs = neck(maps)
    assert [level.stride for level in neck.levels] == [4, 8, 16, 32, 64, 128]
    assert [x.shape[2:] for x in outs] == [(-(-75 // s), -(-101 // s)) for s in (4, 8, 16, 32, 64, 128)]
    assert len(neck.outputs) == keys
    assert [conv.in_channels for conv in list(neck.outputs)[4:]] == inputs  # pyright: ignore[reportAttributeAccessIssue]
    if extra == "pool":
        assert torch.equal(outs[4], outs[3][:, :, ::2, ::2])


def test_a_pyramid_that_starts_later_is_one_of_fewer_maps() -> None:
    torch.manual_seed(0)
    later = FPN(LEVELS, 7, 5, start_level=1, extra="input")
    torch.manual_seed(0)
    fewer = FPN(LEVELS[1:], 7, 5, extra="input")
    maps = [torch.randn(1, level.channels, 64 // level.stride, 64 // level.stride) for level in LEVELS]
    for a, b in zip(later(maps), fewer(maps[1:]), strict=True):
        assert torch.equal(a, b)
    assert later.levels == fewer.levels
    with pytest.raises(ValueError, match="the pyramid reads 3 maps; got num_outs=2; give at least one map, and"):
        FPN(LEVELS[1:], 7, 2)


def test_of_equal_scores_the_first_comes_first() -> None:
    """As a stable sort of all, which decides which of two equal boxes suppresses the other."""
    scores = torch.randint(0, 40, (3, 500), generator=torch.Generator().manual_seed(0)) / 40
    scores[:, 77] = 0.5125  # so that the last one taken is no tie
    expected, places = scores.sort(dim=1, descending=True, stable=True)
    for row, values, place in zip(scores, expected, places, strict=True):
        count = int((row > 0.51).sum())
        found, where = first_best(row[None], count)
        assert torch.equal(found[0], values[:count])
        assert torch.equal(where[0], place[:count])


def test_costs_with_a_minus_sign_are_a_quality() -> None:
    cost = torch.tensor([[3.0, 9.0, 5.0], [4.0, 2.0, 8.0]])
    rule = ThresholdMatcher(-4.0, -6.0, rescue=False)
    assert rule(-cost).tolist() == [0, 1, IGNORED]
    assert rule(-cost - 5).tolist() == [BACKGROUND, BACKGROUND, BACKGROUND]
    assert rule(torch.empty(0, 3)).tolist() == [BACKGROUND] * 3


def brute_adaptive(anchors: list[Tensor], boxes: Tensor, candidates: int) -> list[int]:
    """The words of `AdaptiveMatcher`, box by box and anchor by anchor."""
    every = torch.cat(anchors)
    overlap, centers = box_iou(boxes, every), (every[:, :2] + every[:, 2:]) / 2
    best, matched = [-1.0] * len(every), [BACKGROUND] * len(every)
    for g, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        middle, near, start = torch.tensor([x1 + x2, y1 + y2]) / 2, [], 0
        for level in anchors:
            apart = (centers[start : start + len(level)] - middle).norm(dim=1)
            near += [start + int(n) for n in apart.argsort(stable=True)[:candidates]]
            start += len(level)
        values = overlap[g, near].double()
        limit = values.mean() + (values.std() if len(near) > 1 else 0)
        for n in near:
            x, y = centers[n].tolist()
            is_within = min(x - x1, x2 - x, y - y1, y2 - y) > 0.01
            if is_within and overlap[g, n] >= limit and overlap[g, n] > best[n]:
                best[n], matched[n] = float(overlap[g, n]), g
    return matched


@given(g=st.integers(0, 6), candidates=st.integers(1, 9), seed=st.integers(0, 2**16), pairs=st.sampled_from([1, 2**23]))
@settings(max_examples=40, deadline=None)
def test_adaptive_matching_is_what_its_words_say_however_many_boxes_at_a_time(
    g: int, candidates: int, seed: int, pairs: int
) -> None:
    anchors = AnchorGrid([8, 16, 32], (4.0,), (1.0,)).boxes([(6, 7), (3, 4), (2, 2)], torch.device("cpu"))
    boxes = some_boxes(g, seed, side=50)  # at places where no two anchors are equally far
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "PAIRS", pairs)
        assert AdaptiveMatcher(candidates)(anchors, boxes).tolist() == brute_adaptive(anchors, boxes, candidates)


def test_equal_boxes_and_single_anchors_are_matched_without_nan() -> None:
    box, far = torch.tensor([[0.0, 0, 32, 32]]), torch.tensor([[500.0, 500, 501, 501]])
    [lonely] = AdaptiveMatcher()([box], box).tolist()
    assert lonely == 0  # the deviation of one candidate is 0, not NaN
    assert AdaptiveMatcher()([box], far).tolist() == [BACKGROUND]
    assert AdaptiveMatcher()([box, box], torch.cat([box, box, far])).tolist() == [0, 0]  # the first of equal boxes
    assert AdaptiveMatcher()([box, box[:0]], torch.empty(0, 4)).tolist() == [BACKGROUND]
    assert AdaptiveMatcher()([box[:0]], box).tolist() == []
    with pytest.raises(ValueError, match="one tensor of shape"):
        AdaptiveMatcher()(box, box)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="candidates must be an integer of at least 1; got 0"):
        AdaptiveMatcher(0)


def test_anchors_may_stand_in_the_middle_of_their_cells() -> None:
    [corner], [middle] = (
        AnchorGrid([8], (1.0,), (1.0,), offset=x).boxes([(2, 3)], torch.device("cpu")) for x in (0, 0.5)
    )
    assert torch.equal(middle, corner + 4)
    with pytest.raises(ValueError, match="offset of anchors is a number from 0 to 1"):
        AnchorGrid([8], (1.0,), (1.0,), offset=2)


def test_each_level_gives_its_best_anchors_or_all_that_it_has() -> None:
    quality = torch.tensor([[0.1, 0.9, 0.5, 0.3, 0.7], [0.8, 0.2, 0.4, 0.6, 0.0]])
    assert best_of_each_level(quality, [3, 2], 2).sort(dim=1).values.tolist() == [[1, 2, 3, 4], [0, 2, 3, 4]]
    assert best_of_each_level(quality, [4, 1], 3).shape == (2, 4)
    assert best_of_each_level(quality[:0], [4, 1], 3).shape == (0, 4)
