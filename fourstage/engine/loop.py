"""The training loop: steps, log lines, evaluations and checkpoints, in that order. Knows no task and no data set."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fourstage.engine.devices import Ranks, wrap
from fourstage.engine.log import Bar, RunLog
from fourstage.engine.optim import set_lr
from fourstage.engine.schedule import Schedule
from fourstage.engine.state import save_state
from fourstage.engine.step import train_step
from fourstage.engine.stop import StopWish

Evaluate = Callable[[nn.Module, StopWish], Mapping[str, float] | None]  # None: a stop was wished for meanwhile


@dataclass(frozen=True)
class Plan:
    """When things happen, in optimiser steps."""

    total: int
    steps_per_epoch: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int


@dataclass
class Training:
    """All that changes while a network learns. `state` and `restore` are each other's inverse."""

    task: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None = None
    step: int = 0  # updates made
    evaluated: int = 0  # the step of the last evaluation that ended
    best: dict[str, Any] = field(default_factory=dict)  # {"value", "step", "which"} by the main metric
    window: dict[str, Tensor] = field(default_factory=dict)  # sums since the last log line
    seconds: float = 0.0  # spent training, over all starts

    def state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "evaluated": self.evaluated,
            "best": dict(self.best),
            "window": {name: value.cpu() for name, value in self.window.items()},
            "seconds": self.seconds,
            "model": self.task.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        self.step, self.evaluated, self.best = state["step"], state["evaluated"], dict(state["best"])
        self.window = {name: value.to(device) for name, value in state["window"].items()}
        self.seconds = state["seconds"]
        self.task.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.fill_(self.step)


def averaged(task: nn.Module, decay: float | None) -> AveragedModel | None:
    """A slowly moving average of a task's weights and buffers, or None."""
    if decay is None:
        return None
    return AveragedModel(task, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@dataclass
class Loop:
    """One training from where it stands to its end.

    Args:
        batches: from the step where `training` stands, one list of batches per step.
        evaluate: the metrics of a task on the validation data, the same on every rank.
        keep: what every checkpoint holds beside the state (recipe, classes), plain containers.
    """

    training: Training
    plan: Plan
    schedule: Schedule
    batches: Iterator[Sequence[Any]]
    evaluate: Evaluate
    main_metric: str
    checkpoints: Path
    keep: Mapping[str, Any]
    ranks: Ranks
    device: torch.device
    autocast: torch.autocast
    grad_clip: float | None
    seed: int
    forward: Callable[[nn.Module], nn.Module] = lambda task: task  # such as torch.compile
    log: RunLog | None = field(default=None, init=False)

    def run(self, bar: Bar, wish: StopWish, log: RunLog | None) -> bool:
        """Train to the end, or until a stop is wished for. Returns whether the end was reached.

        `log` is None on every rank but the first.

        Raises:
            ValueError: the loss is no longer finite; the last checkpoint is from before.
        """
        training, plan, self.log = self.training, self.plan, log
        wrapped = self.forward(wrap(training.task, self.ranks, self.device))
        meter = _Meter(training)
        if training.step and self._due(plan.evaluate_every) and training.evaluated < training.step:
            self._evaluate(bar, wish)
        while training.step < plan.total and not self._stop(wish):
            meter.loading()
            batches = [batch.to(self.device) for batch in self._next()]
            meter.computing(sum(len(batch) for batch in batches) * self.ranks.size)
            self._update(wrapped, batches)
            meter.done()
            if training.step % plan.log_every == 0 or training.step == plan.total:
                self._log(meter)
            bar.update(training.step, meter.note())
            if self._due(plan.checkpoint_every) or self._due(plan.evaluate_every):
                self._save()
            if self._due(plan.evaluate_every):
                self._evaluate(bar, wish)
        finished = training.step == plan.total and training.evaluated == training.step
        self._save(finished=finished)
        return finished

    def _next(self) -> Sequence[Any]:
        """The next step's batches. Data that cannot be read ends the run, and costs no step that was made."""
        try:
            return next(self.batches)
        except ValueError:
            self._save()
            raise

    def _stop(self, wish: StopWish) -> bool:
        """Whether to stop now. Processes agree on it, and asking each other takes time: not at every step."""
        if self.ranks.size == 1:
            return wish.name is not None
        return self.training.step % 10 == 0 and self.ranks.any(wish.name is not None)

    def _due(self, every: int) -> bool:
        return self.training.step % every == 0 or self.training.step == self.plan.total

    def _update(self, wrapped: nn.Module, batches: Sequence[Any]) -> None:
        """One step; every draw in it is keyed by its place, so a restart draws the same."""
        training = self.training
        _seed(self.device, self.seed, training.step, self.ranks.rank)
        set_lr(training.optimizer, self.schedule.lr(training.step))
        training.task.train()
        logged = train_step(
            wrapped, batches, training.optimizer, training.scaler, autocast=self.autocast, grad_clip=self.grad_clip
        )
        if training.ema is not None:
            training.ema.update_parameters(training.task)
        training.step += 1
        for name, value in logged.items():
            training.window[name] = training.window[name] + value if name in training.window else value

    def _log(self, meter: "_Meter") -> None:
        training, plan = self.training, self.plan
        count = (training.step - 1) % plan.log_every + 1
        means = {name: self.ranks.mean(total / count).item() for name, total in training.window.items()}
        self._check_finite(means)
        training.window = {}
        total, grad_norm = means.pop("total"), means.pop("grad_norm")
        line = {
            "kind": "train",
            "step": training.step,
            "epoch": training.step / plan.steps_per_epoch,
            "lr": self.schedule.lr(training.step - 1),
            "losses": means,
            "total": total,
            "grad_norm": grad_norm,
            "timing": meter.timing(),
        }
        if self.log is not None:
            self.log.write(line)

    def _check_finite(self, means: Mapping[str, float]) -> None:
        bad = [name for name, value in means.items() if not math.isfinite(value) and name != "grad_norm"]
        if bad or (not math.isfinite(means["grad_norm"]) and not self.training.scaler.is_enabled()):
            raise ValueError(
                f"{(bad or ['grad_norm'])[0]} is no longer a finite number at step {self.training.step}; what is in "
                f"{self.checkpoints} is from before; try a lower optimisation.lr, or optimisation.grad_clip=1"
            )

    def _evaluate(self, bar: Bar, wish: StopWish) -> None:
        """Evaluate the network and its average; keep the better one if it is the best so far."""
        training = self.training
        subjects = {"model": training.task, **({"ema": training.ema.module} if training.ema is not None else {})}
        found: dict[str, tuple[Mapping[str, float], float]] = {}
        for which, task in subjects.items():
            started = time.monotonic()
            self.ranks.share(task.buffers())  # batch statistics are each process's own while it trains
            metrics = self.evaluate(task.eval(), wish)
            if metrics is None:
                return
            found[which] = (metrics, time.monotonic() - started)
        for which, (metrics, seconds) in found.items():
            self._tell(bar, which, metrics, seconds)
            self._keep_best(which, subjects[which], metrics)
        training.evaluated = training.step

    def _tell(self, bar: Bar, which: str, metrics: Mapping[str, float], seconds: float) -> None:
        step, epoch = self.training.step, self.training.step / self.plan.steps_per_epoch
        line = {"kind": "evaluation", "step": step, "epoch": epoch, "which": which, "metrics": dict(metrics)}
        if self.log is not None:
            self.log.write({**line, "timing": {"seconds": seconds}})
        bar.say(f"epoch {epoch:.4g}  {which:5}  " + "  ".join(f"{name} {value:.2f}" for name, value in metrics.items()))

    def _keep_best(self, which: str, task: nn.Module, metrics: Mapping[str, float]) -> None:
        training, value = self.training, metrics[self.main_metric]
        if training.best and value <= training.best["value"]:
            return
        training.best = {"value": value, "step": training.step, "which": which, "metrics": dict(metrics)}
        if self.ranks.first:
            state = {"fourstage": 1, **self.keep, **training.best, "model": task.state_dict()}
            save_state(self.checkpoints / "best.pt", state)

    def _save(self, finished: bool = False) -> None:
        self._check_finite({"grad_norm": 0.0, **{name: float(value) for name, value in self.training.window.items()}})
        if self.log is None:
            return
        state = {"fourstage": 1, **self.keep, **self.training.state(), "log": self.log.position(), "finished": finished}
        save_state(self.checkpoints / "last.pt", state)


class _Meter:
    """Where the time goes. Its numbers are told, never computed with."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self._mark = time.monotonic()
        self.images, self.waited, self.worked = 0, 0.0, 0.0
        self._shown: dict[str, float] = {}

    def loading(self) -> None:
        self._mark = time.monotonic()

    def computing(self, images: int) -> None:
        now = time.monotonic()
        self.waited += now - self._mark
        self.images += images
        self._mark = now

    def done(self) -> None:
        now = time.monotonic()
        self.worked += now - self._mark
        self._mark = now

    def timing(self) -> dict[str, float]:
        """Images per second and the share of time spent waiting for data, since this was last asked."""
        spent = max(self.waited + self.worked, 1e-9)
        self.training.seconds += spent
        numbers = {"images_per_second": self.images / spent, "data_wait": self.waited / spent}
        self._shown = numbers
        self.images, self.waited, self.worked = 0, 0.0, 0.0
        return {**numbers, "seconds": self.training.seconds}

    def note(self) -> str:
        shown = self._shown
        return f"{shown['images_per_second']:.0f} images/s  {shown['data_wait']:.0%} waiting for data" if shown else ""


def _seed(device: torch.device, seed: int, step: int, rank: int) -> None:
    """Key the draws of a step by its place; the leading number keeps them apart from those of the data."""
    key = int(np.random.SeedSequence((4, seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
