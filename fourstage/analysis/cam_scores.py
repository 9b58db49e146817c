"""How faithful a map is: what a classifier's score does when the pixels that the map marks are removed.

B images, C channels, H x W pixels, P removed pixels.

ROAD (https://arxiv.org/abs/2202.00449) replaces pixels by noisy linear imputation, deletion by the mean colour, and
insertion restores them on a blurred image (https://arxiv.org/abs/1806.07421). Blurry maps score better than sharp ones.
Drop and increase compare the score of the image times its map with that of the image (https://arxiv.org/abs/1710.11063),
as a difference, where the paper divides it by the score of the image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.extras import install

PERCENTILES = tuple(range(10, 100, 10))
NOISE = 0.01  # standard deviation of what imputation adds
STEPS = 224  # of insertion and deletion: for an image of 224 pixels a side, 224 pixels each
BLUR = (11, 5.0)  # kernel, pixels, and sigma of the image that insertion starts from
NEIGHBOURS = tuple(
    (down, right, 1 / 12 if down and right else 1 / 6) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right
)
Score = Callable[[Tensor], Tensor]  # (B, C, H, W) to (B,) scores, such as probabilities of a class


@dataclass(frozen=True)
class Faithfulness:
    """Scores of one map.

    Attributes:
        morf, lerf: mean change of the score when the most, or the least, relevant pixels are imputed (ROAD).
        insertion, deletion: areas below the score while pixels are restored, or removed, the most relevant first.
        drop: how much the score falls where the normalised image is multiplied by the map; 0 where it rises.
        increase: 1 where it rises, else 0; the mean over images is their share.
    """

    morf: float
    lerf: float
    insertion: float
    deletion: float
    drop: float
    increase: float

    @property
    def road(self) -> float:
        """(LeRF - MoRF) / 2; higher is better."""
        return (self.lerf - self.morf) / 2


def faithfulness(score: Score, image_CHW: Tensor, map_HW: Tensor, *, steps: int = STEPS, seed: int = 0) -> Faithfulness:
    """Return all scores of a map, in [0, 1], of one image; NaN for a map that marks nothing."""
    values = map_HW.detach().cpu().double().numpy()
    if values.max() <= values.min():
        return Faithfulness(*[float("nan")] * 6)
    morf, lerf = (road(score, image_CHW, relevance, seed=seed) for relevance in (values, 1 - values))
    return Faithfulness(
        morf,
        lerf,
        area(score, image_CHW, values, insert=True, steps=steps),
        area(score, image_CHW, values, steps=steps),
        *drop_and_increase(score, image_CHW, map_HW),
    )


def drop_and_increase(score: Score, image_CHW: Tensor, map_HW: Tensor) -> tuple[float, float]:
    """Return how much the score falls, or 0, and 1 where it rises, or 0, for an image times its map."""
    with torch.no_grad():
        own, seen = score(torch.stack([image_CHW, image_CHW * map_HW.to(image_CHW)])).double().tolist()
    return max(0.0, own - seen), float(seen > own)


def road(
    score: Score,
    image_CHW: Tensor,
    map_HW: np.ndarray,
    *,
    percentiles: Sequence[int] = PERCENTILES,
    noise: float = NOISE,
    seed: int = 0,
) -> float:
    """Return the mean change of the score when pixels from each percentile of the map up are imputed."""
    images = []
    for percentile in percentiles:
        keep_HW = torch.from_numpy(below(map_HW, percentile))
        images.append(imputed(image_CHW, keep_HW, noise=noise, seed=seed))
    with torch.no_grad():
        changed, own = score(torch.stack(images)), score(image_CHW[None])
    return float((changed - own).mean())


def below(map_HW: np.ndarray, percentile: float) -> np.ndarray:
    """Return the pixels below a percentile of a map. Where equal values leave none, the order of pixels decides."""
    keep_HW = map_HW < np.percentile(map_HW, percentile)
    if keep_HW.any():
        return keep_HW
    lowest = np.argsort(map_HW, axis=None, kind="stable")[: max(1, int(map_HW.size * percentile / 100))]
    keep_HW.flat[lowest] = True
    return keep_HW


def imputed(image_CHW: Tensor, keep_HW: Tensor, *, noise: float = NOISE, seed: int = 0) -> Tensor:
    """Return an image whose removed pixels are the weighted means of their eight neighbours, plus noise.

    All removed pixels are solved for together. Neighbours outside of the image do not count.

    Args:
        keep_HW: bool; False where a pixel is removed.
        noise: standard deviation of Gaussian noise on removed pixels.

    Raises:
        ValueError: scipy is not installed.
    """
    keep = keep_HW.cpu().numpy().astype(bool)
    removed = np.argwhere(~keep)
    if not len(removed):
        return image_CHW.clone()
    if len(removed) == keep.size:  # nothing to interpolate from
        raise ValueError("imputation needs at least one pixel to keep, and none is left; remove fewer pixels")
    values_PC = _solve(image_CHW.detach().cpu().double().numpy(), keep, removed)
    if noise:
        values_PC = values_PC + noise * np.random.default_rng(seed).standard_normal(values_PC.shape)
    out_CHW = image_CHW.clone()
    rows, columns = (torch.from_numpy(axis).to(image_CHW.device) for axis in removed.T)
    out_CHW[:, rows, columns] = torch.from_numpy(values_PC.T.copy()).to(image_CHW)
    return out_CHW


def _solve(image_CHW: np.ndarray, keep_HW: np.ndarray, removed_P2: np.ndarray) -> np.ndarray:
    """Return (P, C): the solution of the sparse linear system of all removed pixels."""
    try:
        from scipy.sparse import csc_matrix
        from scipy.sparse.linalg import splu
    except ImportError as error:
        raise ValueError(f"ROAD needs scipy; type: {install('train')}") from error
    height, width = keep_HW.shape
    count = len(removed_P2)
    number_HW = np.full((height, width), -1)
    number_HW[tuple(removed_P2.T)] = np.arange(count)
    diagonal_P, right_PC = np.zeros(count), np.zeros((count, len(image_CHW)))
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for down, right, weight in NEIGHBOURS:
        row_P, column_P = removed_P2[:, 0] + down, removed_P2[:, 1] + right
        inside = np.flatnonzero((row_P >= 0) & (row_P < height) & (column_P >= 0) & (column_P < width))
        rows, columns = row_P[inside], column_P[inside]
        diagonal_P[inside] += weight
        kept = keep_HW[rows, columns]
        right_PC[inside[kept]] += weight * image_CHW[:, rows[kept], columns[kept]].T
        others = inside[~kept]
        entries.append((others, number_HW[rows[~kept], columns[~kept]], np.full(len(others), -weight)))
    entries.append((np.arange(count), np.arange(count), diagonal_P))
    row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    return splu(csc_matrix((value, (row, column)), shape=(count, count))).solve(right_PC)


def area(
    score: Score, image_CHW: Tensor, map_HW: np.ndarray, *, insert: bool = False, steps: int = STEPS, at_once: int = 32
) -> float:
    """Return the area below the score while pixels are deleted or inserted, the most relevant first; 0 to 1.

    Deleted pixels become zero, the mean colour of a normalised image. Insertion starts from the blurred image.
    """
    order_N = np.argsort(-map_HW.ravel(), kind="stable")
    start_CHW = blurred(image_CHW) if insert else image_CHW
    target_CHW = image_CHW if insert else torch.zeros_like(image_CHW)
    bounds = np.linspace(0, len(order_N), steps + 1).round().astype(int)
    scores: list[float] = []
    with torch.no_grad():
        for begin in range(0, steps + 1, at_once):
            images = []
            for changed in bounds[begin : begin + at_once]:
                one_CN = start_CHW.flatten(1).clone()
                index = torch.from_numpy(order_N[:changed].copy()).to(image_CHW.device)
                one_CN[:, index] = target_CHW.flatten(1)[:, index]
                images.append(one_CN.view_as(image_CHW))
            scores += score(torch.stack(images)).double().tolist()
    return float(np.trapezoid(scores, bounds / len(order_N)))


def blurred(image_CHW: Tensor) -> Tensor:
    """Return the image under a Gaussian of 11 pixels and sigma 5, with its border continued by reflection."""
    side, sigma = BLUR
    offsets = torch.arange(side, device=image_CHW.device, dtype=image_CHW.dtype) - side // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x_C1HW = F.pad(image_CHW[:, None], (side // 2,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(x_C1HW, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]
