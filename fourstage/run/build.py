"""Objects from a recipe: data, network, task, optimiser."""

import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypedDict

import torch
from torch import nn
from torch.optim import Optimizer

from fourstage.data.formats import open_dataset
from fourstage.data.imagefolder import find_bad_images, without
from fourstage.data.sample import Dataset
from fourstage.engine.devices import Ranks
from fourstage.engine.log import Bar
from fourstage.engine.optim import build_optimizer, norm_or_bias, param_groups
from fourstage.engine.schedule import Schedule
from fourstage.recipe import Recipe, steps
from fourstage.run.kinds import kind_of

SCAN_UP_TO = 20_000  # images that are all read once before training starts; larger sets are read as they come


class Scan(TypedDict):
    """What is known of the images of one split."""

    ids: str  # a fingerprint of all ids in their order
    bad: dict[str, str]  # id -> why it cannot be read


@dataclass(frozen=True)
class Splits:
    """The data of a run, and what a person should know about it."""

    train: Dataset
    val: Dataset
    notes: tuple[str, ...] = ()
    scans: dict[str, Scan] = field(default_factory=dict)


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


def open_splits(recipe: Recipe, ranks: Ranks, known: Path | None = None, *, show: bool) -> Splits:
    """Both splits of the recipe's data, without images that cannot be read where the recipe says to skip them.

    Args:
        known: a file with the scans of an earlier start, which need not be made again.

    Raises:
        ValueError: the data's classes are not the recipe's, or images cannot be read.
    """
    before: dict[str, Scan] = json.loads(known.read_text()) if known is not None and known.is_file() else {}
    train, train_scan, train_notes = open_split(recipe, "train", ranks, before.get("train"), show=show)
    val, val_scan, val_notes = open_split(recipe, "val", ranks, before.get("val"), show=show)
    notes = tuple(dict.fromkeys(train_notes + val_notes))
    return Splits(train, val, notes, {"train": train_scan, "val": val_scan})


def open_split(
    recipe: Recipe, split: Literal["train", "val"], ranks: Ranks, known: Scan | None = None, *, show: bool
) -> tuple[Dataset, Scan, tuple[str, ...]]:
    """One split, its scan and what there is to say about it; see `open_splits`."""
    if recipe.data is None:
        raise ValueError("the recipe names no data; add --data FOLDER, or --data digits to try it out")
    with Bar(f"making {recipe.data}", 1, show=show, every=5) as bar:
        dataset = open_dataset(recipe.data, split, progress=bar.of)
    kind_of(recipe).check_data(recipe, dataset)
    scan = (
        known
        if known is not None and known["ids"] == fingerprint(dataset)
        else _scan(recipe, dataset, split, ranks, show)
    )
    notes = tuple(note for note in (getattr(dataset, "note", ""),) if note)
    if not scan["bad"]:
        return dataset, scan, notes
    first = next(iter(scan["bad"].values()))
    told = f"{len(scan['bad'])} of {len(dataset)} images in {split} cannot be read, the first: {first}"
    if not recipe.skip_bad_images:
        raise ValueError(
            f"{told}; mend them (`fourstage data check {recipe.data}` lists all), or add skip_bad_images=true"
        )
    if len(scan["bad"]) == len(dataset):
        raise ValueError(f"{told}; nothing is left to skip to, so give other --data")
    return without(dataset, scan["bad"]), scan, (*notes, f"skipped: {told}")


def fingerprint(dataset: Dataset) -> str:
    """A hash of all ids in their order: the same data set in another place has the same."""
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        digest.update(dataset.id(index).encode() + b"\0")
    return digest.hexdigest()


def _scan(recipe: Recipe, dataset: Dataset, split: str, ranks: Ranks, show: bool) -> Scan:
    """Read every image once, in the first process, and tell the others; large sets are read as they come."""
    bad: dict[str, str] = {}
    if ranks.first and (recipe.skip_bad_images or len(dataset) <= SCAN_UP_TO):
        with Bar(f"reading {split}", len(dataset), show=show, every=5) as bar:
            found = find_bad_images(dataset, progress=lambda done, total: bar.update(done))
        bad = {id: str(error) for id, error in found.items()}
    return {"ids": fingerprint(dataset), "bad": ranks.gather(bad)}


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

    names = [name for name, _ in task.named_parameters()]
    for key, words, fits in (
        ("no_decay", o.no_decay, str.__contains__),
        ("lr_multipliers", o.lr_multipliers, str.startswith),
    ):
        for word in words:
            if not any(fits(name, word) for name in names):
                close = get_close_matches(word, [*names, *{name.rpartition(".")[0] for name in names}], n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; names begin like {names[0]}"
                raise ValueError(f"optimisation.{key} names {word!r}, and no parameter is called so{hint}")
    groups = param_groups(
        task.named_parameters(), weight_decay=o.weight_decay, spared=spared, lr_multipliers=o.lr_multipliers
    )
    return build_optimizer(groups, name=o.optimizer, lr=o.lr, betas=o.betas, eps=o.eps, momentum=o.momentum)


def schedule(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """The recipe's learning rates, in steps of this data.

    Raises:
        ValueError: lengths that contradict each other.
    """
    o = recipe.optimisation
    total, warmup = steps(o.length, steps_per_epoch), steps(o.warmup, steps_per_epoch)
    milestones = tuple(steps(milestone, steps_per_epoch) for milestone in o.milestones)
    if total == 0:
        raise ValueError(f"length={o.length} is no step at all; an epoch of this data has {steps_per_epoch} steps")
    if warmup >= total:
        raise ValueError(f"warmup={o.warmup} is {warmup} steps, and the whole training is {total}; make it shorter")
    if list(milestones) != sorted(set(milestones)) or (milestones and milestones[-1] >= total):
        raise ValueError(
            f"milestones={list(o.milestones)} must rise and lie before the end, length={o.length}; here they are steps "
            f"{list(milestones)} of {total}"
        )
    return Schedule(
        peak=o.lr,
        total=total,
        kind=o.schedule,
        warmup=warmup,
        warmup_lr=o.warmup_lr,
        min_lr=o.min_lr,
        milestones=milestones,
        gamma=o.gamma,
        power=o.power,
        spans=o.schedule_spans,
    )


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The recipe's precision as a context."""
    dtype = torch.float16 if recipe.precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=recipe.precision != "float32")
