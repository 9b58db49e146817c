"""What an import finds beside the values of a recipe: what differs here, and what was assumed."""

from dataclasses import dataclass, field
from typing import Any

from fourstage.weights.openmmlab.section import ConfigSection, comparable
from fourstage.weights.openmmlab.watched import Watched


@dataclass
class Findings:
    """Notes of an import.

    Attributes:
        differing: path of a value without a counterpart -> the value, and what is used here instead.
        assumed: sentences about what the configuration does not say.
    """

    differing: dict[str, tuple[Any, str]] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)

    def differs(self, section: ConfigSection, name: str, instead: str = "") -> None:
        """Note a value that has no counterpart here. `instead` says what is used, or why the value is left out."""
        path = path_of(section, name)
        self.differing[path] = (section.get(name), instead)

    def expect(self, section: ConfigSection, name: str, usual: Any) -> None:
        """Note a value that differs from the only one here; a missing value is the usual one."""
        if comparable(section.get(name, usual)) != comparable(usual):
            self.differs(section, name, f"{usual!r} here")

    def assume(self, sentence: str) -> None:
        if sentence not in self.assumed:
            self.assumed.append(sentence)


def path_of(section: ConfigSection, name: str) -> str:
    """Return the path of a value as the configuration has it."""
    return section.values.path_of(name) if isinstance(section.values, Watched) else f"{section.path}.{name}"


def rounded(number: float) -> float:
    """Return a product of written numbers without the rounding errors of its last digits."""
    return float(f"{number:.12g}")
