"""Build from a recipe what is the same for every task: optimiser, schedule, precision."""

import json
import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches

import torch
from torch import nn
from torch.optim import Optimizer

from fourstage.engine.devices import Ranks, sync_batch_norms
from fourstage.engine.narrow_maps import widen_narrow_maps
from fourstage.engine.optim import build_optimizer, decayed_rates, norm_or_bias, param_groups
from fourstage.engine.schedule import Schedule, cosine
from fourstage.ops.eager import uses_onednn
from fourstage.plurals import plural
from fourstage.recipe import Recipe, steps
from fourstage.run.layers import freeze, layers_of, norms_of_backbone, recompute
from fourstage.run.task_protocol import AnyTask
from fourstage.tasks.detection.task import Detection


def set_numerics(recipe: Recipe, device: torch.device) -> None:
    """Set the process-wide switches of torch that a recipe decides."""
    if recipe.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    # cuDNN tries its kernels once for each size of images: for seconds, and batches of a detector have many sizes
    few_sizes = recipe.task != "detection"
    torch.backends.cudnn.benchmark = device.type == "cuda" and few_sizes and not recipe.deterministic


def prepare(task: AnyTask, recipe: Recipe, ranks: Ranks, device: torch.device) -> None:
    """Apply a recipe's settings to a task that has its weights, before the optimiser is built.

    Raises:
        ValueError: the recipe freezes stages that the network does not have.
    """
    if recipe.precision == "float64":
        task.double()
    if recipe.precision == "bfloat16" and uses_onednn(device):
        widen_narrow_maps(task)
    if recipe.channels_last:
        task.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if recipe.frozen_stages:
        freeze(task, recipe.frozen_stages)
    if isinstance(task, Detection) and task.network.counts_over_ranks:
        task.network.mean_over_ranks = ranks.mean
    if recipe.sync_batchnorm:
        # Published detectors and segmentors synchronise the norms of their heads, not those of the backbone.
        plain = None if recipe.task == "classification" else task.network.get_submodule("backbone")
        sync_batch_norms(task, ranks, device, but=plain)
    if recipe.grad_checkpointing:
        recompute(task)  # after the norms have been replaced


def optimizer(task: nn.Module, recipe: Recipe) -> Optimizer:
    """Return the recipe's optimiser over the task's parameters."""
    o = recipe.optimisation
    own: set[str] = set()
    if not o.decay_norms_and_biases:
        own |= {
            f"{path}.{name}" if path else name
            for path, module in task.named_modules()
            for name in getattr(module, "no_weight_decay", set)()
        }
    norms = set(norms_of_backbone(task)) if o.decayed_norms or not o.decay_backbone_norms else set()
    decayed = {name for name in norms if any(word in name for word in o.decayed_norms)}
    if not o.decay_backbone_norms:
        own |= norms

    def spared(name: str, parameter: nn.Parameter) -> bool:
        plain = not o.decay_norms_and_biases and norm_or_bias(name, parameter)
        listed = name in own or any(substring in name for substring in o.no_decay)
        return plain or (listed and name not in decayed)

    groups = param_groups(
        task.named_parameters(),
        weight_decay=o.weight_decay,
        spared=spared,
        lr_multipliers=o.lr_multipliers,
        layer_scales=decayed_rates(layers_of(task, o.layer_groups), o.layer_decay) if o.layer_decay < 1 else None,
    )
    return build_optimizer(groups, name=o.optimizer, lr=o.lr, betas=o.betas, eps=o.eps, momentum=o.momentum)


def unmatched_names(task: nn.Module, recipe: Recipe, given: Collection[str]) -> list[str]:
    """Return a note for each word of the optimiser's settings that names no parameter of this network.

    Args:
        given: dotted keys that the user set, whose words have to name one.

    Raises:
        ValueError: they name none.
    """
    o = recipe.optimisation
    parameters = [name for name, _ in task.named_parameters()]
    norms = norms_of_backbone(task) if o.decayed_norms else []
    notes = []
    for key, words, fits, names, what in (
        ("no_decay", o.no_decay, str.__contains__, parameters, "parameter"),
        ("lr_multipliers", o.lr_multipliers, str.startswith, parameters, "parameter"),
        ("decayed_norms", o.decayed_norms, str.__contains__, norms, "backbone norm"),
    ):
        unmatched = [word for word in words if not any(fits(name, word) for name in names)]
        for word in unmatched if any(one.startswith(f"optimisation.{key}") for one in given) else ():
            close = get_close_matches(word, [*names, *{name.rpartition(".")[0] for name in names}], n=1)
            first = f"; the first {what} is {names[0]}" if names else "; leave it out"
            hint = f"; did you mean {close[0]}?" if close else first
            without = _without(key, words, unmatched)
            raise ValueError(f"optimisation.{key} has {word!r}, but no {what} has such a name{hint}; or add {without}")
        notes += [f"{key}: this network has no {what} {word}" for word in unmatched]
    return notes


def _without(key: str, words: Mapping[str, float] | Sequence[str], unmatched: Collection[str]) -> str:
    """Return what to type for a setting of the optimiser without these words."""
    if isinstance(words, Mapping):
        rest: object = {word: value for word, value in words.items() if word not in unmatched}
    else:
        rest = [word for word in words if word not in unmatched]
    return shlex.quote(f"optimisation.{key}={json.dumps(rest)}")


def schedule(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """Return the recipe's learning rate schedule, in steps of this data.

    Raises:
        ValueError: lengths contradict each other.
    """
    o = recipe.optimisation
    total, warmup = steps(o.length, steps_per_epoch), steps(o.warmup, steps_per_epoch)
    milestones = tuple(steps(milestone, steps_per_epoch) for milestone in o.milestones)
    if total == 0:
        raise ValueError(
            f"length={o.length} is less than one step: an epoch of this data has {plural(steps_per_epoch, 'step')}; "
            f"choose a longer one"
        )
    if warmup >= total:
        raise ValueError(
            f"warmup={o.warmup} is {plural(warmup, 'step')}, but the training has only {total}; choose a shorter warmup"
        )
    if list(milestones) != sorted(set(milestones)) or (milestones and milestones[-1] >= total):
        raise ValueError(
            f"milestones={list(o.milestones)} must increase and come before the end, length={o.length}; with this data "
            f"they are steps {list(milestones)} of {total}"
        )
    return Schedule(
        peak=o.lr,
        total=total,
        curve=o.schedule,
        warmup=warmup,
        warmup_lr=o.warmup_lr,
        min_lr=o.min_lr,
        milestones=milestones,
        gamma=o.gamma,
        power=o.power,
        spans=o.schedule_spans,
        every=max(1, steps(o.schedule_every, steps_per_epoch)),
        lag=steps(o.schedule_lag, steps_per_epoch),
        inclusive=o.warmup_inclusive,
    )


def weight_decay(recipe: Recipe, total: int) -> Callable[[int], float] | None:
    """Return the weight decay as a function of the step, or None where it is constant."""
    o = recipe.optimisation
    end = o.weight_decay_end
    return None if end is None else lambda step: cosine(o.weight_decay, end, step / total)


def autocast(recipe: Recipe, device: torch.device) -> torch.autocast:
    """Return the recipe's precision as a context."""
    dtype = torch.float16 if recipe.precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=recipe.precision in ("bfloat16", "float16"))
