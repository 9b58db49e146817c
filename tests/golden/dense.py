"""Whole detectors and segmentors of the golden files: filled as from a checkpoint, and their gradients by our names."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.weights.complete_checkpoints import load_dense_state


def load(model: nn.Module, state: Mapping[str, Tensor], method: str) -> None:
    """Fill a network from a state dict of the original; every key on both sides is accounted for."""
    report = load_dense_state(model, state, method=method, source="the golden file")
    assert not report.fresh
    assert set(report.dropped) == set(report.rebuilt)


def check_gradients(
    model: nn.Module, manifest: Mapping[str, Any], norms: np.ndarray, method: str, *, unused: str | None = None
) -> None:
    """The norm of each parameter's gradient is the original's; `unused` has none, here and there.

    Norms carry over as weights do: a copy of the network is filled with each key's norm in place of its values.
    """
    named = dict(zip(manifest["grad_norm_keys"], norms.tolist(), strict=True))
    tags = {key: torch.full(tuple(row[0]), named.get(key, torch.nan)) for key, row in manifest["params"].items()}
    assert named.keys() <= tags.keys()
    tagged = deepcopy(model)
    load(tagged, tags, method)
    norm_of = tagged.state_dict()
    for key, parameter in model.named_parameters():
        if key == unused:
            assert parameter.grad is None
            assert norm_of[key].isnan().all()
            continue
        assert parameter.grad is not None, key
        expected, found = float(norm_of[key].mean()), float(parameter.grad.double().norm())
        tolerance = 1e-3 * expected + 1e-4 * float(np.nanmedian(norms))
        assert abs(found - expected) <= tolerance, f"{key}: {found} != {expected}"
