"""`fourstage evaluate`: on what, among which classes, beside which published numbers, and into which file."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fourstage import create_model
from fourstage.cli import main
from fourstage.data.embedded.digits import Digits
from fourstage.data.labels.imagenet_variants import wnids
from fourstage.engine.loop import Loop
from fourstage.recipe import resolve
from fourstage.run import evaluate
from fourstage.run.evaluate import Evaluator, check_csv, class_table
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import EvaluationData, protocol_of
from fourstage.run.tasks.classification import ClassificationProtocol

CHOSEN = [6, 11, 500, 999]


def scans(root: Path, names: Sequence[str], each: int = 1, ending: str = ".png") -> Path:
    """Real scans in folders of these names."""
    digits = Digits("val")
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for k in range(each):
            pixels = np.asarray(digits.sample((i * each + k) % len(digits)).image)
            Image.fromarray(pixels).save(root / name / f"{k}{ending}")
    return root


def checkpoint(path: Path, classes: int, names: Sequence[str] | None = None, data: str | None = None) -> Path:
    """A network with random weights, as somebody publishes it, or as a run of ours keeps it where classes are named."""
    network = create_model("visformer_digits", num_classes=classes, img_size=32)
    content = {"model": network.state_dict()}
    ours = {"fourstage": 1, "classes": list(names or ()), "recipe": {"data": data}}
    torch.save({**content, **ours} if names else content, path)
    return path


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published checkpoint of ImageNet's 1000 classes."""
    return checkpoint(tmp_path_factory.mktemp("weights") / "known.pth", 1000)


def opened(data: Path, weights: Path, *changes: str) -> EvaluationData:
    recipe = resolve("digits_visformer", changes, {"data": str(data)}).recipe
    return protocol_of(recipe).open_evaluation(weights, "model", show=False)


def test_a_few_classes_of_imagenet_are_predicted_among_themselves(tmp_path: Path, known: Path) -> None:
    data = scans(tmp_path / "imagenet-a", [wnids()[i] for i in CHOSEN], each=3)
    found = evaluate("digits_visformer", weights=known, data=data, changes=["workers=0"], show=False)
    assert found.images == 12
    assert {guess for record in found.records.values() for guess, _ in record["top"]} == set(CHOSEN)
    assert {record["truth"] for record in found.records.values()} == set(CHOSEN)
    assert found.notes == ("predictions among the 4 classes of the data",)


def test_a_network_of_these_classes_alone_is_evaluated_as_such(tmp_path: Path) -> None:
    names = [wnids()[i] for i in CHOSEN]
    data = scans(tmp_path / "subset", names, each=10)
    for weights in (checkpoint(tmp_path / "a.pth", 4), checkpoint(tmp_path / "b.pth", 4, names)):
        found = evaluate("digits_visformer", weights=weights, data=data, changes=["workers=0"], show=False)
        assert found.images == 4  # the held-out tenth
        assert {record["truth"] for record in found.records.values()} == {0, 1, 2, 3}
        assert "held out" in found.notes[0]


def test_what_a_run_was_trained_on_is_not_taken_for_a_test_set(tmp_path: Path) -> None:
    data = scans(tmp_path / "imagenet", wnids(), each=2)
    own = checkpoint(tmp_path / "own.pth", 1000, wnids(), data=str(data))
    other = checkpoint(tmp_path / "other.pth", 1000, wnids(), data="elsewhere")
    assert len(opened(data, own).dataset) == 1000
    assert len(opened(data, other).dataset) == 2000


def test_numbered_folders_are_labelled_by_their_numbers(tmp_path: Path, known: Path) -> None:
    data = scans(tmp_path / "imagenetv2", [str(i) for i in range(1000)], ending=".jpeg")
    found = opened(data, known).dataset
    assert all(found.sample(i).label == int(found.id(i).split("/")[0]) for i in (0, 1, 2, 10, 999))
    assert found.classes == wnids()


def test_a_network_of_a_thousand_other_classes_is_not_imagenets(tmp_path: Path) -> None:
    data = scans(tmp_path / "imagenet-a", [wnids()[i] for i in CHOSEN], each=2)
    weights = checkpoint(tmp_path / "own.pth", 1000, [f"class {i}" for i in range(1000)])
    with pytest.raises(ValueError, match=f"classes '{wnids()[CHOSEN[0]]}', .*own.pth lacks: it has 'class 0'"):
        evaluate("digits_visformer", weights=weights, data=data, show=False)


def test_data_of_some_classes_is_scored_in_those_of_the_run(tmp_path: Path) -> None:
    weights = checkpoint(tmp_path / "run.pth", 4, ["ant", "bee", "cat", "dog"])
    data = scans(tmp_path / "data" / "val", ["bee", "dog"], each=3).parent
    found = evaluate("digits_visformer", weights=weights, data=data, changes=["workers=0"], show=False)
    assert {id[:3]: record["truth"] for id, record in found.records.items()} == {"bee": 1, "dog": 3}
    assert [row["count"] for row in found.tables["per_class"]] == [0, 3, 0, 3]
    assert "(2 of 4): labels are matched by name" in found.notes[0]
    (data / "val" / "bee").rename(data / "val" / "bees")
    with pytest.raises(ValueError, match=r"class 'bees', which .*run.pth lacks: did you mean 'bee'"):
        evaluate("digits_visformer", weights=weights, data=data, changes=["workers=0"], show=False)


@pytest.mark.parametrize("named", [None, wnids()])
def test_a_list_of_some_of_imagenets_classes_scores_as_their_folders(
    named: Sequence[str] | None, tmp_path: Path
) -> None:
    weights = checkpoint(tmp_path / "known.pth", 1000, named)
    folders = scans(tmp_path / "folders", [wnids()[i] for i in CHOSEN], each=2)
    scores = evaluate("digits_visformer", weights=weights, data=folders, changes=["workers=0"], show=False).metrics
    three = shutil.copytree(folders, tmp_path / "three", ignore=shutil.ignore_patterns(wnids()[CHOSEN[3]]))
    of_three = evaluate("digits_visformer", weights=weights, data=three, changes=["workers=0"], show=False)
    lists = tmp_path / "lists"
    (lists / "meta").mkdir(parents=True)
    folders.rename(lists / "val")
    lines = [f"{wnids()[c]}/{k}.png {i}\n" for i, c in enumerate(CHOSEN) for k in range(2)]
    (lists / "meta" / "val.txt").write_text("".join(lines))
    found = evaluate("digits_visformer", weights=weights, data=lists, changes=["workers=0"], show=False)
    assert found.metrics == pytest.approx(scores)
    assert found.notes[-1] == "predictions among the 4 classes of the data"
    numbers = [line.replace(f" {i}\n", f" {CHOSEN[i]}\n") for line, i in zip(lines, (0, 0, 1, 1, 2, 2), strict=False)]
    (lists / "meta" / "val.txt").write_text("".join(numbers))
    found = evaluate("digits_visformer", weights=weights, data=lists, changes=["workers=0"], show=False)
    assert {record["truth"] for record in found.records.values()} == set(CHOSEN[:3])
    assert "3 of ImageNet's 1,000 classes: labels are matched by their numbers" in found.notes[0]
    assert found.notes[-1] == of_three.notes[-1] == "predictions among the 3 classes of the data"
    assert found.metrics == pytest.approx(of_three.metrics)


def test_a_published_number_stands_beside_the_images_that_it_was_measured_on(tmp_path: Path, known: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: digits_visformer\nname: mine\nworkers: 0\nexpect: {top1: 82.2}\n")
    sketch = scans(tmp_path / "sketch", [wnids()[i] for i in CHOSEN])
    found = evaluate(tmp_path / "mine.yaml", weights=known, data=sketch, show=False)
    assert found.expect == {}
    assert "published number does not apply" in found.notes[-1]
    for number, folder in enumerate(sorted(sketch.iterdir()), 1):
        (folder / "0.png").rename(folder / f"ILSVRC2012_val_{number:08}.JPEG")
    found = evaluate(tmp_path / "mine.yaml", weights=known, data=sketch, show=False)
    assert found.expect == {"top1": 82.2}


def test_real_labels_are_scored_where_they_are(tmp_path: Path, known: Path) -> None:
    data = scans(tmp_path / "imagenet" / "val", wnids(), ending=".JPEG")
    for number, name in enumerate(wnids(), 1):
        (data / name / "0.JPEG").rename(data / name / f"ILSVRC2012_val_{number:08}.JPEG")
    assert opened(data.parent, known).extra_scores({}) == {}
    lists = [[] if i < 500 else [i] if i < 900 else [(i + 1) % 1000, 0] for i in range(1000)]
    (data.parent / "real.json").write_text(json.dumps(lists))
    found = opened(data.parent, known)
    records = {found.dataset.id(i): {"top": [[i, 0.5]]} for i in range(1000)}
    assert found.extra_scores(records) == {"real": 80.0}


def test_validation_images_alone_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans(tmp_path / "data" / "val", ["cat", "cow", "dog"], each=4)
    recipe = resolve("digits_visformer", [], {"data": str(tmp_path / "data")}).recipe
    opened = open_split(protocol_of(recipe), "val", show=False)
    assert (len(opened), opened.classes) == (12, ("cat", "cow", "dog"))
    weights = checkpoint(tmp_path / "three.pth", 3)
    words = ["evaluate", "digits_visformer", "--weights", str(weights), "--data", str(tmp_path / "data"), "workers=0"]
    assert main(words) == 0
    assert "12 images" in capsys.readouterr().out


def test_the_results_of_each_class_go_into_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans(tmp_path / "data" / "val", ["a, b", 'c"d', "猫"], each=4)
    scans(tmp_path / "data" / "train", ["a, b", 'c"d', "empty", "猫"])
    weights, table = checkpoint(tmp_path / "four.pth", 4), tmp_path / "classes.csv"
    words = ["evaluate", "digits_visformer", "--weights", str(weights), "--data", str(tmp_path / "data"), "workers=0"]
    assert main([*words, "--csv", str(table)]) == 0
    assert f"wrote {table}" in capsys.readouterr().out
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert [row["class"] for row in rows] == ["a, b", 'c"d', "empty", "猫"]
    assert [row["count"] for row in rows] == ["4", "4", "0", "4"]
    assert rows[2] == {"class": "empty", "count": "0", "top1": "", "top5": "", "loss": ""}
    found = evaluate("digits_visformer", weights=weights, data=tmp_path / "data", changes=["workers=0"], show=False)
    filled = [row for row in rows if row["count"] != "0"]
    assert sum(float(row["top1"]) for row in filled) / 3 == pytest.approx(found.metrics["top1"], abs=1e-3)
    assert all(float(row["top5"]) == 100 for row in filled)  # of four classes
    assert sum(float(row["loss"]) for row in filled) / 3 == pytest.approx(found.metrics["loss"], abs=1e-5)


def test_a_class_name_that_is_no_text_is_written_all_the_same() -> None:
    row = {"name": os.fsdecode(b"caf\xe9"), "count": 1, "top1": 100.0, "top5": 100.0, "loss": 0.25}
    assert (
        class_table([row], ClassificationProtocol.class_columns).encode().decode().splitlines()[1]
        == "caf\ufffd,1,100.0000,100.0000,0.250000"
    )


def test_a_table_that_cannot_be_written_is_reported_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = checkpoint(tmp_path / "three.pth", 3)
    words = ["evaluate", "digits_visformer", "--weights", str(weights), "--data", "digits", "--csv"]
    for place, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "gone" / "a.csv", "No such file"),
        (weights, "evaluated"),
    ):
        before = weights.read_bytes()
        assert main([*words, str(place)]) == 2  # the weights do not fit the data: that would be told later
        assert said in capsys.readouterr().err
        assert weights.read_bytes() == before
    assert check_csv(tmp_path / "a.csv") == tmp_path / "a.csv"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three.pth"]


def test_a_sharded_run_is_finished_by_all_its_processes(tmp_path: Path) -> None:
    """Thirty-one images make four batches in one process and three in the other."""
    scans(tmp_path / "data" / "train", [f"digit {i}" for i in range(4)], each=8)
    scans(tmp_path / "data" / "val", [f"digit {i}" for i in range(3)], each=10)
    scans(tmp_path / "data" / "val", ["digit 3"])
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "fourstage"]
    words += ["train", "digits_visformer", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    words += ["length=4it", "batch_size=16", "warmup=0it", "evaluate_every=4it", "workers=0", "parallel=fsdp"]
    words += ["evaluation_batch_size=5", "ema=null"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        errors = process.communicate(timeout=120)[1]
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its processes, also those that wait for each other
        process.communicate()
        raise
    assert process.returncode == 0, errors
    kept = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == 31
    alone = evaluate(tmp_path / "run", show=False)
    assert kept["metrics"]["top1"] == alone.metrics["top1"]
    assert kept["metrics"]["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("best", ["last", "first"])
def test_the_last_evaluation_is_not_repeated(
    best: str, average: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted: list[int] = []
    real = Evaluator.records

    def counting(self: Evaluator, task: Any, *args: Any, **named: Any) -> Any:
        predicted.append(1)
        return real(self, task, *args, **named)

    monkeypatch.setattr(Evaluator, "records", counting)
    if best == "first":
        monkeypatch.setattr(Loop, "_keep_best", keep_first(Loop._keep_best))
    every = "null" if best == "last" else "1it"
    words = ["train", "digits_visformer", "--out", str(tmp_path / "run"), "length=2it", "batch_size=16", "warmup=0it",
             f"evaluate_every={every}", "workers=0", f"ema={0.5 if average else 'null'}"]  # fmt: skip
    assert main(words) == 0
    each = 2 if average else 1
    assert len(predicted) == (each if best == "last" else 2 * each + 1)  # the first: again
    metrics = json.loads((tmp_path / "run" / "evaluation.json").read_text())["metrics"]
    assert metrics == pytest.approx(evaluate(tmp_path / "run", show=False).metrics)


def keep_first(real: Any) -> Any:
    def only_first(self: Any, which: str, task: Any, metrics: Any) -> None:
        if not self.training.best:
            real(self, which, task, metrics)

    return only_first
