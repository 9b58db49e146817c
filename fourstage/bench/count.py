"""Parameters and multiply-accumulates, counted without memory for either."""

from typing import Any

from fourstage.api import create_model, list_models
from fourstage.registry import find
from fourstage.weights.catalog import published


def count(name: str) -> tuple[int, int, int]:
    """Parameters, multiply-accumulates of one image, and the image's side in pixels, for a model at its own size.

    Counted are convolutions and matrix products, those of attention included; norms, activations and sampling are not.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model: Any = create_model(name).eval()
        side = int(model.default_cfg["input_size"][-1])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, 3, side, side))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, side


def model_rows(pattern: str) -> list[list[str]]:
    """One row per model: name, parameters in millions, MACs in billions, side in pixels, published top-1."""
    rows = []
    for name in list_models(pattern):
        parameters, macs, side = count(name)
        shown = next((f"{weight.top1:.1f}" for weight in published(find(name).name) if weight.top1 is not None), "-")
        rows.append([name, f"{parameters / 1e6:.2f}", f"{macs / 1e9:.2f}", str(side), shown])
    return rows
