"""Run folders of detection and segmentation as training would leave them, without training: drawn from a seed."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import yaml
from fake_runs import digits_run
from PIL import Image
from torch import nn

from fourstage.data.objects.rle import encode_mask
from fourstage.data.sample import Dataset, Sample
from fourstage.recipe import Detection as Recipe
from fourstage.report.label_maps import colours_of, truth_and_prediction
from fourstage.run.tasks.detection import DetectionProtocol
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation import miou
from fourstage.tasks.segmentation.task import Segmentation

ANIMALS = ("cat", "dog", "bird", "great white shark")
HEIGHT, WIDTH = 90, 120


class Stub(nn.Module):
    """A network as far as its task asks when it is built."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.num_classes = classes


class Noise:
    """Images of noise with names; a data set as far as `write_report_samples` asks."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, index: int) -> str:
        return self.ids[index]

    def sample(self, index: int) -> Sample:
        draw = np.random.default_rng(index)
        coarse = Image.fromarray(draw.integers(60, 200, (6, 8, 3), dtype=np.uint8))
        return Sample(self.ids[index], np.asarray(coarse.resize((WIDTH, HEIGHT))), (HEIGHT, WIDTH))


def detection_run(
    folder: Path, *, classes: Sequence[str] = ANIMALS, masks: bool = True, images: int = 30, objects: int = 4
) -> Path:
    """Half of what is there is found, some of it as something else, and some is found that is not there."""
    draw = np.random.default_rng(0)
    digits_run(folder)
    task = Detection(cast(Any, Stub(len(classes))), classes)
    names = [f"val/{classes[i % len(classes)][:40]}-{i:03}.jpg" for i in range(images)]
    records = {name: _detected(draw, len(classes), objects, masks=masks) for name in names}
    _rewrite_for_task(folder, "detection", "mask_rcnn", task, task.score(records), task.tables(records), records)
    protocol = DetectionProtocol(cast(Recipe, SimpleNamespace(method="mask_rcnn", method_args={})))
    protocol.write_report_samples(folder, task, cast(Dataset, Noise(names)), records)
    return folder


def segmentation_run(folder: Path, *, classes: Sequence[str] = ANIMALS, absent: int = 1, images: int = 12) -> Path:
    """The last `absent` classes occur nowhere."""
    draw, count = np.random.default_rng(0), max(1, len(classes) - absent)
    digits_run(folder)
    task = Segmentation(cast(Any, Stub(len(classes))), classes, mean=(0, 0, 0), std=(1, 1, 1))
    names = [f"val/{classes[i % len(classes)][:40]}-{i:03}.jpg" for i in range(images)]
    noise, colours = Noise(names), colours_of(len(classes))
    records: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for i, id in enumerate(names):
        coarse = draw.integers(0, count, (6, 8), dtype=np.uint8)
        truth_HW = np.kron(coarse, np.ones((HEIGHT // 6, WIDTH // 8), np.uint8))
        guess_HW = np.where(draw.random(truth_HW.shape) < 0.1, draw.integers(0, count, truth_HW.shape), truth_HW)
        truth_HW[:4] = 255
        records[id] = miou.count_pairs(torch.from_numpy(guess_HW), torch.from_numpy(truth_HW), len(classes))
        picture = truth_and_prediction(cast(np.ndarray, noise.sample(i).image), truth_HW, guess_HW, colours)
        picture.save(folder / "samples" / f"{i:03}.png")
        there = np.unique(truth_HW[truth_HW < 255]).tolist()
        legend = [[label, list(colours[label])] for label in there]
        lines.append({"file": f"{i:03}.png", "id": id, "right": 91.3, "legend": legend})
    (folder / "samples" / "index.json").write_text(json.dumps(lines))
    _rewrite_for_task(folder, "segmentation", "upernet", task, task.score(records), task.tables(records), records)
    return folder


def _rewrite_for_task(
    folder: Path,
    kind: str,
    method: str,
    task: Detection | Segmentation,
    metrics: dict[str, float],
    tables: dict[str, Any],
    records: dict[str, Any],
) -> None:
    """A classifier's run folder with another task's recipe, log and results."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    del recipe["model"], recipe["image_size"], recipe["model_args"]
    recipe |= {"task": kind, "method": method, "backbone": "smt_tiny", "name": f"{method}_smt_tiny", "data": "/data/x"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in log:
        if line["kind"] == "evaluation":
            share = line["metrics"]["top1"] / 100
            line["metrics"] = {name: value * share for name, value in metrics.items()}
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    summary = {"step": 675, "which": "ema", "metrics": metrics, "main_metric": task.main_metric}
    summary |= {"classes": list(task.classes), "labels": list(task.classes), "tables": tables}
    (folder / "evaluation.json").write_text(json.dumps(summary))
    lines = [json.dumps({"id": id, **record}) for id, record in records.items()]
    (folder / "records.jsonl").write_text("".join(line + "\n" for line in lines))
    if kind == "detection":
        for path in (folder / "samples").iterdir():
            path.unlink()


def _detected(draw: np.random.Generator, classes: int, objects: int, *, masks: bool) -> dict[str, Any]:
    count = int(draw.integers(0, objects + 1))
    corners, sides = draw.integers(0, 60, (count, 2)), draw.integers(12, 50, (count, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).clip(0, [WIDTH, HEIGHT] * 2).astype(float)
    labels = draw.integers(0, classes, count)
    found = draw.random(count) < 0.6
    guessed = np.where(draw.random(count) < 0.8, labels, (labels + 1) % classes)[found]
    near = (boxes[found] + draw.normal(0, 1.5, boxes[found].shape)).clip(0, [WIDTH, HEIGHT] * 2)
    wrong = np.array([[80.0, 60, 115, 88]] if draw.random() < 0.4 else []).reshape(-1, 4)
    every, named = np.concatenate([near, wrong]), [*guessed.tolist(), *[0] * len(wrong)]
    scores = draw.uniform(0.2, 1, len(every))
    order = np.argsort(-scores)
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
    truth = {"size": [HEIGHT, WIDTH], "boxes": boxes.tolist(), "labels": labels.tolist(), "areas": areas}
    record: dict[str, Any] = {
        "boxes": every[order].tolist(),
        "labels": [named[i] for i in order],
        "scores": scores[order].tolist(),
        "truth": truth | {"crowd": [False] * count},
    }
    if masks:
        record["masks"], truth["masks"] = [_mask(b) for b in every[order]], [_mask(b) for b in boxes]
        record["truth"] = truth | {"crowd": [False] * count}
    return record


def _mask(box: np.ndarray) -> str:
    """The ellipse in a box."""
    x1, y1, x2, y2 = box.tolist()
    y_HW, x_HW = np.mgrid[:HEIGHT, :WIDTH]
    across, down = (2 * x_HW - x1 - x2) / max(x2 - x1, 1), (2 * y_HW - y1 - y2) / max(y2 - y1, 1)
    return encode_mask(across**2 + down**2 <= 1)["counts"]
