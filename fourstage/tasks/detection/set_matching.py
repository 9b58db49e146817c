"""One query for each object, at the least total cost (Hungarian assignment). Q queries, G objects, M matched pairs.

A cost is a quality with a minus sign. Costs of all images and decoder layers go to the host in one transfer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fourstage.extras import install


class Matches(NamedTuple):
    """The matched pairs of one image, in the order of the queries."""

    query_M: Tensor  # int64
    object_M: Tensor  # int64


def match_sets(costs: Sequence[Tensor]) -> list[Matches]:
    """Match each set of queries to a set of objects.

    Every object gets a query of its own; where there are more objects than queries, every query gets an object. Pairs
    whose cost is NaN or infinite are matched only where nothing else is left: the losses of such a pair are not finite
    either, and training reports them.

    Args:
        costs: (Q, G) for each image, or for each layer and image; G may be 0.

    Raises:
        ValueError: scipy is not installed.
    """
    if not costs:
        return []
    device = costs[0].device
    on_host = torch.cat([cost_QG.detach().flatten().float() for cost_QG in costs]).cpu().numpy().astype(np.float64)
    ends = np.cumsum([cost_QG.numel() for cost_QG in costs])[:-1]
    parts = zip(np.split(on_host, ends), costs, strict=True)
    pairs = [_assign(_finite(part).reshape(tuple(cost_QG.shape))) for part, cost_QG in parts]
    counts = [len(queries) for queries, _ in pairs]
    flat = np.concatenate([np.concatenate([one[i] for one in pairs]) for i in (0, 1)]).astype(np.int64)
    queries, objects = torch.from_numpy(flat).to(device).split([sum(counts)] * 2)
    return [Matches(*one) for one in zip(queries.split(counts), objects.split(counts), strict=True)]


def _assign(cost_QG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ValueError(f"matching queries to objects needs scipy; type: {install('train')}") from error
    return linear_sum_assignment(cost_QG)


def _finite(cost: np.ndarray) -> np.ndarray:
    """Replace NaN and infinity by more than any assignment of finite costs, and minus infinity by its negative.

    scipy raises for NaN; a far larger number than needed would cost the others their precision.
    """
    is_finite = np.isfinite(cost)
    if is_finite.all():
        return cost
    largest = np.abs(cost[is_finite]).max(initial=0.0)
    limit = 2 * (largest + 1) * max(1, int(np.sqrt(cost.size)) + 1)
    return np.nan_to_num(cost, nan=limit, posinf=limit, neginf=-limit)
