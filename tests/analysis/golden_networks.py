"""Networks of timm with the weights of the golden numbers. B images, C channels, H x W pixels."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from golden.fill import fill
from torch import nn

from fourstage import create_backbone

GOLDEN = Path(__file__).parents[1] / "golden" / "analysis"
LISTS = ("stem", "stages", "layers")  # modules that timm's `features_only` flattens


@cache
def manifest(analysis: str) -> dict[str, Any]:
    return json.loads((GOLDEN / f"{analysis}.json").read_text())


def backbone_key(key: str) -> str:
    """Return the name that a key of timm's classifier has in `create_backbone("timm/...")`."""
    head, dot, rest = key.partition(".")
    return f"model.{head}_{rest}" if head in LISTS and dot else f"model.{key}"


def filled_backbone(name: str) -> nn.Module:
    return _fill(create_backbone(f"timm/{name}"), name, backbone_key)


def filled_classifier(name: str) -> nn.Module:
    import timm

    return _fill(timm.create_model(name, pretrained=False), name, str)


def _fill(network: nn.Module, name: str, rename: Any) -> nn.Module:
    state = network.state_dict()
    for key, (shape, kind) in manifest("erf")["nets"][name]["state"].items():
        value = fill(key, tuple(shape), kind)
        if value is not None and rename(key) in state:
            state[rename(key)] = torch.from_numpy(value)
    network.load_state_dict(state)
    return network.eval()
