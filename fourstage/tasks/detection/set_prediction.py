"""Detections from queries, without suppression. B images, Q queries, C classes, N detections."""

from torch import Tensor

from fourstage.data.sample import Batch
from fourstage.tasks.detection.boxes import as_float32
from fourstage.tasks.detection.detector import Detections, to_original
from fourstage.tasks.detection.single_stage import first_best


def best_of_queries(
    scores_BQC: Tensor, boxes_BQ4: Tensor, batch: Batch, *, per_image: int, rescale: bool
) -> list[Detections]:
    """Return the `per_image` best pairs of a query and a class of each image, or all where there are fewer.

    The best class of each query alone would lose detections, as one query may score high for two classes.

    Args:
        scores_BQC: probabilities.
        boxes_BQ4: pixels of the network's image.
        rescale: False: boxes stay in pixels of the network's image.
    """
    classes = scores_BQC.shape[2]
    scores_BP = as_float32(scores_BQC).flatten(1)
    scores_BN, place_BN = first_best(scores_BP, min(per_image, scores_BP.shape[1]))
    boxes_BQ4 = as_float32(boxes_BQ4)
    out = []
    for i, place_N in enumerate(place_BN):
        boxes_N4 = boxes_BQ4[i, place_N // classes]
        out.append(
            Detections(to_original(boxes_N4, batch, i) if rescale else boxes_N4, place_N % classes, scores_BN[i])
        )
    return out
