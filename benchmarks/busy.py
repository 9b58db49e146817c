"""Training beside other busy programs: with threads that wait as those of commands do, and as OpenMP's own.

python benchmarks/busy.py             # a training step of visformer_digits, beside 0, 1 and 3 programs

Processes, one for each policy, take turns in every round, while the other programs spin: the threads of *ours* spin or
sleep as engine/waiting.py decides, those of *passive* always sleep, those of *own* spin, and *one* has a single thread,
which a run takes that starts beside busy programs. A turn begins with seconds that do not count. Definitions, for T
threads on C cores beside K spinning programs:

* fair share: the processor seconds per second that a scheduler gives T of T + K equal threads, min(T, C T / (T + K)).
* got: the processor seconds per second that the system counted for the process.
* use of what it got: images/s over images/s of *ours* alone, divided by got over got of *ours* alone. 1 means that no
  processor time is lost to waiting.
* of its fair share: images/s over images/s of *ours* alone, divided by the fair share over T.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from fourstage.cores import WAITING_BY_USER, available_cores, busy_cores, set_waiting
from fourstage.files import write_text

RESULTS = Path(__file__).parent / "results" / "busy.jsonl"
POLICIES = ("ours", "passive", "own", "one")
SETTLE = 2.0  # seconds of a turn that do not count, in which threads find out whether cores are free
BATCH, SIZE = 64, 32  # images of a step, pixels
SHARES = ("use_of_what_it_got", "of_its_fair_share")
SPIN = "while True: pass"
Rounds = dict[str, list[dict[str, float]]]  # by policy: images, wall and cpu seconds of each round


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.worker:
        return work(args.threads, yielding=args.worker == "ours")
    before = busy_cores(1.0)
    with trainers(args.threads) as processes:
        every = {count: measure(processes, count, args.rounds, args.seconds) for count in args.beside}
    rows = [row for count in args.beside for row in summary(every, count, args.threads)]
    show(rows, every, before)
    if args.out:
        import torch

        from fourstage.bench.machine import machine

        about = {**machine(torch.device("cpu")), "threads": args.threads}
        content = [{**row, "busy_before": before, "machine": about} for row in rows]
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.out, "".join(json.dumps(row) + "\n" for row in content))
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--threads", type=int, default=min(2, available_cores()), help="of a training; default: up to 2")
    top.add_argument("--beside", type=int, nargs="+", default=[0, 1, 3], metavar="K", help="programs; default: 0 1 3")
    top.add_argument("--rounds", type=int, default=5, help="default: 5")
    top.add_argument("--seconds", type=float, default=2.0, help="of each training in a round; default: 2")
    top.add_argument("--out", type=Path, default=RESULTS, help="file for the records")
    top.add_argument("--worker", choices=POLICIES, help=argparse.SUPPRESS)
    return top


def work(threads: int, *, yielding: bool) -> int:
    """Train for as many seconds as each line of stdin says; print images, wall and processor seconds."""
    import torch
    import torch.nn.functional as F

    import fourstage
    from fourstage.engine.waiting import yielding_cores
    from fourstage.freed_memory import keep_all_freed_memory

    keep_all_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = fourstage.create_model("visformer_digits", num_classes=10).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    images_BCHW, labels_B = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images_BCHW), labels_B).backward()
        optimizer.step()

    def turn(seconds: float) -> tuple[int, float, float]:
        wall, cpu, images = time.monotonic(), time.process_time(), 0
        while not images or time.monotonic() - wall < seconds:
            step()
            images += BATCH
        return images, time.monotonic() - wall, time.process_time() - cpu

    with yielding_cores() if yielding else nullcontext():
        step()
        print("ready", flush=True)
        for line in sys.stdin:
            turn(min(SETTLE, float(line)))
            print(json.dumps(turn(float(line))), flush=True)
    return 0


@contextmanager
def trainers(threads: int) -> Generator[dict[str, subprocess.Popen[str]]]:
    """Yield a process for each policy, ready to train."""
    processes: dict[str, subprocess.Popen[str]] = {}
    try:
        for policy in POLICIES:
            words = [
                sys.executable,
                __file__,
                "--worker",
                policy,
                "--threads",
                "1" if policy == "one" else str(threads),
            ]
            processes[policy] = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(policy)
            )
        for process in processes.values():
            answer(process)
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def environment(policy: str) -> dict[str, str]:
    out = {name: value for name, value in os.environ.items() if name not in WAITING_BY_USER}
    if policy == "ours":
        set_waiting(out)
    elif policy == "passive":
        out["OMP_WAIT_POLICY"] = "PASSIVE"
    return out


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise ChildProcessError("a training process ended early; see above")
    return line


@contextmanager
def spinning(count: int) -> Generator[None]:
    """While entered, this many other programs keep processors busy."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        time.sleep(0.2 if count else 0)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(processes: Mapping[str, subprocess.Popen[str]], count: int, rounds: int, seconds: float) -> Rounds:
    """Let the processes take turns beside `count` spinning programs; the order is reversed from round to round."""
    found: Rounds = {policy: [] for policy in processes}
    with spinning(count):
        for number in range(rounds):
            for policy in list(processes)[:: -1 if number % 2 else 1]:
                process = processes[policy]
                assert process.stdin is not None
                process.stdin.write(f"{seconds}\n")
                process.stdin.flush()
                images, wall, cpu = json.loads(answer(process))
                found[policy].append({"images": images, "wall": wall, "cpu": cpu})
    return found


def rate(rounds: Sequence[Mapping[str, float]]) -> list[float]:
    return [one["images"] / one["wall"] for one in rounds]


def got(rounds: Sequence[Mapping[str, float]]) -> list[float]:
    return [one["cpu"] / one["wall"] for one in rounds]


def fair(threads: int, count: int, cores: int) -> float:
    """Return the processor seconds per second that a scheduler gives `threads` beside `count` equal ones."""
    return min(threads, cores * threads / (threads + count))


def summary(every: Mapping[int, Rounds], count: int, threads: int) -> list[dict[str, Any]]:
    """Return a row for each policy beside `count` programs. Shares are None where nothing was measured alone."""
    rows = []
    for policy, rounds in every[count].items():
        row: dict[str, Any] = {
            "policy": policy, "beside": count, "threads": threads, "images_per_second": median(rate(rounds)),
            "quartiles": quantiles(rate(rounds), n=4)[::2] if len(rounds) > 1 else rate(rounds) * 2,
            "got": median(got(rounds)), "fair": fair(threads, count, available_cores()),
            "use_of_what_it_got": None, "of_its_fair_share": None, "rounds": rounds,
        }  # fmt: skip
        if alone := every.get(0, {}).get("ours"):
            speed = row["images_per_second"] / median(rate(alone))
            row["use_of_what_it_got"] = speed / (row["got"] / median(got(alone)))
            row["of_its_fair_share"] = speed / (row["fair"] / threads)
        rows.append(row)
    return rows


def show(rows: Sequence[Mapping[str, Any]], every: Mapping[int, Rounds], before: float | None) -> None:
    print("| beside | policy | images/s | got | fair share | use of what it got | of its fair share |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        low, high = row["quartiles"]
        shares = ["-" if row[name] is None else f"{row[name]:.2f}" for name in SHARES]
        speed = f"{row['images_per_second']:.0f} ({low:.0f} to {high:.0f})"
        cells = [str(row["beside"]), row["policy"], speed, f"{row['got']:.2f}", f"{row['fair']:.2f}", *shares]
        print(f"| {' | '.join(cells)} |")
    for count, rounds in every.items():
        ratios = [a / b for a, b in zip(*(rate(rounds[policy]) for policy in ("ours", "own")), strict=True)]
        print(f"beside {count}: ours over own {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    if before is not None and before > 0.2:
        print(f"Before the measurement, other programs kept {before:.1f} cores busy: 'alone' was not alone.")


if __name__ == "__main__":
    sys.exit(main())
