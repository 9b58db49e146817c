"""The task as the engine sees it: losses, records, scores, tables."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from heads import Patches
from torch import Tensor, nn

import fourstage
from fourstage.backbones.layers import Level
from fourstage.data.sample import IGNORE, Batch, Sample, collate
from fourstage.data.transforms.segmentation import evaluation_transform
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn
from fourstage.tasks.segmentation.task import Segmentation
from fourstage.tasks.segmentation.upernet import upernet

NAMES = ("sky", "sea", "sand")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
OWN = Protocol(scale=None)
TWICE = Protocol(scale=None, ratios=(1.0, 1.5), flip=True)


def network(classes: int = 3) -> Segmentor:
    torch.manual_seed(0)
    return upernet(Patches((4, 6, 8, 10)), classes, channels=8, pool_scales=(1, 2), auxiliary_channels=4)


def task(**arguments: Any) -> Segmentation:
    return Segmentation(network(), NAMES, mean=MEAN, std=STD, single=OWN, **arguments)


def batch(*sizes: tuple[int, int], truth: bool = True, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    samples = []
    for i, size in enumerate(sizes):
        labels = rng.choice([0, 1, 2, IGNORE], size).astype(np.uint8)
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        samples.append(Sample(f"{seed}-{i}", image, size, label_map_HW=torch.from_numpy(labels) if truth else None))
    return collate([evaluation_transform()(sample) for sample in samples])


def normalised(source: Batch) -> Batch:
    images = (source.images_BCHW.float() / 255 - 0.5) / 0.25
    return Batch(source.ids, images, source.sizes, source.original_sizes, label_maps_BHW=source.label_maps_BHW)


def test_losses_are_named_and_reach_every_parameter() -> None:
    model = task()
    losses = model(normalised(batch((64, 64), (64, 64))))
    assert set(losses) == {"loss_seg", "loss_aux"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert losses["loss_seg"].item() == pytest.approx(np.log(3) * 0.75, rel=0.05)  # a quarter is ignored, and counted
    counted = task(over_valid=True)(normalised(batch((64, 64), (64, 64))))
    assert counted["loss_seg"].item() == pytest.approx(np.log(3), rel=0.05)


def test_semantic_fpn_has_one_loss() -> None:
    model = Segmentation(semantic_fpn(Patches(), 3, neck_channels=8, channels=8), NAMES, mean=MEAN, std=STD)
    assert set(model(normalised(batch((64, 64))))) == {"loss_seg"}


def test_records_are_small_json_and_score_as_the_label_maps_do() -> None:
    model, source = task(multi=TWICE, boundaries=True).eval(), batch((40, 50), (64, 33))
    records = model.predict(source)
    assert json.loads(json.dumps(records)) == records
    assert source.label_maps_BHW is not None
    right = total = 0
    for (id, guess_HW), truth_HW in zip(model.label_maps(source).items(), source.label_maps_BHW, strict=True):
        true = truth_HW[: guess_HW.shape[0], : guess_HW.shape[1]]
        assert sum(records[id]["pixels"]) == (true != IGNORE).sum()
        right, total = right + int((guess_HW == true).sum()), total + int((true != IGNORE).sum())
    scores = model.score(records)
    assert scores["aacc_ss"] == pytest.approx(100 * right / total)
    assert set(scores) == {
        *(f"{metric}_{how}" for metric in ("miou", "macc", "aacc") for how in ("ss", "ms_flip")), "boundary_f1_ss",
    }  # fmt: skip
    assert model.main_metric in scores
    others = model.score({id: record["multi"] for id, record in records.items()})
    for metric in ("miou", "macc", "aacc"):
        assert scores[f"{metric}_ms_flip"] == others[f"{metric}_ss"] != scores[f"{metric}_ss"]


def test_scores_do_not_depend_on_batches_or_order() -> None:
    model, source = task(boundaries=True).eval(), batch((48, 48), (48, 48), (48, 48))
    together = model.predict(source)
    alone: dict[str, Mapping[str, Any]] = {}
    assert source.label_maps_BHW is not None
    for i in (2, 0, 1):
        one = Batch(
            source.ids[i : i + 1], source.images_BCHW[i : i + 1], source.sizes[:1], source.original_sizes[:1],
            label_maps_BHW=source.label_maps_BHW[i : i + 1],
        )  # fmt: skip
        alone |= model.predict(one)
    assert model.score(alone) == pytest.approx(model.score(together), abs=0.1)
    assert model.score(dict(reversed(together.items()))) == model.score(together)


def test_tables() -> None:
    model = task(multi=TWICE).eval()
    tables = model.tables(model.predict(batch((40, 50), (64, 33))))
    assert json.loads(json.dumps(tables)) == tables
    assert [row["name"] for row in tables["per_class"]] == list(NAMES)
    assert set(tables["per_class"][0]) == {"name", "iou", "acc", "pixels", "predicted", "iou_ms_flip"}
    assert tables["protocols"] == {"ss": str(OWN), "ms_flip": str(TWICE)}
    assert all(pixels > 0 and truth != guess for truth, guess, pixels in tables["confused"])


def test_without_a_truth_the_classes_that_were_found() -> None:
    model, source = task().eval(), batch((40, 50), truth=False)
    [record] = model.predict(source).values()
    assert sum(record["pixels"]) == 40 * 50
    [labels_HW] = model.label_maps(source).values()
    assert record["classes"] == labels_HW.unique().tolist()


def test_a_perfect_prediction_scores_100() -> None:
    class Given(nn.Module):
        """Maps that hold the ground truth: the red channel, pooled, is the class."""

        levels = tuple(Level(1, stride) for stride in (4, 8, 16, 32))

        def forward(self, image_BCHW: Tensor) -> list[Tensor]:
            return [nn.functional.avg_pool2d(image_BCHW[:, :1], level.stride) for level in self.levels]

    class Decoder(nn.Module):
        def forward(self, maps: list[Tensor]) -> Tensor:
            return ((maps[0] - torch.tensor([-2.0, 0.0, 2.0])[:, None, None]).abs() < 0.5).float()

    segmentor = Segmentor(Given(), Decoder(), 3)
    segmentor.register_parameter("some", nn.Parameter(torch.zeros(1)))
    labels = torch.randint(0, 3, (8, 8), dtype=torch.uint8).repeat_interleave(16, 0).repeat_interleave(16, 1)
    image = torch.tensor([0, 128, 255], dtype=torch.uint8)[labels.long()].expand(3, 128, 128)
    source = Batch(("a",), image[None], ((128, 128),), ((128, 128),), label_maps_BHW=labels[None])
    model = Segmentation(segmentor, NAMES, mean=MEAN, std=STD, single=OWN, multi=TWICE, boundaries=True).eval()
    scores = model.score(model.predict(source))
    assert all(value > 95 for value in scores.values())  # between two cells the classes meet half a pixel off


@pytest.mark.parametrize("build", [upernet, semantic_fpn])
def test_three_levels_are_enough(build: Any) -> None:
    backbone = fourstage.create_backbone("visformer_digits", img_size=64)
    three = Patches((4, 6, 8, 10))
    three.levels = three.levels[1:]
    plain = three.forward
    three.forward = lambda image_BCHW: plain(image_BCHW)[1:]
    for chosen in (backbone, three):
        model = build(chosen, 5, channels=8).eval()
        assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 5, 64, 96)
        stride = model.levels[0].stride
        assert model.coarse(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 64 // stride, 96 // stride)


def test_what_does_not_fit_is_said() -> None:
    two = Patches((4, 6, 8, 10))
    two.levels = two.levels[:2]
    with pytest.raises(ValueError, match="at stride 16, and the backbone's strides are 4, 8"):
        upernet(two, 3)
    for count in (1, 256, True):
        with pytest.raises(ValueError, match="from 2 to 255"):
            upernet(Patches((4, 6, 8, 10)), count)
    with pytest.raises(ValueError, match="got 2 class names for a segmentor of 3 classes; give one for each"):
        Segmentation(network(), NAMES[:2], mean=MEAN, std=STD)


def test_a_backbone_that_reads_one_map_fewer_needs_no_auxiliary_decoder() -> None:
    two = Patches((4, 6, 8, 10))
    two.levels = two.levels[:2]
    plain = two.forward
    two.forward = lambda image_BCHW: plain(image_BCHW)[:2]
    model = upernet(two, 3, channels=8, auxiliary_weight=0)
    assert set(model.losses(torch.zeros(2, 3, 64, 64), torch.zeros(2, 64, 64))) == {"loss_seg"}


def test_one_image_at_a_time_cannot_train_a_pooled_cell() -> None:
    with pytest.raises(ValueError, match="two images or more"):
        task().train()(normalised(batch((64, 64))))
    assert set(task().eval()(normalised(batch((64, 64))))) == {"loss_seg", "loss_aux"}


def test_it_learns_a_batch_by_heart() -> None:
    model = Segmentation(network(), NAMES, mean=MEAN, std=STD, single=OWN).train()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 8, 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    images = torch.from_numpy(np.array([20, 120, 230], np.uint8)[labels])[:, None].expand(2, 3, 64, 64)
    source = Batch(("a", "b"), images, ((64, 64),) * 2, ((64, 64),) * 2, label_maps_BHW=torch.from_numpy(labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.stack(list(model(normalised(source)).values())).sum().backward()
        optimizer.step()
    assert model.score(model.eval().predict(source))["miou_ss"] > 80
