"""Prefixes that training programs put before the names of a network's parameters."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile, before every key
# the backbone of detectors and segmentors, the student of MoBY, the network of our classification task, the two
# networks of self-distillation (DINO) and of mean teachers, the network of a LightningModule, that of TorchvisionForm
INNER = ("backbone.", "encoder.", "network.", "teacher.", "student.", "model.", "net.", "detector.", "segmentor.")
DEEPEST = 8  # prefixes before one name; a file may repeat them without end


@dataclass(frozen=True)
class Reading:
    """The tensors of a network without the prefixes around it, and the keys outside of it."""

    state: dict[str, Tensor]
    outside: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """Return which of two networks was taken, for a report; "" where a file has one."""
        for taken, other in (("teacher.", "student."), ("student.", "teacher.")):
            if taken in self.prefixes and any(key.startswith(other) for key in self.outside):
                return f"{taken[:-1]} taken, not the {other[:-1]}"
        return ""


def readings(
    state: Mapping[str, Tensor], known: Callable[[Mapping[str, Tensor]], bool], depth: int = DEEPEST
) -> Iterator[Reading]:
    """Yield the ways to take a network out of a file, the most likely first.

    Args:
        known: whether a network's names are reached; its prefixes stay then.
    """
    if known(state) or not depth:
        yield Reading(dict(state))
        return
    wrapper = next((w for w in WRAPPERS if state and all(key.startswith(w) for key in state)), None)
    inside = (*INNER, *WRAPPERS)
    found = [wrapper] if wrapper else [p for p in inside if any(key.startswith(p) for key in state)]
    if not found:
        yield Reading(dict(state))
    for prefix in found:
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        outside = tuple(key for key in state if not key.startswith(prefix))
        for reading in readings(inner, known, depth - 1):
            yield Reading(reading.state, (*outside, *reading.outside), (prefix, *reading.prefixes))
