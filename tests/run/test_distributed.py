"""Processes, nodes and ways to divide the work change no number: the losses of one process, in double precision.

The network has no batch statistics, mixing and drop path are off: what differs between processes by nature.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fourstage.engine.state import load_state

NETWORK = """
import fourstage
from fourstage.backbones import swin


@fourstage.register
def layer_norms(num_classes: int = 10, img_size: int = 32):
    return swin.tiny(img_size=img_size, num_classes=num_classes)
"""
RECIPE = """
base: digits_visformer
imports: [network.py]
model: layer_norms
precision: float64
ema: 0.9
workers: 0
log_every: 1
evaluate_every: 20it
checkpoint_every: 5it
optimisation: {batch_size: 32, length: 20it, lr: 1.0e-3, warmup: 0it, warmup_lr: 0.0, min_lr: 0.0, grad_clip: 1.0}
augmentation: {mixup: 0.0, cutmix: 0.0}
"""
EXACT = 1e-8
pytestmark = pytest.mark.torture  # two minutes of launchers; test_processes.py has the short form
Agents = list[subprocess.Popen[str]]


def spawn(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait(agents: Agents) -> None:
    for agent in agents:
        _, errors = agent.communicate(timeout=300)
        assert agent.returncode == 0, errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(processes: int, out: Path, *changes: str, options: tuple[str, ...] = ("--standalone",)) -> Agents:
    words = ("fourstage", "train", str(out.parent / "exact.yaml"), "--out", str(out), *changes)
    return [spawn("torch.distributed.run", f"--nproc-per-node={processes}", *options, "-m", *words)]


def two_nodes(out: Path) -> Agents:
    """Two agents that find each other over a port, as on two machines, with two processes each."""
    meet = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test")
    return torchrun(2, out, options=meet) + torchrun(2, out, options=meet)


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["total"] for line in lines if line["kind"] == "train"]


def metrics(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["metrics"] for line in lines if line["kind"] == "evaluation"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process; its folder's parent holds the recipe."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "network.py").write_text(NETWORK)
    (folder / "exact.yaml").write_text(RECIPE)
    out = folder / "alone"
    wait([spawn("fourstage", "train", str(folder / "exact.yaml"), "--out", str(out))])
    assert len(losses(out)) == 20
    assert losses(out)[0] > 1.1 * losses(out)[-1]
    return out


def assert_same(out: Path, alone: Path) -> None:
    assert losses(out) == pytest.approx(losses(alone), abs=EXACT)
    for found, wanted in zip(metrics(out), metrics(alone), strict=True):
        assert found == pytest.approx(wanted, abs=EXACT)
    ours, theirs = (load_state(folder / "checkpoints" / "last.pt") for folder in (out, alone))
    for part in ("model", "ema"):
        for key, value in theirs[part].items():
            torch.testing.assert_close(ours[part][key], value, rtol=0, atol=EXACT)


WAYS: dict[str, Callable[[Path], Agents]] = {
    "two processes": lambda out: torchrun(2, out),
    "two processes, accumulated": lambda out: torchrun(2, out, "accumulation=2"),
    "two nodes of two": two_nodes,
    "fsdp": lambda out: torchrun(2, out, "parallel=fsdp"),
}


@pytest.mark.parametrize("way", WAYS)
def test_any_division_gives_the_losses_of_one_process(way: str, alone: Path) -> None:
    out = alone.with_name(way.replace(" ", "-"))
    wait(WAYS[way](out))
    assert_same(out, alone)


def test_fsdp_averages_batch_norms_as_ddp_does(alone: Path) -> None:
    """Its parameters are divided, its running statistics are not; both move in the average."""
    folders = {way: alone.with_name(f"batch-norms-{way}") for way in ("ddp", "fsdp")}
    for way, out in folders.items():
        wait(torchrun(2, out, f"parallel={way}", "model=visformer_digits"))
    assert_same(folders["fsdp"], folders["ddp"])
    found = load_state(folders["fsdp"] / "checkpoints" / "last.pt")
    means = [key for key in found["ema"] if key.endswith("running_mean")]
    assert means
    assert all(not torch.equal(found["ema"][key], found["model"][key]) for key in means)


def until(out: Path, lines: int, agents: Agents) -> None:
    """Wait until a run has so many lines in its log."""
    while not (out / "log.jsonl").is_file() or (out / "log.jsonl").read_text().count("\n") < lines:
        assert all(agent.poll() is None for agent in agents)
        time.sleep(0.002)


@pytest.mark.parametrize(("first", "then"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_each_reads_the_others_checkpoint(first: str, then: str, alone: Path) -> None:
    out = alone.with_name(f"{first}-{then}")
    begun = torchrun(2, out, f"parallel={first}")
    until(out, 3, begun)
    begun[0].send_signal(signal.SIGTERM)
    begun[0].communicate(timeout=100)
    assert 3 <= load_state(out / "checkpoints" / "last.pt")["step"] < 20
    wait(torchrun(2, out, f"parallel={then}"))
    assert_same(out, alone)


def test_a_run_goes_on_with_another_number_of_processes(alone: Path) -> None:
    out = alone.with_name("one-then-two")
    words = ("fourstage", "train", str(alone.parent / "exact.yaml"), "--out", str(out))
    begun = [spawn(*words)]
    until(out, 3, begun)
    begun[0].send_signal(signal.SIGTERM)
    begun[0].communicate(timeout=100)
    assert 3 <= load_state(out / "checkpoints" / "last.pt")["step"] < 20
    [agent] = torchrun(2, out)
    printed, errors = agent.communicate(timeout=300)
    assert agent.returncode == 0, errors
    assert "not bit for bit" in printed
    assert "processes 1 before, 2 now" in printed
    assert_same(out, alone)


def test_the_launcher_restarts_after_a_worker_was_killed(alone: Path) -> None:
    out = alone.with_name("elastic")
    agents = torchrun(2, out, options=("--standalone", "--max-restarts=2"))
    while not (out / "checkpoints" / "last.pt").is_file():
        assert agents[0].poll() is None
        time.sleep(0.002)
    workers = subprocess.run(["pgrep", "-P", str(agents[0].pid)], capture_output=True, text=True, check=True)
    os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
    printed, errors = agents[0].communicate(timeout=300)
    assert agents[0].returncode == 0, errors
    assert "Continuing" in printed
    assert_same(out, alone)
