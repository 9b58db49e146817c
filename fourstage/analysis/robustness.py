"""Accuracy on changed test sets: published ones for ImageNet's classes, and corruptions that are applied here.

N images, K classes, H x W pixels. Corruptions have five severities.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.analysis.logits import logits_of
from fourstage.analysis.taps import frozen
from fourstage.extras import install
from fourstage.tasks.parts.intervals import wilson

SEVERITIES = (1, 2, 3, 4, 5)
# AlexNet's error rates by severity, by which https://arxiv.org/abs/1903.12261 divides; of public re-implementations
ALEXNET: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    "frost": (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    "fog": (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
    "contrast": (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
ALEXNET_CLEAN = 0.435  # its error on the images before they were corrupted
CORRUPTIONS = tuple(ALEXNET)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # published for validation; not in the mCE
SMALLEST = 32  # pixels a side that the corruptions need


@dataclass(frozen=True)
class Accuracy:
    """How many images of one test set have the right class first, or among the first five.

    Attributes:
        correct_N: 0 or 1 for each image, in the order of the data.
        among_five_N: the same for the best five classes; None: not measured.
    """

    correct_N: np.ndarray
    among_five_N: np.ndarray | None = None

    @property
    def top1(self) -> float:
        """Per cent."""
        return 100 * float(self.correct_N.mean())

    @property
    def top5(self) -> float | None:
        """Per cent; None: not measured."""
        return None if self.among_five_N is None else 100 * float(self.among_five_N.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson interval, per cent."""
        return wilson(int(self.correct_N.sum()), len(self.correct_N))

    @property
    def error(self) -> float:
        """The share of wrong images, 0 to 1."""
        return 1 - float(self.correct_N.mean())


@dataclass(frozen=True)
class CorruptionErrors:
    """Corruption errors against AlexNet's, in per cent.

    Attributes:
        ce: of each corruption that has all five severities.
        mce: their mean over the 15 corruptions; None where one is missing.
        missing: corruptions or severities that are not there.
        relative_ce, relative_mce: the same by how much each error is above that of unchanged images; empty and None
            where that is unknown.
    """

    ce: Mapping[str, float]
    mce: float | None
    missing: tuple[str, ...]
    relative_ce: Mapping[str, float] = field(default_factory=dict)
    relative_mce: float | None = None


def corruption_errors(errors: Mapping[tuple[str, int], float], clean: float | None = None) -> CorruptionErrors:
    """Return CE and mCE by the error rates, 0 to 1, of each corruption and severity of ImageNet-C.

    CE is the sum of the network's errors over the severities, divided by AlexNet's. For the relative CE, the error of
    unchanged images is taken off each of them first. Source: https://arxiv.org/abs/1903.12261.

    Args:
        clean: the network's error rate on the unchanged images; None: unknown.
    """
    ce, relative, missing = {}, {}, []
    for name, alexnet in ALEXNET.items():
        absent = [severity for severity in SEVERITIES if (name, severity) not in errors]
        if absent:
            missing.append(f"{name} {','.join(map(str, absent))}" if len(absent) < len(SEVERITIES) else name)
            continue
        own, count = sum(errors[name, severity] for severity in SEVERITIES), len(SEVERITIES)
        ce[name] = 100 * own / sum(alexnet)
        if clean is not None:
            relative[name] = 100 * (own - count * clean) / (sum(alexnet) - count * ALEXNET_CLEAN)
    return CorruptionErrors(
        ce,
        None if missing else float(np.mean(list(ce.values()))),
        tuple(missing),
        relative,
        None if missing or clean is None else float(np.mean(list(relative.values()))),
    )


def best_classes(
    network: nn.Module, images_BCHW: Tensor, among: Sequence[int] | None = None, at_once: int = 32
) -> np.ndarray:
    """Return (B,) best classes, of a test set with some of the classes among these.

    Raises:
        ValueError: the network returns no logits.
    """
    return best_five(network, images_BCHW, among, at_once)[:, 0]


def best_five(
    network: nn.Module, images_BCHW: Tensor, among: Sequence[int] | None = None, at_once: int = 32
) -> np.ndarray:
    """Return (B, 5) best classes, the best one first; fewer columns where there are fewer classes.

    Raises:
        ValueError: the network returns no logits.
    """
    kept = None if among is None else torch.tensor(list(among))
    out = []
    with frozen(network), torch.inference_mode():
        for chunk_BCHW in images_BCHW.split(at_once):
            logits_BK = logits_of(network, chunk_BCHW, "robustness").cpu()
            chosen_BK = logits_BK if kept is None else logits_BK[:, kept]
            best_B5 = chosen_BK.argsort(dim=1, descending=True, stable=True)[:, :5]
            out.append(best_B5 if kept is None else kept[best_B5])
    return torch.cat(out).numpy()


def check_corruptions(names: Sequence[str]) -> None:
    """Raise ValueError unless these corruptions exist, and the package that makes them is installed."""
    if unknown := [name for name in names if name not in (*CORRUPTIONS, *EXTRA)]:
        raise ValueError(f"there is no corruption {unknown[0]!r}; choose from {', '.join((*CORRUPTIONS, *EXTRA))}")
    _package()


def corrupted(image_HW3: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    """Return a corrupted (H, W, 3) uint8 image by the package imagecorruptions-imaug, the same for the same seed.

    These are re-implementations: they are not bitwise the images of ImageNet-C, so errors on them give no mCE.

    Raises:
        ValueError: the package is missing, or the image is smaller than 32 pixels a side.
    """
    if min(image_HW3.shape[:2]) < SMALLEST:
        height, width = image_HW3.shape[:2]
        raise ValueError(f"corruptions need images of {SMALLEST} pixels a side; got {height} x {width}; add --size")
    corrupt, seed = _package(), seed % 2**32  # the generator takes no other
    before = np.random.get_state()  # noqa: NPY002 - the package draws from numpy's global generator
    np.random.seed(seed)  # noqa: NPY002
    keys = {"seed": seed} if name in ("impulse_noise", "glass_blur") else {}
    try:
        return np.asarray(corrupt(image_HW3, corruption_name=name, severity=severity, **keys), np.uint8)
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _package() -> Callable[..., np.ndarray]:
    """Return the function of imagecorruptions-imaug, which is a package of its own extra."""
    try:
        return import_module("imagecorruptions").corrupt
    except ImportError as error:
        raise ValueError(f"corruptions need imagecorruptions-imaug; type: {install('corruptions')}") from error
