"""Processes, nodes and ways to divide the work change no number: the losses of one process, in double precision."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run.exact import assert_same, free_port, totals, wait, write_recipe

from fourstage.engine.state import load_state

pytestmark = pytest.mark.torture  # two minutes of launchers; test_processes.py has the short form
Agents = list[subprocess.Popen[str]]


def spawn(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def torchrun(processes: int, out: Path, *changes: str, options: tuple[str, ...] = ("--standalone",)) -> Agents:
    words = ("fourstage", "train", str(out.parent / "exact.yaml"), "--out", str(out), *changes)
    return [spawn("torch.distributed.run", f"--nproc-per-node={processes}", *options, "-m", *words)]


def two_nodes(out: Path) -> Agents:
    """Two agents that find each other over a port, as on two machines, with two processes each."""
    meet = ("--nnodes=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=test")
    return torchrun(2, out, options=meet) + torchrun(2, out, options=meet)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process; its folder's parent holds the recipe."""
    folder = tmp_path_factory.mktemp("distributed")
    recipe, out = write_recipe(folder, steps=20, save=5), folder / "alone"
    wait([spawn("fourstage", "train", str(recipe), "--out", str(out))], timeout=300)
    assert len(totals(out)) == 20
    assert totals(out)[0] > 1.1 * totals(out)[-1]
    return out


WAYS: dict[str, Callable[[Path], Agents]] = {
    "two processes": lambda out: torchrun(2, out),
    "two processes, accumulated": lambda out: torchrun(2, out, "accumulation=2"),
    "two nodes of two": two_nodes,
    "fsdp": lambda out: torchrun(2, out, "parallel=fsdp"),
}


@pytest.mark.parametrize("way", WAYS)
def test_any_division_gives_the_losses_of_one_process(way: str, alone: Path) -> None:
    out = alone.with_name(way.replace(" ", "-"))
    wait(WAYS[way](out), timeout=300)
    assert_same(out, alone)


def test_fsdp_averages_batch_norms_as_ddp_does(alone: Path) -> None:
    """Its parameters are divided, its running statistics are not; both move in the average."""
    folders = {way: alone.with_name(f"batch-norms-{way}") for way in ("ddp", "fsdp")}
    for way, out in folders.items():
        wait(torchrun(2, out, f"parallel={way}", "model=visformer_digits"), timeout=300)
    assert_same(folders["fsdp"], folders["ddp"])
    found = load_state(folders["fsdp"] / "checkpoints" / "last.pt")
    means = [key for key in found["ema"] if key.endswith("running_mean")]
    assert means
    assert all(not torch.equal(found["ema"][key], found["model"][key]) for key in means)


@pytest.mark.parametrize("optimizer", ["sgd", "lamb"])
def test_fsdp_takes_every_optimiser(optimizer: str, alone: Path) -> None:
    folders = {way: alone.with_name(f"{optimizer}-{way}") for way in ("ddp", "fsdp")}
    for way, out in folders.items():
        wait(
            torchrun(2, out, f"parallel={way}", f"optimizer={optimizer}", "length=4it", "evaluate_every=4it"),
            timeout=300,
        )
    assert_same(folders["fsdp"], folders["ddp"])


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
    wait(torchrun(2, out, f"parallel={then}"), timeout=300)
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
