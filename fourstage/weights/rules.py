"""Rename a foreign state dict by a table. Every key on both sides must be accounted for."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """Our key for the foreign keys that match a pattern."""

    pattern: str  # regular expression for the complete foreign key
    name: str | Callable[[re.Match[str]], str] | None  # our key, a template or a function; None: dropped on purpose
    change: Callable[[Tensor], Tensor] | None = None  # for entries that are stored in another order or shape

    def ours(self, match: re.Match[str]) -> str | None:
        """Return our key; None for an entry that is dropped."""
        return self.name(match) if callable(self.name) else self.name and match.expand(self.name)


def matching_rules(rules: Sequence[Rule], key: str) -> list[tuple[Rule, re.Match[str]]]:
    """Return the rules that match `key` completely."""
    return [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, key))]


def rename(state: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Return `state` under our keys, without the entries that rules drop.

    Raises:
        ValueError: a key matches no rule or several, or two keys become one.
    """
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        hits = matching_rules(rules, key)
        if len(hits) != 1:
            raise ValueError(f"{key!r} matches {len(hits)} rules, and exactly one must match")
        [(rule, match)] = hits
        ours = rule.ours(match)
        if ours is None:
            continue
        if ours in out:
            raise ValueError(f"{key!r} and another key both become {ours!r}")
        out[ours] = rule.change(value) if rule.change else value
    return out


def needed_tensor(state: Mapping[str, Tensor], key: str, axes: int, *, network: str, rows: int = 1) -> Tensor:
    """Return a tensor that every file of a network has, and that shows one of its sizes.

    Raises:
        ValueError: the file lacks the tensor, or the tensor has another number of axes, too few rows or no values.
    """
    value = state.get(key)
    if value is None or value.ndim != axes or len(value) < rows or not value.numel():
        found = "missing" if value is None else f"of shape {tuple(value.shape)}"
        raise ValueError(f"the file has the names of a {network}, but {key} is {found}; give a complete checkpoint")
    return value


@dataclass(frozen=True)
class Table:
    """The names that one program gives the parameters of a family.

    Attributes:
        rules: exactly one matches each key.
        outside: patterns of complete keys that belong to no network here; they are left out and reported.
        prepare: joins or splits tensors before the rules are applied.
        writer: the program, for a person.
    """

    rules: tuple[Rule, ...]
    outside: tuple[str, ...] = ()
    prepare: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    writer: str = ""

    def read(self, state: Mapping[str, Tensor]) -> "Renamed | None":
        """Return a state dict under our names; None where a key is not of this table."""
        prepared = self.prepare(state) if self.prepare else state
        outside = {key: None for key in prepared if any(re.fullmatch(pattern, key) for pattern in self.outside)}
        inner = {key: value for key, value in prepared.items() if key not in outside} if outside else prepared
        if not inner or not all(len(matching_rules(self.rules, key)) == 1 for key in inner):
            return None
        rebuilt = [key for key in inner for rule, _ in matching_rules(self.rules, key) if rule.name is None]
        return Renamed(rename(inner, self.rules), tuple(rebuilt), tuple(outside))


@dataclass(frozen=True)
class Renamed:
    """A state dict under our names, and the foreign keys without a counterpart."""

    state: dict[str, Tensor]
    rebuilt: tuple[str, ...] = ()  # buffers that follow from sizes
    outside: tuple[str, ...] = ()


def check_complete(state: Collection[str], wanted: Collection[str], fresh: Collection[str]) -> None:
    """Raise ValueError unless every key of ours is either filled or named as one that stays as it was built.

    Args:
        state: the keys that are filled.
        wanted: every key of our network.
        fresh: those that may stay: step counters, norms that only a detector has, a new head.
    """
    missing = set(wanted) - set(state) - set(fresh)
    unknown = (set(state) | set(fresh)) - set(wanted)
    both = set(state) & set(fresh)
    if missing or unknown or both:
        raise ValueError(f"never filled: {sorted(missing)}; not ours: {sorted(unknown)}; twice: {sorted(both)}")


def check_real(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError for complex numbers where the network has real ones: torch drops the imaginary part."""
    for key, value in state.items():
        if value.is_complex() and key in wanted and not wanted[key].is_complex():
            raise ValueError(
                f"{source} has complex numbers in {key}, where the network has real ones, and their imaginary part "
                f"would be lost; save the tensor as real numbers"
            )
