"""Suppression with a fixed shape leaves the boxes that torchvision's leaves, group by group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from fourstage.ops.nms_mask import nms_mask


def some_boxes(groups: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner_GN2 = torch.rand(groups, count, 2, generator=generator) * 40
    side_GN2 = torch.rand(groups, count, 2, generator=generator) * 30
    return torch.cat([corner_GN2, corner_GN2 + side_GN2], dim=2), torch.rand(groups, count, generator=generator)


@given(groups=st.integers(0, 3), count=st.integers(0, 40), most=st.integers(1, 40), seed=st.integers(0, 999))
@settings(max_examples=50, deadline=None)
def test_each_group_keeps_what_torchvision_keeps(groups: int, count: int, most: int, seed: int) -> None:
    boxes_GN4, scores_GN = some_boxes(groups, count, seed)
    kept_GN = nms_mask(boxes_GN4, scores_GN, 0.4, 0.3, most)
    assert (kept_GN.dtype, kept_GN.shape) == (torch.bool, scores_GN.shape)
    for boxes_N4, scores_N, kept_N in zip(boxes_GN4, scores_GN, kept_GN, strict=True):
        wanted = [i for i in nms(boxes_N4, scores_N, 0.4).tolist() if scores_N[i] > 0.3][:most]
        assert kept_N.nonzero().squeeze(1).tolist() == sorted(wanted)


def test_the_operator_keeps_the_rules_of_torch() -> None:
    boxes_GN4, scores_GN = some_boxes(2, 9, 0)
    torch.library.opcheck(torch.ops.fourstage.nms_mask.default, (boxes_GN4, scores_GN, 0.5, 0.1, 5))


@pytest.mark.parametrize("score", [0.5, 0.75])
def test_a_score_at_the_threshold_takes_no_part(score: float) -> None:
    boxes_GN4 = torch.tensor([[[0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 8.0]]])
    assert nms_mask(boxes_GN4, torch.tensor([[score, 1.0]]), 0.5, 0.5, 9).tolist() == [[score > 0.5, True]]
