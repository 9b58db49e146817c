"""A dictionary in a configuration of OpenMMLab's, which knows where it stands, for sentences about its values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]


@dataclass(frozen=True)
class Built:
    """A detector or segmentor of a configuration without its backbone; fields as in `NetworkDescription`."""

    task: str
    method: str
    method_args: Values
    num_classes: int
    evaluation: Values = field(default_factory=dict)
    over_valid: bool = False


class Part:
    """A dictionary of a configuration, which knows where it stands."""

    def __init__(self, values: object, path: str, source: str) -> None:
        self.values, self.path, self.source = mapping(values), path, source

    @property
    def kind(self) -> str:
        return name_of(self.values)

    def get(self, name: str, default: Any = None) -> Any:
        found = self.values.get(name, default)
        return default if found is None else found

    def part(self, name: str) -> "Part":
        return Part(self.values.get(name), f"{self.path}.{name}", self.source)

    def parts(self, name: str) -> list["Part"]:
        """One or several under the same name."""
        found = self.values.get(name)
        several = found if isinstance(found, list | tuple) else [found]
        return [Part(one, f"{self.path}.{name}", self.source) for one in several] or [self.part(name)]

    def number(self, name: str, default: int) -> int:
        found: Any = self.get(name, default)
        if not is_count(found):
            raise self.error(f"has {name}={found!r:.60}, and a whole number is needed")
        return int(found)

    def share(self, name: str, default: float) -> float:
        """A number from 0 to 1."""
        found: Any = self.get(name, default)
        if not is_number(found) or not 0 <= found <= 1:
            raise self.error(f"has {name}={found!r:.60}, and a number from 0 to 1 is needed")
        return found

    def whole(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Several whole numbers."""
        found: Any = self.get(name, default)
        if not isinstance(found, list | tuple) or not all(is_count(one) for one in found):
            raise self.error(f"has {name}={found!r:.60}, and whole numbers are needed")
        return tuple(int(one) for one in found)

    def indices(self, name: str, maps: Sequence[int]) -> list[int]:
        """Numbers of maps, finest first; negative ones count from the end. All of them where none are named."""
        found = self.get(name, maps)
        found = list(found) if isinstance(found, list | tuple) else [found]
        if not found or not all(is_index(one) and -len(maps) <= one < len(maps) for one in found):
            raise self.error(f"has {name}={self.get(name)!r:.60}, and the backbone gives {len(maps)} maps")
        return [maps[one] for one in found]

    def numbers(self, name: str) -> tuple[float, ...]:
        """Several numbers above zero."""
        found: Any = self.get(name)
        if not isinstance(found, list | tuple) or not found or not all(is_number(one) and one > 0 for one in found):
            raise self.error(f"has {name}={found!r:.60}, and numbers above zero are needed")
        return tuple(found)

    def must(self, name: str, allowed: Sequence[Any], default: Any = None) -> None:
        """Raise ValueError unless a value is one that our networks have."""
        found = name_of(self.values) if name == "type" else self.values.get(name)
        if found in (None, ""):
            found = default
        if plain(found) not in [plain(value) for value in allowed]:
            ours = " or ".join(repr(value) for value in allowed)
            raise self.error(f"has {name}={found!r:.60}, and the networks here have {ours}")

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.source} cannot be built from its own configuration: {self.path} {what}")


def name_of(values: object) -> str:
    """A type without the library that it is from: `mmdet.SwinTransformer`."""
    found = mapping(values).get("type", "")
    return found.rpartition(".")[2] if isinstance(found, str) else ""


def plain(value: Any) -> Any:
    """Lists and tuples are the same; so are 1 and 1.0, but not 1 and True."""
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return (value,) if isinstance(value, bool) else value


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def unusual(values: Mapping[str, tuple[Any, Any]]) -> Values:
    """Those that are not as usual, given as (value, usual value)."""
    return {name: value for name, (value, usual) in values.items() if value != usual}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_byte(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255
