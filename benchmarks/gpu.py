"""Use a GPU for a few minutes: tests first, then tables. JSON lines and a page remain, also when time runs out.

    make gpu MINUTES=8                  what the Makefile runs: benchmarks/gpu.py --minutes 8
    benchmarks/gpu.py --device cpu --tiny --minutes 3        the script as a test of itself

Every step is a process of its own, which is stopped when its time is over; what it wrote until then counts. A step
for which too little time is left does not start, and the page lists it. The page is rewritten after each step.
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fourstage.bench.machine import machine
from fourstage.files import write_text

ROOT = Path(__file__).parents[1]
LEAST = 10.0  # seconds that a step needs to be worth its start
GRACE = 5.0  # seconds between the request to stop and the kill
YARDSTICK = "timm/swin_tiny_patch4_window7_224"
NETWORKS = (
    "swin_tiny", "smt_tiny", "scalable_vit_small", "visformer_small", "swin_visformer_tiny_v2", "unified_halo_tiny",
    "unified_pvt_tiny", "unified_swin_tiny", "unified_convnext_tiny", "unified_dcn_v3_tiny", "unified_pvt_v2_tiny",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A command with a share of the time.

    Attributes:
        share: of the time, relative to the other steps. What a step leaves over is there for the next ones.
    """

    name: str
    command: tuple[str, ...]
    share: float
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """How a step ended: "passed", "failed", "cut short" or "left out"."""

    name: str
    status: str
    seconds: float


def steps(device: str, out: Path, *, tiny: bool) -> list[Step]:
    """Return the tests and the tables, the most telling first."""
    python = sys.executable
    tests = (python, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-o", "addopts=", "-p", "no:cacheprovider")
    where = {
        "FOURSTAGE_TEST_DEVICE": device,
        "FOURSTAGE_TEST_TINY": "1" if tiny else "0",
        "FOURSTAGE_TEST_LOG": str(out / "tests.jsonl"),
    }
    networks = ("visformer_digits",) if tiny else NETWORKS
    seconds = "0.2" if tiny else "3"
    bench = (python, "-m", "fourstage", "bench", *networks, "--device", device, "--seconds", seconds)
    size = ("--img-size", "32", "--batch-size", "2") if tiny else ("--against", YARDSTICK)
    half = ("--dtype", "bfloat16")
    tables = {
        "bfloat16, channels last": ("--train", *half, "--channels-last"),
        "float32": ("--train",),
        "bfloat16, compiled": (*half, "--compile"),
    }
    rows = [
        Step(f"table: {name}", (*bench, *size, *more, "--jsonl", str(out / "tables.jsonl")), 0.15)
        for name, more in tables.items()
        if not (tiny and "compiled" in name)
    ]
    sampling = (python, "benchmarks/sampling.py", "--device", device, "--out", str(out / "sampling.jsonl"))
    rows.insert(1, Step("table: sampling", (*sampling, *(["--tiny"] if tiny else [])), 0.05))
    return [Step("tests", tests, 0.5, where), *rows]


def run(step: Step, out: Path, seconds: float) -> Outcome:
    """Run a step for at most `seconds`; what it prints goes to a file in `out`."""
    started = time.monotonic()
    log = out / f"{step.name.replace(': ', '-').replace(', ', '-').replace(' ', '-')}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **step.environment}
    with log.open("wb") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = "passed" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "cut short"
        finally:
            _end(process)
    return Outcome(step.name, status, time.monotonic() - started)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and all that it started."""
    for name in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, name)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue


# ------------------------------------------------------------------------------------------------------ the page


def page(about: Mapping[str, Any], outcomes: Sequence[Outcome], out: Path) -> str:
    """Return the results so far as Markdown."""
    parts = ["# Tests and speed on a device", ""]
    parts += [f"- {name}: {value}" for name, value in about.items() if value is not None]
    parts += ["", "## Steps", "", *_table(("step", "ended", "seconds"), map(_outcome_row, outcomes))]
    parts += ["", "## Tests", "", *_tests(_read(out / "tests.jsonl"))]
    parts += ["", "## Networks", "", *_networks(_read(out / "tables.jsonl"))]
    parts += ["", "## Deformable sampling", "", *_sampling(_read(out / "sampling.jsonl"))]
    return "\n".join(parts) + "\n"


def _outcome_row(outcome: Outcome) -> tuple[str, ...]:
    return outcome.name, outcome.status, f"{outcome.seconds:.0f}"


def _tests(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["No test has ended."]
    counts = {name: sum(line["outcome"] == name for line in lines) for name in ("passed", "failed", "skipped")}
    failed = [line for line in lines if line["outcome"] == "failed"]
    text = [", ".join(f"{count} {name}" for name, count in counts.items()) + "."]
    if failed:
        rows = ((line["test"].removeprefix("tests/gpu/"), line["reason"].replace("|", "/")[:160]) for line in failed)
        text += ["", *_table(("failed", "reason"), rows)]
    return text


def _networks(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    def number(line: Mapping[str, Any], key: str) -> str:
        value = line.get(key)
        return f"{value:,.1f}" if isinstance(value, int | float) else "–"

    keys = ("infer_samples_per_sec", "train_samples_per_sec", "infer_peak_mib", "train_peak_mib", "infer_gmacs")
    head = ("network", "dtype", "layout", "compiled", "images/s", "trained/s", "MiB", "MiB training", "GMAC")
    rows = (
        (
            str(line["model"]),
            line["options"]["dtype"],
            "NHWC" if line["options"]["channels_last"] else "NCHW",
            "yes" if line["options"]["compile"] else "no",
            *(number(line, key) for key in keys),
        )
        for line in lines
    )
    return _table(head, rows) if lines else ["No network has been measured."]


def _sampling(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    if not lines:
        return ["Sampling has not been measured."]
    head = ("form", "dtype", "forward, ms", "with backward, ms", "GB/s of the least traffic")
    rows = (
        (
            line["form"],
            line["dtype"],
            f"{line['forward_ms']:.3f}",
            "–" if line["backward_ms"] is None else f"{line['backward_ms']:.3f}",
            f"{line['gigabytes_per_second']:.0f}",
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


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: torch sees no GPU; try --device cpu --tiny, which tests the script itself", file=sys.stderr)
        return 2
    start = time.monotonic()
    about = machine(torch.device(args.device))
    name = re.sub("[^a-z0-9]+", "-", f"gpu {about['gpu'] or about['cpu'] or 'cpu'} {about['date']}".lower())
    out: Path = (args.out or ROOT / "benchmarks" / "results" / name).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        print(f"gpu.py: {out} exists and is not an empty folder; give --out a new one", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    planned = steps(args.device, out, tiny=args.tiny)
    seconds, shares = 60 * args.minutes - GRACE, sum(step.share for step in planned)
    for i, step in enumerate(planned, start=1):
        end = start + seconds * sum(step.share for step in planned[:i]) / shares
        left = end - time.monotonic()
        outcomes.append(run(step, out, left) if left >= LEAST else Outcome(step.name, "left out", 0.0))
        print(f"{outcomes[-1].name}: {outcomes[-1].status} after {outcomes[-1].seconds:.0f} s", flush=True)
        write_text(out / "page.md", page(about, outcomes, out))
    print(f"The page is {out / 'page.md'}.")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
