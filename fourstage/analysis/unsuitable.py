"""Networks that an analysis cannot read: the sentence on one, by its class or by the name that a user gave it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


class UnsuitableNetwork(ValueError):
    """A network that an analysis cannot read.

    Attributes:
        what: goes on from the name of the network: "has no `levels`".
        hint: what to do about it, for a caller in Python.
    """

    def __init__(self, network: nn.Module, what: str, hint: str) -> None:
        super().__init__(f"{type(network).__name__} {what}; {hint}")
        self.what, self.hint = what, hint


class UnknownStages(UnsuitableNetwork):
    """A network whose stages are not known.

    Attributes:
        layer: the name of one of its layers.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layer = next(iter(dict(network.named_children())), "features")
        what = "has no `levels`, so its stages are not known"
        super().__init__(network, what, f"name a layer of it, such as {self.layer}")


@contextmanager
def naming(name: str, hint_for: Callable[[UnsuitableNetwork], str] | None = None) -> Iterator[None]:
    """Name a network in sentences as the user does, instead of by its class.

    Args:
        hint_for: returns what the user can type.

    Raises:
        ValueError: an analysis cannot read the network.
    """
    try:
        yield
    except UnsuitableNetwork as error:
        raise ValueError(f"{name} {error.what}; {hint_for(error) if hint_for else error.hint}") from error
