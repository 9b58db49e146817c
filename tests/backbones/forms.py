"""The families at a tiny width, in both forms: what every law is tried on. A family joins in `tiny_networks.py`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tiny_networks import NETWORKS, tiny, tiny_dense
from torch import nn

from fourstage.backbones.base import Backbone

CLASSIFIERS: dict[str, Callable[..., Any]] = {name: partial(tiny, name) for name in NETWORKS}
DENSE: dict[str, Callable[..., Any]] = {name: partial(tiny_dense, name) for name in NETWORKS}
FORMS = {f"{name}-classifier": build for name, build in CLASSIFIERS.items()} | {
    f"{name}-dense": build for name, build in DENSE.items()
}


def build(form: str, seed: int = 0, **arguments: Any) -> Backbone:
    """A network in evaluation mode whose running statistics are not those of a new one."""
    torch.manual_seed(seed)
    model = FORMS[form](**arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            module.running_mean.normal_(std=0.1)
    return model.eval()
