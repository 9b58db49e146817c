"""How sure a metric is: intervals of 95 % for other images of the same kind. N images, R resamples."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

NORMAL = 1.959963984540054  # standard deviations of a normal distribution on each side of 95 %
RESAMPLES = 200
FEWEST = 50  # resamples; data that allows fewer within the limit on work has no interval


@dataclass(frozen=True)
class Intervals:
    """Intervals of metrics, in the metrics' units."""

    method: str  # for readers, such as "bootstrap over images, 200 resamples"
    of: dict[str, tuple[float, float]] = field(default_factory=dict)  # by the metric's name


def wilson(right: float, images: int) -> tuple[float, float]:
    """Return Wilson's interval of a share, in per cent.

    Unlike the textbook's normal interval, it has a width where none or all of the images are right.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Raises:
        ValueError: no images, or `right` is not one of 0 to `images`.
    """
    if not 0 <= right <= images or not images:
        raise ValueError(f"{right} of {images} images is not a share; give at least one image")
    share, z2 = right / images, NORMAL**2 / images
    middle = (share + z2 / 2) / (1 + z2)
    half = NORMAL / (1 + z2) * math.sqrt(share * (1 - share) / images + z2 / (4 * images))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def bootstrap(
    images: int, measure: Callable[[np.ndarray], dict[str, float]], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the interval of each metric from resamples of the images.

    Args:
        images: N.
        measure: (N,) indices of images, some of them several times, to the metrics of these images together.
        resamples: R; the interval is from the 2.5th to the 97.5th percentile of their metrics.

    Returns:
        By name, widened to include the metric of the images themselves; without metrics that are NaN for them.
    """
    draw = np.random.default_rng(seed)
    full = measure(np.arange(images))
    drawn = [measure(draw.integers(0, images, images)) for _ in range(resamples)]
    out: dict[str, tuple[float, float]] = {}
    for name, value in full.items():
        values_R = np.array([one[name] for one in drawn])
        values_R = values_R[np.isfinite(values_R)]
        if math.isfinite(value) and len(values_R):
            low, high = np.percentile(values_R, (2.5, 97.5))
            out[name] = min(float(low), value), max(float(high), value)
    return out


def affordable_resamples(work: int, limit: int) -> int:
    """Return the number of resamples, each of which does `work`, within a limit; 0 where there would be too few."""
    resamples = min(RESAMPLES, limit // max(work, 1))
    return resamples if resamples >= FEWEST else 0
