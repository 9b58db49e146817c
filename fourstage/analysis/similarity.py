"""CKA between groups of networks: the trainings of one arm, and those of two. S trainings, T maps, n images, P pairs.

HSIC_1 of two Gram matrices is the inner product of their U-centred forms (Székely and Rizzo, "Partial distance
correlation with methods for dissimilarities", 2014, https://arxiv.org/abs/1310.2926). A Gram matrix that is U-centred
and scaled to length 1 is therefore all that has to be kept of a network: the unbiased CKA of any two is their product.
"""

from dataclasses import dataclass

import numpy as np

from fourstage.analysis.cka import FEWEST, without_diagonal


@dataclass(frozen=True)
class Similarity:
    """The CKA of pairs of trainings: mean and standard deviation over the pairs. NaN where there is no pair."""

    mean: float
    sd: float
    pairs: int


def unit_vectors(k_Tnn: np.ndarray) -> np.ndarray:
    """Return (T, P) float32 unit vectors of Gram matrices, P = n (n - 1) / 2. CKA is their inner product.

    A map that is the same for all images has no direction: its vector is NaN.

    Raises:
        ValueError: there are fewer than four images.
    """
    count = k_Tnn.shape[-1]
    if count < FEWEST:
        raise ValueError(f"CKA needs at least {FEWEST} images; got {count}; give more images")
    k_Tnn = without_diagonal(np.asarray(k_Tnn, np.float64))
    rows_Tn = k_Tnn.sum(-1)
    total_T11 = rows_Tn.sum(-1)[:, None, None] / ((count - 1) * (count - 2))
    centred_Tnn = k_Tnn - (rows_Tn[:, :, None] + rows_Tn[:, None]) / (count - 2) + total_T11
    above = np.triu_indices(count, 1)
    vectors_TP = centred_Tnn[:, above[0], above[1]]
    length_T1 = np.linalg.norm(vectors_TP, axis=1, keepdims=True)
    flat_T1 = length_T1 <= 1e-12 * np.linalg.norm(k_Tnn, axis=(1, 2))[:, None]
    return np.where(flat_T1, np.nan, vectors_TP / np.where(flat_T1, 1.0, length_T1)).astype(np.float32)


def similarity_of_trainings(a_STP: np.ndarray, b_STP: np.ndarray | None = None) -> list[Similarity]:
    """Return the CKA of same maps between trainings of two arms, or within one arm: its ceiling.

    The seeds of a pair differ, in both cases: trainings of one seed share the order of images and initial weights,
    which would bring two arms nearer to each other than the ceiling is. With one seed, two arms have no other pair
    than that.

    Args:
        a_STP, b_STP: from `unit_vectors`, by the same seeds; None: pairs within the first.
    """
    seeds = len(a_STP)
    out = []
    for a_SP, b_SP in zip(a_STP.swapaxes(0, 1), (a_STP if b_STP is None else b_STP).swapaxes(0, 1), strict=True):
        value_SS = a_SP.astype(np.float64) @ b_SP.astype(np.float64).T
        if b_STP is None:
            chosen_SS = np.triu(np.ones((seeds, seeds), bool), 1)
        else:
            chosen_SS = ~np.eye(seeds, dtype=bool) if seeds > 1 else np.ones((1, 1), bool)
        value_P = value_SS[chosen_SS]
        mean = float(value_P.mean()) if len(value_P) else float("nan")
        sd = float(value_P.std(ddof=1)) if len(value_P) > 1 else float("nan")
        out.append(Similarity(mean, sd, len(value_P)))
    return out
