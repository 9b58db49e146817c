"""What makes a line of a page run in seconds: tiny networks and small images behind the published names, two steps.

Nothing is added to a line. The names, files and recipes that it mentions are there, and smaller than in earnest.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_networks import SMT, SWIN, UNIFIED, VISFORMER

import fourstage
from fourstage import registry
from fourstage.backbones import smt, swin, unified, visformer
from fourstage.data.embedded import digit_scenes
from fourstage.recipe.resolve import named_recipes
from fourstage.run.compare import columns
from fourstage.run.setup import Setup
from fourstage.weights import catalog
from fourstage.weights.reading import download

resolving = import_module("fourstage.recipe.resolve")

STEPS = 2
NETWORKS: Mapping[str, tuple[Any, Any]] = {
    "smt_tiny": (smt, SMT),
    "smt_small": (smt, SMT),
    "swin_tiny": (swin, SWIN),
    "unified_halo_tiny": (unified, UNIFIED["unified_halo"]),
    "visformer_small": (visformer, VISFORMER),
}
SMALL = {
    "detection": {"augmentation": {"scale": [128, 96], "short_sides": [64, 96]}, "evaluation": {"scale": [128, 96]}},
    "segmentation": {"augmentation": {"scale": [128, 96], "crop": [64, 64]}, "evaluation": {"scale": [128, 96]}},
}
PROPOSALS = {"per_level": 20, "per_image": 20}
NARROW = {  # method -> its arguments
    "mask_rcnn": {
        "channels": 32,
        "fc_channels": 32,
        "mask_channels": 8,
        "regions": 16,
        "rpn": {"proposals": PROPOSALS},
        "training_proposals": PROPOSALS,
        "selecting": {"per_image": 5},
    },
    "upernet": {"channels": 16, "auxiliary_channels": 8},
}
PUBLISHED = (("smt_tiny", "in1k"), ("smt_small", "in1k"), ("swin_tiny", "in1k"), ("swin_tiny", "mask_rcnn_coco_1x"))


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins in place of what is published."""
    registry.list_models()  # imports all families, which register only once
    entries = {name: _entry(registry.find(name), *of_family) for name, of_family in NETWORKS.items()}
    monkeypatch.setattr(registry, "_entries", {**registry._entries, **entries})
    small = _small_recipes()  # before the table is replaced
    monkeypatch.setattr(resolving, "named_recipes", lambda: small)
    monkeypatch.setattr(digit_scenes, "CACHED", {"train": 24, "val": 6, "size": 96, "seed": 0})
    few = {"erf": 2, "invariance": 2, "cka": 8}
    monkeypatch.setattr(columns, "IMAGES", {**columns.IMAGES, "classification": few})
    plan: Any = Setup.plan.fget
    monkeypatch.setattr(Setup, "plan", property(lambda setup: _two_steps(plan(setup))))


def publish() -> None:
    """Write files of the tiny networks where published ones are kept; TORCH_HOME names a folder of the test."""
    folder = download.folder()
    folder.mkdir(parents=True)
    for model, tag in PUBLISHED:
        weight = catalog.find(model, tag)
        assert weight.file is not None
        torch.save({"model": _network(model, weight.method, weight.num_classes).state_dict()}, folder / weight.file)


def write_others(folder: Path) -> None:
    """Write checkpoints of the user's own that the pages name."""
    detector = _network("swin_tiny", "mask_rcnn", 80).state_dict()
    for name in ("weights_alone.pth", "mask_rcnn_1x.pth"):
        torch.save({"state_dict": detector}, folder / name)
    halo = _network("unified_halo_tiny", None, 1000).state_dict()
    torch.save({"model": halo, "model_ema": halo}, folder / "checkpoint-best.pth")
    tuned: Any = fourstage.create_model("visformer_small", img_size=384)
    torch.save({"model": tuned.state_dict()}, folder / "tuned_384.pth")


def _network(model: str, method: str | None, classes: int) -> Any:
    if method is not None:
        return fourstage.create_detector(method, model, classes, **NARROW[method])
    return fourstage.create_model(model, num_classes=classes)


def without_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the sums of the published files, which those of a test cannot have."""
    monkeypatch.setattr(catalog, "WEIGHTS", tuple(replace(weight, sha256=None) for weight in catalog.WEIGHTS))


def _entry(entry: registry.Entry, family: Any, design: Any) -> registry.Entry:
    return replace(entry, classifier=partial(family.classifier, design), dense=partial(family.dense, design))


@cache
def _small_recipes() -> dict[str, dict[str, Any]]:
    """Return all recipes; detectors and segmentors get small images and narrow heads, unless they have them."""
    return {name: _small(name, values) for name, values in named_recipes().items()}


def _small(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    if name.startswith(("_", "digit_scenes")) or "method" not in (all_values := resolving.written_values(name)):
        return dict(values)
    narrow = {"method_args": NARROW.get(all_values["method"], {})}
    return resolving._merge(values, {**narrow, **SMALL[all_values["task"]]})


def _two_steps(plan: Any) -> Any:
    total = min(plan.total, STEPS)
    return replace(plan, total=total, evaluate_every=min(plan.evaluate_every, total))
