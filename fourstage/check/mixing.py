"""The reach of a mixer: the cells whose input influences one output cell. B images, H x W cells, C channels."""

from collections.abc import Sequence

import torch

from fourstage.check.findings import Finding, passed, warned
from fourstage.check.probes import Probe


def reach(probes: Sequence[Probe]) -> Finding:
    """Count the cells that the centre cell of an untrained mixer depends on."""
    shares = []
    for probe in probes:
        module, x_BHWC = probe.fresh(), probe.input(batch=1).requires_grad_(True)
        [mixed_BHWC] = probe.run(module, x_BHWC)
        height, width = mixed_BHWC.shape[1:3]
        [grad_BHWC] = torch.autograd.grad(mixed_BHWC[0, height // 2, width // 2].square().sum(), x_BHWC)
        shares.append((int(grad_BHWC.abs().sum(-1).count_nonzero()), height * width))
    found = "; ".join(f"{seen} of {cells}" for seen, cells in shares)
    if all(seen <= 1 for seen, _ in shares):
        return warned(f"{found} cells", "a cell depends on itself alone: a token mixer exchanges information of cells")
    return passed(f"{found} cells influence the centre cell")
