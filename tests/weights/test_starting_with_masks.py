"""A training starts from a detector with or without heads for masks; everything else must fit."""

import pytest
import torch
from tiny_networks import tiny_dense
from torch import nn

from fourstage.api import create_detector
from fourstage.weights.complete_checkpoints import load_dense_state


def detector(method: str, *, masks: bool) -> nn.Module:
    return create_detector(method, tiny_dense("visformer"), 3, masks=masks)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("method", ["mask_rcnn", "cascade_mask_rcnn"])
def test_a_training_starts_with_other_masks(method: str, masks: bool) -> None:
    file, other = detector(method, masks=not masks).state_dict(), detector(method, masks=masks)
    built = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=rf"does not fit this {method}: mask_head"):
        load_dense_state(other, dict(file), method=method, source="f.pt")
    report = load_dense_state(other, dict(file), method=method, source="f.pt", fresh_head=True)
    own = {key for key in built if key.startswith("mask_head")}
    assert bool(own) == masks
    assert set(report.fresh) == own
    assert all(key.startswith("mask_head") for key in report.dropped)
    assert bool(report.dropped) != masks
    for key, value in other.state_dict().items():
        assert torch.equal(value, built[key] if key in own else file[key]), key


def test_a_part_of_a_head_for_masks_is_refused() -> None:
    network = detector("mask_rcnn", masks=True)
    state = network.state_dict()
    del state["mask_head.convs.0.conv.weight"]
    with pytest.raises(ValueError, match=r"mask_head.convs.0.conv.weight is missing from the file"):
        load_dense_state(network, state, method="mask_rcnn", source="f.pt", fresh_head=True)
