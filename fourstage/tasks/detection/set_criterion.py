"""Losses of queries that are matched to objects, for each decoder layer. B images, Q queries, C classes, M pairs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fourstage.tasks.detection.detector import GroundTruth, Mean, count_tensor
from fourstage.tasks.detection.set_matching import Matches, match_sets


@dataclass(frozen=True)
class Queries:
    """What one decoder layer predicts."""

    logits_BQC: Tensor
    boxes_BQ4: Tensor  # in the units that cost and losses agree on


@dataclass(frozen=True)
class MatchedPairs:
    """The matched pairs of a batch."""

    image_M: Tensor  # int64
    query_M: Tensor  # int64
    labels_M: Tensor  # int64, of the objects
    boxes_M4: Tensor  # of the objects, in the units that cost and losses agree on

    def __len__(self) -> int:
        return len(self.image_M)


Cost: TypeAlias = Callable[[Tensor, Tensor, GroundTruth], Tensor]
"""From (Q, C) logits, (Q, 4) boxes and the G objects of one image to a (Q, G) cost."""
Loss: TypeAlias = Callable[[Queries, MatchedPairs], Tensor]
"""From a layer's queries and their matched pairs to a sum over pairs or queries, which is then divided by the pairs."""


class SetCriterion:
    """Named losses over matched pairs, divided by the mean number of pairs of all processes.

    Args:
        cost: by which queries are matched to objects; no gradient flows through it.
        losses: name -> loss. Each takes part in the graph without pairs too, so that every parameter has a gradient.
        weights: name -> factor; 1 where it is missing.

    Raises:
        ValueError: a weight of an unknown loss.
    """

    def __init__(self, cost: Cost, losses: Mapping[str, Loss], weights: Mapping[str, float] | None = None) -> None:
        self.cost, self.losses, self.weights = cost, dict(losses), dict(weights or {})
        if strange := [name for name in self.weights if name not in self.losses]:
            raise ValueError(f"there is no loss {strange[0]!r} to weigh; the losses are {', '.join(self.losses)}")

    def __call__(self, layers: Sequence[Queries], truths: Sequence[GroundTruth], mean: Mean) -> dict[str, Tensor]:
        """Return the losses of all layers: `NAME` of the last one, `d0.NAME`, `d1.NAME` ... of those before it.

        Args:
            mean: over the processes, `Detector.mean_over_ranks`.
        """
        found = self.match(layers, truths)
        count = mean(count_tensor(len(found[0]), layers[0].logits_BQC)).clamp(min=1)  # the same in every layer
        return self.weighed(layer_names(len(layers)), layers, found, count)

    def weighed(
        self, prefixes: Sequence[str], layers: Sequence[Queries], found: Sequence[MatchedPairs], count: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of layers whose pairs are known, divided by `count`, as PREFIX + NAME."""
        return {
            prefix + name: loss(queries, pairs) / count * self.weights.get(name, 1.0)
            for prefix, queries, pairs in zip(prefixes, layers, found, strict=True)
            for name, loss in self.losses.items()
        }

    @torch.no_grad()
    def match(self, layers: Sequence[Queries], truths: Sequence[GroundTruth]) -> list[MatchedPairs]:
        """Return the matched pairs of each layer; the costs of all layers are assigned together."""
        of_images = [
            self.cost(
                torch.cat([layer.logits_BQC[i] for layer in layers]),
                torch.cat([layer.boxes_BQ4[i] for layer in layers]),
                truth,
            ).split([layer.logits_BQC.shape[1] for layer in layers])
            for i, truth in enumerate(truths)
        ]
        matches = match_sets([costs[k] for k in range(len(layers)) for costs in of_images])
        return [_pairs(matches[k * len(truths) :][: len(truths)], truths) for k in range(len(layers))]


def layer_names(count: int) -> list[str]:
    """Return what begins the names of the losses of `count` layers: nothing for the last one."""
    return [*(f"d{i}." for i in range(count - 1)), ""]


def _pairs(matches: Sequence[Matches], truths: Sequence[GroundTruth]) -> MatchedPairs:
    both = list(zip(matches, truths, strict=True))
    return MatchedPairs(
        torch.cat([torch.full_like(m.query_M, i) for i, m in enumerate(matches)]),
        torch.cat([m.query_M for m in matches]),
        torch.cat([t.labels_G[m.object_M] for m, t in both]),
        torch.cat([t.boxes_G4[m.object_M] for m, t in both]),
    )
