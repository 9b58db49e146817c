"""Figures of the networks side by side: size, MACs, speed, memory and the untrained receptive field.

B images, C channels, H x W pixels.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fourstage.analysis.erf import profile, receptive_field
from fourstage.bench.count import count_module
from fourstage.bench.networks import without_dropout
from fourstage.bench.timing import Turn, run_rounds, spread
from fourstage.check.entrants import Entrant
from fourstage.check.findings import Finding, described, failed, passed, warned

SIDE = 64  # pixels, of counts and timings
BATCH = 8
ROUNDS = 5
FIELD_SIDE = 128  # pixels, of receptive fields
FIELD_IMAGES = 2
FAR = 1.5  # times the largest, or the smallest, of the five that is worth a word
SLOW = 3.0  # times the slowest of the five


@dataclass(frozen=True)
class Figures:
    """What one network costs and does; None where it was not measured.

    Attributes:
        macs: for one image of 64 px.
        infer_ms, train_ms: milliseconds of one image, in a batch of 8.
        kept_mib: what one image keeps for the backward pass.
        field_px: standard deviation of the untrained network's receptive field, at 128 px.
        consistent: per cent of predictions that shifts by up to 4 px leave.
        top1: per cent of the digits, after the steps that all networks trained.
    """

    name: str
    parameters: int | None = None
    macs: int | None = None
    infer_ms: float | None = None
    train_ms: float | None = None
    kept_mib: float | None = None
    field_px: float | None = None
    consistent: float | None = None
    top1: float | None = None


Table = dict[str, Figures]  # by name, the user's first


def cost(entrants: Sequence[Entrant], table: Table) -> Finding:
    """Count parameters and MACs."""
    problem = ""
    for entrant in entrants:
        network = entrant.build(SIDE)
        parameters = sum(p.numel() for p in network.parameters())
        table[entrant.name] = replace(table[entrant.name], parameters=parameters)
        try:
            counted = count_module(network, (3, SIDE, SIDE))
        except Exception as error:  # the user's code on the meta device may raise anything
            problem = described(error)
        else:
            table[entrant.name] = replace(table[entrant.name], macs=counted.macs + counted.sampling_macs)
    own, *five = table.values()
    assert own.parameters is not None
    if own.macs is None:
        advice = "create tensors with device=x.device, which a GPU needs too, and let no shape depend on values"
        return warned(f"{own.parameters:,} parameters; MACs cannot be counted: {problem}", advice)
    found = f"{own.parameters / 1e6:.2f} M parameters, {own.macs / 1e6:.1f} M MACs at {SIDE} px"
    ranges = {
        "parameters": (own.parameters, [one.parameters for one in five]),
        "MACs": (own.macs, [o.macs for o in five]),
    }
    for what, (value, others) in ranges.items():
        known = [other for other in others if other is not None]
        if value > FAR * max(known) or value < min(known) / FAR:
            advice = f"match {what} by the width before you compare accuracies"
            return warned(f"{found}; {what} of the five: {min(known) / 1e6:.2f} to {max(known) / 1e6:.2f} M", advice)
    return passed(f"{found}, near the five")


def speed(entrants: Sequence[Entrant], table: Table) -> Finding:
    """Time inference and training steps of all networks in turns."""
    networks = [without_dropout(entrant.build(SIDE)) for entrant in entrants]
    images_BCHW = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for mode, step in (("infer_ms", _infer), ("train_ms", _train)):
        turns = [Turn(lambda n=network, s=step: s(n, images_BCHW), untimed=1) for network in networks]
        seconds = run_rounds(turns, ROUNDS, time.perf_counter, lambda: None)
        for entrant, rounds in zip(entrants, seconds, strict=True):
            median = spread([value for samples in rounds for value in samples]).median
            table[entrant.name] = replace(table[entrant.name], **{mode: 1000 * median / BATCH})
    return _beside(table, "train_ms", "ms an image in training", "profile forward: loops and copies cost the most")


def _infer(network: nn.Module, images_BCHW: Tensor) -> None:
    network.eval()
    with torch.inference_mode():
        network(images_BCHW)


def _train(network: nn.Module, images_BCHW: Tensor) -> None:
    network.train()
    network(images_BCHW).sum().backward()
    network.zero_grad(set_to_none=True)


def memory(entrants: Sequence[Entrant], table: Table) -> Finding:
    """Add up the tensors that a training pass keeps for its backward pass, each storage once, parameters aside."""
    images_BCHW = torch.randn(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    for entrant in entrants:
        network = entrant.build(SIDE).train()
        kept = _kept_bytes(network, images_BCHW) / BATCH / 2**20
        table[entrant.name] = replace(table[entrant.name], kept_mib=kept)
    advice = "recompute large intermediates, or train with activation checkpointing"
    return _beside(table, "kept_mib", "MiB an image kept for backward", advice)


def _kept_bytes(network: nn.Module, images_BCHW: Tensor) -> int:
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}  # tensors stay alive, so that no address is used twice

    def pack(x: Tensor) -> Tensor:
        place = x.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        network(images_BCHW)
    return sum(x.untyped_storage().nbytes() for x in kept.values())


def _beside(table: Mapping[str, Figures], field: str, unit: str, advice: str) -> Finding:
    own, *five = (getattr(figures, field) for figures in table.values())
    found = f"{own:.2f} {unit}; the five {min(five):.2f} to {max(five):.2f}"
    return warned(found, advice) if own > SLOW * max(five) else passed(found)


def field(entrants: Sequence[Entrant], table: Table) -> Finding:
    """Measure receptive fields of the last map of untrained networks, on noise."""
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(3, FIELD_SIDE, FIELD_SIDE, generator=draw) for _ in range(FIELD_IMAGES)]
    for entrant in entrants:
        erf = receptive_field(entrant.build(FIELD_SIDE), images)
        table[entrant.name] = replace(table[entrant.name], field_px=profile(erf, centre="unit").deviation)
    own, *five = (figures.field_px or 0.0 for figures in table.values())
    found = f"deviation {own:.1f} px of the last map at {FIELD_SIDE} px; the five {min(five):.1f} to {max(five):.1f}"
    return passed(found) if own > 0 else failed(found, "no pixel influences the last map: look for a detach or a zero")
