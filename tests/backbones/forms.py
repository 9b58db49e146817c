"""The families at a tiny width, in both forms: what every law is tried on. A family joins with one line per network."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from fourstage.backbones import official, scalablevit, smt, swin, swin_visformer, unified, visformer
from fourstage.backbones.base import Backbone

UNIFIED = {**unified.TEST_DESIGNS, **official.TEST_DESIGNS}
CLASSIFIERS: dict[str, Callable[..., Any]] = {
    "scalablevit": scalablevit.tiny,
    "smt": smt.tiny,
    "swin": swin.tiny,
    "swin_visformer": swin_visformer.tiny,
    "visformer": visformer.tiny,
    **{name: partial(unified.tiny, design=design) for name, design in UNIFIED.items()},
}
DENSE: dict[str, Callable[..., Any]] = {
    "scalablevit": scalablevit.tiny_dense,
    "smt": smt.tiny_dense,
    "swin": swin.tiny_dense,
    "swin_visformer": swin_visformer.tiny_dense,
    "visformer": visformer.tiny_dense,
    **{name: partial(unified.tiny_dense, design=design) for name, design in UNIFIED.items()},
}
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
