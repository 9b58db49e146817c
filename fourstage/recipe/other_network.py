"""What a recipe says of its own network alone, where a user chooses another: arguments and published numbers."""

from collections.abc import Collection, Mapping
from typing import Any

from fourstage.registry import arguments_of

NETWORKS = {"model": "model_args", "backbone": "backbone_args"}  # key of a network -> key of its arguments


def for_other_network(before: Mapping[str, Any], after: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the values of a recipe without inherited ones that are for another network than the user chose.

    Args:
        before: values of the recipe.
        after: the same with the user's.
        given: dotted keys of the user's values; the network itself says what is wrong with those.
    """
    out = dict(after)
    others = {key for key in (*NETWORKS, "method") if before.get(key) not in (None, after.get(key))}
    if others and not any(key.startswith("expect") for key in given):
        out.pop("expect", None)
    for network, arguments in NETWORKS.items():
        inherited, chosen = after.get(arguments), after.get(network)
        if network not in others or not isinstance(chosen, str) or not isinstance(inherited, Mapping):
            continue
        known = arguments_of(chosen, dense=network == "backbone") if inherited and arguments not in given else None
        if known is not None:
            out[arguments] = {
                key: value for key, value in inherited.items() if key in known or f"{arguments}.{key}" in given
            }
    return out
