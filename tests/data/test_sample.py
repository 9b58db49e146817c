"""Samples become batches, padded as the conventions say."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fourstage.data.sample import IGNORE, BadImage, Objects, Sample, collate


def sample(id: str, height: int, width: int) -> Sample:
    masks = torch.ones(2, height, width, dtype=torch.bool)
    objects = Objects(torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3]]), torch.tensor([0, 1]), torch.zeros(2).bool(), masks)
    label_map = torch.zeros(height, width, dtype=torch.uint8)
    return Sample(id, torch.ones(3, height, width), (9, 9), label=1, objects=objects, label_map_HW=label_map)


def test_padding_is_right_and_below_and_says_so() -> None:
    batch = collate([sample("a", 4, 6), sample("b", 5, 3)])
    assert batch.images_BCHW.shape == (2, 3, 5, 6)
    assert batch.sizes == ((4, 6), (5, 3))
    assert batch.images_BCHW[1, :, :, 3:].abs().sum() == 0
    assert batch.label_maps_BHW is not None
    assert (batch.label_maps_BHW[0, 4:] == IGNORE).all()
    assert (batch.label_maps_BHW[0, :4] == 0).all()
    assert batch.objects is not None
    assert batch.objects[1].masks_NHW is not None
    assert batch.objects[1].masks_NHW.shape == (2, 5, 6)
    assert batch.objects[1].masks_NHW.sum() == 2 * 5 * 3
    assert batch.labels_B is not None
    assert batch.labels_B.tolist() == [1, 1]


def test_sides_are_rounded_up_to_multiples() -> None:
    batch = collate([sample("a", 4, 6), sample("b", 8, 3)], divisor=4)
    assert batch.images_BCHW.shape == (2, 3, 8, 8)
    assert batch.sizes == ((4, 6), (8, 3))
    assert batch.images_BCHW[0, :, :4, :6].min() == 1
    assert batch.images_BCHW.sum() == 3 * (4 * 6 + 8 * 3)
    assert batch.objects is not None
    assert batch.objects[0].masks_NHW is not None
    assert batch.objects[0].masks_NHW.shape == (2, 8, 8)


def test_references_travel_with_the_batch() -> None:
    samples = [replace(sample(id, 4, 6), reference={"id": id}) for id in "ab"]
    assert collate(samples).to(torch.device("meta")).references == ({"id": "a"}, {"id": "b"})


def test_truths_that_are_not_there_stay_away() -> None:
    batch = collate([Sample("a", torch.zeros(3, 4, 4), (4, 4))])
    assert (batch.labels_B, batch.objects, batch.label_maps_BHW, batch.references) == (None, None, None, None)


def test_a_batch_moves_as_a_whole() -> None:
    batch = collate([sample("a", 4, 6)]).to(torch.device("meta"))
    assert batch.images_BCHW.is_meta
    assert batch.labels_B is not None
    assert batch.labels_B.is_meta
    assert batch.objects is not None
    assert batch.objects[0].boxes_N4.is_meta


def test_a_bad_image_passes_through_a_pipe() -> None:
    error = pickle.loads(pickle.dumps(BadImage("cat.jpg", "truncated")))
    assert str(error) == "cat.jpg cannot be read as an image: truncated"
    assert np.array_equal([error.path, error.reason], ["cat.jpg", "truncated"])


def test_no_copy_of_a_batch_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from memory that is not pinned, or that is to be complete, waits for all steps before it."""
    batch, pinned, moved = collate([sample("a", 4, 6), sample("b", 5, 3)]), [], []
    assert batch.objects is not None
    batch = replace(batch, objects=tuple(replace(o, masked_N=torch.ones(2).bool()) for o in batch.objects))
    monkeypatch.setattr(Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    monkeypatch.setattr(Tensor, "to", lambda x, device, non_blocking=False: moved.append((x, non_blocking)) or x)
    batch.pin_memory().to(torch.device("meta"))
    assert len(pinned) == 3 + 2 * 5  # images, labels, label maps; boxes, labels, crowds and masks of two images
    assert {id(x) for x, _ in moved} == set(map(id, pinned))
    assert all(non_blocking for _, non_blocking in moved)
