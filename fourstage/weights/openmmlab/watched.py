"""Dictionaries of a configuration that note which of their values were read, so that the others can be listed."""

from collections.abc import Iterator, Mapping
from typing import Any

from fourstage.weights.openmmlab.expressions import Unread


class Watched(Mapping[str, Any]):
    """A dictionary whose values are noted when they are read.

    Args:
        values: plain values.
        source: the file's name, for messages.
        path: of the dictionary in the configuration.
        seen: paths of the values that were read.
    """

    def __init__(self, values: Mapping[Any, Any], source: str, path: str = "", seen: set[str] | None = None) -> None:
        self._values, self.source, self.path = values, source, path
        self.seen: set[str] = set() if seen is None else seen

    def __getitem__(self, key: str) -> Any:
        return self._wrapped(self._values[key], self.path_of(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __repr__(self) -> str:
        return repr(self._values)

    def path_of(self, key: object) -> str:
        return f"{self.path}.{key}" if self.path else str(key)

    def _wrapped(self, value: Any, path: str) -> Any:
        """Return a value, with its dictionaries watched too.

        Raises:
            ValueError: the value is code.
        """
        if isinstance(value, Unread):
            raise ValueError(f"{self.source}: {path} is code, {value}, which is not run; write its value instead")
        if isinstance(value, Mapping):
            return Watched(value, self.source, path, self.seen)
        self.seen.add(path)
        if isinstance(value, list | tuple):
            return [self._wrapped(one, f"{path}.{i}") for i, one in enumerate(value)]
        return value

    def unseen(self) -> dict[str, Any]:
        """Return the values that nobody has read, by their paths."""
        return {path: value for path, value in _leaves(self._values, self.path) if path not in self.seen}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple) and _holds_dictionaries(value):
        for i, one in enumerate(value):
            yield from _leaves(one, f"{path}.{i}")
    else:
        yield path, value


def _holds_dictionaries(values: list[Any] | tuple[Any, ...]) -> bool:
    return any(
        isinstance(one, Mapping) or (isinstance(one, list | tuple) and _holds_dictionaries(one)) for one in values
    )
