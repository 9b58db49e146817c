"""Objects from a recipe that are the same for every task: imports, optimiser, schedule, precision."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from fourstage.engine.devices import Ranks, sync_batch_norms
from fourstage.engine.optim import build_optimizer, decayed_rates, norm_or_bias, param_groups
from fourstage.engine.schedule import Schedule, cosine
from fourstage.ops import measure, products
from fourstage.recipe import Recipe, steps
from fourstage.report.number_format import plural
from fourstage.run.layers import backbone_of, freeze, layers_of, norms_of_backbone
from fourstage.run.task_protocol import AnyTask
from fourstage.tasks.detection.task import Detection


def run_imports(recipe: Recipe) -> None:
    """Run the user's own modules that a recipe names, so that what they register can be built.

    Raises:
        ValueError: a module does not run; names the file, the line and what happened.
    """
    for i, name in enumerate(recipe.imports):
        path = Path(name)
        if not path.is_file() or path.suffix != ".py":
            raise FileNotFoundError(
                f"the recipe imports {name}, and there is no such Python file; paths are relative to the recipe's "
                f"folder"
            )
        title = f"fourstage_import_{i}_{path.stem}"
        if title in sys.modules and sys.modules[title].__file__ == str(path):
            continue
        spec = importlib.util.spec_from_file_location(title, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[title] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[title]
            where = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            line = where[-1] if where else getattr(error, "lineno", None) or 1
            raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}; mend the file") from error


def set_numerics(recipe: Recipe, device: torch.device) -> None:
    """Process-wide switches of torch that a recipe decides."""
    if recipe.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not recipe.deterministic


def take_products(state: Mapping[str, Any] | None, ranks: Ranks, device: torch.device) -> None:
    """Compute linear layers and attention as the run did before, or all processes as the first one does."""
    if device.type != "cpu":
        return
    before = None if state is None else state["conditions"].get("products")
    try:
        products.use(before or "")
    except ValueError:  # a new run, or another machine that has not these ways: `_check_same_data` says so
        products.use(ranks.gather({str(ranks.rank): str(measure.choose_products())})["0"])


def prepare(task: AnyTask, recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
    """What a recipe asks of a task before its optimiser is built; the weights are there already.

    Raises:
        ValueError: stages to freeze that the network does not have.
    """
    if recipe.precision == "float64":
        task.double()
    if recipe.channels_last:
        task.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.grad_checkpointing:
        cast(Any, backbone_of(task)[1]).set_grad_checkpointing(True)
    if recipe.frozen_stages:
        freeze(task, recipe.frozen_stages)
    if isinstance(task, Detection) and task.network.counts_over_ranks:
        task.network.mean_over_ranks = ranks.mean
    if recipe.sync_batchnorm:
        # What is published of detectors and segmentors has such norms in the heads, and plain ones in the backbone.
        plain = None if recipe.task == "classification" else task.network.get_submodule("backbone")
        sync_batch_norms(task, ranks, device, but=plain)


def optimizer(task: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimiser over the task's parameters."""
    o = recipe.optimisation
    own: set[str] = set()
    if not o.decay_norms_and_biases:
        own |= {
            f"{where}.{name}" if where else name
            for where, module in task.named_modules()
            for name in getattr(module, "no_weight_decay", set)()
        }
    if not o.decay_backbone_norms:
        own |= set(norms_of_backbone(task))

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
        task.named_parameters(),
        weight_decay=o.weight_decay,
        spared=spared,
        lr_multipliers=o.lr_multipliers,
        layer_scales=decayed_rates(layers_of(task, o.layer_groups), o.layer_decay) if o.layer_decay < 1 else None,
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
        raise ValueError(
            f"length={o.length} is no step at all; an epoch of this data has {plural(steps_per_epoch, 'step')}"
        )
    if warmup >= total:
        raise ValueError(
            f"warmup={o.warmup} is {plural(warmup, 'step')}, and the whole training is {total}; make it shorter"
        )
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
        every=steps(o.schedule_every, steps_per_epoch),
        lag=steps(o.schedule_lag, steps_per_epoch),
        inclusive=o.warmup_inclusive,
    )


def weight_decay(recipe: Recipe, total: int) -> Callable[[int], float] | None:
    """The weight decay of each step, where it changes."""
    o = recipe.optimisation
    end = o.weight_decay_end
    return None if end is None else lambda step: cosine(o.weight_decay, end, step / total)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The recipe's precision as a context."""
    dtype = torch.float16 if recipe.precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=recipe.precision in ("bfloat16", "float16"))
