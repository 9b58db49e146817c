"""Format numbers, durations and metrics for people."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

SPACE = "\u202f"  # narrow no-break space between a number and its unit
NOTHING = "–"  # shown for a value that is unknown


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is shown: its label, its unit (per cent or none), and whether higher is better."""

    label: str
    percent: bool = True
    higher_is_better: bool = True

    def show(self, value: float, digits: int = 2) -> str:
        """Return the value with its unit."""
        if not math.isfinite(value):
            return NOTHING if math.isnan(value) else "infinite"
        if self.percent:
            return percent(value, digits)
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else significant(value)


SIZES = {"s": "small", "m": "medium", "l": "large"}
METRICS = {
    "top1": Metric("top-1 accuracy"),
    "top5": Metric("top-5 accuracy"),
    "loss": Metric("validation loss", percent=False, higher_is_better=False),
    "box_map": Metric("box AP"),
    "box_map50": Metric("box AP at 0.50"),
    "box_map75": Metric("box AP at 0.75"),
    "box_map_s": Metric("box AP, small"),
    "box_map_m": Metric("box AP, medium"),
    "box_map_l": Metric("box AP, large"),
    "mask_map": Metric("mask AP"),
    "mask_map50": Metric("mask AP at 0.50"),
    "mask_map75": Metric("mask AP at 0.75"),
    "mask_map_s": Metric("mask AP, small"),
    "mask_map_m": Metric("mask AP, medium"),
    "mask_map_l": Metric("mask AP, large"),
    "miou_ss": Metric("mean IoU"),
    "macc_ss": Metric("mean accuracy"),
    "aacc_ss": Metric("pixel accuracy"),
    "boundary_f1_ss": Metric("boundary F1"),
    "miou_ms_flip": Metric("mean IoU, multi-scale and mirrored"),
    "macc_ms_flip": Metric("mean accuracy, multi-scale and mirrored"),
    "aacc_ms_flip": Metric("pixel accuracy, multi-scale and mirrored"),
}


BRIEF = ("top1", "top5", "loss", "box_map", "mask_map", "box_map50", "miou_ss", "macc_ss", "aacc_ss")
FEW_CLASSES = 5  # up to here every class is among the first five, and top-5 says nothing


def shown_metrics(metrics: Mapping[str, float], classes: int) -> dict[str, float]:
    """Return the metrics without the top-5 accuracy of five classes or fewer, which is always 100 %.

    Args:
        metrics: by their names, as `score` of a task returns them.
        classes: number of classes; 0: unknown.
    """
    return {name: value for name, value in metrics.items() if name != "top5" or not 0 < classes <= FEW_CLASSES}


def brief_text(metrics: Mapping[str, float], classes: int = 0) -> str:
    """Return the two or three most important metrics for a line of the terminal; the first three if all are unknown."""
    shown = shown_metrics(metrics, classes)
    names = [name for name in BRIEF if name in shown] or list(shown)[:3]
    return "  ".join(f"{name} {shown[name]:.2f}" for name in names)


def short_value(value: object) -> str:
    """Return a value of a recipe as it is typed; a number has at most four significant digits."""
    if value is None:
        return "none"
    return significant(value) if isinstance(value, float) and math.isfinite(value) else str(value)


def metric(name: str) -> Metric:
    """Return how a metric is shown; an unknown one has its own name, no unit, and higher is better."""
    if match := re.fullmatch(r"(box|mask)_recall_?(\w+)", name):
        return Metric(f"{match[1]} recall, {SIZES.get(match[2], match[2] + ' an image')}")
    return METRICS.get(name, Metric(name, percent=False))


def percent(value: float, digits: int = 1) -> str:
    """Return `82.2 %`."""
    return f"{value:.{digits}f}{SPACE}%"


def significant(value: float, digits: int = 4) -> str:
    """Return the value with `digits` significant digits and an exponent without padding: 2e-5, not 2e-05."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"


def count(value: float) -> str:
    """Return a whole number with separators: 1,797."""
    return f"{round(value):,}" if math.isfinite(value) else NOTHING


def signed(difference: float) -> str:
    """Return a difference with its sign; the minus is U+2212."""
    return f"{difference:+.2f}".replace("-", "\u2212")


def millions(value: float) -> str:
    """Return a number of parameters: 412,340 below a million, 28.3 M above it."""
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:.1f}{SPACE}M"


def duration(seconds: float) -> str:
    """Return a duration in at most two units: 41 s, 2 min 1 s, 3 h 5 min, 2 d 4 h."""
    if not math.isfinite(seconds) or seconds < 0:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    left, amounts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, size)
        if amount or amounts:
            amounts.append(f"{amount}{SPACE}{unit}" if amount else "")
    return " ".join(text for text in amounts[:2] if text)
