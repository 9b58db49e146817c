"""Training steps of every task on the device, and what surrounds them: precision and memory."""

import gc
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from backbones.forms import build
from tasks.detection.scenes import NAMES, QUERIES, SOME, SmallBackbone, batch, small
from torch import nn

from fourstage.data.sample import Batch
from fourstage.engine.step import Halt, train_step
from fourstage.tasks.classification import Classification
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn
from fourstage.tasks.segmentation.task import Segmentation
from fourstage.tasks.segmentation.upernet import upernet

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def scenes() -> Batch:
    labels_BHW = torch.zeros(2, 96, 128, dtype=torch.uint8)
    labels_BHW[:, 20:60, 30:90] = 1
    return replace(batch([SOME, SOME[:1]]), labels_B=torch.tensor([1, 2]), label_maps_BHW=labels_BHW)


def segmentation(method: Callable[..., nn.Module]) -> nn.Module:
    network = method(SmallBackbone(), 3, channels=16)
    return Segmentation(network, "abc", mean=(0, 0, 0), std=(1, 1, 1))  # pyright: ignore[reportArgumentType]


TASKS: dict[str, Callable[[], nn.Module]] = {
    "classification": lambda: Classification(build("smt-classifier"), tuple(map(str, range(1000)))),
    **{name: lambda name=name: Detection(small(name), "abc") for name in NAMES},
    "upernet": lambda: segmentation(upernet),
    "semantic_fpn": lambda: segmentation(semantic_fpn),
}


def skip_without_matching(name: str) -> None:
    if name in QUERIES:
        pytest.importorskip("scipy", reason="queries are matched by scipy")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_learns(name: str, dtype: torch.dtype, device: torch.device) -> None:
    skip_without_matching(name)
    torch.manual_seed(0)
    task, images = TASKS[name]().to(device).train(), scenes().to(device)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    half = dtype == torch.float16
    scaler = torch.amp.GradScaler(device.type, init_scale=256.0, enabled=half)
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
    halt, totals = Halt(device, 0), []
    for _ in range(12):
        logged = train_step(task, [images], optimizer, scaler, autocast=autocast, grad_clip=5.0, halt=halt)
        totals.append(float(logged["total"]))
    assert halt.step_number is None
    assert min(totals[-3:]) < totals[0]
    assert all(torch.isfinite(p).all() for p in task.parameters())


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_must_repeat_itself(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """No operator raises an error for want of a deterministic form, and two trainings end with the same bits."""
    skip_without_matching(name)
    images, ends = scenes().to(device), []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            torch.manual_seed(0)
            task = TASKS[name]().to(device).train()
            optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
            scaler = torch.amp.GradScaler(device.type, enabled=False)
            autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32)
            for _ in range(2):
                train_step(task, [images], optimizer, scaler, autocast=autocast, grad_clip=5.0, halt=Halt(device, 0))
            ends.append([p.detach().clone() for p in task.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


SPARE = 2**26  # bytes that a network may allocate before memory counts as full


def test_memory_is_free_after_an_error(device: torch.device) -> None:
    """The error comes in the middle of a training step, with maps of earlier layers kept for the backward pass."""
    if device.type != "cuda":
        pytest.skip("the CPU's memory is not limited")
    model = build("swin-classifier").to(device)
    model(torch.zeros(2, 3, 64, 64, device=device)).sum().backward()  # libraries allocate their work spaces
    model.zero_grad(set_to_none=True)
    images_BCHW = torch.zeros(16, 3, 512, 512, device=device)
    gc.collect()
    torch.cuda.empty_cache()
    held, total = torch.cuda.memory_allocated(device), torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + SPARE) / total, device)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            model(images_BCHW).sum().backward()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    gc.collect()
    assert torch.cuda.memory_allocated(device) <= held
    assert model(images_BCHW).isfinite().all()


def test_pinned_batches_arrive(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("memory is pinned for GPUs alone")
    images = scenes()
    moved = images.pin_memory().to(device)
    assert moved.images_BCHW.device.type == "cuda"
    torch.testing.assert_close(moved.images_BCHW.cpu(), images.images_BCHW)
