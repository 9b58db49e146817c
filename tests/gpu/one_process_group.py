"""A group of one process trains on a device: what several processes do, over NCCL on a GPU and over Gloo on a CPU.

A run of one process sets up no group, so nothing else starts NCCL on a machine with one GPU. `test_gpu_runs.py` starts
this program, since NCCL can hang.
"""

import sys
from copy import deepcopy
from dataclasses import replace

import torch
import torch.distributed as dist
from backbones.forms import build
from tasks.detection.scenes import SOME, batch

from fourstage.engine.devices import Ranks, leave, sync_batch_norms, wrap
from fourstage.engine.step import Halt, train_step
from fourstage.tasks.classification import Classification

RANKS = Ranks(0, 2)  # of two, so that each call is made; the group adds up one process


def main(name: str, store: str) -> None:
    device = torch.device("cuda", 0) if name.startswith("cuda") else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    assert RANKS.any(True)  # on the CPU
    assert not RANKS.any(False)
    assert RANKS.sum(torch.ones(3, device=device)).tolist() == [1.0] * 3
    assert RANKS.mean(torch.ones((), device=device)) == 0.5
    RANKS.wait()
    alone = Classification(build("visformer-classifier"), tuple(map(str, range(1000)))).to(device).train()
    together = deepcopy(alone)
    RANKS.share(together.buffers())
    wrapped = wrap(sync_batch_norms(together, RANKS, device), RANKS, device)
    images = replace(batch([SOME, SOME[:1]]), labels_B=torch.tensor([1, 2]), objects=None)
    for task, network in ((alone, alone), (together, wrapped)):
        train_step(
            network,
            [images.to(device)] * 2,  # the first one keeps its gradients to itself
            torch.optim.AdamW(task.parameters(), fused=True),
            torch.amp.GradScaler(device.type, enabled=False),
            autocast=torch.autocast(device.type, torch.bfloat16, enabled=False),
            grad_clip=5.0,
            halt=Halt(device, 0),
        )
    for (key, p), q in zip(alone.named_parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-2, atol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    leave()
    print("trained over", backend)


if __name__ == "__main__":
    main(*sys.argv[1:])
