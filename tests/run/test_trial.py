"""What is tried before a training: one image where a step has no more, and nothing is left behind."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourstage.recipe import resolve
from fourstage.run.trial import trial_step, try_single_image


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image_BCHW: Tensor) -> dict[str, Tensor]:
        return {"loss": self.norm(image_BCHW).square().mean()}


def setup_of(micro_batch: int, image_BCHW: Tensor, asked: list[int]) -> Any:
    def batches_of(step: int) -> list[Tensor]:
        asked.append(step)
        return [image_BCHW]

    return SimpleNamespace(
        recipe=resolve("digits_visformer").recipe,
        device=torch.device("cpu"),
        order=SimpleNamespace(micro_batch=micro_batch),
        batches_of=batches_of,
    )


def test_a_trial_leaves_statistics_and_gradients_as_they_are() -> None:
    task: Any = Normed()
    setup = setup_of(1, torch.randn(1, 3, 4, 4) + 5, asked := [])
    before = {key: value.clone() for key, value in task.state_dict().items()}
    try_single_image(setup, task)
    trial_step(setup, task)()
    assert asked == [0, 0]
    assert all(torch.equal(value, before[key]) for key, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_only_single_images_are_tried(micro_batch: int) -> None:
    task: Any = Normed()
    try_single_image(setup_of(micro_batch, torch.randn(1, 3, 4, 4), asked := []), task)
    assert asked == [0] * (micro_batch == 1)


def test_what_a_norm_needs_is_explained() -> None:
    task: Any = Normed()
    with pytest.raises(ValueError, match="in each batch norm; train with two images or more at a time"):
        try_single_image(setup_of(1, torch.zeros(1, 3, 1, 1), []), task)
    assert not int(task.norm.num_batches_tracked)
