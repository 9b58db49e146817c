"""Training steps of every task on the device, and what surrounds them: precision, compiling, memory, whole runs."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from backbones.forms import FORMS, build
from tasks.detection.scenes import NAMES, SOME, SmallBackbone, batch, small
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_learns(name: str, dtype: torch.dtype, device: torch.device) -> None:
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


@pytest.mark.parametrize("form", FORMS)
def test_a_compiled_network_serves_several_sizes(form: str, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("tests/backbones/test_export.py compiles on the CPU")
    model = build(form).to(device)
    compiled = torch.compile(model, dynamic=True)
    with torch.inference_mode():
        for size in ((96, 128), (128, 96), (72, 104)):
            image_BCHW = torch.randn(2, 3, *size, device=device)
            torch.testing.assert_close(compiled(image_BCHW), model(image_BCHW), rtol=1e-3, atol=1e-3)


def test_memory_is_free_after_an_error(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("the CPU's memory is not limited")
    before = torch.cuda.memory_allocated(device)
    model = build("swin-classifier").to(device)
    held = torch.cuda.memory_allocated(device)
    with pytest.raises(torch.OutOfMemoryError):
        model(torch.empty(2**16, 3, 1024, 1024, device=device))
    assert torch.cuda.memory_allocated(device) <= held
    del model
    assert torch.cuda.memory_allocated(device) <= before


def test_pinned_batches_arrive(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("memory is pinned for GPUs alone")
    images = scenes()
    moved = images.pin_memory().to(device)
    assert moved.images_BCHW.device.type == "cuda"
    torch.testing.assert_close(moved.images_BCHW.cpu(), images.images_BCHW)


# ------------------------------------------------------------------------------------------------- whole runs


def command(out: Path, device: torch.device, *more: str) -> list[str]:
    pytest.importorskip("pydantic", reason="recipes need pydantic")
    place = f"device={device.type}:0" if device.type == "cuda" else "device=cpu"
    changes = [
        place,
        "deterministic=true",
        "optimisation.length=40it",
        "optimisation.warmup=4it",
        "checkpoint_every=8it",
        "evaluate_every=40it",
    ]
    return [sys.executable, "-m", "fourstage", "train", "digits_visformer", "--out", str(out), *changes, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = torch.load(folder / "checkpoints" / "last.pt", weights_only=True, map_location="cpu")
    return state["model"]


def run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path, device: torch.device) -> None:
    """Stopped by SIGTERM after the first checkpoint, which the run answers by saving."""
    run(command(tmp_path / "whole", device))
    process = subprocess.Popen(command(tmp_path / "stopped", device), stdout=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not (tmp_path / "stopped" / "checkpoints" / "last.pt").exists() and time.monotonic() < end:
        assert process.poll() is None or process.returncode == 0
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) in (0, 143)
    run(command(tmp_path / "stopped", device))
    ours, whole = weights(tmp_path / "stopped"), weights(tmp_path / "whole")
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


def test_one_process_of_torchrun_trains(tmp_path: Path, device: torch.device) -> None:
    words = command(tmp_path / "run", device)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "fourstage"]
    place = "device=cuda" if device.type == "cuda" else "device=cpu"
    run([*launch, *[place if word.startswith("device=") else word for word in words[3:]]])
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()
