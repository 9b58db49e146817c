"""Finished runs as training would leave them, without training: folders of a recipe, a seed and its predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fourstage.recipe import resolve

CLASSES = tuple("0123456789")


def classified_run(folder: Path, ability: float, seed: int, *changes: str, images: int = 120) -> Path:
    """A finished classification whose images are right with a chance that grows with the ability.

    Images differ in hardness, the same for all runs.
    """
    draw, easy_N = (
        np.random.default_rng(1000 * seed + int(100 * ability)),
        np.random.default_rng(7).normal(0, 1, images),
    )
    right_N = easy_N + ability + draw.normal(0, 0.7, images) > 0
    records = {}
    for i, right in enumerate(right_N.tolist()):
        truth = i % len(CLASSES)
        guess = truth if right else (truth + 1) % len(CLASSES)
        top = [[guess, 0.8], *([(guess + k) % len(CLASSES), 0.05] for k in range(2, 6))]
        records[f"image{i:04d}"] = {"top": top, "truth": truth, "loss": 0.2 if right else 2.0}
    metrics = {
        "top1": 100 * right_N.mean(),
        "top5": 100 * right_N.mean(),
        "loss": float(np.where(right_N, 0.2, 2).mean()),
    }
    return finished_run(folder, "digits_visformer", metrics, "top1", records, CLASSES, f"seed={seed}", *changes)


def finished_run(
    folder: Path,
    recipe: str,
    metrics: dict[str, float],
    main_metric: str,
    records: dict[str, dict[str, Any]],
    classes: tuple[str, ...],
    *changes: str,
) -> Path:
    """A finished run with these metrics and predictions."""
    folder.mkdir(parents=True)
    values = resolve(recipe, changes).recipe.model_dump(mode="json")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    evaluation = {
        "metrics": metrics,
        "main_metric": main_metric,
        "classes": list(classes),
        "step": 20,
        "which": "model",
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "records.jsonl").write_text("".join(json.dumps({"id": id, **one}) + "\n" for id, one in records.items()))
    machine = {"torch": "2.15.0", "device": "cpu", "machine": "two cores", "fourstage": "0.1.0", "parameters": 1234567}
    (folder / "environment.json").write_text(json.dumps(machine))
    lines = [
        {"kind": "train", "step": 20, "timing": {"seconds": 30.0}},
        {"kind": "evaluation", "step": 20, "which": "model", "metrics": metrics},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "report.html").write_text("")
    return folder
