"""Centred kernel alignment: how similarly two networks represent the differences between images.

n images of a batch, N images of all batches, P features, A and B feature maps of the two networks.

With K = X X' and L = Y Y' of features X and Y of the same images, CKA = HSIC(K, L) / (HSIC(K, K) HSIC(L, L))^0.5
(https://arxiv.org/abs/1905.00414). HSIC_1 is the unbiased estimator of Song et al. The sums of several batches are
accumulated separately and divided once (https://arxiv.org/abs/2010.15327). Everything is computed in float64.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.analysis.taps import features, frozen, taken_by

Estimator = Literal["unbiased", "biased"]
Pooling = Literal["flatten", "gap"]
FEWEST = 4  # images of a batch; HSIC_1 divides by n - 3
ENOUGH = 256  # images; below, intervals are wide and the biased form says nothing
AT_ONCE = 32  # images that a network is given
COLUMNS = 2**16  # features that are turned into float64 at a time
FLAT = 1e-12  # of a Gram matrix: what centring leaves of the same features for all images is rounding
Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Cka:
    """Similarities of all pairs of feature maps.

    Attributes:
        taps_a, taps_b: the maps of the two networks: rows and columns.
        value_AB: NaN where a self-similarity is zero or negative, as of constant features.
        low_AB, high_AB: 95 % interval by the jackknife over images, for the unbiased estimator; else NaN.
        images, batch: images in all batches, and in each.
        dropped: images of a last, smaller batch, which are not used.
    """

    taps_a: tuple[str, ...]
    taps_b: tuple[str, ...]
    value_AB: np.ndarray
    low_AB: np.ndarray
    high_AB: np.ndarray
    images: int
    batch: int
    dropped: int
    estimator: Estimator
    pooling: Pooling

    @property
    def few(self) -> bool:
        """Whether there are too few images for the numbers to mean much."""
        return self.images < ENOUGH


def compare(
    network_a: nn.Module,
    network_b: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    taps_a: Sequence[str],
    taps_b: Sequence[str],
    *,
    estimator: Estimator = "unbiased",
    pooling: Pooling = "flatten",
) -> Cka:
    """Compare feature maps of two networks on the same images.

    Args:
        batches: the images as each of the networks takes them, (n, 3, H, W); equal crops, in the same order.
        taps_a, taps_b: `stage1`, ..., `last`, or names of layers.
        pooling: "flatten" compares maps position by position, "gap" their means over positions.

    Raises:
        ValueError: no complete batch, or fewer than four images in it.
    """
    networks, taps = (network_a, network_b), (taps_a, taps_b)
    return compare_with_first(networks, batches, taps, estimator=estimator, pooling=pooling)[1]


def compare_with_first(
    networks: Sequence[nn.Module],
    batches: Iterable[Sequence[Tensor]],
    taps: Sequence[Sequence[str]],
    *,
    estimator: Estimator = "unbiased",
    pooling: Pooling = "flatten",
) -> list[Cka]:
    """Compare each of several networks, the first one included, with the first one; see `compare`.

    Each network is run once on each image, and the feature maps of one network at a time are in memory.
    """
    sums = [Sums(estimator) for _ in networks]
    dropped = 0
    for batch in batches:
        if sums[0].batch and len(batch[0]) < sums[0].batch:
            dropped += len(batch[0])
            continue
        grams = [grams_of(*one, pooling) for one in zip(networks, batch, taps, strict=True)]
        for own, others in zip(sums, grams, strict=True):
            own.add(grams[0], others)
    names = tuple(taps[0])
    return [
        Cka(names, tuple(tap), *own.result(), own.images, own.batch, dropped, estimator, pooling)
        for own, tap in zip(sums, taps, strict=True)
    ]


def grams_of(network: nn.Module, images_BCHW: Tensor, taps: Sequence[str], pooling: Pooling) -> np.ndarray:
    """Return the Gram matrices of a network's feature maps, (maps, n, n) float64."""
    chunks: list[list[Tensor]] = [[] for _ in taps]
    with frozen(network), torch.inference_mode():
        for chunk_BCHW in images_BCHW.split(AT_ONCE):
            maps = features(network, taken_by(network, chunk_BCHW), taps)
            for kept, x_BCHW in zip(chunks, maps, strict=True):
                kept.append(x_BCHW.double().mean(dim=(2, 3)) if pooling == "gap" else x_BCHW.flatten(1))
        return np.stack([gram(torch.cat(kept)).cpu().numpy() for kept in chunks])


def gram(x_NP: Tensor) -> Tensor:
    """Return X X' in float64; (N, N)."""
    out_NN = x_NP.new_zeros((len(x_NP), len(x_NP)), dtype=torch.float64)
    for columns_NP in x_NP.split(COLUMNS, dim=1):
        wide_NP = columns_NP.double()
        out_NN += wide_NP @ wide_NP.T
    return out_NN


def linear_cka(x_NP: np.ndarray, y_NP: np.ndarray, estimator: Estimator = "unbiased") -> float:
    """Return the CKA of two sets of features of the same images, all in one batch; NaN where it is not defined."""
    sums = Sums(estimator)
    sums.add(*(gram(torch.from_numpy(np.asarray(z, np.float64)))[None].numpy() for z in (x_NP, y_NP)))
    return float(sums.result()[0][0, 0])


class Sums:
    """The sums of HSIC over batches, and each image's share of them."""

    def __init__(self, estimator: Estimator) -> None:
        self.estimator, self.images, self.batch = estimator, 0, 0
        self._terms: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # of a batch: HSIC of pairs, of A, of B
        self._without: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # the same without each image

    def add(self, k_Ann: np.ndarray, l_Bnn: np.ndarray) -> None:
        """Add a batch by its Gram matrices.

        Raises:
            ValueError: the two have different numbers of images, or fewer than four.
        """
        count = k_Ann.shape[-1]
        if l_Bnn.shape[-1] != count:
            raise ValueError(f"both networks need the same images; got {count} and {l_Bnn.shape[-1]}")
        if count < FEWEST:
            raise ValueError(f"CKA needs at least {FEWEST} images in a batch; got {count}; give more images")
        hsic = hsic_unbiased if self.estimator == "unbiased" else hsic_biased
        k_Ann, l_Bnn = _of_centred_features(k_Ann), _of_centred_features(l_Bnn)
        pairs = (hsic(k_Ann, l_Bnn), _diagonal(hsic, k_Ann), _diagonal(hsic, l_Bnn))
        self._terms.append(pairs)
        if self.estimator == "unbiased" and count > FEWEST:
            self._without.append((_without_each(k_Ann, l_Bnn), _own_without(k_Ann), _own_without(l_Bnn)))
        self.images += count
        self.batch = max(self.batch, count)

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return CKA and the ends of its interval, (A, B) each. Raises ValueError where nothing was added."""
        if not self._terms:
            raise ValueError("CKA needs at least one complete batch of images; got none")
        totals = [np.sum([terms[i] for terms in self._terms], axis=0) for i in range(3)]
        value_AB = _ratio(*totals)
        unknown = np.full_like(value_AB, np.nan)
        if len(self._without) < len(self._terms):
            return value_AB, unknown, unknown
        left_out = [
            _ratio(
                *(
                    total[..., None] - own[..., None] + less
                    for total, own, less in zip(totals, terms, without, strict=True)
                )
            )
            for terms, without in zip(self._terms, self._without, strict=True)
        ]
        values_ABN = np.concatenate(left_out, axis=-1)
        count = values_ABN.shape[-1]
        spread_ABN = values_ABN - values_ABN.mean(axis=-1, keepdims=True)
        error_AB = np.sqrt((count - 1) / count * (spread_ABN**2).sum(axis=-1))
        return value_AB, value_AB - Z * error_AB, value_AB + Z * error_AB


def hsic_unbiased(k_Ann: np.ndarray, l_Bnn: np.ndarray) -> np.ndarray:
    """Return HSIC_1 of all pairs, (A, B): the diagonals of K and L are set to zero."""
    k_Ann, l_Bnn = without_diagonal(k_Ann), without_diagonal(l_Bnn)
    count = k_Ann.shape[-1]
    trace_AB = np.einsum("aij,bij->ab", k_Ann, l_Bnn, optimize=True)
    k_An, l_Bn = k_Ann.sum(-1), l_Bnn.sum(-1)
    return _hsic(trace_AB, k_An.sum(-1)[:, None] * l_Bn.sum(-1), k_An @ l_Bn.T, count)


def _hsic(trace: np.ndarray, sums: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Return HSIC_1 by tr(K L), the product of the sums of all entries, and the product of the row sums."""
    n = count
    return (trace + sums / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows) / (n * (n - 3))


def hsic_biased(k_Ann: np.ndarray, l_Bnn: np.ndarray) -> np.ndarray:
    """Return HSIC_0 of all pairs, (A, B): tr(K H L H) / (n - 1)^2."""
    count = k_Ann.shape[-1]
    centred_Ann = _centred(k_Ann)
    return np.einsum("aij,bij->ab", centred_Ann, _centred(l_Bnn), optimize=True) / (count - 1) ** 2


def _centred(k_Ann: np.ndarray) -> np.ndarray:
    rows, columns = k_Ann.mean(-1, keepdims=True), k_Ann.mean(-2, keepdims=True)
    return k_Ann - rows - columns + rows.mean(-2, keepdims=True)


def _of_centred_features(k_Ann: np.ndarray) -> np.ndarray:
    """Return the Gram matrices of the features less their means over images; zeros where these are the features.

    No estimator depends on the means, and beside large ones the differences between images would be lost to rounding.
    """
    centred_Ann = _centred(k_Ann)
    size_A, before_A = (np.linalg.norm(one_Ann, axis=(1, 2)) for one_Ann in (centred_Ann, k_Ann))
    return np.where((size_A <= FLAT * before_A)[:, None, None], 0.0, centred_Ann)


def without_diagonal(k_Ann: np.ndarray) -> np.ndarray:
    return k_Ann * (1 - np.eye(k_Ann.shape[-1]))


def _diagonal(hsic: Callable[[np.ndarray, np.ndarray], np.ndarray], k_Ann: np.ndarray) -> np.ndarray:
    """Return the HSIC of each matrix with itself, (A,)."""
    return np.array([hsic(k_nn[None], k_nn[None])[0, 0] for k_nn in k_Ann])


def _without_each(k_Ann: np.ndarray, l_Bnn: np.ndarray) -> np.ndarray:
    """Return HSIC_1 of all pairs without each of the images in turn, (A, B, n), in the time of one HSIC."""
    k_Ann, l_Bnn = without_diagonal(k_Ann), without_diagonal(l_Bnn)
    count = k_Ann.shape[-1]
    product_ABn = np.einsum("aij,bij->abi", k_Ann, l_Bnn, optimize=True)
    k_An, l_Bn = k_Ann.sum(-1), l_Bnn.sum(-1)
    trace_ABn = product_ABn.sum(-1, keepdims=True) - 2 * product_ABn
    sums_ABn = (k_An.sum(-1, keepdims=True) - 2 * k_An)[:, None] * (l_Bn.sum(-1, keepdims=True) - 2 * l_Bn)
    across_ABn = np.einsum("aij,bj->abi", k_Ann, l_Bn) + np.einsum("bij,aj->abi", l_Bnn, k_An)
    rows_ABn = (k_An @ l_Bn.T)[..., None] - k_An[:, None] * l_Bn - across_ABn + product_ABn
    return _hsic(trace_ABn, sums_ABn, rows_ABn, count - 1)


def _own_without(k_Ann: np.ndarray) -> np.ndarray:
    return np.concatenate([_without_each(k_nn[None], k_nn[None])[0] for k_nn in k_Ann])


def _ratio(pairs: np.ndarray, own_a: np.ndarray, own_b: np.ndarray) -> np.ndarray:
    """Return CKA by the sums of HSIC: pairs (A, B, ...), own (A, ...) and (B, ...)."""
    product = own_a[:, None] * own_b[None]
    defined = (own_a[:, None] > 0) & (own_b[None] > 0)
    return np.where(defined, pairs / np.sqrt(np.where(defined, product, 1.0)), np.nan)
