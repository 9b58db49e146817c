"""The number of objects by which the losses of Sparse R-CNN are divided."""

import pytest
import torch
from scenes import SOME, batch, small


@pytest.mark.parametrize(("mean", "divisor"), [(0.25, 0.25), (3.0, 3.0), (0.0, 1.0)])
def test_losses_are_divided_by_the_mean_of_all_processes(mean: float, divisor: float) -> None:
    """As in MMDetection, which divides by a mean below 1 too: one process of four has an object, the others none."""
    detector, images = small("sparse_rcnn").eval(), batch([SOME])
    detector.mean_over_ranks = torch.ones_like
    wanted = {name: value / divisor for name, value in detector.losses(images).items()}
    detector.mean_over_ranks = lambda count: torch.full_like(count, mean)
    found = detector.losses(images)
    assert all(torch.allclose(found[name], value, rtol=1e-5) for name, value in wanted.items())
