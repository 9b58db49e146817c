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

from fourstage.engine.devices import Ranks, gather_shards, wrap
from fourstage.engine.diagnosis import NOWHERE, first_bad_number
from fourstage.engine.log import Meter, RunLog, all_metrics, epoch_text
from fourstage.engine.optim import set_lr
from fourstage.engine.schedule import Schedule
from fourstage.engine.state import PREVIOUS, save_state
from fourstage.engine.step import Halt, train_step
from fourstage.engine.stop import ELSEWHERE, StopRequest
from fourstage.engine.training import Training, set_training_mode
from fourstage.progress import Bar

Evaluate = Callable[[nn.Module, StopRequest], Mapping[str, float] | None]  # None: a stop was requested meanwhile


@dataclass(frozen=True)
class Plan:
    """When things happen, in optimiser steps."""

    total: int
    steps_per_epoch: int
    evaluate_every: int
    checkpoint_every: int
    log_every: int


@dataclass
class Loop:
    """One training from its current step to its end.

    Args:
        batches: from the current step on, one list of batches per step.
        batches_of: the batches of any step, to find the cause of a failure in it.
        evaluate: returns the metrics of a task on the validation data, the same on every rank.
        keep: further content of every checkpoint (recipe, classes), plain containers.
    """

    training: Training
    plan: Plan
    schedule: Schedule
    batches: Iterator[Sequence[Any]]
    batches_of: Callable[[int], Sequence[Any]]
    evaluate: Evaluate
    main_metric: str
    checkpoints: Path
    keep: Mapping[str, Any]
    ranks: Ranks
    device: torch.device
    autocast: torch.autocast
    grad_clip: float | None
    seed: int
    weight_decay: Callable[[int], float] | None = None
    forward: Callable[[nn.Module], nn.Module] = lambda task: task  # such as torch.compile
    describe: Callable[[Mapping[str, float]], str] = all_metrics  # the metrics in the line of an evaluation
    log: RunLog | None = field(default=None, init=False)
    halt: Halt = field(init=False)

    def run(self, bar: Bar, stop: StopRequest, log: RunLog | None) -> bool:
        """Train to the end, or until a stop is requested. Returns whether the end was reached.

        `log` is None on every rank but the first.

        Raises:
            ValueError: the loss is no longer finite, and the last checkpoint is from before; or data cannot be read,
                and every completed step is saved.
        """
        training, plan, self.log = self.training, self.plan, log
        self.halt = Halt(self.device, training.step)
        set_training_mode(training.task)
        wrapped = self.forward(wrap(training.task, self.ranks, self.device))
        meter = Meter()
        if training.step and self._due(plan.evaluate_every) and training.evaluated < training.step:
            self._evaluate(bar, stop)
        while training.step < plan.total:
            meter.loading()
            batches = self._next(stop)
            if batches is None:
                break
            meter.computing(sum(len(batch) for batch in batches) * self.ranks.size)
            self._update(wrapped, [batch.to(self.device) for batch in batches])
            if training.step % plan.log_every == 0 or training.step == plan.total:
                self._log(meter)
            else:
                meter.done()
            bar.update(training.step, meter.note())
            if self._due(plan.checkpoint_every) or self._due(plan.evaluate_every):
                self._save()
            if self._due(plan.evaluate_every):
                self._evaluate(bar, stop)
        finished = training.step == plan.total and training.evaluated == training.step
        self._save(finished=finished)
        return finished

    def _next(self, stop: StopRequest) -> Sequence[Any] | None:
        """Return the batches of the next step; None if any process must stop, on which all agree before each step."""
        batches, error = None, None
        if stop.name is None:
            try:
                batches = next(self.batches)
            except ValueError as unreadable:  # a launcher's SIGTERM may have ended the loader processes as well
                error = unreadable if stop.name is None else None
        if not self.ranks.any(batches is None):
            return batches
        if error is not None:
            self._save()
            raise error
        stop.name = stop.name or ELSEWHERE
        return None

    def _due(self, every: int) -> bool:
        return self.training.step % every == 0 or self.training.step == self.plan.total

    def _update(self, wrapped: nn.Module, batches: Sequence[Any]) -> None:
        """Do one step; each random draw is keyed by the step, so that a restart draws the same."""
        training = self.training
        _seed(self.device, self.seed, training.step, self.ranks.rank)
        decay = None if self.weight_decay is None else self.weight_decay(training.step)
        set_lr(training.optimizer, self.schedule.lr(training.step), decay)
        logged = train_step(
            wrapped,
            batches,
            training.optimizer,
            training.scaler,
            autocast=self.autocast,
            grad_clip=self.grad_clip,
            halt=self.halt,
        )
        if training.ema is not None:
            training.ema.update_parameters(training.task)
        training.step += 1
        training.add(logged)

    def _log(self, meter: Meter) -> None:
        training, plan = self.training, self.plan
        count = training.step - training.logged
        names = sorted(training.window)
        sums = self.ranks.mean(torch.stack([training.window[name].double() for name in names])).tolist()
        meter.done()  # after `tolist`, which waits for a GPU to complete all steps
        means = {name: value / count for name, value in zip(names, sums, strict=True)}
        self._check_finite(means)
        training.window, training.logged = {}, training.step
        timing = meter.timing()
        training.seconds += timing["seconds"]
        line = {
            "kind": "train",
            "step": training.step,
            "epoch": training.step / plan.steps_per_epoch,
            "lr": self.schedule.lr(training.step - 1),
            "total": means.pop("total"),
            **self._norm(means, count),
            "losses": means,
            "timing": {**timing, "seconds": training.seconds},
        }
        if self.log is not None:
            self.log.write(line)

    def _norm(self, means: dict[str, float], count: int) -> dict[str, float]:
        """Return the mean gradient norm of the steps that count; with a scaler also the share of skipped steps."""
        norm = means.pop("grad_norm")
        if "skipped" not in means:
            return {"grad_norm": norm}
        skipped, scale = means.pop("skipped"), self.training.scaler.get_scale()
        if skipped == 1 and scale < 1:
            raise ValueError(
                f"each of the last {count} steps overflowed in float16, down to a loss scale of {scale:g}; use "
                f"precision=bfloat16 or a lower optimisation.lr"
            )
        return {"grad_norm": norm / (1 - skipped) if skipped < 1 else 0.0, "skipped": skipped, "loss_scale": scale}

    def _check_finite(self, sums: Mapping[str, float]) -> None:
        bad = [name for name, value in sums.items() if not math.isfinite(value)]
        if bad:
            step = self.halt.step_number
            where = "" if step is None else f" ({self._origin(step)})"
            raise ValueError(
                f"{bad[0]} is no longer a finite number at step {(self.training.step if step is None else step) + 1}"
                f"{where}; the checkpoints in {self.checkpoints} are from before; try a lower optimisation.lr, or "
                f"optimisation.grad_clip=1"
            )

    def _origin(self, step: int) -> str:
        """Repeat a step to find the first number that is not finite; the weights are still those from before it.

        Every process inspects its own share of the batch.
        """
        _seed(self.device, self.seed, step, self.ranks.rank)
        batches = [batch.to(self.device) for batch in self.batches_of(step)]
        set_training_mode(self.training.task)
        report = first_bad_number(self.training.task, batches, self.autocast)
        return next((text for text in self.ranks.gather({str(self.ranks.rank): report}).values() if text), NOWHERE)

    def _evaluate(self, bar: Bar, stop: StopRequest) -> None:
        """Evaluate the network and its average; save the best checkpoint if one of them is the best so far."""
        training = self.training
        tasks = {"model": training.task, **({"ema": training.ema.module} if training.ema is not None else {})}
        results: dict[str, tuple[dict[str, float], float]] = {}
        for which, task in tasks.items():
            started = time.monotonic()
            self.ranks.share(task.buffers())  # while training, each process has its own batch statistics
            metrics = self.evaluate(task.eval(), stop)
            set_training_mode(task)
            if metrics is None:
                stop.name = stop.name or ELSEWHERE
                return
            results[which] = ({name: float(value) for name, value in metrics.items()}, time.monotonic() - started)
        for which, (metrics, seconds) in results.items():
            self._report(bar, which, metrics, seconds)
            self._keep_best(which, tasks[which], metrics)
        training.evaluated = training.step

    def _report(self, bar: Bar, which: str, metrics: Mapping[str, float], seconds: float) -> None:
        step, epoch = self.training.step, self.training.step / self.plan.steps_per_epoch
        line = {"kind": "evaluation", "step": step, "epoch": epoch, "which": which, "metrics": dict(metrics)}
        if self.log is not None:
            self.log.write({**line, "timing": {"seconds": seconds}})
        bar.print_line(f"epoch {epoch_text(epoch)}  {which:5}  {self.describe(metrics)}")

    def _keep_best(self, which: str, task: nn.Module, metrics: Mapping[str, float]) -> None:
        """Save the best checkpoint if these metrics are better. A metric is NaN where there was nothing to measure."""
        training, value = self.training, metrics[self.main_metric]
        value = -math.inf if math.isnan(value) else value
        if training.best and value <= training.best["value"]:
            return
        training.best = {"value": value, "step": training.step, "which": which, "metrics": dict(metrics)}
        state = {
            "fourstage": 1,
            **self.keep,
            **training.best,
            "model": gather_shards(task.state_dict(), keep=self.ranks.first),
        }
        if self.ranks.first:
            save_state(self.checkpoints / "best.pt", state)

    def _save(self, finished: bool = False) -> None:
        """Save the last checkpoint. All ranks call it, for their windows; the first one writes."""
        training = self.training
        window = {name: value.cpu() for name, value in training.window.items()}
        windows: dict[str, dict[str, Tensor]] = self.ranks.gather({str(self.ranks.rank): window})
        for each in windows.values():
            self._check_finite({name: float(value) for name, value in each.items()})
        state = {"fourstage": 1, **self.keep, **training.state(keep=self.ranks.first), "windows": windows}
        if self.log is None:
            return
        state |= {"log": self.log.position(), "finished": finished}
        save_state(self.checkpoints / "last.pt", state, keep=self.checkpoints / PREVIOUS)


def _seed(device: torch.device, seed: int, step: int, rank: int) -> None:
    """Key the draws of a step by its number; the leading 4 separates them from the draws of the data."""
    key = int(np.random.SeedSequence((4, seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(key)
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
