"""Settings that come by name from a recipe or a caller, checked before anything is built."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


def check_names(build: Callable[..., Any], what: str, given: Mapping[str, Any], but: tuple[str, ...] = ()) -> None:
    """Raise ValueError for a name that is no argument of `build`, or one of those in `but`, which others decide."""
    known = [name for name in inspect.signature(build).parameters if name not in but]
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            raise ValueError(f"{what} has no argument {name!r}; {hint}")


def made(kind: type[T], what: str, given: T | Mapping[str, Any]) -> T:
    """`given`, or what a mapping from a recipe makes of `kind`.

    Raises:
        ValueError: a name that `kind` has not, one that it needs and is missing, or no mapping at all.
    """
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"{what} is a mapping of {', '.join(inspect.signature(kind).parameters)}; got {given!r}")
    check_names(kind, what, given)
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{what} is incomplete: {error}") from error
