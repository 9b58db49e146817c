"""A number that is not finite is traced to where it came from, and costs no good weight."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourstage.engine.diagnosis import first_bad_number
from fourstage.engine.optim import build_optimizer
from fourstage.engine.step import Halt, train_step

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


class Bad(nn.Module):
    """Gives NaN, or a finite output with a gradient that is not."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x_BC: Tensor) -> Tensor:
        if self.how == "forward":
            return x_BC / 0 - x_BC / 0
        return x_BC + (x_BC * 0).abs().sqrt() if self.how == "backward" else x_BC


class Chain(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Bad(how), nn.Linear(4, 2))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss_a": self.body(batch).square().mean()}


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("forward", "the first layer with such an output is body.2 (Bad)"),
        ("backward", "the gradient of body.1.bias is the first that is not"),
        ("fine", ""),
    ],
)
def test_the_first_bad_layer_is_named(how: str, words: str) -> None:
    found = first_bad_number(Chain(how), [torch.randn(3, 4)], OFF)
    assert words in found
    assert bool(words) == bool(found)


def test_bad_weights_and_bad_images_are_named() -> None:
    task = Chain("fine")
    assert "the input of body.0" in first_bad_number(task, [torch.full((3, 4), torch.nan)], OFF)
    with torch.no_grad():
        task.body[3].weight[0, 0] = torch.inf  # pyright: ignore[reportIndexIssue]
    assert "the weights body.3.weight are not finite" in first_bad_number(task, [torch.randn(3, 4)], OFF)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_weights_stay_what_they_were_at_the_bad_step(name: str) -> None:
    task: Any = Chain("fine")
    groups = [{"params": list(task.parameters()), "weight_decay": 0.1}]
    optimizer = build_optimizer(groups, name=name, lr=0.1, betas=(0.9, 0.999), eps=1e-8, momentum=0.9)
    halt, scaler = Halt(torch.device("cpu"), 7), torch.amp.GradScaler("cpu", enabled=False)
    kept: list[Tensor] = []
    for step, batch in enumerate([torch.ones(2, 4), torch.full((2, 4), torch.nan), torch.ones(2, 4)], 7):
        train_step(task, [batch], optimizer, scaler, autocast=OFF, grad_clip=1.0, halt=halt)
        assert halt.step_number == (None if step == 7 else 8)
        kept.append(torch.cat([p.detach().flatten().clone() for p in task.parameters()]))
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], torch.cat([p.flatten() for p in Chain("fine").parameters()]))
