"""Of equal scores, the first ones are the best, as in MMDetection, which sorts all of them with a stable sort."""

import pytest
import torch
from scenes import small

from fourstage.data.sample import Batch
from fourstage.tasks.detection.mask_rcnn import MaskRCNN
from fourstage.tasks.detection.rpn import ProposalLimits
from fourstage.tasks.detection.single_stage import first_best


@pytest.mark.parametrize("count", [1, 40, 399, 400])
def test_equal_scores_are_chosen_in_their_order(count: int) -> None:
    scores_BN = torch.randint(0, 5, (3, 400), generator=torch.Generator().manual_seed(0)).float() / 4
    wanted_BN, wanted_place_BN = scores_BN.sort(descending=True, stable=True)
    scores_BK, place_BK = first_best(scores_BN, count)
    assert torch.equal(scores_BK, wanted_BN[:, :count])
    assert torch.equal(place_BK, wanted_place_BN[:, :count])


def test_scores_that_are_no_numbers_are_chosen_once_each() -> None:
    scores_BN = torch.tensor([[torch.nan] * 4, [0.5, torch.nan, 0.5, 0.25]])
    places = first_best(scores_BN, 3)[1].sort().values.tolist()
    assert len(set(places[0])) == 3
    assert places[1] == [0, 1, 2]
    many_BN = torch.arange(50.0)[None].clone()
    many_BN[:, [7, 20, 31]] = torch.nan
    assert set(first_best(many_BN, 2)[1][0].tolist()) <= {7, 20, 31}  # torch's own order has them before all numbers


def test_proposals_of_a_padded_image_are_the_first_of_equal_ones() -> None:
    """All cells of the padding score the same, and more of them reach into the image than there are places."""
    detector = small("faster_rcnn").eval()
    assert isinstance(detector, MaskRCNN)
    images_BCHW = torch.zeros(1, 3, 128, 160)
    batch = Batch(("a",), images_BCHW, ((64, 64),), ((64, 64),))
    with torch.no_grad():
        logits, deltas = detector.rpn(detector.maps(batch))
        logits = [torch.zeros_like(x) for x in logits]
        wanted = detector.rpn.propose([_lower_from(x, 300) for x in logits], deltas, batch, ProposalLimits(300, 1000))
        found = detector.rpn.propose(logits, deltas, batch, ProposalLimits(300, 1000))
    assert torch.equal(found[0][0], wanted[0][0])


def _lower_from(x_BAHW: torch.Tensor, count: int) -> torch.Tensor:
    """Return logits of which all anchors but the first `count` are lower."""
    rank_BN1 = torch.arange(x_BAHW[0].numel()).view(1, -1, 1).expand(len(x_BAHW), -1, -1)
    lower_BN = torch.where(rank_BN1[..., 0] < count, 0.0, -5.0)
    anchors, height, width = x_BAHW.shape[1:]
    return lower_BN.unflatten(1, (height, width, anchors)).permute(0, 3, 1, 2)
