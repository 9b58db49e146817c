"""Batch norms that get a single value per channel, in a step of the loop."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fourstage.engine.batch_statistics import enough_values
from fourstage.engine.optim import build_optimizer, norm_or_bias, param_groups
from fourstage.engine.step import Halt, train_step
from fourstage.engine.training import unchanged_buffers


def test_a_step_says_what_batch_norms_need() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x_BCHW: Tensor) -> dict[str, Tensor]:
            return {"loss": self.norm(x_BCHW).sum()}

    task = Normed()
    groups = param_groups(task.named_parameters(), weight_decay=0.0, spared=norm_or_bias)
    optimizer = build_optimizer(groups, name="adamw", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, momentum=0.9)
    scaler, off = torch.amp.GradScaler("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16, enabled=False)

    halt = Halt(torch.device("cpu"), 0)

    def step(*shape: int) -> dict[str, Tensor]:
        return train_step(task, [torch.randn(shape)], optimizer, scaler, autocast=off, grad_clip=None, halt=halt)

    with pytest.raises(ValueError, match="more than one value per channel in each batch norm; train with two images"):
        step(1, 2, 1, 1)
    assert step(2, 2, 1, 1)["loss"].isfinite()


@pytest.mark.parametrize("error", [ValueError("another value"), RuntimeError("another error")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    def fails() -> None:
        raise error

    def caught(run: Callable[[], None]) -> None:
        with enough_values():
            run()

    with pytest.raises(type(error), match=f"^{error}$"):
        caught(fails)


def test_buffers_have_their_values_back_after_an_error() -> None:
    norm = nn.BatchNorm2d(2)

    def moved() -> None:
        with unchanged_buffers(norm):
            norm(torch.randn(2, 2, 3, 3) + 5)
            raise ValueError("later")

    with pytest.raises(ValueError, match="later"):
        moved()
    assert not norm.get_buffer("running_mean").any()
    assert not norm.get_buffer("num_batches_tracked")
