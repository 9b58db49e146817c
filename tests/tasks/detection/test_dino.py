"""What has gone wrong in other query detectors, and Stable-DINO's matching and loss by hand."""

from dataclasses import replace
from math import log
from typing import Any, cast

import pytest
import torch
from scenes import SOME, SmallBackbone, batch
from torch import Tensor, nn

import fourstage
from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch
from fourstage.tasks.detection.boxes import clip_boxes
from fourstage.tasks.detection.channel_mapper import ChannelMapper
from fourstage.tasks.detection.deformable_attention import DeformableAttention, Memory
from fourstage.tasks.detection.denoising import add_noise, cap_objects, draw_noise, may_see
from fourstage.tasks.detection.detector import GroundTruth
from fourstage.tasks.detection.dino import DINO, best_cells
from fourstage.tasks.detection.dino_data import queries_for
from fourstage.tasks.detection.dino_query_points import best_query_points
from fourstage.tasks.detection.matching import Draws
from fourstage.tasks.detection.query_losses import (
    position_modulated_cost,
    position_supervised_loss,
    set_cost,
)
from fourstage.tasks.detection.set_criterion import MatchedPairs, Queries


def tiny(backbone: nn.Module | None = None, **more: Any) -> DINO:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"channels": 16, "encoder_layers": 1, "decoder_layers": 2, "heads": 2, "hidden": 16}
    return DINO(backbone or SmallBackbone(), 3, **{**sizes, "queries": 30, **more})


def many(count: int) -> list[list[float]]:
    return [[2.0 + i % 20 * 4, 2.0 + i // 20 * 4, 6.0 + i % 20 * 4, 6.0 + i // 20 * 4] for i in range(count)]


# -------------------------------------------------------------------------------------------------- objects and queries


def test_more_objects_than_queries_are_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"image 1 has 31 objects, and this detector 30 queries.*queries=31"):
        tiny()(batch([SOME, many(31)]))


def test_denoising_learns_from_a_part_of_many_objects() -> None:
    boxes_G4 = torch.tensor(many(150)) / 128
    truths = [GroundTruth(boxes_G4, torch.zeros(150, dtype=torch.int64), None)]
    [some] = cap_objects(truths, ["a"], 100, Draws(1))
    [again] = cap_objects(truths, ["a"], 100, Draws(1))
    assert len(some.labels_G) == 100
    assert torch.equal(some.boxes_G4, again.boxes_G4)
    noisy = add_noise([some], draw_noise([some], ["a"], 2, 3, Draws(1)), label_rate=0.25, box_scale=1.0)
    assert (noisy.count, noisy.groups) == (200, 1)
    detector = tiny(queries=200, denoising=20)
    losses = detector(batch([many(150), SOME]))
    assert all(value.isfinite() for value in losses.values())


def test_queries_are_at_most_as_many_as_cells() -> None:
    detector = tiny(queries=900).eval()
    data = batch([SOME], (32, 32))
    maps = detector.maps(data)
    memory = detector.encode(maps, None)
    assert detector.choose(memory).boxes_BQ4.shape == (1, 4 * 4 + 2 * 2 + 1 + 1, 4)
    [found] = detector.detect(batch([[]], (32, 32)))
    assert len(found) == 22 * 3


@pytest.mark.parametrize(("objects", "queries"), [(0, 100), (6, 100), (20, 200), (93, 900), (200, 900), (700, 1400)])
def test_queries_for_data(objects: int, queries: int) -> None:
    assert queries_for(objects) == queries


def test_two_classes_of_one_query_are_two_detections(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = tiny(per_image=5).eval()
    logits_BQC = torch.full((1, 30, 3), -9.0)
    logits_BQC[0, 7] = torch.tensor([3.0, -9.0, 2.0])
    logits_BQC[0, 4, 1] = 1.0
    monkeypatch.setattr(DINO, "predict", lambda *_: Queries(logits_BQC, torch.full((1, 30, 4), 0.5)))
    [found] = detector.detect(batch([[]]))
    assert found.labels_N[:3].tolist() == [0, 2, 1]


def test_equal_scores_choose_the_first_cells() -> None:
    scores_BN = torch.zeros(2, 3000)
    scores_BN[1, 2999] = 1.0
    assert best_cells(scores_BN, 4).tolist() == [[0, 1, 2, 3], [2999, 0, 1, 2]]
    assert best_cells(scores_BN[:, :3], 4).tolist() == [[0, 1, 2]] * 2


def test_queries_with_noise_see_their_own_group_and_all_without() -> None:
    truths = [GroundTruth(torch.rand(n, 4), torch.arange(n), None) for n in (2, 1)]
    noisy = add_noise(truths, draw_noise(truths, ["a", "b"], 4, 3, Draws(0)), label_rate=0.0, box_scale=1.0)
    see_TT = may_see(noisy, 3)
    assert see_TT.shape == (11, 11)
    assert see_TT[0].tolist() == [True] * 4 + [False] * 4 + [True] * 3
    assert see_TT[5].tolist() == [False] * 4 + [True] * 7
    assert see_TT[9].tolist() == [False] * 8 + [True] * 3
    assert noisy.labels_BD.tolist() == [[0, 1] * 4, [0, -1] * 4]
    assert (noisy.boxes_BD4[1, 1::2] == 0.5).all()


def test_noise_of_an_image_does_not_depend_on_the_others() -> None:
    one, two = (GroundTruth(torch.rand(n, 4).sort().values, torch.arange(n), None) for n in (2, 3))
    alone = draw_noise([two], ["b"], 4, 3, Draws(5))
    both = draw_noise([one, two], ["a", "b"], 4, 3, Draws(5))
    assert torch.equal(alone.size_RG4, both.size_RG4[:, 2:])
    assert torch.equal(alone.new_label_RG, both.new_label_RG[:, 2:])


# ------------------------------------------------------------------------------------------------ padding and precision


class Zeros(SmallBackbone):
    """Padding of zeros stays zero, so that what lies beyond an image does not reach it through convolutions."""

    def __init__(self) -> None:
        super().__init__()
        for conv in self.convs:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)


def without_norms(detector: DINO) -> DINO:
    """A norm over groups of channels counts the padding, as in the original."""
    for module in detector.neck.modules():
        if hasattr(module, "norm"):
            module.norm = nn.Identity()
    return detector


def test_an_image_is_the_same_alone_and_in_a_padded_batch() -> None:
    """Memory and chosen boxes are. The decoder encodes boxes as shares of the padded image, as published."""
    detector = without_norms(tiny(Zeros())).eval()
    nn.init.constant_(detector.classify[-1].get_parameter("bias"), -30.0)
    nn.init.zeros_(detector.project.bias)  # so that cells that are padding are not chosen
    nn.init.ones_(detector.classify[-1].get_parameter("weight"))
    nn.init.normal_(detector.project_norm.weight)
    alone, wide = batch([SOME], (64, 128)), batch([[], []], (192, 256))
    images_BCHW = wide.images_BCHW.clone()
    images_BCHW[0].zero_()[:, :64, :128] = alone.images_BCHW[0]
    padded = replace(wide, images_BCHW=images_BCHW, sizes=((64, 128), (192, 256)))
    memories, boxes = [], []
    for data in (alone, padded):
        maps = detector.maps(data)
        masks = detector.padding_masks(data, maps)
        memory = detector.encode(maps, masks)
        real_N = slice(None) if masks is None else ~torch.cat([mask[0].flatten() for mask in masks])
        memories.append(memory.cells_BNC[0, real_N])
        boxes.append(detector.choose(memory).boxes_BQ4[0])
    torch.testing.assert_close(*memories)
    torch.testing.assert_close(*boxes)


def test_what_padding_holds_changes_nothing() -> None:
    """Behind the neck."""
    detector = tiny().eval()
    data = replace(batch([[], []]), sizes=((64, 96), (96, 128)))
    maps = [x.detach() for x in detector.maps(data)]
    masks = detector.padding_masks(data, maps)
    assert masks is not None
    other = [torch.where(mask[:, None], torch.randn_like(x), x) for x, mask in zip(maps, masks, strict=True)]
    memories = [detector.encode(x, masks) for x in (maps, other)]
    chosen = [detector.choose(memory).boxes_BQ4 for memory in memories]
    torch.testing.assert_close(*chosen)
    keep_BN = ~torch.cat([mask.flatten(1) for mask in masks], dim=1)
    torch.testing.assert_close(*[memory.cells_BNC[keep_BN] for memory in memories])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_costs_and_places_are_float32_under_autocast(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Areas of pixels overflow float16, and neighbouring cells of a large map have one place in it."""
    places: list[torch.dtype] = []
    points = DeformableAttention.points_of

    def seen(self: DeformableAttention, *given: Any) -> tuple[Tensor, Tensor]:
        out = points(self, *given)
        places.extend(x.dtype for x in out)
        return out

    monkeypatch.setattr(DeformableAttention, "points_of", seen)
    detector = tiny()
    costs: list[Tensor] = []
    cost = detector.criterion.cost
    detector.criterion.cost = lambda *given: costs.append(cost(*given)) or costs[-1]
    with torch.autocast("cpu", dtype):
        losses = detector(batch([SOME, []]))
    assert all(value.dtype == torch.float32 and value.isfinite() for value in losses.values())
    assert {x.dtype for x in costs} == set(places) == {torch.float32}


def test_points_are_shares_of_each_level() -> None:
    """With no offset and equal weights a query reads the cell at its reference, from every level."""
    attention = DeformableAttention(4, 2, heads=1, points=1)
    for layer in (attention.offsets, attention.value, attention.out):
        nn.init.zeros_(layer.bias)
    for layer in (attention.value, attention.out):
        nn.init.eye_(layer.weight)
    maps = [torch.arange(4.0 * 6).view(1, 6, 4), 100 + torch.arange(4.0 * 2).view(1, 2, 4)]
    memory = Memory(torch.cat(maps, dim=1), ((2, 3), (1, 2)))
    references = torch.tensor([[5 / 6, 0.75], [0.25, 0.5]])[None, None]  # (1, 1, 2, 2): last cell below, first cell
    out_BQC = attention(torch.zeros(1, 1, 4), references, memory)
    torch.testing.assert_close(out_BQC[0, 0], (maps[0][0, 5] + maps[1][0, 0]) / 2)


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"heads": 3}, "16 channels do not split over 3 heads"),
        ({"channels": 18, "heads": 2}, "channels must be a multiple of 4"),
        ({"queries": 0}, "queries must be an integer of at least 1"),
        ({"queries": "auto"}, "queries must be an integer of at least 1, or in a recipe auto; got 'auto'"),
        ({"queries": "Auto"}, "or in a recipe auto; got 'Auto'"),
        ({"stable": "no"}, "stable is true or false; got 'no'"),
        ({"neck_bias": 2}, "neck_bias is true or false; got 2"),
        ({"position_offset": "a"}, "position_offset is a number; got 'a'"),
        ({"position_offset": float("nan")}, "position_offset is a number; got nan"),
        ({"label_noise": True}, "label_noise is a number; got True"),
        ({"label_noise": 3}, "label_noise"),
        ({"denoising": -1}, "denoising must be an integer of at least 0"),
        ({"scales": 0}, "scales must be an integer"),
        ({"quieries": 5}, "did you mean queries"),
    ],
)
def test_settings_that_no_dino_has_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    given = {"channels": 16, "heads": 2, **arguments}
    with pytest.raises(ValueError, match=sentence):
        fourstage.create_detector("dino", SmallBackbone(), 3, **given)


@pytest.mark.parametrize(
    ("strides", "scales", "found"),
    [
        ((4, 8, 16, 32), 4, (8, 16, 32, 64)),
        ((4, 8, 16, 32), 5, (4, 8, 16, 32, 64)),
        ((4, 8, 16, 32), 2, (16, 32)),
        ((8, 16, 32), 4, (8, 16, 32, 64)),
        ((8, 16, 32), 5, (8, 16, 32, 64, 128)),
    ],
)
def test_scales(strides: tuple[int, ...], scales: int, found: tuple[int, ...]) -> None:
    detector = tiny(SmallBackbone(strides), scales=scales).eval()
    assert isinstance(detector.neck, ChannelMapper)
    assert tuple(level.stride for level in detector.neck.levels) == found
    assert len(detector.detect(batch([[]], (333, 517)))[0]) > 0
    losses = detector.train()(batch([SOME]))
    torch.stack([*losses.values()]).sum().backward()
    assert all(p.grad is not None for p in detector.neck.parameters())


@pytest.mark.parametrize("backbone", ["timm/resnet18", "timm/convnext_atto", "timm/pvt_v2_b0"])
def test_backbones_of_timm_at_odd_sizes(backbone: str) -> None:
    detector = fourstage.create_detector(
        "dino", backbone, 3, channels=16, queries=30, heads=2, hidden=16, encoder_layers=1, decoder_layers=1
    )
    [found] = cast(DINO, detector).eval().detect(batch([[]], (333, 517)))
    assert len(found) == 90
    assert found.boxes_N4.isfinite().all()


def test_a_backbone_of_dinov3_by_its_name() -> None:
    with torch.device("meta"):
        detector = fourstage.create_detector("dino", "timm/convnext_tiny.dinov3_lvd1689m", 3, scales=5)
    neck = cast(ChannelMapper, cast(DINO, detector).neck)
    assert tuple(level.stride for level in neck.levels) == (4, 8, 16, 32, 64)


def test_a_mapper_needs_an_output_for_every_map() -> None:
    with pytest.raises(ValueError, match="3 maps cannot become 2 outputs"):
        ChannelMapper([Level(8, 8), Level(8, 16), Level(8, 32)], 16, 2)


def test_without_denoising_its_losses_are_missing_and_its_embedding_is_frozen() -> None:
    detector = tiny(denoising=0)
    losses = detector(batch([SOME]))
    assert not any("dn" in name for name in losses)
    torch.stack([*losses.values()]).sum().backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == ["label_embed.weight"]


def test_queries_look_around_their_boxes() -> None:
    """A fresh network samples a ring around the centre of each box, in pixels of the original image."""
    detector = tiny(points=1, heads=4).eval()
    best = best_query_points(detector, batch([SOME]), 5)
    assert best.points_QS2.shape == (5, 4 * 4, 2)
    centers_Q2 = (best.boxes_Q4[:, :2] + best.boxes_Q4[:, 2:]) / 2
    sides_Q2 = best.boxes_Q4[:, 2:] - best.boxes_Q4[:, :2]
    away_QS2 = (best.points_QS2 - centers_Q2[:, None]) / sides_Q2[:, None]
    torch.testing.assert_close(away_QS2.abs().amax(dim=2), torch.full((5, 16), 0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(best.weights_QS.sum(dim=1), torch.full((5,), 4.0))
    assert best.scores_Q.tolist() == best.scores_Q.sort(descending=True).values.tolist()


@pytest.mark.parametrize("pad_to", [1, 32])
def test_best_queries_have_the_boxes_of_detections(pad_to: int) -> None:
    """In a batch that is padded to more than the detector needs."""
    torch.manual_seed(0)
    detector = tiny(pad_to=pad_to, per_image=200).eval()
    for parameter in detector.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    padded = replace(batch([SOME]), sizes=((41, 35),), original_sizes=((41, 35),))
    assert padded.images_BCHW.shape[2] >= 64
    best, [found] = best_query_points(detector, padded, 3), detector.detect(padded)
    torch.testing.assert_close(best.scores_Q[0], found.scores_N[0])
    torch.testing.assert_close(clip_boxes(best.boxes_Q4, torch.tensor([[41, 35]]))[0], found.boxes_N4[0])


# -------------------------------------------------------------------------------------------------------- Stable-DINO


def pairs_of(queries: list[int], labels: list[int], boxes: list[list[float]]) -> MatchedPairs:
    return MatchedPairs(
        torch.zeros(len(queries), dtype=torch.int64), torch.tensor(queries), torch.tensor(labels), torch.tensor(boxes)
    )


def test_the_position_supervised_loss_by_hand() -> None:
    """Overlaps of 1/2 and 1/4 become targets of 1 and (1/4 / 1/2)^2 = 1/4; the third query is matched to nothing."""
    boxes_BQ4 = torch.tensor([[[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.25], [0.1, 0.1, 0.1, 0.1]]])
    truth = [[0.25, 0.25, 0.75, 0.5], [0.25, 0.25, 0.75, 0.75 + 0.5]]  # half of the first; the second lies in a quarter
    logits_BQC = torch.zeros(1, 3, 1)
    found = position_supervised_loss(Queries(logits_BQC, boxes_BQ4), pairs_of([0, 1], [0, 0], truth))
    matched = 0.25 * (0.5**2 * log(2) + 0.25**2 * log(2))
    negative = 0.75 * 0.5**2 * log(2)
    assert float(found) == pytest.approx(matched + negative, rel=1e-5)


def test_the_position_supervised_loss_without_objects_is_focal() -> None:
    logits_BQC = torch.randn(2, 3, 4, requires_grad=True)
    nothing_M = torch.zeros(0, dtype=torch.int64)
    none = MatchedPairs(nothing_M, nothing_M, nothing_M, torch.zeros(0, 4))
    found = position_supervised_loss(Queries(logits_BQC, torch.rand(2, 3, 4)), none)
    share = logits_BQC.sigmoid()
    torch.testing.assert_close(found, (-0.75 * share**2 * (1 - share).log()).sum())
    found.backward()
    assert logits_BQC.grad is not None


def test_the_position_modulated_cost_by_hand() -> None:
    """Of two queries with one score, the one whose box fits keeps it; the other's is multiplied by sqrt(u / u_max)."""
    truth = GroundTruth(torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([0]), None)
    boxes_Q4 = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.25, 0.5]])  # generalised overlaps 1 and 1/2
    logits_QC = torch.zeros(2, 1)
    cost_QG = position_modulated_cost(1, logits_QC, boxes_Q4, truth)

    def of(share: float, distance: float, giou: float) -> float:
        focal = -0.25 * (1 - share) ** 2 * log(share) + 0.75 * share**2 * log(1 - share)
        return 2 * focal + 5 * distance - 2 * giou

    assert cost_QG[0, 0].item() == pytest.approx(of(0.5, 0.0, 1.0), abs=1e-5)
    assert cost_QG[1, 0].item() == pytest.approx(of(0.5 * 0.75**0.5, 0.25, 0.5), abs=1e-5)
    usual_QG = set_cost(logits_QC, boxes_Q4, truth)
    assert usual_QG[0, 0].item() == pytest.approx(cost_QG[0, 0].item(), abs=1e-5)


def test_layers_are_modulated_one_by_one() -> None:
    truth = GroundTruth(torch.rand(3, 4).sort().values, torch.tensor([0, 1, 1]), None)
    logits_QC, boxes_Q4 = torch.randn(8, 2), torch.rand(8, 4)
    both_QG = position_modulated_cost(2, logits_QC, boxes_Q4, truth)
    apart = [position_modulated_cost(1, logits_QC[i : i + 4], boxes_Q4[i : i + 4], truth) for i in (0, 4)]
    torch.testing.assert_close(both_QG, torch.cat(apart))


@pytest.mark.parametrize("stable", [False, True])
def test_losses_in_double_precision_are_those_in_float32(stable: bool) -> None:
    data: Batch = batch([SOME, []])
    single, double = tiny(stable=stable), tiny(stable=stable).double()
    wanted = single.losses(data, seed=1)
    found = double.losses(replace(data, images_BCHW=data.images_BCHW.double()), seed=1)
    assert {loss.dtype for loss in found.values()} == {torch.float64}
    assert {name: loss.item() for name, loss in found.items()} == pytest.approx(
        {name: loss.item() for name, loss in wanted.items()}, rel=1e-4
    )


def test_stable_changes_training_alone() -> None:
    data: Batch = batch([SOME, []])
    usual, stable = tiny(), tiny(stable=True)
    assert usual.state_dict().keys() == stable.state_dict().keys()
    a, b = usual.losses(data, seed=1), stable.losses(data, seed=1)
    assert a.keys() == b.keys()
    assert a["loss_cls"] != b["loss_cls"]
    assert a["dn_loss_cls"] == b["dn_loss_cls"]
    [x, _], [y, _] = usual.eval().detect(data), stable.eval().detect(data)
    assert torch.equal(x.boxes_N4, y.boxes_N4)
    torch.stack([*b.values()]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stable.parameters())
