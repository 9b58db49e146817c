"""The cost of classes in matching, in the arithmetic of MMDetection's FocalLossCost."""

import math

import pytest
import torch

from fourstage.tasks.detection.query_losses import focal_cost

LABELS = torch.tensor([0])


def cost(*logits: float) -> list[float]:
    return focal_cost(torch.tensor(logits)[:, None], LABELS)[:, 0].tolist()


def test_a_certain_query_costs_no_more_than_the_logarithm_of_its_term() -> None:
    """In float32, the probabilities of 20 and of 60 are both 1."""
    limit = -torch.tensor(1e-12).log().item()
    assert cost(20.0, 60.0) == pytest.approx([-0.75 * limit] * 2)
    assert cost(-60.0, -200.0) == pytest.approx([0.25 * limit] * 2)


def test_high_scores_are_rounded_as_probabilities_are() -> None:
    """1 less the probability of 16.2 is 1.54 steps of 2**-24, which float32 rounds to two."""
    assert cost(16.2) == pytest.approx([0.75 * math.log(2 * 2**-24)], rel=1e-4)
    assert cost(16.2) != pytest.approx([-0.75 * 16.2], rel=1e-2)


def test_it_is_the_difference_of_two_focal_losses() -> None:
    share = 1 / 3
    logit = torch.tensor(share).logit().item()
    positive, negative = 0.25 * (2 / 3) ** 2 * -torch.tensor(share).log(), 0.75 * share**2 * -torch.tensor(2 / 3).log()
    assert cost(logit) == pytest.approx([(positive - negative).item()], rel=1e-5)
