"""A dictionary in a configuration of OpenMMLab's with its path, so that messages name the entry."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class MethodSettings:
    """A detector or segmentor of a configuration without its backbone; fields as in `NetworkDescription`."""

    task: str
    method: str
    method_args: Values
    num_classes: int
    evaluation: Values = field(default_factory=dict)
    over_valid: bool = False


class ConfigSection:
    """A dictionary of a configuration.

    Args:
        values: the dictionary; anything else counts as an empty one.
        path: of the dictionary in the configuration, such as "model.neck".
        source: name of the file, for messages.

    Methods raise ValueError for an entry that is not as they need it.
    """

    def __init__(self, values: object, path: str, source: str) -> None:
        self.values, self.path, self.source = mapping(values), path, source

    @property
    def type_name(self) -> str:
        """The type without the library that it is from."""
        return name_of(self.values)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry; `default` where it is missing or None."""
        found = self.values.get(name, default)
        return default if found is None else found

    def section(self, name: str, default: Mapping[str, Any] | None = None) -> "ConfigSection":
        """Return the dictionary of this name; `default` where it is missing or None; an empty one without a default."""
        return ConfigSection(self.get(name, default), f"{self.path}.{name}", self.source)

    def sections(self, name: str) -> list["ConfigSection"]:
        """Return the dictionaries in the list of this name, or the only one."""
        found = self.values.get(name)
        several = found if isinstance(found, list | tuple) else [found]
        return [ConfigSection(one, f"{self.path}.{name}", self.source) for one in several] or [self.section(name)]

    def integer(self, name: str, default: int) -> int:
        """Return an integer of at least 0."""
        found: Any = self.get(name, default)
        if not is_count(found):
            raise self._error_of(f"{name} must be an integer of at least 0; got {found!r:.60}")
        return int(found)

    def fraction(self, name: str, default: float) -> float:
        """Return a number from 0 to 1."""
        found: Any = self.get(name, default)
        if not is_number(found) or not 0 <= found <= 1:
            raise self._error_of(f"{name} must be a number from 0 to 1; got {found!r:.60}")
        return found

    def number(self, name: str, default: float) -> float:
        """Return a number of at least 0."""
        found: Any = self.get(name, default)
        if not is_number(found) or not 0 <= found < inf:
            raise self._error_of(f"{name} must be a number of at least 0; got {found!r:.60}")
        return found

    def flag(self, name: str, default: bool) -> bool:
        """Return True or False."""
        found: Any = self.get(name, default)
        if not isinstance(found, bool):
            raise self._error_of(f"{name} must be True or False; got {found!r:.60}")
        return found

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return several integers of at least 0."""
        found: Any = self.get(name, default)
        if not isinstance(found, list | tuple) or not all(is_count(one) for one in found):
            raise self._error_of(f"{name} must be a list of integers of at least 0; got {found!r:.60}")
        return tuple(int(one) for one in found)

    def map_indices(self, name: str, maps: Sequence[int]) -> list[int]:
        """Return indices of maps, finest first; all of them where none are named. Negative ones count from the end."""
        found = self.get(name, maps)
        found = list(found) if isinstance(found, list | tuple) else [found]
        if not found or not all(is_index(one) and -len(maps) <= one < len(maps) for one in found):
            raise self._error_of(f"{name} must be indices of the {len(maps)} maps; got {self.get(name)!r:.60}")
        return [maps[one] for one in found]

    def positive_numbers(self, name: str) -> tuple[float, ...]:
        """Return several numbers above 0."""
        found: Any = self.get(name)
        if not isinstance(found, list | tuple) or not found or not all(is_number(one) and one > 0 for one in found):
            raise self._error_of(f"{name} must be a list of numbers above 0; got {found!r:.60}")
        return tuple(found)

    def require(self, name: str, allowed: Sequence[Any], default: Any = None) -> None:
        """Raise ValueError unless an entry has one of the values that the networks here support."""
        found = name_of(self.values) if name == "type" else self.values.get(name)
        if found in (None, ""):
            found = default
        if comparable(found) not in [comparable(value) for value in allowed]:
            supported = " or ".join(repr(value) for value in allowed)
            raise self._error_of(f"{name} {found!r:.60} is not supported; supported: {supported}")

    def error(self, what: str) -> ValueError:
        """Return an error whose sentence ends with the section's path and `what`."""
        return ValueError(f"{self.source} cannot be built from its own configuration: {self.path} {what}")

    def _error_of(self, what: str) -> ValueError:
        """Return an error about one of the section's entries, whose name begins `what`."""
        return ValueError(f"{self.source} cannot be built from its own configuration: {self.path}: {what}")


def name_of(values: object) -> str:
    """Return a type without the library that it is from: SwinTransformer of `mmdet.SwinTransformer`."""
    found = mapping(values).get("type", "")
    return found.rpartition(".")[2] if isinstance(found, str) else ""


def comparable(value: Any) -> Any:
    """Return a value such that lists equal tuples, and True does not equal 1."""
    if isinstance(value, list | tuple):
        return [comparable(one) for one in value]
    return (value,) if isinstance(value, bool) else value


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def unusual(values: Mapping[str, tuple[Any, Any]]) -> Values:
    """Return the values that differ from the usual ones, given as (value, usual value)."""
    return {name: value for name, (value, usual) in values.items() if value != usual}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
