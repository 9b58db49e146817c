"""Batch statistics over two processes are those of one process that holds both parts of the batch."""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fourstage.engine.devices import Ranks, sync_batch_norms

SIZES = (3, 5)  # images of each process: statistics of a mean over processes would not weigh them
STEPS = 3
CPU = torch.device("cpu")
Found = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Attributes: offset: brightness of all images; dtype: of images; tolerance: as a share of the largest value."""

    dtype: torch.dtype
    tolerance: float
    offset: float = 0.0


CASES = {
    "double": Case(torch.float64, 1e-12),
    "single": Case(torch.float32, 1e-4),
    "far from zero": Case(torch.float32, 1e-2, offset=1000.0),
    "half": Case(torch.bfloat16, 0.1),
}


class Norms(nn.Module):
    """A norm of one's own, one that is found deeper, and one without weights; B, C, H, W."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)
        self.rest = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh())
        self.last = nn.BatchNorm2d(6, affine=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.last(self.rest(self.first(x_BCHW)))


def network(dtype: torch.dtype) -> Norms:
    """Weights in single precision at least: halves come of autocast."""
    torch.manual_seed(1)
    out = Norms()
    for parameter in out.parameters():
        nn.init.normal_(parameter)
    return out.to(torch.promote_types(dtype, torch.float32))


def images(case: Case) -> Tensor:
    """Both parts, (B, C, H, W): of different brightness, so that neither part's statistics are those of the whole."""
    generator = torch.Generator().manual_seed(2)
    x_BCHW = torch.randn(sum(SIZES), 4, 5, 7, generator=generator, dtype=torch.float64)
    x_BCHW[SIZES[0] :] = x_BCHW[SIZES[0] :] * 3 + 1
    return (x_BCHW + case.offset).to(case.dtype)


def learn(task: Norms, x_BCHW: Tensor, part: slice) -> Found:
    """Some steps on a part of the batch; gradients are of a sum over images that weighs each pixel differently."""
    weights_BCHW = torch.randn(sum(SIZES), 6, 5, 7, generator=torch.Generator().manual_seed(3)).to(x_BCHW.dtype)
    image_BCHW = out_BCHW = x_BCHW
    for step in range(STEPS):
        image_BCHW = (x_BCHW[part] * (1 + step)).requires_grad_()
        task.zero_grad()
        with torch.autocast("cpu", enabled=x_BCHW.dtype == torch.bfloat16):
            out_BCHW = task(image_BCHW)
        (out_BCHW * weights_BCHW[part]).sum().backward()
    return {
        "out": out_BCHW.detach(),
        "image gradient": image_BCHW.grad,
        "gradients": {name: parameter.grad for name, parameter in task.named_parameters()},
        "buffers": dict(task.named_buffers()),
        "evaluated": task.eval()(x_BCHW[part].to(task.first.weight.dtype)).detach(),
    }


def process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = slice(0, SIZES[0]) if rank == 0 else slice(SIZES[0], None)
    found = {}
    for name, case in CASES.items():
        task = network(case.dtype)
        sync_batch_norms(task, Ranks(rank, 2), CPU)
        found[name] = learn(task, images(case), part)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    folder = tmp_path_factory.mktemp("batch_norms")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=process, args=(rank, folder), daemon=True) for rank in range(2)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(100)
        assert each.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def together(parts: list[dict[str, Found]], case: str) -> Found:
    """What both processes found, as one would have: images in a row, gradients of shared weights added up."""
    first, second = (part[case] for part in parts)
    return {
        **{key: torch.cat([first[key], second[key]]) for key in ("out", "image gradient", "evaluated")},
        "gradients": {name: value + second["gradients"][name] for name, value in first["gradients"].items()},
        "buffers": first["buffers"],
    }


@pytest.mark.parametrize("name", CASES)
def test_two_processes_norm_as_one_with_both_parts(parts: list[dict[str, Found]], name: str) -> None:
    case = CASES[name]
    wanted = flat(learn(network(torch.float64), images(case).double(), slice(None)))
    found = flat(together(parts, name))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        tolerance = case.tolerance * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            found[key], value, rtol=0, atol=tolerance, msg=lambda text, key=key: f"{key}: {text}"
        )


def flat(found: Found) -> dict[str, Tensor]:
    """One name for each tensor, all in double precision."""
    inner = {f"{key} {name}": v for key in ("gradients", "buffers") for name, v in found[key].items()}
    outer = {key: found[key] for key in ("out", "image gradient", "evaluated")}
    return {key: value.double() for key, value in {**outer, **inner}.items()}


def test_processes_keep_the_same_running_statistics(parts: list[dict[str, Found]]) -> None:
    first, second = (part["double"]["buffers"] for part in parts)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["first.num_batches_tracked"] == STEPS


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_part_may_keep_the_norms_of_each_process(device: str) -> None:
    task = network(torch.float32)
    plain = sync_batch_norms(task, Ranks(0, 2), torch.device(device), but=task.rest)
    kinds = {
        name: type(module)
        for name, module in plain.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    assert kinds.pop("rest.1") is nn.BatchNorm2d
    assert kinds.keys() == {"first", "last"}
    assert nn.BatchNorm2d not in kinds.values()
    if device == "cuda":
        assert set(kinds.values()) == {nn.SyncBatchNorm}


def test_one_process_keeps_torchs_own_norm() -> None:
    task = sync_batch_norms(network(torch.float32), Ranks(), CPU)
    assert {type(module) for module in task.modules() if "BatchNorm" in type(module).__name__} == {nn.BatchNorm2d}
