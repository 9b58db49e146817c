"""Checks of settings that a recipe or a caller gives by name, before anything is built."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from math import inf, isnan
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

Settings = TypeVar("Settings")


def check_given(build: Callable[..., Any], what: str, given: Mapping[str, Any], but: tuple[str, ...] = ()) -> None:
    """Raise ValueError for what `build` does not take: a name, or a value of one of its switches and numbers.

    Args:
        what: the name of these settings in messages.
        but: arguments that others give.
    """
    parameters = inspect.signature(build).parameters
    known = [name for name in parameters if name not in but]
    for name, value in given.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise ValueError(f"{what} has no argument {name!r}; {hint}")
        _check_value(name, value, parameters[name].annotation)


def _check_value(name: str, value: object, annotation: object) -> None:
    """Raise ValueError for a text in place of true or false, which Python takes for true, and for no number."""
    types = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if value is None or any(one not in (bool, float, int, NoneType) for one in types):
        return
    is_switch = isinstance(value, bool) or (isinstance(value, Real) and value in (0, 1))
    if bool in types and not is_switch:
        raise ValueError(f"{name} is true or false; got {value!r}")
    if float in types and (not isinstance(value, Real) or isinstance(value, bool) or isnan(value)):
        raise ValueError(f"{name} is a number; got {value!r}")


def check_counts(least: int = 1, **given: object) -> None:
    """Raise ValueError for a value that is not an integer of at least `least`; None stands for a default."""
    for name, value in given.items():
        if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least):
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")


def check_groups(what: str, channels: int, groups: int) -> None:
    """Raise ValueError unless channels split into groups of at least two, which GroupNorm needs on maps of one cell."""
    if channels % groups or channels < 2 * groups:
        raise ValueError(f"{what} needs channels in multiples of {groups}, at least {2 * groups}; got {channels}")


def check_sizes(**given: object) -> None:
    """Raise ValueError for a value that is neither a number above 0 nor a list of such numbers, at least one."""
    for name, value in given.items():
        is_list = isinstance(value, list | tuple)
        if not (bool(value) and all(map(_is_size, value)) if is_list else _is_size(value)):
            needed = "a list of numbers above 0, at least one" if is_list else "a number above 0"
            raise ValueError(f"{name} is {needed}; got {value!r}")


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf


def settings_from(cls: type[Settings], what: str, given: Settings | Mapping[str, Any]) -> Settings:
    """Return the settings that are given, or those that a mapping from a recipe describes.

    Args:
        what: the name of these settings in messages.

    Raises:
        ValueError: an unknown name, a missing one, or no mapping at all.
    """
    if isinstance(given, cls):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} is a mapping of {', '.join(inspect.signature(cls).parameters)}; got {given!r}")
    check_given(cls, what, given)
    try:
        return cls(**given)
    except TypeError as error:
        raise ValueError(f"{what} is incomplete: {error}") from error
