"""What holds for every detector, whatever its weights."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scenes import NAMES, QUERIES, SINGLE_STAGE, SOME, TWO_STAGE, SmallBackbone, batch, objects, small, with_detections
from torch import nn

from fourstage.api import create_detector
from fourstage.data.sample import Batch, Objects
from fourstage.tasks.detection.box_head import BoxHead, DetectionLimits
from fourstage.tasks.detection.detector import Detections
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.detection.rpn import ProposalLimits
from fourstage.tasks.detection.single_stage import CandidateLimits, best_pairs, by_anchor, pairs_of_best_anchors
from fourstage.tasks.detection.two_stage import TwoStage

every = pytest.mark.parametrize("name", NAMES)


def assert_same(a: Detections, b: Detections, *, in_order: bool = True) -> None:
    if not in_order:  # without suppression there are many detections, and scores that differ only in their last digit
        a, b = (by_box(one) for one in (a, b))
    assert a.labels_N.tolist() == b.labels_N.tolist()
    torch.testing.assert_close(a.boxes_N4, b.boxes_N4, rtol=0, atol=1e-3)
    torch.testing.assert_close(a.scores_N, b.scores_N, rtol=0, atol=1e-5)


def by_box(found: Detections) -> Detections:
    """The detections in the order of classes and places."""
    columns = np.stack([found.labels_N.numpy(), *found.boxes_N4.round(decimals=2).numpy().T])
    order = np.lexsort(columns[::-1])
    return Detections(found.boxes_N4[order], found.labels_N[order], found.scores_N[order])


@every
def test_an_image_among_others_gives_what_it_gives_alone(name: str) -> None:
    detector, together = with_detections(small(name)), batch([SOME, [], SOME])
    found = detector.detect(together)
    for i, id in enumerate(together.ids):
        [alone] = detector.detect(batch([[]], ids=[id]))
        assert len(alone) > 0
        assert_same(alone, found[i], in_order=name not in QUERIES)
        if alone.masks is not None:
            ours = found[i].masks
            assert ours is not None
            assert ours.full_size().shape == (len(alone), 192, 256)
            assert (alone.masks.full_size() != ours.full_size()).float().mean() < 1e-3


@every
def test_detections_are_sorted_and_lie_in_the_original_image(name: str) -> None:
    detector, data = with_detections(small(name)), batch([SOME])
    [found], [network] = detector.detect(data), detector.detect(data, rescale=False)
    for d, (height, width) in ((found, data.original_sizes[0]), (network, data.sizes[0])):
        assert 0 < len(d) <= 100
        assert torch.equal(d.scores_N, d.scores_N.sort(descending=True).values)
        assert d.labels_N.max() < 3
        if name == "sparse_rcnn":  # its boxes may end outside, as they were published
            continue
        assert d.boxes_N4.min() >= 0
        assert (d.boxes_N4 <= torch.tensor([width, height, width, height]) + 1e-3).all()
    torch.testing.assert_close(found.boxes_N4[:5], 2 * network.boxes_N4[:5], rtol=1e-5, atol=1e-3)


@every
@pytest.mark.parametrize("strides", [(4, 8, 16, 32), (8, 16, 32)])
def test_losses_reach_every_parameter_with_and_without_objects(name: str, strides: tuple[int, ...]) -> None:
    names = set()
    for boxes in ([SOME, []], [[], []]):
        detector = small(name, strides)
        losses = detector(batch(boxes))
        names.add(tuple(losses))
        total = torch.stack([*losses.values()]).sum()
        assert total.isfinite()
        total.backward()
        missing = [key for key, p in detector.named_parameters() if p.grad is None]
        assert not missing
        assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
        if boxes[0]:
            assert all(value > 0 for key, value in losses.items())
        else:
            assert all(value == 0 for key, value in losses.items() if "bbox" in key or "mask" in key)
    assert len(names) == 1


EXTREMES = {
    "one pixel": [[5, 5, 6, 6], [50.5, 30.5, 51.5, 31.5]],
    "the whole image": [[0, 0, 128, 96]],
    "a line": [[0, 40, 128, 41]],
    "outside": [[-20, -20, 40, 30], [100, 80, 180, 150]],
    "all the same": [[20, 20, 60, 60]] * 5,
    "five hundred": [[x % 25 * 5, x // 25 * 4, x % 25 * 5 + 4, x // 25 * 4 + 3] for x in range(500)],
}


@every
@pytest.mark.parametrize("kind", EXTREMES)
def test_extreme_objects_train(name: str, kind: str) -> None:
    losses = small(name)(batch([EXTREMES[kind]]))
    torch.stack([*losses.values()]).sum().backward()
    assert all(value.isfinite() for value in losses.values())


@every
def test_a_box_without_extent_and_a_crowd_are_as_if_they_were_not_there(name: str) -> None:
    data = batch([SOME])
    assert data.objects is not None
    more = objects([*SOME, [30, 30, 30, 50], [40, 40, 90, 80]], data.sizes[0])
    crowd = Objects(more.boxes_N4, more.labels_N, torch.tensor([False, False, False, True]), more.masks_NHW)
    a, b = (small(name).losses(x, seed=1) for x in (data, replace(data, objects=(crowd,))))
    assert {key: value.item() for key, value in a.items()} == {key: value.item() for key, value in b.items()}


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (64, 320)])
@every
def test_images_of_any_size(name: str, size: tuple[int, int]) -> None:
    detector = with_detections(small(name))
    assert len(detector.detect(batch([[]], size))) == 1
    losses = detector(batch([[[2.0, 3.0, 30.0, 31.0]]], size))
    assert all(value.isfinite() for value in losses.values())


@every
def test_padding_in_the_batch_is_as_padding_in_the_detector(name: str) -> None:
    small_image = batch([SOME], (90, 110))
    wide = batch([[]], (96, 128))
    wide.images_BCHW.zero_()[:, :, :90, :110] = small_image.images_BCHW
    masks = objects(SOME, (90, 110)).masks_NHW
    assert masks is not None
    own = replace(objects(SOME, (96, 128)), masks_NHW=nn.functional.pad(masks, (0, 18, 0, 6)))
    padded = replace(
        wide, sizes=small_image.sizes, original_sizes=small_image.original_sizes, objects=(own,), ids=small_image.ids
    )
    detector = with_detections(small(name))
    assert_same(detector.detect(small_image)[0], detector.detect(padded)[0], in_order=name not in QUERIES)
    for key, value in detector.losses(padded, seed=3).items():
        torch.testing.assert_close(value, detector.losses(small_image, seed=3)[key])


@pytest.mark.parametrize("name", [*SINGLE_STAGE, *TWO_STAGE])
def test_no_detection_gives_empty_tensors(name: str) -> None:
    detector = small(name).eval()
    for key, parameter in detector.named_parameters():
        if "classify" in key:
            parameter.data.zero_()
            parameter.data[..., -1:] = 50.0 if "bias" in key and name in TWO_STAGE else 0.0  # all is background
            if name in SINGLE_STAGE and "bias" in key:
                parameter.data.fill_(-50.0)
    [found] = detector.detect(batch([[]]))
    assert (len(found), found.boxes_N4.shape, found.labels_N.dtype) == (0, (0, 4), torch.int64)
    if found.masks is not None:
        assert found.masks.full_size().shape == (0, 192, 256)


@every
def test_half_precision_trains_in_float32_where_it_matters(name: str) -> None:
    detector, data = small(name), batch([SOME, []])
    if isinstance(detector, DINO):  # in half precision cells are ranked in another order, and each rank has a content
        nn.init.zeros_(detector.query_embed.weight)
    full = detector.losses(data, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        half = detector.losses(data, seed=1)
        found = with_detections(detector).detect(data)
    for key, value in half.items():
        assert value.dtype == torch.float32, key
        torch.testing.assert_close(value, full[key], rtol=0.1, atol=0.05)
    assert all(d.boxes_N4.dtype == d.scores_N.dtype == torch.float32 for d in found)


@every
def test_weights_in_half_precision_detect(name: str) -> None:
    [found] = with_detections(small(name)).bfloat16().detect(batch([[]]))
    assert len(found) > 0
    assert found.boxes_N4.dtype == found.scores_N.dtype == torch.float32


two_stage = pytest.mark.parametrize("name", TWO_STAGE)


def values(data: Batch, name: str, seed: int | None) -> dict[str, float]:
    return {key: value.item() for key, value in few(name).losses(data, seed).items()}


def few(name: str) -> TwoStage:
    detector = small(name)
    assert isinstance(detector, TwoStage)
    detector.sampler = type(detector.sampler)(8, 0.25)
    detector.rpn.sampler = type(detector.rpn.sampler)(16, 0.5)
    return detector.eval()


@two_stage
def test_draws_depend_on_the_seed_alone(name: str) -> None:
    data = batch([SOME, SOME])
    torch.manual_seed(1)
    first = values(data, name, 7)
    torch.manual_seed(2)
    assert values(data, name, 7) == first
    assert values(data, name, 8) != first


@two_stage
def test_draws_without_a_seed_follow_torchs_generator(name: str) -> None:
    data, detector = batch([SOME]), few(name)
    runs = []
    for seed in (1, 1, 2):
        torch.default_generator.manual_seed(seed)
        runs.append({key: value.item() for key, value in detector(data).items()})
    assert runs[0] == runs[1] != runs[2]


@two_stage
def test_an_images_draws_do_not_depend_on_its_neighbours(name: str) -> None:
    detector, seen = few(name), []
    sample = detector.sample
    detector.sample = lambda *args, **kwargs: seen.append(sample(*args, **kwargs)) or seen[-1]
    detector.losses(batch([SOME, SOME], ids=["a", "b"]), seed=5)
    detector.losses(batch([SOME, SOME], ids=["c", "a"]), seed=5)
    assert torch.equal(seen[0][0].boxes_R4, seen[len(seen) // 2][1].boxes_R4)


@pytest.mark.parametrize("name", ["cascade", "cascade_4conv"])
def test_true_boxes_enter_every_stage_of_a_cascade_once(name: str) -> None:
    detector, given, chosen = small(name), [], []
    assert isinstance(detector, TwoStage)
    sample = detector.sample

    def spy(proposals: Sequence[torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        given.append(proposals)
        chosen.append(sample(proposals, *args, **kwargs))
        return chosen[-1]

    detector.sample = spy
    detector.losses(batch([SOME, []]), seed=1)
    for before, after in itertools.pairwise(range(3)):
        for i, own in enumerate((2, 0)):  # true boxes in the images, all of which are their own positives
            assert chosen[before][i].is_ground_truth_P.sum() == own
            assert len(given[after][i]) == len(chosen[before][i].boxes_R4) - own


@every
def test_the_mean_over_processes_of_losses_is_the_loss_over_all(name: str) -> None:
    """Each of two processes has one image, and divides by the mean of both counts."""
    detector, data = small(name).eval(), batch([SOME, SOME[:1]])
    if isinstance(detector, DINO):
        detector.denoising = 1  # one group of queries with noise in each process, as for both images together
    parts = [batch([SOME], ids=["image 0"]), batch([SOME[:1]], ids=["image 1"])]
    counts: list[list[torch.Tensor]] = []
    for part in parts:
        own: list[torch.Tensor] = []
        detector.mean_over_ranks = lambda count, own=own: own.append(count) or count
        detector.losses(part, seed=2)
        counts.append(own)
    means = [torch.stack(pair).mean() for pair in zip(*counts, strict=True)]
    apart = []
    for part in parts:
        given = iter(means)
        detector.mean_over_ranks = lambda _, given=given: next(given)
        apart.append(detector.losses(part, seed=2))
    detector.mean_over_ranks = lambda count: count
    for key, value in detector.losses(data, seed=2).items():
        if "mask" not in key:  # a mean over the positives of one process, as it was published
            torch.testing.assert_close((apart[0][key] + apart[1][key]) / 2, value, rtol=1e-4, atol=1e-6)


def test_the_older_rule_keeps_all_classes_of_the_best_anchors() -> None:
    torch.manual_seed(0)
    detector = RetinaNet(with_detections(small("retinanet")).backbone, 3, channels=16, convs=1, candidates="anchors")
    with_detections(detector)
    logits, deltas = torch.randn(27, 2, 3), torch.randn(36, 2, 3)
    anchors = torch.rand(54, 4)
    all_scores = by_anchor(logits[None], 3)[0].sigmoid()
    assert torch.equal(all_scores, logits.permute(1, 2, 0).reshape(54, 3).sigmoid())
    scores, chosen, labels = pairs_of_best_anchors(all_scores, 0.05, 4)
    best = all_scores.amax(dim=1).topk(4).indices
    expected = [(float(all_scores[n, c]), c) for n in best for c in range(3) if all_scores[n, c] > 0.05]
    assert list(zip(scores.tolist(), labels.tolist(), strict=True)) == expected
    assert set(map(tuple, anchors[chosen].tolist())) <= set(map(tuple, anchors[best].tolist()))
    assert by_anchor(deltas[None], 4).shape == (1, 54, 4)
    pairs = best_pairs(all_scores, 0.05, 4).scores_P
    np.testing.assert_allclose(pairs, all_scores.flatten().sort(descending=True).values[:4])
    detector.limits = CandidateLimits(candidates="anchors", per_level=4)
    assert detector.detect(batch([[]]))


def test_wrong_settings_raise() -> None:
    backbone = small("mask_rcnn").backbone
    with pytest.raises(ValueError, match="num_classes"):
        RetinaNet(backbone, 0)
    with pytest.raises(ValueError, match="'best'"):
        RetinaNet(backbone, 3, candidates="best")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="Identity has no levels"):
        RetinaNet(nn.Identity(), 3)
    with pytest.raises(ValueError, match="end at stride 4"):
        small("retinanet", strides=(4,))
    with pytest.raises(ValueError, match="masks=False"):
        small("mask_rcnn")(batch([SOME], masks=False))
    with pytest.raises(ValueError, match="image 0 are 48 x 64"):
        small("mask_rcnn")(replace(batch([SOME]), objects=(objects(SOME, (48, 64)),)))
    with pytest.raises(ValueError, match="without objects"):
        small("retinanet")(replace(batch([SOME]), objects=None))
    assert small("faster_rcnn")(batch([SOME], masks=False))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"base_scale": -1}, "base_scale is a number above 0; got -1"),
        ({"scales_per_octave": 0}, "scales_per_octave must be an integer of at least"),
        ({"tower_channels": 0}, "tower_channels must be an integer of at least"),
        ({"convs": -1}, "convs must be an integer of at least 0; got -1"),
        ({"per_level": 0}, "per_level must be an integer of at least"),
        ({"num_outs": 2.5}, "num_outs must be an integer of at least"),
    ],
)
def test_settings_that_no_retinanet_has_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_detector("retinanet", SmallBackbone(), 3, **arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"channels": 40}, "a tower of ATSS needs channels in multiples of 32, at least 64; got 40"),
        ({"channels": 32}, "at least 64; got 32"),
        ({"channels": 40, "dyhead": 1}, "DyHead needs channels in multiples of 16, at least 32; got 40"),
        ({"dyhead": -1}, "dyhead must be an integer of at least 0; got -1"),
        ({"kernel": 2}, "kernel is an odd number of cells; got 2"),
        ({"anchor_offset": 4}, "offset of anchors is a number from 0 to 1, in strides; got 4"),
        ({"candidates_per_level": 0}, "candidates must be an integer of at least 1; got 0"),
        ({"base_scale": 0}, "base_scale is a number above 0; got 0"),
        ({"candidates": "best"}, "candidates are the best 'pairs' or the best 'anchors'; got 'best'"),
    ],
)
def test_settings_that_no_atss_has_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_detector("atss", SmallBackbone(), 3, **arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"proposals": 0}, "proposals must be an integer of at least 1; got 0"),
        ({"stages": 0}, "stages must be an integer of at least 1; got 0"),
        ({"heads": 3}, "channels=256 must split evenly over heads=3"),
        ({"filter_channels": -1}, "filter_channels must be an integer of at least 1; got -1"),
        ({"per_image": 0}, "per_image must be an integer of at least 1; got 0"),
    ],
)
def test_settings_that_no_sparse_rcnn_has_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_detector("sparse_rcnn", SmallBackbone(), 3, **arguments)


def test_more_objects_than_proposals_are_refused_with_the_image_named() -> None:
    sizes: dict[str, Any] = {"proposals": 2, "stages": 1, "channels": 16, "heads": 2, "hidden": 8}
    detector: Any = create_detector("sparse_rcnn", SmallBackbone(), 3, **sizes)
    assert all(value.isfinite() for value in detector(batch([SOME])).values())
    with pytest.raises(ValueError, match=r"image 0 has 5 objects, and this detector 2 proposals.*proposals=5 or more"):
        detector(batch([EXTREMES["all the same"]]))
    assert len(detector.detect(batch([[]]))[0]) == 2  # as many as there are proposals


@pytest.mark.parametrize("name", ["box_heads.0.regress.bias", "proposal_boxes.weight", "proposal_features.weight"])
def test_a_sparse_rcnn_that_diverges_names_its_stage_and_does_not_crash(name: str) -> None:
    detector = small("sparse_rcnn")
    detector.get_parameter(name).data[:] = torch.nan
    wrong = [key for key, value in detector(batch([SOME, []])).items() if not value.isfinite()]
    assert wrong[0].startswith("s0.")  # the training stops and names it


def test_centreness_lowers_the_scores_of_detections_and_chooses_none() -> None:
    """The score is the class' probability times centreness; the threshold is one of the class alone."""
    detector: Any = with_detections(small("atss"))
    data = batch([[]])
    detector.limits = CandidateLimits(iou_threshold=1.0, per_image=10**4)  # nothing is suppressed
    [before] = detector.detect(data)
    detector.dense_head.centerness.weight.data.zero_()
    detector.dense_head.centerness.bias.data.fill_(-3.0)
    [found] = detector.detect(data)
    assert found.scores_N.max() <= 1 / (1 + np.exp(3)) < 0.05
    assert len(found) == len(before) > 100


@pytest.mark.parametrize("name", ["retinanet", "atss", "atss_dyhead", "sparse_rcnn", "mask_rcnn"])
def test_a_few_steps_learn_one_image(name: str) -> None:
    detector, data = small(name), batch([SOME])
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    history = []
    for step in range(30):
        total = torch.stack([*detector.losses(data, seed=step).values()]).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert np.mean(history[-5:]) < 0.6 * np.mean(history[:3])


TINY: dict[str, Any] = {"channels": 8, "conv_channels": 8, "fc_channels": 16, "mask_channels": 8}
OTHERWISE: list[tuple[str, dict[str, Any]]] = [
    ("mask_rcnn", {"heads": "4conv1fc", **TINY}),
    ("mask_rcnn", {"class_agnostic": True, "box_loss": "smooth_l1", "mask_convs": 1, **TINY}),
    ("mask_rcnn", {"num_outs": 4, "finest_scale": 28, "rpn": {"scales": [4, 8], "channels": 12, "convs": 2}, **TINY}),
    (
        "cascade_mask_rcnn",
        {"class_agnostic": False, "stages": [{"iou": 0.5, "stds": (1, 1, 1, 1), "weight": 1}], **TINY},
    ),
    ("cascade_mask_rcnn", {"heads": "4conv1fc", "class_agnostic": True, "box_loss": "l1", **TINY}),
    ("retinanet", {"channels": 8, "tower_channels": 12, "scales_per_octave": 2, "ratios": [1, 2], "base_scale": 2}),
    (
        "atss",
        {"channels": 8, "tower_channels": 64, "base_scale": 4, "candidates_per_level": 5, "candidates": "anchors"},
    ),
    ("atss", {"channels": 32, "dyhead": 2, "kernel": 1, "anchor_offset": 0.5, "zero_offsets": False, "num_outs": 3}),
]


@pytest.mark.parametrize(("name", "arguments"), OTHERWISE)
def test_other_settings_train_every_parameter_and_find_objects(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    detector: Any = create_detector(name, SmallBackbone(), 3, **arguments)
    torch.stack([*detector.losses(batch([SOME, []])).values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in detector.parameters())
    [found] = with_detections(detector).detect(batch([SOME]))
    assert len(found) > 0
    agnostic = arguments.get("class_agnostic")
    for head in (part for part in detector.modules() if isinstance(part, BoxHead) and agnostic is not None):
        assert head.regress.out_features == (4 if agnostic else 12)


def test_limits_come_as_mappings_too() -> None:
    torch.manual_seed(0)
    rpn = {"proposals": {"per_level": 50, "per_image": 20}, "count": 64}
    limits = {"per_image": 300, "score_threshold": 0.01, "mask_threshold": 0.9}
    detector: Any = create_detector("mask_rcnn", SmallBackbone(), 3, selecting=limits, rpn=rpn, **TINY)
    assert detector.limits == DetectionLimits(0.01, 0.5, 300, 0.9)
    assert detector.rpn.proposals == ProposalLimits(50, 20)
    assert detector.rpn.training_proposals == ProposalLimits(2000, 1000)
    [found] = with_detections(detector).detect(batch([SOME]))
    assert found.masks is not None
    assert found.masks.threshold == 0.9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"selecting": {"per_imag": 3}}, "selecting has no argument 'per_imag'; did you mean per_image"),
        ({"selecting": 3}, "selecting is a mapping of score_threshold"),
        ({"rpn": {"levels": 3}}, "rpn has no argument 'levels'"),
        ({"rpn": {"proposals": {"per_level": 3}}}, "proposals is incomplete: .*per_image"),
        ({"heads": "3fc"}, "heads are '2fc' or '4conv1fc'"),
        ({"box_loss": "l2"}, "box_loss is one of l1"),
        ({"channels": 0}, "channels must be an integer of at least 1; got 0"),
        ({"regions": 0}, "regions must be an integer of at least"),
        ({"num_outs": 0}, "num_outs must be an integer of at least"),
        ({"fc_channels": "many"}, "fc_channels must be an integer of at least.*got 'many'"),
        ({"mask_convs": -1}, "mask_convs must be an integer of at least 0; got -1"),
        ({"finest_scale": 0}, "finest_scale is a number above 0; got 0"),
        ({"rpn": {"scales": []}}, r"scales is a list of numbers above 0, at least one; got \[\]"),
        ({"rpn": {"ratios": [1, 0]}}, r"ratios is a list .* got \[1, 0\]"),
        ({"rpn": {"proposals": {"per_level": 0, "per_image": 1}}}, "per_level must be an integer of at least"),
        ({"selecting": {"per_image": 0}}, "per_image must be an integer of at least"),
        ({"masks": "false"}, "masks is true or false; got 'false'"),
        ({"rpn": {"whole_anchors": "no"}}, "whole_anchors is true or false; got 'no'"),
        ({"selecting": {"score_threshold": "low"}}, "score_threshold is a number; got 'low'"),
    ],
)
def test_settings_that_there_are_not_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_detector("mask_rcnn", SmallBackbone(), 3, **arguments)
    with pytest.raises(ValueError, match="at least one stage"):
        create_detector("cascade_mask_rcnn", SmallBackbone(), 3, stages=[])
