"""Run folders as training would leave them, without training. Everything is drawn from a seed."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

DIGITS = tuple("0123456789")
STEPS_PER_EPOCH = 15
HOSTILE = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'single'",
    "猫 кошка 🐈",
    "\u202egnp.evil",
    "a" * 300,
    "{{x}} ${y} %s",
    "</style></title>",
    "nul\x00 and \ud800",
)


def digits_run(folder: Path, *, wrong: bool = True, classes: Sequence[str] = DIGITS) -> Path:
    """A finished run of 675 steps and 45 evaluations of two kinds of weights."""
    draw = np.random.default_rng(0)
    _describe(folder, "digits_visformer", epochs=45, expect={})
    _json_lines(folder / "log.jsonl", _log(draw, steps=675, evaluations=45))
    _evaluated(folder, draw, classes, images=360, mistakes=0.035 if wrong else 0.0, step=675)
    return folder


def large_run(folder: Path, *, classes: int = 1000, images: int = 10_000) -> Path:
    """Many classes, some of them hard, a published number to reach, changed values."""
    draw = np.random.default_rng(1)
    changes = {
        "optimisation.batch_size": [1024, 512],
        "optimisation.lr": [0.002, 0.001],
        "data": [None, "/data/imagenet"],
    }
    _describe(folder, "smt_tiny_in1k", epochs=45, expect={"top1": 82.2, "top5": 96.0}, changes=changes)
    _json_lines(folder / "log.jsonl", _log(draw, steps=675, evaluations=45, level=81.7))
    names = [
        f"n{i:08d} {word}"
        for i, word in enumerate(np.resize(["tench", "great white shark", "hen", "goldfinch"], classes))
    ]
    _evaluated(folder, draw, names, images=images, mistakes=draw.beta(1.3, 5.5, classes), step=675)
    return folder


def stopped_run(folder: Path) -> Path:
    """Three steps, no evaluation, a last line that was being written."""
    _describe(folder, "digits_visformer", epochs=45, expect={})
    lines = _log(np.random.default_rng(2), steps=3, evaluations=0, every=1)
    _json_lines(folder / "log.jsonl", lines)
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 4, "epo')
    return folder


def _describe(
    folder: Path, name: str, *, epochs: int, expect: dict[str, float], changes: dict[str, list[Any]] | None = None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = {
        "name": name,
        "task": "classification",
        "model": "visformer_digits" if name == "digits_visformer" else name.rsplit("_", 1)[0],
        "model_args": {"drop_path_rate": 0.1},
        "data": "digits",
        "image_size": 32,
        "optimisation": {"batch_size": 96, "length": f"{epochs}ep", "lr": 1e-3, "warmup": "2ep"},
        "augmentation": {"mixup": 0.2, "cutmix": 0.0, "reprob": 0.1},
        "expect": expect,
    }
    environment = {
        "fourstage": "0.1.0",
        "python": "3.12.3",
        "torch": "2.15.0",
        "device": "cpu",
        "machine": "x86_64, 2 cores",
        "threads": 2,
        "command": f"fourstage train {name} --data digits",
        "started": "2025-03-04T10:11:12",
        "packages": {"timm": "1.0.31", "numpy": "2.4.6"},
        "parameters": 1_234_567,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "changes.json").write_text(json.dumps({"recipe": name, "changes": changes or {}}))
    (folder / "environment.json").write_text(json.dumps(environment))


def _log(
    draw: np.random.Generator, *, steps: int, evaluations: int, every: int = 3, level: float = 96.2
) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for step in range(every, steps + 1, every):
        loss = 2.25 * math.exp(-step / 130) + 0.32 + 0.09 * float(draw.standard_normal())
        lr = 1e-3 * (step / 30 if step < 30 else 0.5 * (1 + math.cos(math.pi * (step - 30) / 645)))
        timing = {"images_per_second": 812 + 30 * float(draw.standard_normal()), "seconds": 0.18 * step}
        timing["data_wait"] = 0.02 + 0.1 * math.exp(-step / 20) + 0.01 * float(draw.random())
        line = {
            "kind": "train",
            "step": step,
            "epoch": step / STEPS_PER_EPOCH,
            "lr": lr,
            "losses": {"loss_class": loss},
        }
        lines.append(
            {**line, "total": loss, "grad_norm": 1.2 + 0.4 * float(draw.random()) + loss / 3, "timing": timing}
        )
    for i in range(1, evaluations + 1):
        step = i * steps // evaluations
        for which, slowness in (("model", 5), ("ema", 8)):
            top1 = (
                level
                - 0.8 * level * math.exp(-i / slowness)
                + (0.9 * float(draw.standard_normal()) if which == "model" else 0)
            )
            metrics = {
                "top1": min(top1, 100.0),
                "top5": min(100.0, top1 + 4),
                "loss": 0.11 + 2.1 * math.exp(-i / slowness),
            }
            line = {"kind": "evaluation", "step": step, "epoch": step / STEPS_PER_EPOCH, "which": which}
            lines.append({**line, "metrics": metrics, "timing": {"seconds": 0.4}})
    lines.sort(key=lambda line: line["step"])
    return lines


def _evaluated(
    folder: Path,
    draw: np.random.Generator,
    classes: Sequence[str],
    *,
    images: int,
    mistakes: float | np.ndarray,
    step: int,
) -> None:
    """Predictions, the tables that they come to, and pictures of some of them; `mistakes` may be (C,)."""
    truth_N = np.arange(images) % len(classes)
    wrong_N = draw.random(images) < np.broadcast_to(mistakes, len(classes))[truth_N]
    guess_N = np.where(wrong_N, (truth_N + draw.choice([1, 3, 5], images)) % len(classes), truth_N)
    records = [
        _record(draw, i, int(t), int(g), len(classes)) for i, (t, g) in enumerate(zip(truth_N, guess_N, strict=True))
    ]
    _json_lines(folder / "records.jsonl", records)
    evaluation = {
        "step": step,
        "which": "ema",
        "metrics": {"top1": 100 * float((guess_N == truth_N).mean()), "top5": 99.5, "loss": 0.11},
        "main_metric": "top1",
        "classes": list(classes),
        "tables": _tables(truth_N, guess_N, classes),
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.pt").touch()
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [line for line in log if line.get("which") == "ema"][-1]
    last["metrics"] = evaluation["metrics"]
    _json_lines(folder / "log.jsonl", log)
    chosen = [*np.flatnonzero(guess_N != truth_N)[:16], *np.flatnonzero(guess_N == truth_N)[:16]]
    _pictures(folder / "samples", draw, [records[i] for i in chosen])


def _tables(truth_N: np.ndarray, guess_N: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """As `Classification.tables` gives them: a matrix for up to a hundred classes, else the most confused pairs."""
    pairs = Counter(zip(truth_N.tolist(), guess_N.tolist(), strict=True))
    total_C = np.bincount(truth_N, minlength=len(classes))
    right_C = np.bincount(truth_N[truth_N == guess_N], minlength=len(classes))
    per_class = [
        {"name": name, "count": n, "top1": 100 * k / n, "top5": 100 * (k + 0.8 * (n - k)) / n, "loss": 1.5 - k / n}
        if n
        else {"name": name, "count": 0, "top1": None, "top5": None, "loss": None}
        for name, n, k in zip(classes, total_C.tolist(), right_C.tolist(), strict=True)
    ]
    if len(classes) > 100:
        confused = [[t, g, n] for (t, g), n in pairs.most_common() if t != g][:50]
        return {"confused": confused, "per_class": per_class}
    places = range(len(classes))
    return {"confusion": [[pairs[t, g] for g in places] for t in places], "per_class": per_class}


def _record(draw: np.random.Generator, index: int, truth: int, guess: int, classes: int) -> dict[str, Any]:
    first = float(draw.uniform(0.4, 0.9) if guess != truth else draw.uniform(0.8, 1.0))
    others = [label for label in (truth, (truth + 2) % classes, (truth + 7) % classes, 0, 1) if label != guess]
    rest = [(1 - first) * share for share in (0.6, 0.25, 0.1, 0.05)]
    top = [[guess, first], *([label, p] for label, p in zip(dict.fromkeys(others), rest, strict=False))]
    return {"id": f"val/{index:05d}.png", "truth": truth, "top": top, "loss": -math.log(first)}


def _pictures(folder: Path, draw: np.random.Generator, records: Sequence[dict[str, Any]]) -> None:
    folder.mkdir()
    index = []
    for i, record in enumerate(records):
        picture = Image.new("L", (32, 32), 0)
        ImageDraw.Draw(picture).text((8, 0), str(record["truth"] % 10), fill=230, font=ImageFont.load_default(size=28))
        pixels_HW = np.asarray(picture.resize((8, 8))) + draw.integers(0, 20, (8, 8))
        Image.fromarray(pixels_HW.astype(np.uint8)).save(folder / f"{i:03d}.png")
        index.append({"file": f"{i:03d}.png", "id": record["id"], "truth": record["truth"], "top": record["top"]})
    (folder / "index.json").write_text(json.dumps(index))


def _json_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
