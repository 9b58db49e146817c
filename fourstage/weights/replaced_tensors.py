"""Tensors that torch.nn.utils keeps under other names: of pruned, parametrised and normalised weights."""

import re
from collections.abc import Collection
from dataclasses import dataclass

PARAMETRIZED = re.compile(r"(?:(?P<module>.*)\.)?parametrizations\.(?P<name>\w+)\.original\d*")
KEPT = (  # endings of the tensors instead of one, what was done to it, and the call that undoes it
    (("_orig", "_mask"), "pruned", "torch.nn.utils.prune.remove({module}, {name!r})"),
    (("_orig", "_u"), "divided by its spectral norm", "torch.nn.utils.remove_spectral_norm({module}, {name!r})"),
    (("_g", "_v"), "kept as a norm and a direction", "torch.nn.utils.remove_weight_norm({module}, {name!r})"),
)


@dataclass(frozen=True)
class Replaced:
    """A tensor that a network keeps as others.

    Attributes:
        key: its name in a state dict before.
        state: what was done to it, such as "pruned".
        call: what restores the tensor in `network`.
    """

    key: str
    state: str
    call: str


def replaced_tensors(keys: Collection[str]) -> list[Replaced]:
    """Return the tensors that torch.nn.utils has replaced, from the names of a state dict."""
    out: dict[str, Replaced] = {}
    for key in keys:
        if match := PARAMETRIZED.fullmatch(key):
            module, name = match["module"] or "", match["name"]
            call = f"torch.nn.utils.parametrize.remove_parametrizations({_submodule(module)}, {name!r})"
            before = f"{module}.{name}".lstrip(".")
            out.setdefault(before, Replaced(before, "parametrised", call))
            continue
        for (first, second), state, template in KEPT:
            before = key.removesuffix(first)
            if key.endswith(first) and f"{before}{second}" in keys and before not in keys:
                module, _, name = before.rpartition(".")
                call = template.format(module=_submodule(module), name=name)
                out.setdefault(before, Replaced(before, state, call))
    return [*out.values()]


def how_to_restore(keys: Collection[str]) -> str:
    """Return a sentence on the first replaced tensor and the call that restores it; "" where there is none."""
    if not (found := replaced_tensors(keys)):
        return ""
    one, more = found[0], len(found) - 1
    others = f", as {more} more are" if more > 1 else ", as 1 more is" if more else ""
    return f"{one.key} is {one.state}{others}; call {one.call}{' for each of them' if more else ''}"


def _submodule(path: str) -> str:
    return f"network.get_submodule({path!r})" if path else "network"
