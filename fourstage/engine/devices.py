"""Devices and processes. The only file that names `torch.distributed`."""

import os
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from fourstage.engine import slurm
from fourstage.freed_memory import keep_all_freed_memory
from fourstage.plurals import plural

T = TypeVar("T")
SOUND_CUDNN = 92600  # the version from which on its attention is used


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train together, in the form that tasks and loaders receive."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes, on each of them."""
        if self.size == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def gather(self, records: Mapping[str, T]) -> dict[str, T]:
        """Return the records of all processes, on each of them; a key of two processes counts once."""
        if self.size == 1:
            return dict(records)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, dict(records))
        return {key: value for one in gathered for key, value in one.items()}

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of the first process to all others, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process. Uses the CPU, so that no GPU waits."""
        if self.size == 1:
            return flag
        shared = torch.tensor(int(flag))
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return bool(shared)

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, on each of them, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()


def join(device: str) -> tuple[Ranks, torch.device]:
    """Join the processes that `torchrun` or Slurm's `srun` started; return their ranks and this process's device.

    Raises:
        ValueError: cuda is requested but there is no GPU, or there are fewer GPUs than processes.
    """
    slurm.translate()
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    ranks = Ranks(int(os.environ.get("RANK", "0")), size)
    chosen = choose_device(device, local)
    if chosen.type == "cpu":
        keep_all_freed_memory()
    if size > 1 and not dist.is_initialized():
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        patience = timedelta(minutes=30)
        store, rank, size = next(rendezvous("env://", ranks.rank, size, timeout=patience))
        # After a restart torchrun may offer the old store, which still holds addresses of dead processes.
        fresh = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=patience)
    return ranks, chosen


def is_first_process() -> bool:
    """Return whether this is the first of the processes that `torchrun` or `srun` started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def leave() -> None:
    """Undo `join`."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """Return `auto`, `cpu` or `cuda` as a torch device; see `join`.

    Raises:
        ValueError: another name, or no GPU for this process.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"there is no device {device!r}; choose auto, cpu or cuda")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cpu" or (device == "auto" and not gpus):
        return torch.device("cpu")
    if not gpus:
        raise ValueError(
            "the device cuda was requested, but torch finds no GPU here; choose device=cpu (predict: --device cpu), or "
            "run `fourstage doctor`"
        )
    if local_rank >= gpus:
        raise ValueError(
            f"process {local_rank + 1} of this machine has no GPU of its own: it has {plural(gpus, 'GPU')}; start "
            f"{plural(gpus, 'process', 'processes')}"
        )
    _leave_out_faulty_attention()
    return torch.device("cuda", local_rank)


def _leave_out_faulty_attention() -> None:
    """Leave out cuDNN's attention in half precision, which PyTorch prefers on H100 and H200, where cuDNN is too old.

    Before version 9.26, a mask over 64, 192, 320... keys can turn gradients into NaN (pytorch/pytorch#196678). It also
    raises from 65,536 windows on, for which torch 2.11 still chooses it (#180718). Other fused kernels then compute.
    """
    if (torch.backends.cudnn.version() or 0) < SOUND_CUDNN:
        torch.backends.cuda.enable_cudnn_sdp(False)


def wrap(task: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """Return the task wrapped so that gradients are averaged over the processes."""
    if ranks.size == 1 or _is_sharded(task):
        return task
    # The strides of a 1x1 kernel are ambiguous; torch warns about two equivalent forms.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # torch 2.11 does not have the argument that replaces it.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(
        task,
        device_ids=devices,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        find_unused_parameters=any(getattr(module, "find_unused_parameters", False) for module in task.modules()),
    )


@contextmanager
def unsynced(task: nn.Module) -> Generator[None]:
    """Keep gradients local in backward, for all but the last accumulated micro-batch."""
    if _is_sharded(task):
        cast(Any, task).set_requires_gradient_sync(False)
        yield
        cast(Any, task).set_requires_gradient_sync(True)
        return
    with task.no_sync() if isinstance(task, DistributedDataParallel) else nullcontext():
        yield


def shard(task: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Shard every parameter over the processes (FSDP2), block by block; with one process nothing changes."""
    if ranks.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh  # these two imports take half a second
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (ranks.size,))
    blocks = [block for module in task.modules() if isinstance(module, nn.ModuleList) for block in module]
    for block in reversed(blocks):  # inner blocks come first
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(task, mesh=mesh)
    register_fsdp_forward_method(task, "predict")  # it needs the complete parameters too


def gather_shards(value: Any, *, keep: bool = True) -> Any:
    """Return a tensor or state dict with every sharded tensor complete. All processes must call it.

    Args:
        keep: whether this process needs the result; another one holds at most one complete tensor at a time.
    """
    if isinstance(value, Tensor) and hasattr(value, "full_tensor"):
        complete = cast(Any, value).full_tensor()
        return complete if keep else complete.new_empty(0)
    if isinstance(value, Mapping):
        return {key: gather_shards(item, keep=keep) for key, item in value.items()}
    return [gather_shards(item, keep=keep) for item in value] if isinstance(value, list) else value


def share_of(complete: Tensor, like: Tensor) -> Tensor:
    """Return a tensor sharded like another one, which may not be sharded; the inverse of `gather_shards`."""
    if not hasattr(like, "placements"):
        return complete
    from torch.distributed.tensor import distribute_tensor

    sharded = cast(Any, like)
    return distribute_tensor(complete.to(like.device), sharded.device_mesh, sharded.placements)


def _is_sharded(task: nn.Module) -> bool:
    """Return whether `shard` was applied; does not import FSDP2."""
    return hasattr(task, "set_requires_gradient_sync")


def sync_batch_norms(task: nn.Module, ranks: Ranks, device: torch.device, but: nn.Module | None = None) -> nn.Module:
    """Make batch norms use statistics over all processes; with one process nothing changes.

    Args:
        but: a module in which each process keeps its own statistics.
    """
    if ranks.size == 1:
        return task
    for name, module in task.named_children():
        if module is but:
            continue
        sync_batch_norms(module, ranks, device, but)
        if device.type == "cuda":
            if not any(True for _ in module.children()):  # only a leaf: a module inside may be `but`
                setattr(task, name, nn.SyncBatchNorm.convert_sync_batchnorm(module))
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = _SharedBatchNorm
            assert isinstance(module, _SharedBatchNorm)
            module.ranks = ranks
    return task


class _SharedBatchNorm(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` for CPUs, which torch's does not support. Half precision is normalised in float32."""

    ranks: Ranks

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        cells_1 = wide.new_full((1,), wide.numel() // wide.shape[1])
        sums = _sum_over_processes(torch.cat([wide.sum((0, 2, 3)), cells_1]))
        count, mean_C = sums[-1], sums[:-1] / sums[-1]
        # The mean is subtracted first: the difference of two large sums would cancel a small variance.
        centred = wide - mean_C[:, None, None]
        var_C = _sum_over_processes(centred.square().sum((0, 2, 3))) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean_C, self.momentum)
                self.running_var.lerp_(var_C * count / (count - 1), self.momentum)
                self.num_batches_tracked.add_(1)
        scale_C = (var_C + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        out = centred * scale_C[:, None, None]
        return (out if self.bias is None else out + self.bias[:, None, None]).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over processes. The result of each depends on the input of all, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _sum_over_processes(grad_outputs[0])


def _sum_over_processes(local: Tensor) -> Tensor:
    return cast(Tensor, _Sum.apply(local))
