"""What records of classification come to: the same at any number of processes, and in a size that can be kept."""

import json
import math
import random

import pytest
import torch
from torch import Tensor, nn

from fourstage.data.sample import Batch
from fourstage.tasks.classification import CONFUSED, LARGEST_MATRIX, Classification, Record, share_within


class Echo(nn.Module):
    """The image's first row of numbers are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW[:, 0, 0] * self.scale


def task_of(classes: int) -> Classification:
    return Classification(Echo(), [f"class {i}" for i in range(classes)]).eval()


def batch_of(logits_BC: Tensor, labels: list[int]) -> Batch:
    ids = tuple(f"{i}.png" for i in range(len(labels)))
    sizes = ((1, logits_BC.shape[1]),) * len(labels)
    return Batch(ids, logits_BC[:, None, None].expand(-1, 3, -1, -1), sizes, sizes, torch.tensor(labels))


def record(truth: int, *guesses: int, loss: float = 1.0) -> Record:
    return {"truth": truth, "loss": loss, "top": [[guess, 0.5 / (i + 1)] for i, guess in enumerate(guesses)]}


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_score_has_the_same_bits_however_many_processes_gathered_it(ranks: int) -> None:
    random.seed(0)
    ids = [f"{random.random()}.png" for _ in range(1001)]
    whole = {id: record(random.randrange(9), *random.sample(range(9), 5), loss=random.expovariate(1)) for id in ids}
    parts = [{id: whole[id] for id in ids[rank::ranks]} for rank in range(ranks)]
    gathered = {id: one for part in parts for id, one in part.items()}
    assert [*gathered] != [*whole]
    task = task_of(9)
    assert task.score(gathered) == task.score(whole)
    assert task.tables(gathered) == task.tables(whole)
    unsorted = sum(one["loss"] for one in gathered.values()), sum(one["loss"] for one in whole.values())
    assert unsorted[0] != unsorted[1], "these losses would not show whether the order is fixed"


def test_predictions_are_taken_among_the_classes_of_the_data() -> None:
    task = task_of(8)
    logits_BC = torch.tensor([[9.0, 1, 0, 0, 0, 0, 2, 0], [9.0, 3, 0, 0, 0, 0, 2, 0]])
    free = task.predict(batch_of(logits_BC, [6, 6]))
    assert [one["top"][0][0] for one in free.values()] == [0, 0]
    task.among = (1, 4, 6)
    records = task.predict(batch_of(logits_BC, [6, 6]))
    assert [[c for c, _ in one["top"]] for one in records.values()] == [[6, 1, 4], [1, 6, 4]]
    for one, logits in zip(records.values(), logits_BC, strict=True):
        assert sum(p for _, p in one["top"]) == pytest.approx(1)
        assert one["loss"] == pytest.approx(-float(logits[[1, 4, 6]].log_softmax(0)[2]))
    assert task.score(records)["top1"] == 50
    assert [row["name"] for row in task.tables(records)["per_class"]] == ["class 1", "class 4", "class 6"]


def test_each_class_has_its_count_accuracies_and_mean_loss() -> None:
    records = {
        "a": record(0, 0, 1, loss=0.5),
        "b": record(0, 1, 2, 3, 4, 5, loss=2.5),
        "c": record(1, 2, 1, loss=1.0),
    }
    rows = task_of(6).tables(records)["per_class"]
    assert rows[0] == {"name": "class 0", "count": 2, "top1": 50, "top5": 50, "loss": 1.5}
    assert rows[1] == {"name": "class 1", "count": 1, "top1": 0, "top5": 100, "loss": 1.0}
    assert rows[2] == {"name": "class 2", "count": 0, "top1": None, "top5": None, "loss": None}


def test_few_classes_have_a_matrix_and_many_their_most_confused_pairs() -> None:
    records = {f"{i}": record(1, 2) for i in range(5)} | {"x": record(1, 1), "y": record(2, 0), "z": record(3, 0)}
    few, many = task_of(LARGEST_MATRIX).tables(records), task_of(LARGEST_MATRIX + 1).tables(records)
    assert few["confusion"][1][:3] == [0, 1, 5]
    assert "confused" not in few
    assert "confusion" not in many
    assert many["confused"] == [[1, 2, 5], [2, 0, 1], [3, 0, 1]]


def test_of_equally_frequent_mistakes_those_that_cost_their_class_more_come_first() -> None:
    right = {f"{i}": record(1, 1) for i in range(9)}
    records = {"a": record(1, 0), "b": record(2, 0), **right}
    assert task_of(200).tables(records)["confused"] == [[2, 0, 1], [1, 0, 1]]


def test_the_tables_of_21841_classes_stay_small() -> None:
    random.seed(0)
    classes = 21_841
    records = {f"{i}": record(random.randrange(classes), random.randrange(classes)) for i in range(20_000)}
    tables = task_of(classes).tables(records)
    assert len(tables["confused"]) == CONFUSED
    assert len(json.dumps(tables)) < 3e6


def test_the_share_within_lists_leaves_out_images_that_nothing_is_valid_for() -> None:
    records = {"a": record(0, 3), "b": record(0, 1), "c": record(0, 0), "d": record(0, 0)}
    assert share_within(records, {"a": [2, 3], "b": [0], "c": [], "d": [0]}) == pytest.approx(200 / 3)
    assert math.isnan(share_within(records, dict.fromkeys("abcd", ())))
