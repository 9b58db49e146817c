"""Use a GPU for a few minutes: tests first, then tables. JSON lines and a page remain, also when time runs out.

    make gpu MINUTES=8                  what the Makefile runs: benchmarks/gpu.py --minutes 8
    benchmarks/gpu.py --device cpu --tiny --minutes 3        the script as a test of itself

Every step is a process of its own, which is stopped when its time is over; what it wrote until then counts. The groups
of tests run at the same time, so that one that hangs costs no other one. A step for which too little time is left does
not start, and the page lists it. The page is rewritten every few seconds.
"""

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fourstage.bench.machine import machine
from fourstage.files import write_text

ROOT = Path(__file__).parents[1]
LEAST = 10.0  # seconds that a step needs to be worth its start
GRACE = 5.0  # seconds between the request to stop and the kill
REFRESH = 10.0  # seconds from page to page, so that a kill costs little
POLL = 0.2  # seconds between two looks at the running processes
LONGEST_TEST = 0.6  # share of the tests' time that one test may take
KEPT = 2**18  # characters of a step's output that the log keeps, from its end
GROUPS = ("sampling", "networks", "training", "runs", "compiled")  # of tests: files tests/gpu/test_gpu_*.py
USED = ("pytest", "pytest_timeout", "pydantic", "yaml", "rich", "timm", "PIL", "cv2", "scipy", "triton")

TABLES = {"gpu_peak": "peak", "sampling": "sampling", "gpu_tasks": "tasks beside torchvision", "gpu_loader": "loader"}


@dataclass(frozen=True)
class Step:
    """A command that is a process of its own."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """Steps that run at the same time.

    Attributes:
        share: of the time, relative to the other turns. What a turn leaves over is there for the next ones.
    """

    steps: tuple[Step, ...]
    share: float


@dataclass
class Outcome:
    """How a step ended: "passed", "failed", "cut short", "stopped" or "left out"; "running" if it has not."""

    name: str
    status: str
    seconds: float


def turns(device: str, out: Path, seconds: float, *, tiny: bool) -> list[Turn]:
    """Return the tests and the tables, the most telling first.

    Args:
        seconds: for everything.
    """
    python = sys.executable
    size = ("--tiny",) if tiny else ()
    short = ("--seconds", "0.1") if tiny else ("--seconds", "1")

    def table(name: str, script: str, share: float, *more: str) -> Turn:
        words = (python, f"benchmarks/{script}.py", "--device", device, *size, *more)
        return Turn((Step(f"table: {name}", (*words, "--out", str(out / f"{script}.jsonl"))),), share)

    def own(script: str, share: float, *more: str) -> Turn:
        return table(TABLES[script], script, share, *more)

    half = ("--dtype", "bfloat16")
    rows = [
        own("gpu_peak", 0.04),
        table("bfloat16, channels last", "gpu_networks", 0.18, "--train", *half, "--channels-last", *short),
        own("sampling", 0.08),
        own("gpu_tasks", 0.14, *short),
        table("float32", "gpu_networks", 0.12, "--train", *short),
        own("gpu_loader", 0.07, *(("--images", "16", "--workers", "1", *short) if tiny else ("--seconds", "2"))),
        table("bfloat16, compiled", "gpu_networks", 0.12, *half, "--compile", *short),
    ]
    rows, share = rows[:-1] if tiny else rows, 0.37
    longest = LONGEST_TEST * seconds * share / (share + sum(row.share for row in rows))
    return [Turn(tuple(tests(name, device, out, longest, tiny=tiny) for name in GROUPS), share), *rows]


def tests(name: str, device: str, out: Path, longest: float, *, tiny: bool) -> Step:
    """Return the step of a group of tests, each of which may take `longest` seconds."""
    command = (
        sys.executable, "-m", "pytest", f"tests/gpu/test_gpu_{name}.py", "-m", "gpu", "-q", "-o", "addopts=",
        "-p", "no:cacheprovider", "-o", f"timeout={max(1, round(longest))}",
        "-W", "default",  # a library may warn of the device, such as Inductor of products that are not in TF32
    )  # fmt: skip
    where = {
        "FOURSTAGE_TEST_DEVICE": device,
        "FOURSTAGE_TEST_TINY": "1" if tiny else "0",
        "FOURSTAGE_TEST_LOG": str(out / "tests.jsonl"),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(GROUPS))),
    }
    return Step(f"tests: {name}", command, where)


def run(
    steps: Sequence[Step],
    outcomes: Sequence[Outcome],
    logs: Path,
    seconds: float,
    show: Callable[[Sequence[Outcome]], None],
) -> None:
    """Run steps at the same time, for at most `seconds`.

    Args:
        outcomes: of the steps, which are kept up to date.
        logs: a folder for what each step prints.
        show: is called with the outcomes again and again.
    """
    started, shown = time.monotonic(), -math.inf
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for step, outcome in zip(steps, outcomes, strict=True):
            processes.append(_start(step, logs))
            outcome.status = "running"
        while any(outcome.status == "running" for outcome in outcomes):
            taken = time.monotonic() - started
            for process, outcome in zip(processes, outcomes, strict=True):
                if outcome.status == "running":
                    code, outcome.seconds = process.poll(), taken
                    late = "cut short" if taken > seconds else "running"
                    outcome.status = late if code is None else "passed" if code == 0 else "failed"
            if taken > shown + REFRESH:
                show(outcomes)
                shown = taken
            time.sleep(POLL)
    except (KeyboardInterrupt, SystemExit):
        for outcome in outcomes:
            outcome.status = "stopped" if outcome.status == "running" else outcome.status
        raise
    finally:
        _end(processes)


def _start(step: Step, logs: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    with (logs / f"{len(list(logs.iterdir())):02} {step.name}").open("wb") as file:
        return subprocess.Popen(
            step.command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **step.environment},
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def _end(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Stop processes and all that they started."""
    left = list(processes)
    for name in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, name)
        end = time.monotonic() + GRACE
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))


def log_of(logs: Path) -> str:
    """Return what the steps printed, one after the other."""
    files = sorted(logs.iterdir())
    return "\n".join(
        f"===== {path.name.partition(' ')[2]}\n{path.read_text(errors='replace')[-KEPT:]}" for path in files
    )


# ------------------------------------------------------------------------------------------------------ the page


def page(about: Mapping[str, Any], outcomes: Sequence[Outcome], out: Path) -> str:
    """Return the results so far as Markdown."""
    parts = ["# Tests and speed on a device", ""]
    parts += [f"- {name}: {value}" for name, value in about.items() if value is not None]
    parts += ["", "## Steps", "", *_table(("step", "ended", "seconds"), map(_outcome_row, outcomes))]
    parts += ["", "## Tests", "", *_tests(_read(out / "tests.jsonl"))]
    peak = _read(out / "gpu_peak.jsonl")
    parts += ["", "## Peak", "", *_peak(peak)]
    parts += ["", "## Networks", "", *_networks(_read(out / "gpu_networks.jsonl"), peak)]
    parts += ["", "## Detection and segmentation beside torchvision", "", *_tasks(_read(out / "gpu_tasks.jsonl"))]
    parts += ["", "## The loader feeding the device", "", *_loader(_read(out / "gpu_loader.jsonl"))]
    parts += ["", "## Deformable sampling", "", *_sampling(_read(out / "sampling.jsonl"))]
    return "\n".join(parts) + "\n"


def _outcome_row(outcome: Outcome) -> tuple[str, ...]:
    return outcome.name, outcome.status, f"{outcome.seconds:.0f}"


def _tests(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["No test has begun."]
    ended = {line["test"]: line for line in lines if line["outcome"] in ("passed", "failed", "skipped")}
    begun = {line["test"]: line for line in lines if line["outcome"] == "begun"}
    counts = {name: sum(x["outcome"] == name for x in ended.values()) for name in ("passed", "failed", "skipped")}
    planned = sum(line["count"] for line in lines if line["outcome"] == "planned")
    text = [", ".join(f"{count} {name}" for name, count in counts.items()) + f", of {planned}."]
    rows = [(_short(x), x["outcome"], x["reason"]) for x in ended.values() if x["outcome"] == "failed"]
    rows += [(_short(x), "not ended", "it ran when its process ended or was stopped, or runs now")
             for name, x in begun.items() if name not in ended]  # fmt: skip
    if rows:
        text += ["", *_table(("test", "how it ended", "reason"), [tuple(map(_cell, row)) for row in rows])]
    reasons = Counter(x["reason"] for x in ended.values() if x["outcome"] == "skipped")
    if reasons:
        text += ["", *_table(("skipped", "reason"), [(str(n), _cell(reason)) for reason, n in reasons.items()])]
    return text


def _short(line: Mapping[str, Any]) -> str:
    return line["test"].removeprefix("tests/gpu/")


def _cell(text: str) -> str:
    return text.replace("|", "/")[:200]


def _number(value: object, digits: int = 1) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else "–"


def _peak(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["Nothing has been measured."]
    head = ("products of large matrices, and copies", "reached")
    rows = ((line["what"], f"{_number(line.get('value'))} {line.get('unit', line.get('error', ''))}") for line in lines)
    return _table(head, rows)


def _networks(lines: Sequence[Mapping[str, Any]], peak: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["No network has been measured."]
    best = {line["what"]: line["value"] for line in peak if "value" in line}
    keys = ("infer_samples_per_sec", "train_samples_per_sec", "infer_peak_mib", "train_peak_mib", "infer_gmacs")
    head = ("network", "dtype", "layout", "compiled", "images/s", "trained/s", "MiB", "MiB training", "GMAC")
    rows = (
        (
            f"{line['model']}: failed, {line['error']}".replace("|", "/")[:160] if "error" in line else line["model"],
            line["options"]["dtype"],
            "NHWC" if line["options"]["channels_last"] else "NCHW",
            "yes" if line["options"]["compile"] else "no",
            *(_number(line.get(key)) for key in keys),
            *_shares(line, best.get(line["options"]["dtype"])),
        )
        for line in lines
    )
    notes = (
        "Shares are the arithmetic of products (two operations a multiply-accumulate, three passes in training) over"
        " the peak of the same type above. PyTorch lets convolutions in float32 use TF32, which can pass the peak of"
        " float32."
    )
    return [*_table((*head, "% of peak", "% training"), rows), "", notes]


def _shares(line: Mapping[str, Any], teraflops: float | None) -> tuple[str, str]:
    """Return the per cents of the peak in inference and training."""
    gmacs = line.get("infer_gmacs")
    if teraflops is None or gmacs is None:
        return "–", "–"
    passes = {"infer_samples_per_sec": 1, "train_samples_per_sec": 3}
    shares = [(line.get(key), count) for key, count in passes.items()]
    found = [None if rate is None else 100 * rate * count * 2 * gmacs / 1e3 / teraflops for rate, count in shares]
    return _number(found[0]), _number(found[1])


def _tasks(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["No task has been measured."]
    head = ("group", "network", "step", "dtype", "images/s", "ms a step", "MiB of a step")
    rows = (
        (
            line["group"],
            line.get("network", f"failed: {line.get('error', '')[:120]}").replace("|", "/"),
            line["mode"],
            line["dtype"],
            _number(line.get("images_per_second")),
            _number(1e3 * line["seconds"] if "seconds" in line else None),
            _number(line.get("step_mib"), 0),
        )
        for line in lines
    )
    notes = (
        "Networks of a group have the same backbone and images and take turns. torchvision's Mask R-CNN pastes masks in"
        " inference and ours is timed to the detections; torchvision's FCN reads the map at stride 32 alone, so it is"
        " another network than UPerNet and Semantic FPN."
    )
    return [*_table(head, rows), "", notes]


def _loader(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["The loader has not been measured."]
    head = ("transform", "loader alone, images/s", "step alone", "both", "% of the slower one", "batch", "workers")
    return _table(head, map(_loader_row, lines))


def _loader_row(line: Mapping[str, Any]) -> tuple[str, ...]:
    if "error" in line:
        return line["transform"], f"failed: {line['error'][:120]}".replace("|", "/"), *["–"] * 5
    rates = [line[key] for key in ("loader", "step", "both")]
    share = 100 * rates[2] / min(rates[:2])
    return line["transform"], *map(_number, rates), _number(share), str(line["batch"]), str(line["workers"])


def _sampling(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["Sampling has not been measured."]
    head = ("work", "form", "dtype", "forward, ms", "with backward, ms", "GB/s of the least traffic")
    rows = (
        (
            line["work"],
            f"{line['form']}: failed, {line['failed'][:120]}".replace("|", "/") if "failed" in line else line["form"],
            line["dtype"],
            _number(line.get("forward_ms"), 3),
            _number(line.get("backward_ms"), 3),
            _number(line.get("gigabytes_per_second"), 0),
        )
        for line in lines
    )
    return _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that another process may be writing to."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def minutes(text: str) -> float:
    """Return the number of minutes that an option gives."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"the time is a number of minutes above 0, such as 8; got {text!r}")
    return value


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--minutes", type=minutes, default=8.0, help="for everything; default: 8")
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    top.add_argument("--tiny", action="store_true", help="the first case of each test, and a small table")
    top.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder; default: one in benchmarks/results")
    return top


def _stop(number: int, frame: object) -> None:
    """End as after Ctrl-C: the running step is stopped, and the page says so."""
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: torch sees no GPU; try --device cpu --tiny, which tests the script itself", file=sys.stderr)
        return 2
    start = time.monotonic()
    about = dict(machine(torch.device(args.device)))
    name = re.sub("[^a-z0-9]+", "-", f"gpu {about['gpu'] or about['cpu'] or 'cpu'} {about['date']}".lower())
    out: Path = (args.out or ROOT / "benchmarks" / "results" / name).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        print(f"gpu.py: {out} exists and is not an empty folder; give --out a new one", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    about["missing packages"] = ", ".join(name for name in USED if find_spec(name) is None) or None
    signal.signal(signal.SIGTERM, _stop)
    seconds = 60 * args.minutes - GRACE
    outcomes: list[Outcome] = []
    with TemporaryDirectory() as logs:

        def show(now: Sequence[Outcome]) -> None:
            write_text(out / "page.md", page(about, [*outcomes, *now], out))
            write_text(out / "steps.log", log_of(Path(logs)))

        planned = turns(args.device, out, seconds, tiny=args.tiny)
        _take_turns(planned, Path(logs), start, seconds, outcomes, show)
    print(f"The page is {out / 'page.md'}.")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def _take_turns(
    planned: Sequence[Turn],
    logs: Path,
    start: float,
    seconds: float,
    outcomes: list[Outcome],
    show: Callable[[Sequence[Outcome]], None],
) -> None:
    """Run all turns within `seconds` from `start`; add how their steps ended to `outcomes`."""
    shares = sum(turn.share for turn in planned)
    for i, turn in enumerate(planned, start=1):
        end = start + seconds * sum(turn.share for turn in planned[:i]) / shares
        now = [Outcome(step.name, "left out", 0.0) for step in turn.steps]
        try:
            if (left := end - time.monotonic()) >= LEAST:
                run(turn.steps, now, logs, left, show)
        finally:
            outcomes += now
            show([])
        for outcome in now:
            print(f"{outcome.name}: {outcome.status} after {outcome.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
