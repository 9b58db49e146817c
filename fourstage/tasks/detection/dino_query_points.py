"""The points that the last decoder layer of a DINO samples for its best queries. Q queries, S points a query."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.detection.boxes import corner_form
from fourstage.tasks.detection.deformable_attention import DeformableAttention
from fourstage.tasks.detection.detector import to_original
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.padding import padded_size


@dataclass(frozen=True)
class QueryPoints:
    """The best queries of one image, best score first, in pixels of the original image."""

    boxes_Q4: Tensor
    labels_Q: Tensor
    scores_Q: Tensor
    points_QS2: Tensor  # x and y
    weights_QS: Tensor  # of each point; they add up to 1 for each head


@torch.no_grad()
def best_query_points(detector: DINO, batch: Batch, queries: int) -> QueryPoints:
    """Return the points that the best `queries` of a batch of one image sample, of all heads and levels together."""
    seen: list[tuple[Any, ...]] = []
    batch = detector.without_excess(batch)  # as `detect` does
    last = detector.decoder.layers[-1].get_submodule("cross_attn")
    assert isinstance(last, DeformableAttention)
    hook = last.register_forward_pre_hook(_keep(seen))
    try:
        maps = detector.maps(batch)
        memory = detector.encode(maps, detector.padding_masks(batch, maps))
        decoded = detector.decode(memory, detector.choose(memory))
    finally:
        hook.remove()
    predicted = detector.predict(len(decoded) - 1, decoded[-1])
    scores_Q, labels_Q = predicted.logits_BQC[0].sigmoid().max(dim=1)
    best_Q = scores_Q.argsort(descending=True, stable=True)[:queries]
    query_BQC, references, memory = seen[0]
    places, weights = last.points_of(query_BQC[:, best_Q], references[:, best_Q], memory.sizes)
    size_L2 = places.new_tensor([(width, height) for height, width in memory.sizes])
    height, width = padded_size((batch.images_BCHW.shape[2], batch.images_BCHW.shape[3]), detector.pad_to)
    padded_2 = places.new_tensor([width, height])
    pixels_QS2 = ((places + 0.5) / size_L2[:, None] * padded_2)[0].flatten(1, 3)
    height, width = batch.sizes[0]
    boxes_Q4 = corner_form(predicted.boxes_BQ4[0, best_Q]) * predicted.boxes_BQ4.new_tensor([width, height] * 2)
    return QueryPoints(
        to_original(boxes_Q4, batch, 0),
        labels_Q[best_Q],
        scores_Q[best_Q],
        to_original(pixels_QS2.repeat(1, 1, 2), batch, 0)[..., :2],
        weights[0].flatten(1),
    )


def _keep(seen: list[tuple[Any, ...]]) -> Any:
    def keep(_module: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given)

    return keep
