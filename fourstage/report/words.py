"""Numbers as a reader expects them, and what metrics are called."""

import math
from dataclasses import dataclass

SPACE = "\u202f"  # narrow and unbreakable, between a number and its unit
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Metric:
    """How to show a metric: per cent or a bare number, and which end of it is good."""

    label: str
    percent: bool = True
    higher_is_better: bool = True

    def show(self, value: float, digits: int = 2) -> str:
        if not math.isfinite(value):
            return NOTHING if math.isnan(value) else "infinite"
        if self.percent:
            return percent(value, digits)
        return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 else significant(value)


METRICS = {
    "top1": Metric("top-1 accuracy"),
    "top5": Metric("top-5 accuracy"),
    "loss": Metric("validation loss", percent=False, higher_is_better=False),
}


def metric(name: str) -> Metric:
    """What is known of a metric; an unknown one is a bare number under its own name, the higher the better."""
    return METRICS.get(name, Metric(name, percent=False))


def percent(value: float, digits: int = 1) -> str:
    return f"{value:.{digits}f}{SPACE}%"


def significant(value: float, digits: int = 4) -> str:
    """A number to so many digits, without the padding that Python gives exponents: 2e-5, not 2e-05."""
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    mantissa, exponent = text.split("e")
    return f"{mantissa}e{int(exponent)}"


def count(value: float) -> str:
    return f"{round(value):,}" if math.isfinite(value) else NOTHING


def signed(difference: float) -> str:
    """A difference with its sign, a true minus among them."""
    return f"{difference:+.2f}".replace("-", "\u2212")


def plural(number: int, one: str, many: str | None = None) -> str:
    """`1 image`, `1,797 images`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def millions(value: float) -> str:
    """A number of parameters: 412,340 in full below a million, then 28.3 M."""
    return f"{value:,.0f}" if value < 1e6 else f"{value / 1e6:.1f}{SPACE}M"


def duration(seconds: float) -> str:
    """Two units at most: 41 s, 2 min 1 s, 3 h 5 min, 2 d 4 h."""
    if not math.isfinite(seconds) or seconds < 0:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f}{SPACE}s"
    left, parts = round(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, size)
        if amount or parts:
            parts.append(f"{amount}{SPACE}{unit}" if amount else "")
    return " ".join(part for part in parts[:2] if part)
