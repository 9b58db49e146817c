"""Objects from a recipe: data, network, task, optimiser."""

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from fourstage.data.formats import open_dataset
from fourstage.data.imagefolder import find_bad_images, without
from fourstage.data.sample import Dataset
from fourstage.engine.log import Bar
from fourstage.engine.optim import build_optimizer, norm_or_bias, param_groups
from fourstage.engine.schedule import Schedule
from fourstage.recipe import Recipe, steps
from fourstage.run.kinds import kind_of

SCAN_UP_TO = 20_000  # images that are all read once before training starts; larger sets are read as they come


@dataclass(frozen=True)
class Splits:
    """The data of a run, and what a person should know about it."""

    train: Dataset
    val: Dataset
    notes: tuple[str, ...] = ()


def run_imports(recipe: Recipe) -> None:
    """Run the user's own modules that a recipe names, so that what they register can be built."""
    for i, name in enumerate(recipe.imports):
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(
                f"the recipe imports {name}, and there is no such file; paths are relative to the recipe's own folder"
            )
        spec = importlib.util.spec_from_file_location(f"fourstage_import_{i}_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        if sys.modules.get(spec.name) is not None and sys.modules[spec.name].__file__ == str(path):
            continue
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


def set_numerics(recipe: Recipe, device: torch.device) -> None:
    """Process-wide switches of torch that a recipe decides."""
    if recipe.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not recipe.deterministic


def data_path(data: str | Path) -> str:
    """A data set as a recipe stores it: the name of an embedded one, or an absolute path."""
    text = str(data)
    return text if text in ("digits", "digit_scenes") else str(Path(text).expanduser().resolve())


def open_splits(recipe: Recipe, *, show: bool) -> Splits:
    """Both splits of the recipe's data, without images that cannot be read where the recipe says to skip them.

    Raises:
        ValueError: the data's classes are not the recipe's, or images cannot be read.
    """
    (train, train_notes), (val, val_notes) = (open_split(recipe, split, show=show) for split in ("train", "val"))
    return Splits(train, val, tuple(dict.fromkeys(train_notes + val_notes)))


def open_split(recipe: Recipe, split: Literal["train", "val"], *, show: bool) -> tuple[Dataset, tuple[str, ...]]:
    """One split and what there is to say about it; see `open_splits`."""
    if recipe.data is None:
        raise ValueError("the recipe names no data; add --data FOLDER, or --data digits to try it out")
    with Bar(f"making {recipe.data}", 1, show=show, every=5) as bar:
        dataset = open_dataset(recipe.data, split, progress=bar.of)
    kind_of(recipe).check_data(recipe, dataset)
    note = getattr(dataset, "note", "")
    if not recipe.skip_bad_images and len(dataset) > SCAN_UP_TO:
        return dataset, (note,) if note else ()
    with Bar(f"reading {split}", len(dataset), show=show, every=5) as bar:
        bad = find_bad_images(dataset, progress=lambda done, total: bar.update(done))
    if not bad:
        return dataset, (note,) if note else ()
    told = f"{len(bad)} of {len(dataset)} images in {split} cannot be read, the first: {next(iter(bad.values()))}"
    if not recipe.skip_bad_images:
        raise ValueError(
            f"{told}; mend them (`fourstage data check {recipe.data}` lists all), or add skip_bad_images=true"
        )
    return without(dataset, bad), (note, f"skipped: {told}") if note else (f"skipped: {told}",)


def optimizer(task: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser over the task's parameters."""
    o = recipe.optimisation
    own = {
        f"{where}.{name}" if where else name
        for where, module in task.named_modules()
        for name in getattr(module, "no_weight_decay", set)()
    }

    def spared(name: str, parameter: nn.Parameter) -> bool:
        plain = not o.decay_norms_and_biases and norm_or_bias(name, parameter)
        return plain or name in own or any(part in name for part in o.no_decay)

    groups = param_groups(
        task.named_parameters(), weight_decay=o.weight_decay, spared=spared, lr_multipliers=o.lr_multipliers
    )
    return build_optimizer(groups, name=o.optimizer, lr=o.lr, betas=o.betas, eps=o.eps, momentum=o.momentum)


def schedule(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """The recipe's learning rates, in steps of this data."""
    o = recipe.optimisation
    return Schedule(
        peak=o.lr,
        total=max(1, steps(o.length, steps_per_epoch)),
        kind=o.schedule,
        warmup=steps(o.warmup, steps_per_epoch),
        warmup_lr=o.warmup_lr,
        min_lr=o.min_lr,
        milestones=tuple(steps(milestone, steps_per_epoch) for milestone in o.milestones),
        gamma=o.gamma,
        power=o.power,
    )


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The recipe's precision as a context."""
    dtype = torch.float16 if recipe.precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=recipe.precision != "float32")
