"""config.json of a saved network: what timm reads, and our own description under `fourstage`."""

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from fourstage.backbones.base import Classifier
from fourstage.weights import saved

if TYPE_CHECKING:
    from fourstage.run.pretrained.save import Saveable

# names of ours that timm has for networks of its own; `fourstage.timm` registers ours with a prefix
KNOWN_TO_TIMM = frozenset(
    {
        "visformer_small",
        "visformer_tiny",
        *(f"swin_{size}_patch4_window12_384" for size in ("base", "large")),
        *(f"swin_{size}_patch4_window7_224" for size in ("base", "large", "small", "tiny")),
    }
)
PREFIX = "fs_"
OURS_ALONE = ("architecture", "num_classes", "tag", "license", "origin_url")  # of a default_cfg
PIXELS = ("mean", "std", "interpolation")  # of a recipe, under timm's names


def name_in_timm(name: str) -> str:
    """Return the name under which `fourstage.timm` registers one of our classifiers, without timm."""
    return f"{PREFIX}{name}" if name in KNOWN_TO_TIMM else name


def config_of(one: "Saveable") -> dict[str, Any]:
    """Return the content of config.json."""
    described = one.description
    ours: dict[str, Any] = {
        "version": version("fourstage"),
        "torch": str(torch.__version__),
        "method": described.method,
        "backbone": described.backbone,
        "class_names": list(one.classes) or None,
        "input": _input(one),
        **one.facts.as_json(),
        saved.ENTRY: saved.network_values(described),
        saved.RECIPE: one.recipe,
    }
    return {**_of_timm(one), "task": described.task, saved.OURS: ours}


def _input(one: "Saveable") -> dict[str, Any]:
    """Return how an image reaches the network: its size or resize rule, its interpolation, mean and std."""
    if one.recipe is None:
        cfg = getattr(one.network, "default_cfg", None) or {}
        names = ("input_size", "mean", "std", "crop_pct", "crop_mode", "interpolation")
        return json.loads(json.dumps({name: cfg[name] for name in names if name in cfg}))
    names = ("image_size", *PIXELS, "evaluation")
    return {name: one.recipe[name] for name in names if name in one.recipe}


def _of_timm(one: "Saveable") -> dict[str, Any]:
    """Return what `timm.create_model("hf-hub:user/name")` reads; {} where timm has no such network."""
    network, described = one.network, one.description
    if described.task != "classification" or not isinstance(network, Classifier):
        return {}
    cfg = {key: value for key, value in network.default_cfg.items() if key not in OURS_ALONE}
    if one.recipe is not None:
        cfg |= {name: one.recipe[name] for name in PIXELS}
        cfg |= {name: one.recipe["evaluation"][name] for name in ("crop_pct", "crop_mode")}
        if cfg["crop_mode"] == "squash":
            cfg["crop_pct"] = 1.0  # timm would enlarge the square by its inverse, and cut off the border
    values = {
        "architecture": name_in_timm(described.backbone),
        "num_classes": described.num_classes,
        "num_features": network.num_features,
        "model_args": saved.network_values(described)["backbone_args"],
        "pretrained_cfg": cfg,
    }
    if one.classes:
        values["label_names"] = list(one.classes)
    return json.loads(json.dumps(values))
