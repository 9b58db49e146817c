"""Checks of the values that transforms are built with."""

from collections.abc import Sequence
from math import isfinite
from numbers import Integral


def check_shares(**given: float) -> None:
    """Raise ValueError for a share or a probability outside of 0 to 1."""
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is a number from 0 to 1; got {value!r:.40}")


def check_ranges(**given: Sequence[float]) -> None:
    """Raise ValueError unless each is the smallest and the largest of numbers above 0."""
    for name, (low, high) in given.items():
        if not 0 < low <= high < float("inf"):
            raise ValueError(f"{name} is [smallest, largest], above 0; got [{low!r:.40}, {high!r:.40}]")


def check_side(name: str, value: object) -> None:
    """Raise ValueError unless it is a number of pixels."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise ValueError(f"{name} is the side of a square in pixels, a whole number from 1 on; got {value!r:.40}")


def check_colours(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise ValueError unless mean and std are three numbers each, and no std is 0 or less."""
    if len(mean) != 3 or len(std) != 3 or not all(map(isfinite, (*mean, *std))) or min(std) <= 0:
        raise ValueError(f"mean {mean} and std {std} must be three numbers each, and no std zero or less")
