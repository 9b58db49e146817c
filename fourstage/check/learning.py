"""Train the networks on the digits in turns, score them, and shift the images. B images, S pixels a side."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.analysis.images import prepared
from fourstage.analysis.invariance import PUBLISHED_SIDE, Protocol, evaluate_invariance
from fourstage.analysis.networks import Preparation
from fourstage.check.entrants import CLASSES, Entrant
from fourstage.check.figures import Table
from fourstage.check.findings import Finding, failed, passed, warned
from fourstage.data.embedded.digits import Digits
from fourstage.plurals import plural

BATCH = 32
RATE = 1e-3
WARM_UP = 20  # steps
CHANCE = 100 / CLASSES
LEARNT = 50.0  # per cent that all five reach before a network at chance has failed
NEAR = 10.0  # points below the weakest of the five that are worth a word
SHIFTS = (1, 2, 4)  # pixels
SHIFTED_IMAGES = 16
FEWEST = 20  # steps, below which accuracies say nothing
SIDE = 32


@dataclass(frozen=True)
class Trained:
    """Networks after the same steps, in the order of the entrants."""

    networks: list[nn.Module]
    steps: int
    side: int


def train(entrants: Sequence[Entrant], seconds: float, side: int, tick: Callable[[float], None]) -> Trained:
    """Train all networks in turns until the seconds are over; each takes the same steps on the same images.

    Args:
        tick: is called with the share of the time that has passed.
    """
    images_N3SS, labels_N = _digits("train", side)
    networks = [entrant.build(side).train() for entrant in entrants]
    optimizers = [torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05) for network in networks]
    draw, steps, start = torch.Generator().manual_seed(0), 0, time.monotonic()
    while not steps or time.monotonic() - start < seconds:
        chosen_B = torch.randint(len(labels_N), (BATCH,), generator=draw)
        for network, optimizer in zip(networks, optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (steps + 1) / WARM_UP)
            _step(network, optimizer, images_N3SS[chosen_B], labels_N[chosen_B])
        steps += 1
        tick(min(1.0, (time.monotonic() - start) / max(seconds, 1e-9)))
    return Trained(networks, steps, side)


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, images_B3SS: Tensor, labels_B: Tensor) -> None:
    loss = F.cross_entropy(network(images_B3SS), labels_B)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()


def _digits(split: str, side: int) -> tuple[Tensor, Tensor]:
    data = Digits("train" if split == "train" else "val")
    samples = [data.sample(i) for i in range(len(data))]
    images = [prepared(np.asarray(sample.image), side, Preparation()) for sample in samples]
    return torch.stack(images), torch.from_numpy(data.labels_N.copy())


def accuracy(entrants: Sequence[Entrant], trained: Trained, table: Table) -> Finding:
    """Score the networks on the 360 digits that training has not seen."""
    images_N3SS, labels_N = _digits("val", trained.side)
    for entrant, network in zip(entrants, trained.networks, strict=True):
        network.eval()
        with torch.inference_mode():
            found_N = torch.cat([network(part).argmax(dim=1) for part in images_N3SS.split(120)])
        top1 = 100 * float((found_N == labels_N).float().mean())
        table[entrant.name] = replace(table[entrant.name], top1=top1)
    own, *five = (figures.top1 or 0.0 for figures in table.values())
    found = f"{own:.0f} % after {plural(trained.steps, 'step')}; the five {min(five):.0f} to {max(five):.0f} %"
    if trained.steps < FEWEST:
        return warned(found, f"fewer than {FEWEST} steps decide nothing: give more time by --seconds")
    if own < 2 * CHANCE and min(five) > LEARNT:
        advice = "it learns nothing while the others do: look at gradients, the scale of outputs, and the residual"
        return failed(found, advice)
    if own < min(five) - NEAR:
        return warned(found, "give more time by --seconds, then compare over seeds: it may start slowly")
    return passed(found)


def translation(entrants: Sequence[Entrant], trained: Trained, table: Table) -> Finding:
    """Shift digits by up to four pixels in eight directions, and count the predictions that stay."""
    data = Digits("val")
    numbers = np.linspace(0, len(data) - 1, SHIFTED_IMAGES).round().astype(int)
    images = [(np.asarray(data.sample(int(i)).image), int(data.labels_N[i])) for i in numbers]
    protocol = Protocol(Preparation(image_size=(trained.side, trained.side), crop_pct=1.0), side=trained.side)
    # settings are pixels of an image of 224
    settings = tuple(pixels * PUBLISHED_SIDE / SIDE for pixels in SHIFTS)
    for entrant, network in zip(entrants, trained.networks, strict=True):
        curves = evaluate_invariance(network, images, ["translation"], protocol, {"translation": settings})
        consistent = float(curves["translation"].values("consistency").mean())
        table[entrant.name] = replace(table[entrant.name], consistent=consistent)
    own, *five = (figures.consistent or 0.0 for figures in table.values())
    found = f"{own:.0f} % of predictions stay under shifts; the five {min(five):.0f} to {max(five):.0f} %"
    if own < min(five) - NEAR:
        return warned(found, "absolute positions and fixed windows may be the cause; test without them")
    return passed(found)
