"""Intervals for means over images. K quantities, N images, D draws."""

import numpy as np

DRAWS = 1000
LEVEL = 0.95


def bootstrap_means(
    values_KN: np.ndarray, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval of each row's mean, (K,) low and (K,) high, by drawing images with replacement.

    One draw of images serves all rows, so that differences of rows keep their pairing. A row with NaN has the interval
    NaN to NaN, and so has every row where there is one image.
    """
    count = values_KN.shape[1]
    if count < 2:
        return np.full(len(values_KN), np.nan), np.full(len(values_KN), np.nan)
    times_DN = resamples(count, draws, seed)
    means_DK = times_DN @ values_KN.T / count
    outside = 50 * (1 - level)
    low_K, high_K = np.percentile(means_DK, [outside, 100 - outside], axis=0)
    return low_K, high_K


def resamples(count: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return (D, N) float64: how often each image is in each draw of N images with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
