"""Laws of set matching, of the set criterion and of prediction without suppression, with a small query detector."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import SOME, SmallBackbone, batch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.engine.devices import Ranks
from fourstage.recipe import resolve
from fourstage.run.build import prepare
from fourstage.tasks.detection.boxes import generalized_iou
from fourstage.tasks.detection.detector import Detections, Detector, GroundTruth, ground_truths
from fourstage.tasks.detection.losses import giou_sum
from fourstage.tasks.detection.padding import padding_masks
from fourstage.tasks.detection.set_criterion import MatchedPairs, Queries, SetCriterion
from fourstage.tasks.detection.set_matching import match_sets
from fourstage.tasks.detection.set_prediction import best_of_queries
from fourstage.tasks.detection.task import Detection

seeds = st.integers(0, 2**16)


def cost(logits_QC: Tensor, boxes_Q4: Tensor, truth: GroundTruth) -> Tensor:
    giou_QG = generalized_iou(boxes_Q4[:, None], truth.boxes_G4[None])
    return -logits_QC.sigmoid()[:, truth.labels_G] - giou_QG


def class_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    target_BQC = torch.zeros_like(queries.logits_BQC)
    target_BQC[pairs.image_M, pairs.query_M, pairs.labels_M] = 1
    return F.binary_cross_entropy_with_logits(queries.logits_BQC, target_BQC, reduction="sum")


def box_loss(queries: Queries, pairs: MatchedPairs) -> Tensor:
    return giou_sum(queries.boxes_BQ4[pairs.image_M, pairs.query_M], pairs.boxes_M4)


class QueryDetector(Detector):
    """Learned queries plus the mean of the last map without its padding; two layers predict a class and a box."""

    counts_over_ranks = True

    def __init__(self, num_classes: int = 3, queries: int = 6) -> None:
        super().__init__(backbone := SmallBackbone(), nn.Identity(), num_classes)
        width = backbone.levels[-1].channels
        self.queries = nn.Embedding(queries, width)
        self.layers = nn.ModuleList(nn.Linear(width, num_classes + 4) for _ in range(2))
        self.criterion = SetCriterion(cost, {"loss_cls": class_loss, "loss_giou": box_loss}, {"loss_giou": 2.0})

    def predict(self, data: Batch) -> list[Queries]:
        maps = self.maps(data)
        x_BCL, masks = maps[-1].flatten(2), self.padding_masks(data, maps)
        if masks is None:
            mean_BC = x_BCL.mean(dim=2)
        else:
            keep_B1L = ~masks[-1].flatten(1)[:, None]
            mean_BC = (x_BCL * keep_B1L).sum(dim=2) / keep_B1L.sum(dim=2)
        x_BQC = self.queries.weight + mean_BC[:, None]
        out = []
        size_B14 = torch.tensor([[width, height] * 2 for height, width in data.sizes])[:, None]
        for layer in self.layers:
            logits_BQC, raw_BQ4 = layer(x_BQC).split([self.num_classes, 4], dim=2)
            center_BQ2, half_BQ2 = raw_BQ4[..., :2].sigmoid(), raw_BQ4[..., 2:].sigmoid() / 2
            out.append(Queries(logits_BQC, torch.cat([center_BQ2 - half_BQ2, center_BQ2 + half_BQ2], -1) * size_B14))
        return out

    def losses(self, batch: Batch, seed: int | None = None) -> dict[str, Tensor]:
        return self.criterion(self.predict(batch), ground_truths(batch, masks=False), self.mean_over_ranks)

    @torch.no_grad()
    def detect(self, batch: Batch, *, rescale: bool = True) -> list[Detections]:
        last = self.predict(batch)[-1]
        return best_of_queries(last.logits_BQC.sigmoid(), last.boxes_BQ4, batch, per_image=5, rescale=rescale)


def detector() -> QueryDetector:
    torch.manual_seed(0)
    return QueryDetector()


def least(cost_QG: Tensor) -> float:
    """The least total cost, by trying every assignment."""
    q, g = cost_QG.shape
    if q < g:
        return least(cost_QG.T)
    return min(sum(float(cost_QG[i, j]) for j, i in enumerate(rows)) for rows in permutations(range(q), g))


def total(cost_QG: Tensor, pairs: Sequence[Tensor]) -> float:
    return float(cost_QG[pairs[0], pairs[1]].sum())


@given(sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=4), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_the_total_cost_is_the_least_one_and_images_do_not_touch_each_other(
    sizes: list[tuple[int, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    costs = [torch.randn(size, generator=generator) for size in sizes]
    together = match_sets(costs)
    for cost_QG, matches in zip(costs, together, strict=True):
        assert len(matches.query_M) == len(matches.object_M) == min(cost_QG.shape)
        assert matches.query_M.tolist() == sorted(set(matches.query_M.tolist()))
        assert len(set(matches.object_M.tolist())) == len(matches.object_M)
        assert total(cost_QG, matches) == pytest.approx(least(cost_QG), abs=1e-5)
        [alone] = match_sets([cost_QG])
        assert torch.equal(alone.query_M, matches.query_M)
        assert torch.equal(alone.object_M, matches.object_M)


@given(q=st.integers(1, 6), g=st.integers(0, 6), seed=seeds)
@settings(max_examples=40, deadline=None)
def test_the_order_of_queries_and_objects_does_not_matter(q: int, g: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost_QG = torch.randn(q, g, generator=generator)
    rows, columns = torch.randperm(q, generator=generator), torch.randperm(g, generator=generator)
    before, after = match_sets([cost_QG, cost_QG[rows][:, columns]])
    pairs = set(zip(rows[after.query_M].tolist(), columns[after.object_M].tolist(), strict=True))
    assert pairs == set(zip(before.query_M.tolist(), before.object_M.tolist(), strict=True))


@given(q=st.integers(1, 5), g=st.integers(1, 5), seed=seeds, bad=st.sampled_from([np.nan, np.inf]))
@settings(max_examples=40, deadline=None)
def test_a_pair_whose_cost_is_no_number_is_matched_last(q: int, g: int, seed: int, bad: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    cost_QG = torch.randn(q, g, generator=generator)
    cost_QG[torch.rand(q, g, generator=generator) < 0.4] = bad
    [matches] = match_sets([cost_QG])
    assert len(matches.query_M) == min(q, g)
    worth_QG = torch.where(cost_QG.isfinite(), cost_QG, 1e4)
    assert total(worth_QG, matches) == pytest.approx(least(worth_QG), abs=1e-2)


def test_every_cost_may_be_no_number_and_minus_infinity_comes_first() -> None:
    for bad in (np.nan, np.inf, -np.inf):
        [matches] = match_sets([torch.full((3, 2), bad)])
        assert len(matches.query_M) == 2
    [matches] = match_sets([torch.tensor([[0.0, -9.0], [-np.inf, -9.0]])])
    assert matches.object_M.tolist() == [1, 0]
    assert match_sets([]) == []


def test_losses_are_means_over_pairs_whatever_the_order_of_the_objects() -> None:
    network, data = detector(), batch([SOME, []], masks=False)
    truths = ground_truths(data, masks=False)
    layers = network.predict(data)
    losses = network.criterion(layers, truths, lambda count: count)
    assert set(losses) == {"d0.loss_cls", "d0.loss_giou", "loss_cls", "loss_giou"}
    count = len(truths[0].labels_G)
    backwards = [GroundTruth(t.boxes_G4.flip(0), t.labels_G.flip(0), None) for t in truths]
    for name, value in network.criterion(layers, backwards, lambda count: count).items():
        torch.testing.assert_close(value, losses[name])
    pairs = network.criterion.match(layers, truths)[1]
    assert len(pairs) == count
    torch.testing.assert_close(losses["loss_giou"], 2 * box_loss(layers[1], pairs) / count)
    for name, value in network.criterion(layers, truths, lambda count: count * 2).items():
        torch.testing.assert_close(value, losses[name] / 2)


def test_without_objects_every_parameter_has_a_gradient() -> None:
    network = detector()
    losses = network.losses(batch([[], []], masks=False))
    torch.stack([*losses.values()]).sum().backward()
    assert losses["loss_giou"] == 0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_a_query_detector_learns() -> None:
    network, data = detector(), batch([SOME, SOME[:1]], masks=False)
    optimizer, history = torch.optim.AdamW(network.parameters(), lr=0.02), []
    for _ in range(40):
        loss = torch.stack([*network.losses(data).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert np.mean(history[-5:]) < 0.6 * np.mean(history[:3])


def test_an_unknown_weight_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no loss 'loss_l1' to weigh; the losses are loss_cls"):
        SetCriterion(cost, {"loss_cls": class_loss}, {"loss_l1": 5.0})


def test_the_best_pairs_of_queries_and_classes_are_detections() -> None:
    scores = torch.tensor([[[0.9, 0.8, 0.1], [0.3, 0.8, 0.2]]])
    boxes = torch.tensor([[[0.0, 0, 10, 10], [10, 10, 20, 30]]])
    data = batch([[]])
    [best] = best_of_queries(scores, boxes, data, per_image=3, rescale=False)
    assert best.labels_N.tolist() == [0, 1, 1]  # of equal scores the first query is first
    assert torch.equal(best.boxes_N4, boxes[0, [0, 0, 1]])
    [all_pairs] = best_of_queries(scores, boxes, data, per_image=100, rescale=False)
    assert len(all_pairs) == 6
    half = Batch(data.ids, data.images_BCHW, data.sizes, tuple((2 * h, 2 * w) for h, w in data.sizes))
    [rescaled] = best_of_queries(scores, boxes, half, per_image=3, rescale=True)
    assert torch.equal(rescaled.boxes_N4, best.boxes_N4 * 2)


def test_padding_masks_are_true_where_the_image_ends() -> None:
    maps = [torch.zeros(2, 1, 8, 16), torch.zeros(2, 1, 4, 8)]
    assert padding_masks([(64, 128), (64, 128)], (64, 128), maps) is None
    masks = padding_masks([(64, 128), (24, 100)], (64, 128), maps)
    assert masks is not None
    fine, coarse = masks
    assert fine.shape == (2, 8, 16)
    assert not fine[0].any()
    assert torch.equal(~fine[1], (torch.arange(8) < 3)[:, None] & (torch.arange(16) < 13))
    assert torch.equal(~coarse[1], (torch.arange(4) < 2)[:, None] & (torch.arange(8) < 7))


def test_an_image_in_a_larger_batch_gives_what_it_gives_alone() -> None:
    network = detector().eval()
    small, large = batch([[]], (64, 64)), batch([[]], (96, 128))
    images = F.pad(small.images_BCHW, (0, 64, 0, 32))
    both = Batch(
        ("a", "b"),
        torch.cat([images, large.images_BCHW]),
        (*small.sizes, *large.sizes),
        (*small.original_sizes, *large.original_sizes),
    )
    [alone] = network.detect(small)
    together = network.detect(both)[0]
    torch.testing.assert_close(together.boxes_N4, alone.boxes_N4)
    torch.testing.assert_close(together.scores_N, alone.scores_N)


@pytest.mark.parametrize("counts_over_ranks", [True, False])
def test_training_hands_the_mean_over_processes_to_detectors_that_want_it(counts_over_ranks: bool) -> None:
    network, ranks = detector(), Ranks(0, 1)
    network.counts_over_ranks = counts_over_ranks
    recipe = resolve("digit_scenes_mask_rcnn").recipe
    prepare(Detection(network, ("a", "b", "c")), recipe, ranks, torch.device("cpu"))
    assert (network.mean_over_ranks == ranks.mean) == counts_over_ranks
