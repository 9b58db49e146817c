"""`evaluate` and `bench` of exported files, beside the runs whose networks the files hold."""

import contextlib
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported.networks import DESCRIPTIONS, InTorch, graph_of
from PIL import Image
from predict.networks import CLASSES, MEAN, STD, predictor
from run.runs import refused

from fourstage.bench import exported as bench_exported
from fourstage.bench import run as bench_run
from fourstage.bench.networks import build, expand
from fourstage.bench.options import Options
from fourstage.bench.workloads import Setting
from fourstage.cli import main
from fourstage.engine.state import save_state
from fourstage.exported.description import Description
from fourstage.recipe import from_mapping
from fourstage.run import evaluate, exported_evaluation
from fourstage.run.described import NO_TRAINING

TASKS = ("classification", "detection", "segmentation")
RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


def classes_folder(root: Path) -> Path:
    for split in ("train", "val"):
        for name in CLASSES:
            for i in range(4):
                picture(root / split / name / f"{name}{i}.png", (40 + i, 50))
    return root


def coco_folder(root: Path) -> Path:
    """Boxes where the network itself finds objects, so that the AP is not zero."""
    network = predictor("detection", threshold=0.0)
    images, annotations = [], []
    for i, size in enumerate([(64, 96), (70, 50), (60, 90), (96, 64)], 1):
        picture(root / "images" / f"{i}.png", size)
        images.append({"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]})
        found: Any = network(str(root / "images" / f"{i}.png"))
        for label, (x1, y1, x2, y2) in zip(found.labels[:12:2], found.boxes[:12:2].tolist(), strict=True):
            row = {"image_id": i, "category_id": int(label) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "area": (x2 - x1) * (y2 - y1), **row})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
    }
    for split in ("train", "val"):
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        (root / f"{split}2017").symlink_to(root / "images")
    return root


def masks_folder(root: Path) -> Path:
    for split in ("train", "val"):
        for i in range(4):
            picture(root / "images" / split / f"{i}.png", (64, 96 - 5 * i))
            labels_HW = RNG.integers(0, 3, (64, 96 - 5 * i), dtype=np.uint8)
            (root / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels_HW).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


FOLDERS = {"classification": classes_folder, "detection": coco_folder, "segmentation": masks_folder}
RECIPES: dict[str, dict[str, Any]] = {
    "classification": {"model": "visformer_digits", "image_size": 32},
    "detection": {
        "method": "retinanet",
        "backbone": "visformer_digits",
        "method_args": {"channels": 16, "convs": 1, "score_threshold": 0.0},
        "evaluation": {"scale": (96, 64)},
    },
    "segmentation": {
        "method": "upernet",
        "backbone": "visformer_digits",
        "method_args": {"channels": 16, "auxiliary_channels": 16},
        "evaluation": {"scale": (96, 64), "ratios": [1.0]},
    },
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: FOLDERS[task](tmp_path_factory.mktemp(task)) for task in TASKS}


@pytest.fixture
def file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An exported file whose graph torch runs."""
    task = request.param
    runtime = InTorch(DESCRIPTIONS[task], graph_of(task, predictor(task).network))
    for module in (exported_evaluation, bench_exported):
        monkeypatch.setattr(module, "open_runtime", lambda path: runtime)
    return tmp_path / f"{task}.onnx"


def run_folder(task: str, folder: Path, data: Path) -> Path:
    """The run of the network that the file holds."""
    crop = {"evaluation": {"crop_pct": 0.875}} if task == "classification" else {}
    values = {"name": "mine", "task": task, "mean": MEAN, "std": STD, "optimisation": NO_TRAINING, "data": str(data)}
    recipe = from_mapping({**values, **RECIPES[task], **crop, "workers": 0, "evaluation_batch_size": 1}, "mine").recipe
    network: Any = predictor(task).task
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe.model_dump_json())
    content = {"fourstage": 1, "classes": list(CLASSES), "recipe": recipe.model_dump(mode="json")}
    save_state(folder / "checkpoints" / "best.pt", {**content, "which": "model", "model": network.module.state_dict()})
    return folder


@pytest.mark.parametrize(("file", "task"), [(task, task) for task in TASKS], indirect=["file"])
def test_metrics_are_those_of_the_run(file: Path, task: str, places: dict[str, Path], tmp_path: Path) -> None:
    run = evaluate(run_folder(task, tmp_path / "run", places[task]), show=False)
    table = tmp_path / "classes.csv"
    got = evaluate(file, data=places[task], csv=table, changes=["workers=0"], show=False)
    assert got.images == run.images == {"classification": 12}.get(task, 4)
    shared = [name for name in run.metrics if "ms_flip" not in name]
    assert set(got.metrics) == set(shared)
    for name in shared:
        assert got.metrics[name] == pytest.approx(run.metrics[name], abs=0.02), name
    main_metric = {"classification": "top1", "detection": "box_map", "segmentation": "miou_ss"}[task]
    assert got.metrics[main_metric] > 5
    assert set(got.intervals.of) <= set(run.intervals.of)
    with table.open() as rows:
        assert [row["class"] for row in csv.DictReader(rows)] == list(CLASSES)


@pytest.mark.parametrize("file", ["detection"], indirect=True)
def test_the_command_line(
    file: Path, places: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tmp_path / "found.json"
    assert main(["evaluate", str(file), "--data", str(places["detection"]), "--json", "--results", str(found)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics"]["box_map"] > 5
    assert printed["notes"][-1] == "x.onnx by torch"
    assert {row["image_id"] for row in json.loads(found.read_text())} == {1, 2, 3, 4}


@pytest.mark.parametrize("file", ["classification"], indirect=True)
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "names no data; add --data FOLDER"),
        (["--data", "DATA", "--which", "ema"], "leave which out"),
        (["--data", "DATA", "--weights", "x.pt"], "it has its own weights; leave weights out"),
        (["--data", "DATA", "evaluation.crop_pct=1"], "only evaluation_batch_size"),
        (["--data", "DATA", "workers=many"], "workers"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "OTHER"], "gives"),
        (["--data", "DATA", "--csv", "FILE"], "--csv"),
    ],
    ids=str,
)
def test_wrong_use_is_one_sentence(
    file: Path, words: list[str], part: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"DATA": str(places["classification"]), "OTHER": str(places["segmentation"]), "FILE": str(file)}
    file.write_bytes(b"x")
    expected = () if part == "gives" else (part,)
    refused(main(["evaluate", str(file), *(names.get(word, word) for word in words)]), capsys, *expected)


@pytest.mark.parametrize("file", ["classification"], indirect=True)
def test_classes_of_other_data(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ant", "bee"):
        picture(tmp_path / "data" / "val" / name / "0.png", (40, 40))
        picture(tmp_path / "data" / "train" / name / "0.png", (40, 40))
    refused(main(["evaluate", str(file), "--data", str(tmp_path / "data")]), capsys, "has 2 classes", "has 3 of other")


@pytest.mark.parametrize("file", ["classification"], indirect=True)
def test_data_of_some_classes_is_scored_by_their_names(file: Path, tmp_path: Path) -> None:
    for name in ("owl", "Dog"):
        for split in ("train", "val"):
            picture(tmp_path / split / name / f"{name}.png", (40, 40))
    records = evaluate(file, data=tmp_path, changes=["workers=0"], show=False).records
    truths = {id.rpartition("/")[2]: record["truth"] for id, record in records.items()}
    assert truths == {"Dog.png": CLASSES.index("dog"), "owl.png": CLASSES.index("owl")}


# ---------------------------------------------------------------------------------------------------------------- bench


@pytest.mark.parametrize("file", ["segmentation"], indirect=True)
def test_bench_builds_the_graph(file: Path) -> None:
    assert expand([str(file)]) == [str(file)]
    network: Any = build(str(file), None, dense=False)
    assert network.default_cfg["input_size"] == (3, 64, 64)
    assert network(torch.zeros(2, 3, 64, 64))[0].shape[:2] == (2, 3)
    wide: Any = build(str(file), (32, 96), dense=False)
    assert wide.default_cfg["input_size"] == (3, 32, 96)


@pytest.mark.parametrize(("file", "batch"), [("segmentation", 1), ("classification", None)], indirect=["file"])
def test_bench_measures_a_network_at_the_size_of_the_file_beside_it(
    file: Path, batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Options] = []

    def measure(group: list[str], setting: Setting, _: object) -> list[object]:
        given.append(setting.options)
        return []

    monkeypatch.setattr(bench_run, "measure", measure)
    own = Options(img_size=(96, 96), batch_size=2)
    for others, options in ((["smt_tiny"], Options()), (["smt_tiny"], own), ([], Options())):
        with contextlib.suppress(IndexError):
            bench_run.bench([str(file), *others], options, show=False)
    size = bench_exported.usual_size(bench_exported.open_runtime(file))
    assert [(one.img_size, one.batch_size) for one in given] == [(size, batch), ((96, 96), 2), (None, None)]


def test_bench_refuses_what_a_file_cannot_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--train"], ["--dense"], ["--channels-last"], ["--dtype", "bfloat16"]):
        refused(main(["bench", "x.onnx", *words]), capsys, "is an exported file", f"leave {words[0]} out")
    refused(main(["bench", "nothing.onnx"]), capsys, "there is no file nothing.onnx")
    one: Description = DESCRIPTIONS["classification"]
    fixed = InTorch(replace(one, input=replace(one.input, height=32, width=32)), lambda x: [x])
    monkeypatch.setattr(bench_exported, "open_runtime", lambda path: fixed)
    refused(main(["bench", "x.onnx", "--img-size", "64"]), capsys, "reads images of 32 x 32 pixels, not 64 x 64")
