"""Use a GPU for a few minutes: tests first, then tables. JSON lines and a page remain, also when time runs out.

    make gpu MINUTES=8                  what the Makefile runs: benchmarks/gpu.py --minutes 8
    benchmarks/gpu.py --device cpu --tiny --minutes 3        the script as a test of itself

Every step is a process of its own, which is stopped when its time is over; what it wrote until then counts. A step
for which too little time is left does not start, and the page lists it. The page is rewritten every few seconds.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fourstage.bench.machine import machine
from fourstage.files import write_text

ROOT = Path(__file__).parents[1]
LEAST = 10.0  # seconds that a step needs to be worth its start
GRACE = 5.0  # seconds between the request to stop and the kill
REFRESH = 10.0  # seconds from page to page, so that a kill costs little
YARDSTICK = "timm/swin_tiny_patch4_window7_224"
NETWORKS = (
    "swin_tiny", "smt_tiny", "scalable_vit_small", "visformer_small", "swin_visformer_tiny_v2", "unified_halo_tiny",
    "unified_pvt_tiny", "unified_swin_tiny", "unified_convnext_tiny", "unified_dcn_v3_tiny", "unified_pvt_v2_tiny",
)  # fmt: skip

TABLES = {"gpu_peak": "peak", "sampling": "sampling", "gpu_tasks": "tasks beside torchvision", "gpu_loader": "loader"}


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
    """How a step ended: "passed", "failed", "cut short", "stopped" or "left out"; "running" if it has not."""

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

    def script(name: str, share: float, *more: str) -> Step:
        words = (python, f"benchmarks/{name}.py", "--device", device, *(["--tiny"] if tiny else []), *more)
        return Step(f"table: {TABLES[name]}", (*words, "--out", str(out / f"{name}.jsonl")), share)

    def table(name: str, share: float, *more: str) -> Step:
        return Step(f"table: {name}", (*bench, *size, *more, "--jsonl", str(out / "tables.jsonl")), share)

    short = ("--seconds", "0.1") if tiny else ()
    rows = [
        script("gpu_peak", 0.03),
        table("bfloat16, channels last", 0.14, "--train", *half, "--channels-last"),
        script("sampling", 0.08),
        script("gpu_tasks", 0.14, *short),
        table("float32", 0.11, "--train"),
        script("gpu_loader", 0.06, *short, *(["--images", "16", "--workers", "1"] if tiny else [])),
        table("bfloat16, compiled", 0.12, *half, "--compile"),
    ]
    return [Step("tests", tests, 0.4, where), *(rows[:-1] if tiny else rows)]


def run(step: Step, out: Path, seconds: float, refresh: Callable[[], None]) -> Outcome:
    """Run a step for at most `seconds`; what it prints goes to a file in `out`. Call `refresh` again and again."""
    started = time.monotonic()
    log = out / f"{step.name.replace(': ', '-').replace(', ', '-').replace(' ', '-')}.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **step.environment}
    with log.open("wb") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        status = "cut short"
        try:
            while (left := started + seconds - time.monotonic()) > 0:
                with suppress(subprocess.TimeoutExpired):
                    status = "passed" if process.wait(min(REFRESH, left)) == 0 else "failed"
                    break
                refresh()
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
    peak = _read(out / "gpu_peak.jsonl")
    parts += ["", "## Peak", "", *_peak(peak)]
    parts += ["", "## Networks", "", *_networks(_read(out / "tables.jsonl"), peak)]
    parts += ["", "## Detection and segmentation beside torchvision", "", *_tasks(_read(out / "gpu_tasks.jsonl"))]
    parts += ["", "## The loader feeding the device", "", *_loader(_read(out / "gpu_loader.jsonl"))]
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
            str(line["model"]),
            line["options"]["dtype"],
            "NHWC" if line["options"]["channels_last"] else "NCHW",
            "yes" if line["options"]["compile"] else "no",
            *(_number(line.get(key)) for key in keys),
            *_shares(line, best.get(line["options"]["dtype"])),
        )
        for line in lines
    )
    note = "Shares are the arithmetic of products (two operations a multiply-accumulate, three passes in training) over"
    return [*_table((*head, "% of peak", "% training"), rows), "", f"{note} the peak of the same type above."]


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
    about = machine(torch.device(args.device))
    name = re.sub("[^a-z0-9]+", "-", f"gpu {about['gpu'] or about['cpu'] or 'cpu'} {about['date']}".lower())
    out: Path = (args.out or ROOT / "benchmarks" / "results" / name).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        print(f"gpu.py: {out} exists and is not an empty folder; give --out a new one", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []

    def show(*more: Outcome) -> None:
        write_text(out / "page.md", page(about, [*outcomes, *more], out))

    signal.signal(signal.SIGTERM, _stop)
    planned = steps(args.device, out, tiny=args.tiny)
    seconds, shares = 60 * args.minutes - GRACE, sum(step.share for step in planned)
    for i, step in enumerate(planned, start=1):
        end = start + seconds * sum(step.share for step in planned[:i]) / shares
        begun = time.monotonic()

        def now(name: str = step.name, begun: float = begun) -> Outcome:
            return Outcome(name, "running", time.monotonic() - begun)

        show(now())
        outcome = Outcome(step.name, "left out", 0.0)
        try:
            if (left := end - begun) >= LEAST:
                outcome = run(step, out, left, lambda now=now: show(now()))
        except (KeyboardInterrupt, SystemExit):
            outcome = Outcome(step.name, "stopped", time.monotonic() - begun)
            raise
        finally:
            outcomes.append(outcome)
            show()
        print(f"{outcome.name}: {outcome.status} after {outcome.seconds:.0f} s", flush=True)
    print(f"The page is {out / 'page.md'}.")
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
