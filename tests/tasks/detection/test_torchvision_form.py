"""Detectors under torchvision's conventions have the losses and detections of their own form."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

import fourstage
from fourstage.backbones import base
from fourstage.data.sample import Batch, Objects
from fourstage.tasks.detection.torchvision_form import TorchvisionForm

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SIZES = ((64, 96), (80, 64))


def images() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.rand(3, *size) for size in SIZES]


def targets(first_label: int = 1) -> list[dict[str, Any]]:
    masks = torch.zeros(2, 64, 96, dtype=torch.uint8)
    masks[0, 5:40, 4:50] = masks[1, 20:60, 30:90] = 1
    boxes = torch.tensor([[4.0, 5.0, 50.0, 40.0], [30.0, 20.0, 90.0, 60.0]])
    of_first = {"boxes": boxes, "labels": torch.tensor([0, 2]) + first_label, "masks": masks, "image_id": 7}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "area": torch.zeros(0)}
    return [of_first, {**none, "masks": torch.zeros(0, 80, 64, dtype=torch.uint8), "iscrowd": torch.zeros(0)}]


def own_batch() -> Batch:
    padded = torch.zeros(2, 3, 80, 96)
    for row, image in zip(padded, images(), strict=True):
        height, width = image.shape[1:]
        row[:, :height, :width] = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    first, second = targets(0)
    masks = torch.zeros(2, 80, 96, dtype=torch.bool)
    masks[:, :64] = first["masks"].bool()
    crowd = torch.zeros(2, dtype=torch.bool)
    objects = (
        Objects(first["boxes"], first["labels"], crowd, masks),
        Objects(second["boxes"], second["labels"], crowd[:0], masks[:0]),
    )
    return Batch(("image 0", "image 1"), padded, SIZES, SIZES, objects=objects)


@pytest.mark.parametrize("method", ["mask_rcnn", "retinanet", "atss"])
@pytest.mark.parametrize("first_label", [0, 1])
def test_losses_and_detections_are_those_of_the_detector(method: str, first_label: int) -> None:
    torch.manual_seed(0)
    detector: Any = fourstage.create_detector(method, "unified_pico", num_classes=3)
    detector.spread_scores(own_batch())
    model = TorchvisionForm(detector, MEAN, STD, first_label).train()
    torch.manual_seed(5)
    expected = detector.losses(own_batch())
    torch.manual_seed(5)
    losses: Any = model(images(), targets(first_label))
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-7)
    torch.stack(list(losses.values())).sum().backward()
    found: Any = model.eval()(images())
    for one, own, size in zip(found, detector.detect(own_batch()), SIZES, strict=True):
        assert len(own)
        torch.testing.assert_close(one["boxes"], own.boxes_N4, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(one["scores"], own.scores_N, rtol=1e-5, atol=1e-6)
        assert torch.equal(one["labels"], own.labels_N + first_label)
        assert not one["scores"].requires_grad
        if method == "mask_rcnn":
            assert one["masks"].shape == (len(own), 1, *size)
            assert one["masks"].dtype == torch.float32
        else:
            assert "masks" not in one


def test_a_state_dict_of_this_form_fills_the_detector(tmp_path: Path) -> None:
    trained = fourstage.create_detector("retinanet", "unified_pico", num_classes=3)
    torch.save(TorchvisionForm(trained).state_dict(), tmp_path / "a.pth")
    again = fourstage.create_detector("retinanet", "unified_pico", 3, checkpoint_path=tmp_path / "a.pth")
    for key, value in again.state_dict().items():
        assert torch.equal(value, trained.state_dict()[key]), key
    backbone = fourstage.create_backbone("unified_pico", checkpoint_path=tmp_path / "a.pth")
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, trained.state_dict()[f"backbone.{key}"]), key


def test_crowds_are_crowds() -> None:
    torch.manual_seed(0)
    detector: Any = fourstage.create_detector("retinanet", "unified_pico", num_classes=3).train()
    objects = own_batch().objects
    assert objects is not None
    crowded = replace(own_batch(), objects=(replace(objects[0], crowd_N=torch.tensor([False, True])), objects[1]))
    expected = detector.losses(crowded)
    with_crowd = [{**targets()[0], "iscrowd": torch.tensor([0, 1])}, targets()[1]]
    losses: Any = TorchvisionForm(detector, MEAN, STD).train()(images(), with_crowd)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-7)
        assert not torch.equal(value, detector.losses(own_batch())[name])


def test_what_does_not_fit_is_one_sentence() -> None:
    model = TorchvisionForm(fourstage.create_detector("retinanet", "unified_pico", num_classes=3)).train()
    first, second = targets()
    bounding_boxes: Any = tv_tensors.BoundingBoxes
    hw = bounding_boxes(first["boxes"], format="XYWH", canvas_size=SIZES[0])
    for wrong, sentence in (
        (None, "training needs a target for each of 2 images; got none"),
        ([first], "training needs a target for each of 2 images; got 1"),
        ([{"labels": first["labels"]}, second], "the target of image 0 has no boxes; it has labels"),
        ([{**first, "boxes": first["boxes"][:, :3]}, second], "boxes of image 0 must be of shape N x 4; got 2 x 3"),
        ([{**first, "boxes": hw}, second], "the boxes of image 0 are XYWH; convert them"),
        ([{**first, "labels": first["labels"] + 1}, second], "labels of image 0 are 1 to 3 for 3 classes; got 2 to 4"),
        (
            [{**first, "masks": first["masks"][:, 1:]}, second],
            "masks of image 0 must be of shape 2 x 64 x 96; got 2 x 63",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            model(images(), wrong)
    boxes_alone = [{key: value for key, value in one.items() if key != "masks"} for one in targets()]
    with_masks = TorchvisionForm(fourstage.create_detector("mask_rcnn", "unified_pico", num_classes=3))
    with pytest.raises(ValueError, match="image 0 has boxes and no masks; build the detector with masks=False"):
        with_masks(images(), boxes_alone)
    with pytest.raises(ValueError, match=r"image 0 is not \(3, H, W\); got \(1, 64, 96\)"):
        model.eval()([images()[0][:1]])
    with pytest.raises(ValueError, match="is for detectors of create_detector; got a Classifier"):
        TorchvisionForm(fourstage.create_model("visformer_digits"))


def test_images_that_torchvision_refuses_are_refused() -> None:
    """A byte image would pass as one of very bright pixels."""
    model = TorchvisionForm(fourstage.create_detector("retinanet", "unified_pico", num_classes=3)).eval()
    assert torch.equal(model.mean_311.flatten(), torch.tensor(base.MEAN))
    assert torch.equal(model.std_311.flatten(), torch.tensor(base.STD))
    wrong: Any
    for wrong, sentence in (
        ([(images()[0] * 255).byte()], r"image 0 is torch.uint8, and its values must be in \[0, 1\]; give image / 255"),
        ([images()[0].numpy()], r"image 0 is a ndarray; give a tensor \(3, H, W\)"),
        ([], "got no images"),
    ):
        with pytest.raises(ValueError, match=sentence):
            model(wrong)


@pytest.mark.parametrize("value", [None, ["cat"], [[1, 2], [3]]])
def test_values_that_are_no_tensor_are_one_sentence(value: Any) -> None:
    model = TorchvisionForm(fourstage.create_detector("retinanet", "unified_pico", num_classes=3))
    target = {"boxes": torch.tensor([[2.0, 2.0, 30.0, 40.0]]), "labels": torch.tensor([1])}
    for key in target:
        with pytest.raises(ValueError, match=f"^{key} of image 0 must be a tensor; got a {type(value).__name__} "):
            model([torch.rand(3, 64, 64)], [{**target, key: value}])
    with pytest.raises(ValueError, match=r"mean and std are of three channels; got \[0\.5\]"):
        TorchvisionForm(model.detector, mean=(0.5,))
