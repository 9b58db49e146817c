"""`fourstage evaluate --results`: other programs compute our scores from what it writes."""

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run.exact import start, wait
from run.runs import refused
from run.test_dense_bad_input import scenes_in, words

from fourstage.cli import main
from fourstage.data.formats import open_dataset
from fourstage.data.label_maps.folders import LabelMaps
from fourstage.data.mapped_classes import KnownClasses, map_classes
from fourstage.data.sample import Batch
from fourstage.engine.devices import Ranks
from fourstage.run import evaluate
from fourstage.run.evaluate import Evaluator
from fourstage.run.results import CocoFile, LabelMapFolder
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation import miou


def renumber(path: Path) -> None:
    """Give images and categories ids with gaps, in another order than the entries."""
    content = json.loads(path.read_text())
    images = {one["id"]: 9000 - 13 * i for i, one in enumerate(content["images"])}
    categories = {one["id"]: 500 - 7 * i for i, one in enumerate(content["categories"])}
    for one in content["images"]:
        one["id"] = images[one["id"]]
    for one in content["categories"]:
        one["id"] = categories[one["id"]]
    for one in content["annotations"]:
        one["image_id"], one["category_id"] = images[one["image_id"]], categories[one["category_id"]]
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = scenes_in(tmp_path_factory.mktemp("scenes") / "data", val=5)
    for path in root.glob("annotations/instances_*.json"):
        renumber(path)
    return root


@pytest.fixture(scope="module")
def detector(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "mask_rcnn"
    assert main(words("mask_rcnn", scenes, run, "evaluation_batch_size=1")) == 0
    return run


@pytest.fixture(scope="module")
def segmentor(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "upernet"
    assert main(words("upernet", scenes, run, "evaluation_batch_size=1")) == 0
    return run


def roughly(self: Detection, batch: Batch) -> dict[str, Any]:
    """The ground truth, moved a little, with a wrong class here and there."""
    assert batch.references is not None
    records = {}
    for id, truth in zip(batch.ids, batch.references, strict=True):
        rng = np.random.default_rng(len(id) + sum(map(ord, id)))
        count = len(truth["labels"])
        wrong = rng.random(count) < 0.2
        labels = [(label + int(off)) % len(self.classes) for label, off in zip(truth["labels"], wrong, strict=True)]
        boxes = (np.array(truth["boxes"]).reshape(-1, 4) + rng.normal(0, 2, (count, 4))).tolist()
        records[id] = {
            "boxes": boxes, "labels": labels, "scores": rng.random(count).tolist(), "masks": truth["masks"],
            "truth": truth,
        }  # fmt: skip
    return records


def average_precision(library: str, truth: Path, results: Path, kind: str) -> list[float]:
    """AP, AP50 and AP75 in per cent by another program, which gets the two files and nothing else."""
    coco: Any
    evaluation: Any
    if library == "pycocotools":
        coco = pytest.importorskip("pycocotools.coco").COCO
        evaluation = pytest.importorskip("pycocotools.cocoeval").COCOeval
    else:
        module = pytest.importorskip("faster_coco_eval")
        coco, evaluation = module.COCO, module.COCOeval_faster
    known = coco(str(truth))
    one = evaluation(known, known.loadRes(str(results)), kind)
    one.evaluate()
    one.accumulate()
    one.summarize()
    return [100 * float(value) for value in one.stats[:3]]


@pytest.mark.parametrize("library", ["pycocotools", "faster-coco-eval"])
def test_another_program_computes_our_average_precision(
    library: str, scenes: Path, detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Detection, "predict", roughly)
    file = tmp_path / "results.json"
    metrics = evaluate(detector, results=file, show=False).metrics
    [truth] = scenes.glob("annotations/instances_val*.json")
    assert 20 < metrics["box_map"] < 80
    for form, kind in (("box", "bbox"), ("mask", "segm")):
        ours = [metrics[f"{form}_{name}"] for name in ("map", "map50", "map75")]
        assert ours == pytest.approx(average_precision(library, truth, file, kind), abs=1e-9)


def test_ids_keep_their_type(tmp_path: Path) -> None:
    class Two:
        category_ids = ("a7", None)

        def __len__(self) -> int:
            return 2

        def id(self, index: int) -> str:
            return ("b.jpg", "a.jpg")[index]

    dataset: Any = Two()
    one = {"labels": [0, 1], "scores": [0.5, 0.25], "boxes": [[1.0, 2.0, 4.0, 6.0]] * 2}
    records = {name: {**one, "truth": {"image_id": id, "size": [9, 9]}} for name, id in (("a.jpg", "x"), ("b.jpg", 7))}
    CocoFile(tmp_path / "r.json").write(SimpleNamespace(classes=("cat", "dog")), dataset, records)
    rows = json.loads((tmp_path / "r.json").read_text())
    assert [(row["image_id"], row["category_id"], row["bbox"]) for row in rows] == [
        (7, "a7", [1.0, 2.0, 3.0, 4.0]), ("x", "a7", [1.0, 2.0, 3.0, 4.0]),
    ]  # fmt: skip


def read_maps(folder: Path) -> dict[str, np.ndarray]:
    maps = {}
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            assert image.mode == "L"
            maps[path.relative_to(folder).as_posix()] = np.asarray(image)
    return maps


def test_label_maps_give_our_miou(scenes: Path, segmentor: Path, tmp_path: Path) -> None:
    found = evaluate(segmentor, results=tmp_path / "maps", show=False)
    dataset = open_dataset(scenes, "val", truth="label_map_HW")
    assert isinstance(dataset, LabelMaps)
    maps, counts = read_maps(tmp_path / "maps"), []
    assert len(maps) == len(dataset) == 5
    for index in range(len(dataset)):
        sample = dataset.sample(index)
        assert sample.label_map_HW is not None
        stored_HW = maps[str(Path(sample.id).with_suffix(".png"))]
        labels_HW = torch.from_numpy(dataset.table_256[stored_HW].astype(np.uint8))
        counts.append(miou.count_pairs(labels_HW, sample.label_map_HW, len(dataset.classes)))
    theirs = miou.means(miou.summed(counts, len(dataset.classes)))
    assert {f"{name}_ss": value for name, value in theirs.items()} == {
        name: value for name, value in found.metrics.items() if name in ("miou_ss", "macc_ss", "aacc_ss")
    }
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def ade(root: Path) -> Path:
    for split in ("training", "validation"):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        Image.new("RGB", (4, 3)).save(root / "images" / split / "a.jpg")
        Image.new("L", (4, 3), 1).save(root / "annotations" / split / "a.png")
    return root


def written(folder: Path, dataset: Any, classes: int, labels_HW: torch.Tensor) -> np.ndarray:
    task, results = SimpleNamespace(classes=("",) * classes, on_label_map=None), LabelMapFolder(folder)
    results.check()
    with results.opened(task, dataset, Ranks()):
        call: Any = task.on_label_map
        call("sub/a.jpg", labels_HW)
        assert not folder.exists()  # nothing half-written has its name
    return read_maps(folder)["sub/a.png"]


def test_label_maps_have_the_numbers_of_the_data(tmp_path: Path) -> None:
    dataset = LabelMaps(ade(tmp_path / "ade"), "val")
    labels_HW = torch.tensor([[0, 1, 149]], dtype=torch.uint8)
    assert written(tmp_path / "a", dataset, 150, labels_HW).tolist() == [[1, 2, 150]]
    known = KnownClasses(("a new one", *reversed(dataset.classes)), "the checkpoint")
    mapped = map_classes(dataset, "the data", known)
    assert written(tmp_path / "b", mapped, 151, labels_HW).tolist() == [[255, 150, 2]]


@pytest.mark.parametrize("task", [pytest.param("detector", marks=pytest.mark.torture), "segmentor"])
def test_two_processes_write_what_one_does(task: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run, name = request.getfixturevalue(task), "r.json" if task == "detector" else "maps"
    wait(start(["evaluate", str(run), "--results", str(tmp_path / f"two-{name}")], 2))
    assert main(["evaluate", str(run), "--results", str(tmp_path / f"one-{name}")]) == 0
    if task == "detector":
        assert (tmp_path / "two-r.json").read_bytes() == (tmp_path / "one-r.json").read_bytes()
    else:
        one, two = (read_maps(tmp_path / f"{count}-maps") for count in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(np.array_equal(two[key], one[key]) for key in one)
    assert len(list(tmp_path.iterdir())) == 2  # and nothing else


def never(*args: Any, **named: Any) -> Mapping[str, Any]:
    raise AssertionError("an image was predicted")


def test_places_that_cannot_be_written_are_refused_at_once(
    detector: Path, segmentor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "records", never)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.png").touch()
    for run, path, *expected in (
        (detector, tmp_path, "must end in .json"),
        (detector, tmp_path / "no" / "r.json", "cannot be written", "--results"),
        (detector, tmp_path / "r.txt", "must end in .json"),
        (segmentor, tmp_path / "full", "holds files already"),
        (segmentor, tmp_path / "full" / "a.png", "is a file, and label maps need a folder"),
        (segmentor, tmp_path / "maps.json", "is named like a file", "leave out .json"),
        (segmentor, tmp_path / "no" / "maps", "cannot be written", "--results"),
    ):
        refused(main(["evaluate", str(run), "--results", str(path)]), capsys, *expected)
    same = str(tmp_path / "r.json")
    refused(main(["evaluate", str(detector), "--results", same, "--csv", same]), capsys, "--csv and --results are both")


def test_a_failure_leaves_nothing(segmentor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise OSError("no space")

    monkeypatch.setattr("fourstage.run.results.write_file", broken)
    with pytest.raises(OSError, match="no space"):
        evaluate(segmentor, results=tmp_path / "maps", show=False)
    assert not list(tmp_path.iterdir())


def test_the_next_evaluation_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    def opened() -> Any:
        task: Any = SimpleNamespace(classes=("a",), on_label_map=None)
        nothing: Any = []
        return LabelMapFolder(tmp_path / "maps").opened(task, nothing, Ranks())

    def names() -> set[str]:
        return {path.name for path in tmp_path.iterdir()}

    left, others = tmp_path / ".maps.0123456789ab.partial", tmp_path / ".more.0123456789ab.partial"
    for folder in (left, others):
        folder.mkdir()
        (folder / "a.png").touch()
    with opened():
        during = names()
        assert left.name not in during
        assert others.name in during
        with opened():
            assert during < names()  # what another process is writing stays
        shutil.rmtree(tmp_path / "maps")
    assert names() == {"maps", others.name}


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_a_classifier_names_the_class_of_each_image(ending: str, tmp_path: Path) -> None:
    for name in ("=cat", "dog"):
        for i in range(2):
            path = tmp_path / "data" / "val" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    from fourstage import create_model

    torch.save({"model": create_model("visformer_digits", num_classes=2).state_dict()}, tmp_path / "two.pth")
    more = ["--weights", str(tmp_path / "two.pth"), "--data", str(tmp_path / "data"), "workers=0"]
    file = tmp_path / f"r{ending}"
    assert main(["evaluate", "digits_visformer", *more, "--results", str(file)]) == 0
    found = evaluate("digits_visformer", weights=tmp_path / "two.pth", data=tmp_path / "data", show=False)
    rows = list(csv.DictReader(file.read_text().splitlines())) if ending == ".csv" else json.loads(file.read_text())
    assert [row["file"].lstrip("'") for row in rows] == sorted(found.records)
    for row in rows:
        label, score = found.records[row["file"].lstrip("'")]["top"][0]
        assert row["class"] == ("=cat", "dog")[label] if ending == ".json" else ("'=cat", "dog")[label]
        assert float(row["score"]) == pytest.approx(score, abs=1e-6)


def test_two_images_of_one_name_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    class Images(list[str]):
        id = list.__getitem__

    task: Any = SimpleNamespace(classes=("sky", "sea"), on_label_map=None)
    images: Any = Images(["a/1.jpg", "b/1.png", "a/1.png"])
    opened = LabelMapFolder(tmp_path / "maps").opened(task, images, Ranks())
    with pytest.raises(ValueError, match=r"a/1\.jpg and a/1\.png would both be written as a/1\.png"), opened:
        pytest.fail("it is not opened")
    assert not list(tmp_path.iterdir())
