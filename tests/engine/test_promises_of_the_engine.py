"""Small promises of the engine: what is cleared, what is logged, what the last step of warm-up has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourstage.engine.diagnosis import first_bad_number
from fourstage.engine.log import RunLog
from fourstage.engine.schedule import Schedule

OFF = torch.autocast("cpu", torch.bfloat16, enabled=False)


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 2)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": self.body(batch).sum()}


@pytest.mark.parametrize("bad", ["weights", "second batch", "nothing"])
def test_the_search_for_a_bad_number_clears_all_gradients(bad: str) -> None:
    task, batches = Summed(), [torch.ones(1, 4), torch.ones(1, 4)]
    task.body.weight.grad = torch.ones(2, 4)
    if bad == "weights":
        task.body.bias.data[0] = float("inf")
    elif bad == "second batch":
        batches[1][:] = float("nan")
    assert bool(first_bad_number(task, batches, OFF)) == (bad != "nothing")
    assert all(parameter.grad is None for parameter in task.parameters())


@pytest.mark.parametrize("spans", ["rest", "behind"])
@pytest.mark.parametrize("warmup", [1, 2, 5])
def test_the_last_step_of_an_inclusive_warm_up_has_the_peak(warmup: int, spans: Any) -> None:
    schedule = Schedule(peak=1.0, total=20, warmup=warmup, warmup_lr=0.1, spans=spans, inclusive=True)
    assert schedule.lr(warmup - 1) == 1.0
    assert warmup == 1 or schedule.lr(0) == 0.1


def test_a_log_is_json_also_where_a_list_has_no_finite_number(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.write({"kind": "train", "step": 1, "losses": {"a": float("nan"), "b": [1.0, float("inf")]}})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert line["losses"] == {"a": "nan", "b": [1.0, "inf"]}
