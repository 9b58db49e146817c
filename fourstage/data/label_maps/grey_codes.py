"""Label maps whose values are shades of grey, such as 0 and 128, and no numbers of classes."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from fourstage.data.sample import IGNORE

APART = 24  # between any two values: numbers of classes that occur have closer ones, in published data too (VOC has 21)
STEP, STEPS, TOP = 8, 4, 192  # an even scale to above TOP is no set of classes either, of STEPS values or more
SHOWN = 4  # values in a message


def is_grey_codes(values: Iterable[int]) -> bool:
    """Return whether stored values look like shades of grey: all far apart, or on an even scale.

    Classes that are common have neighbours among their numbers. Where rare ones are missing in a small split, some
    values are far from the others, and not all of them.

    Args:
        values: those of all label maps for training.
    """
    ordered = sorted(set(values))
    gaps = [after - before for before, after in pairwise(value for value in ordered if value != IGNORE)]
    if gaps and min(gaps) >= APART:
        return True
    gaps = [after - before for before, after in pairwise(ordered)]
    even = len(ordered) >= STEPS and min(gaps) >= STEP and max(gaps) - min(gaps) <= 1  # 255 does not split evenly
    return even and ordered[-1] > TOP


def as_lines(values: Sequence[int]) -> str:
    """Return the beginning of a list of classes for such values: "`0: background`, `128: NAME`"."""
    lines = [f"`{value}: {'background' if value == 0 else 'NAME'}`" for value in sorted(values)[:SHOWN]]
    return f"{', '.join(lines)}{' and so on' if len(values) > SHOWN else ''}"
