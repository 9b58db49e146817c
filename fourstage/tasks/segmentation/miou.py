"""Agreement of predicted label maps with the ground truth, from exact counts of pixels. H x W pixels, C classes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fourstage.data.sample import IGNORE
from fourstage.tasks.parts.intervals import Intervals, affordable_resamples, bootstrap

AT_ONCE = 2**22  # pixels that are counted at a time
WORK = 2 * 10**9  # products and sums for all resamples of `intervals`: a second or two
NEAR = 0.0075  # of an image's diagonal: the largest distance of boundaries that agree

Counts = Mapping[str, Sequence[int]]


def count_pairs(guess_HW: Tensor, truth_HW: Tensor, classes: int) -> dict[str, list[int]]:
    """Count the pixels of each pair of true and predicted class in one image.

    Args:
        guess_HW, truth_HW: labels; pixels whose true label is `IGNORE` are not counted.
        classes: C.

    Returns:
        `pairs`: truth * C + guess, ascending, and `pixels`: the number of pixels of each, as plain lists.

    Raises:
        ValueError: maps of different sizes, or a true label beyond the classes.
    """
    if guess_HW.shape != truth_HW.shape:
        raise ValueError(f"the label map is {tuple(truth_HW.shape)} and the prediction {tuple(guess_HW.shape)}")
    total = torch.zeros(classes * classes, dtype=torch.int64)
    flat = zip(guess_HW.reshape(-1).split(AT_ONCE), truth_HW.reshape(-1).split(AT_ONCE), strict=True)
    for guess_N, truth_N in flat:
        counted = truth_N != IGNORE
        true_N = truth_N[counted].long()
        if len(true_N) and (most := int(true_N.max())) >= classes:
            raise ValueError(
                f"a label map holds the label {most}, and there are {classes} classes, 0 to {classes - 1}; "
                "`fourstage data check` finds that map"
            )
        total += torch.bincount(true_N * classes + guess_N[counted].long(), minlength=classes * classes).cpu()
    pairs = torch.nonzero(total)[:, 0]
    return {"pairs": pairs.tolist(), "pixels": total[pairs].tolist()}


def summed(counts: Iterable[Counts], classes: int) -> np.ndarray:
    """Return the confusion matrix of all images, (C, C) int64 pixels; rows are the truth."""
    total = np.zeros(classes * classes, dtype=np.int64)
    for one in counts:
        total[np.asarray(one["pairs"], dtype=np.int64)] += np.asarray(one["pixels"], dtype=np.int64)
    return total.reshape(classes, classes)


def ious(matrix_CC: np.ndarray) -> np.ndarray:
    """Return (C,) intersection over union, from 0 to 1; NaN for a class that is neither true nor predicted anywhere."""
    union = matrix_CC.sum(axis=0) + matrix_CC.sum(axis=1) - matrix_CC.diagonal()
    return _quotient(matrix_CC.diagonal(), union)


def accuracies(matrix_CC: np.ndarray) -> np.ndarray:
    """Return (C,) the share of each class's pixels that are predicted as such, from 0 to 1; NaN without pixels."""
    return _quotient(matrix_CC.diagonal(), matrix_CC.sum(axis=1))


def means(matrix_CC: np.ndarray) -> dict[str, float]:
    """Return in per cent `miou` and `macc`, means over classes that have a value, and `aacc`, over pixels; or NaN."""
    total = matrix_CC.sum()
    return {
        "miou": 100 * _mean(ious(matrix_CC)),
        "macc": 100 * _mean(accuracies(matrix_CC)),
        "aacc": 100 * float(matrix_CC.trace() / total) if total else float("nan"),
    }


def intervals(counts: Mapping[str, Sequence[Counts]], classes: int) -> Intervals:
    """Return intervals of `means` by the bootstrap over images. Each resample sums the pixels of its images.

    Args:
        counts: by the name of a protocol, the counts of each image, from `count_pairs`.
        classes: C.

    Returns:
        By names such as `miou_ss`; empty where there are too many images and classes for `WORK`.
    """
    [images] = {len(each) for each in counts.values()}
    resamples = affordable_resamples(3 * images * classes * len(counts), WORK)
    method = f"bootstrap over images, {resamples} resamples"
    if not resamples:
        return Intervals(method)
    return Intervals(method, bootstrap(images, resampled_means(counts, classes), resamples=resamples))


def resampled_means(counts: Mapping[str, Sequence[Counts]], classes: int) -> Callable[[np.ndarray], dict[str, float]]:
    """Return a function from (N,) indices of images to `means` of these images together; arguments as `intervals`."""
    [images] = {len(each) for each in counts.values()}
    stacked = {
        protocol: np.stack([_marginals(one, classes) for one in each]).astype(np.float64)
        for protocol, each in counts.items()
    }

    def measure(chosen_N: np.ndarray) -> dict[str, float]:
        times_N = np.bincount(chosen_N, minlength=images).astype(np.float64)
        out: dict[str, float] = {}
        for protocol, marginals_N3C in stacked.items():
            values = _means_of_marginals(np.tensordot(times_N, marginals_N3C, axes=1))
            out |= {f"{name}_{protocol}": value for name, value in values.items()}
        return out

    return measure


def _marginals(counts: Counts, classes: int) -> np.ndarray:
    """Return (3, C) pixels of one image by class: predicted right, of the truth, of the prediction."""
    pairs, pixels = np.asarray(counts["pairs"], dtype=np.int64), np.asarray(counts["pixels"], dtype=np.int64)
    truth, guess = np.divmod(pairs, classes)
    weighted = ((truth, np.where(truth == guess, pixels, 0)), (truth, pixels), (guess, pixels))
    return np.stack([np.bincount(labels, weights=weights, minlength=classes) for labels, weights in weighted])


def _means_of_marginals(marginals_3C: np.ndarray) -> dict[str, float]:
    """Return what `means` returns for the matrix with these marginals."""
    right_C, true_C, guessed_C = marginals_3C
    total = true_C.sum()
    return {
        "miou": 100 * _mean(_quotient(right_C, true_C + guessed_C - right_C)),
        "macc": 100 * _mean(_quotient(right_C, true_C)),
        "aacc": 100 * float(right_C.sum() / total) if total else float("nan"),
    }


def most_confused(matrix_CC: np.ndarray, count: int) -> list[list[int]]:
    """Return [truth, prediction, pixels] of the most frequent mistakes, in descending order."""
    mistakes = matrix_CC * (1 - np.eye(len(matrix_CC), dtype=np.int64))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    rows = [(*divmod(int(at), len(matrix_CC)), int(mistakes.flat[at])) for at in order]
    return [list(row) for row in rows if row[2]]


def count_boundaries(guess_HW: Tensor, truth_HW: Tensor) -> dict[str, list[int]]:
    """Count the boundary pixels of one image that agree, class by class.

    A pixel is on the boundary of its class if one of its four neighbours has another class. It agrees if the other map
    has a boundary of that class within `NEAR` of the diagonal. Ignored pixels have no boundary.

    Returns:
        `classes` that occur in either map, and four numbers for each in `pixels`: boundary pixels of the prediction
        that agree, all of them, and the same two of the truth.

    Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", 2013.
    """
    guess, truth = guess_HW.cpu().numpy(), truth_HW.cpu().numpy()
    guess = np.where(truth == IGNORE, IGNORE, guess)
    limit = NEAR * float(np.hypot(*truth.shape))
    counts: dict[str, list[int]] = {"classes": [], "pixels": []}
    for label in np.union1d(np.unique(guess), np.unique(truth)).tolist():
        if label == IGNORE:
            continue
        ours, theirs = (_boundary(labels, truth, label) for labels in (guess, truth))
        counts["classes"].append(label)
        counts["pixels"] += [_near(ours, theirs, limit), int(ours.sum()), _near(theirs, ours, limit), int(theirs.sum())]
    return counts


def boundary_f1(counts: Iterable[Counts], classes: int) -> float:
    """Return in per cent the mean over classes of the mean over the images that have a boundary of the class."""
    per_class: list[list[float]] = [[] for _ in range(classes)]
    for one in counts:
        rows = np.asarray(one["pixels"]).reshape(-1, 4)
        for label, (agree, guessed, matched, true) in zip(one["classes"], rows.tolist(), strict=True):
            if true:
                precision, recall = agree / guessed if guessed else 0.0, matched / true
                both = precision + recall
                per_class[label].append(2 * precision * recall / both if both else 0.0)
    values = [sum(scores) / len(scores) for scores in per_class if scores]
    return 100 * sum(values) / len(values) if values else float("nan")


def _boundary(labels_HW: np.ndarray, truth_HW: np.ndarray, label: int) -> np.ndarray:
    """Return (H, W) bool: the boundary of one class."""
    mine = labels_HW == label
    counted = truth_HW != IGNORE
    edge = np.zeros_like(mine)
    for axis in (0, 1):
        a, b = (slice(None, -1), slice(1, None)) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        differ = (mine[a] != mine[b]) & counted[a] & counted[b]
        edge[a] |= differ & mine[a]
        edge[b] |= differ & mine[b]
    return edge


def _near(from_HW: np.ndarray, to_HW: np.ndarray, limit: float) -> int:
    """Return the number of pixels of the first map within `limit` pixels of the second."""
    if not from_HW.any() or not to_HW.any():
        return 0
    from scipy.ndimage import distance_transform_edt

    distance = np.asarray(distance_transform_edt(~to_HW))
    return int((distance[from_HW] <= limit).sum())


def _quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0)


def _mean(values: np.ndarray) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def or_none(value: Any) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return None if np.isnan(value) else round(float(value), 6)
