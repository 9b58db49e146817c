"""Everything that a training settles before its first step."""

import hashlib
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fourstage.data.loader import TrainPlan, train_batches
from fourstage.data.sample import Batch
from fourstage.engine.devices import Ranks, shard
from fourstage.engine.loop import Plan
from fourstage.engine.threads import loader_workers
from fourstage.engine.training import Training, averaged
from fourstage.ops import products
from fourstage.ops.eager import has_fast_paths
from fourstage.recipe import Recipe, Resolved, steps
from fourstage.run import build
from fourstage.run.folder import installed
from fourstage.run.replaced_images import report_replaced
from fourstage.run.splits import Splits
from fourstage.run.task_protocol import AnyProtocol, AnyTask

CURVE_POINTS = 20  # points that the curve of the training loss has at least, in a training of as many steps


@dataclass(frozen=True)
class Setup:
    """Everything that is settled before the first step."""

    resolved: Resolved
    protocol: AnyProtocol
    splits: Splits
    order: TrainPlan
    metadata: dict[str, Any]  # see `TaskProtocol.dataset_metadata`
    ranks: Ranks
    device: torch.device

    @property
    def recipe(self) -> Recipe:
        return self.resolved.recipe

    @property
    def plan(self) -> Plan:
        recipe, per_epoch = self.recipe, self.order.steps_per_epoch
        total = max(1, steps(recipe.optimisation.length, per_epoch))
        every = recipe.evaluate_every
        return Plan(
            total=total,
            steps_per_epoch=per_epoch,
            evaluate_every=total if every is None else max(1, steps(every, per_epoch)),
            checkpoint_every=max(1, steps(recipe.checkpoint_every, per_epoch)),
            log_every=max(1, min(recipe.log_every, total // CURVE_POINTS)),
        )

    @property
    def conditions(self) -> dict[str, str | int]:
        """Return all, beside the recipe, that must stay the same for a continued run to end with the same bits."""
        imports = [Path(name).read_bytes() for name in self.recipe.imports]
        return {
            "training images": len(self.splits.train),
            "validation images": len(self.splits.val),
            "data": "".join(str(scan["ids"])[:8] for scan in self.splits.scans.values()),
            "imports": hashlib.sha256(b"".join(imports)).hexdigest()[:8] if imports else "none",
            **{name: installed(name) or "none" for name in ("numpy", "pillow", "timm", "torchvision")},
            "processes": self.ranks.size,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "torch": str(torch.__version__),
            "products": products.description() if has_fast_paths(self.device) else "of the device",
        }

    def batches(self, first: int, last: int) -> Generator[list[Batch]]:
        batches = train_batches(
            self.splits.train,
            self.order,
            self.protocol.train_transform(),
            first_step=first,
            last_step=last,
            mix=self.protocol.mixing(len(self.splits.train.classes), self.order.micro_batch),
            workers=loader_workers(self.recipe.workers, self.device),
            pin_memory=self.device.type == "cuda",
            divisor=self.protocol.size_divisor,
        )
        if not self.recipe.skip_bad_images:
            return batches
        return report_replaced(batches, first, self.order, self.splits.train)

    def batches_of(self, step: int) -> list[Batch]:
        with closing(self.batches(step, step + 1)) as batches:
            return next(batches)

    def training(self, task: AnyTask) -> Training:
        recipe = self.recipe
        fp16 = recipe.precision == "float16"
        scaler = torch.amp.GradScaler(self.device.type, init_scale=recipe.loss_scale, enabled=fp16)
        ema = averaged(task, recipe.ema)
        if recipe.parallel == "fsdp":
            for module in (task, *([ema.module] if ema is not None else [])):
                shard(module, self.ranks, self.device)
        return Training(task, build.optimizer(task, recipe), scaler, ema)
