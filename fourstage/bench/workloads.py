"""The timed workloads: one pass over a batch, or one training step. B images, C channels, H x W cells."""

import gc
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.bench.options import Options
from fourstage.bench.task_workloads import TaskWorkload
from fourstage.bench.timing import Step, Watch
from fourstage.engine.batch_statistics import enough_values
from fourstage.resources import is_out_of_memory

MORE_VALUES = "give --batch-size 2 or more, or a larger --img-size"  # for the statistics of batch norms
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class OutOfMemoryError(Exception):
    """A batch did not fit into memory."""


@dataclass(frozen=True)
class Setting:
    """The device and the options of a measurement; unlike `Options` it needs torch."""

    options: Options
    device: torch.device

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.options.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = DTYPES[self.options.dtype]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def place(self, model: nn.Module) -> nn.Module:
        """Move the network to the device, in the memory format of the options."""
        model = model.to(self.device)
        return model.to(memory_format=torch.channels_last) if self.options.channels_last else model  # type: ignore[call-overload]

    def images(self, batch: int, image_CHW: tuple[int, int, int]) -> Tensor:
        images_BCHW = torch.randn(batch, *image_CHW, device=self.device)
        return images_BCHW.contiguous(memory_format=self.memory_format)

    def step(self, mode: str, model: nn.Module, batch: int, image_CHW: tuple[int, int, int]) -> Step:
        """Return the step of a mode, "infer" or "train", on a batch of noise."""
        images_BCHW = self.images(batch, image_CHW)
        return self.training_step(model, images_BCHW) if mode == "train" else self.inference_step(model, images_BCHW)

    def inference_step(self, model: nn.Module, images_BCHW: Tensor) -> Step:
        run = self._compiled(model)

        def step() -> None:
            with torch.inference_mode(), self.autocast():
                run(images_BCHW)

        return step

    def training_step(self, model: nn.Module, images_BCHW: Tensor) -> Step:
        """Return a step of forward, backward and AdamW. The learning rate is 0, so that the weights stay unchanged."""
        run = self._compiled(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.05, fused=True)
        scaler = torch.amp.GradScaler(
            self.device.type, init_scale=1024.0, enabled=DTYPES[self.options.dtype] == torch.float16
        )
        classes_B = torch.arange(len(images_BCHW), device=self.device)

        def step() -> None:
            with self.autocast(), enough_values(MORE_VALUES):
                loss = loss_of(run(images_BCHW), classes_B)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

        return step

    def _compiled(self, model: nn.Module) -> Any:
        if self.options.compile and isinstance(model, TaskWorkload):
            model.compile_maps()
            return model
        # one graph for each batch size: a dynamic graph would be slower than what a user of one size gets
        return torch.compile(model, dynamic=False) if self.options.compile else model

    def watch(self) -> Watch:
        """Return the clock of the options; it waits for the device before it reads the time."""
        if self.options.clock == "cpu":
            return time.process_time
        if self.device.type != "cuda":
            return time.perf_counter

        def synchronized() -> float:
            torch.cuda.synchronize(self.device)
            return time.perf_counter()

        return synchronized


def loss_of(out: Any, classes_B: Tensor) -> Tensor:
    """Return the cross-entropy of logits (B, C), or the sum of the means of maps; a scalar is returned as it is."""
    if isinstance(out, Tensor) and out.ndim == 0:
        return out
    if isinstance(out, Tensor):
        return F.cross_entropy(out, classes_B % out.shape[1])
    return torch.stack([x_BCHW.float().mean() for x_BCHW in out]).sum()


@contextmanager
def memory_errors() -> Iterator[None]:
    """Raise `OutOfMemoryError` for every error by which torch reports too little memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(str(error)) from None
        raise


def free_memory(device: torch.device) -> None:
    """Release memory that no tensor uses any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
