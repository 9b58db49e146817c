"""Compare our backbones with timm's and with the original code; torchvision's swin_t is the common baseline.

    python benchmarks/backbones.py [--models 'swin*'] [--threads 2] [--seconds 20] [--device cpu] [--cpu-time]

The members of a family, the same networks in timm and the baseline take turns in one run: inference and a training
step, batch 8, 224 pixels, float32, eager, unless options say otherwise. The original code is not run here. The table
below holds its speed as a multiple of the same baseline's under these conditions, because ratios carry over from
machine to machine where images per second do not. Each model adds a line to a file in benchmarks/results/.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fourstage.bench.machine import machine
from fourstage.bench.options import DEVICES, DTYPES, Options
from fourstage.bench.results import Result, append_jsonl, compare, line
from fourstage.bench.run import Progress, environment, measure, set_up
from fourstage.bench.timing import Spread, geometric_mean
from fourstage.bench.workloads import free_memory
from fourstage.progress import Bar

BASELINE = "torchvision/swin_t"
RESULTS = Path(__file__).parent / "results"
MODES = ("infer", "train")


@dataclass(frozen=True)
class Row:
    """A network of ours.

    Attributes:
        original: images per second of the original code as a multiple of the baseline's, in inference and in training:
            two CPU cores, float32, eager, batch 8, 224 pixels.
        peer: the same network in timm.
        peer_then: the same multiples of the peer, measured together with the original.
    """

    family: str
    model: str
    original: tuple[float, float]
    peer: str | None = None
    peer_then: tuple[float, float] | None = None


ROWS = (
    Row("swin", "swin_tiny", (0.99, 0.99), "timm/swin_tiny_patch4_window7_224", (1.00, 1.03)),
    Row("visformer", "visformer_tiny", (5.88, 4.88), "timm/visformer_tiny", (5.61, 4.61)),
    Row("visformer", "visformer_small", (1.78, 1.73), "timm/visformer_small", (1.77, 1.84)),
    Row("swin_visformer", "swin_visformer_tiny_v2", (4.24, 4.21)),
    Row("swin_visformer", "swin_visformer_small_v2", (1.48, 1.55)),
    Row("smt", "smt_tiny", (1.47, 1.52)),
    Row("smt", "smt_small", (0.84, 0.82)),
    Row("smt", "smt_base", (0.49, 0.45)),
    Row("scalable_vit", "scalable_vit_small", (1.04, 1.04)),
    Row("unified", "unified_convnext_tiny", (1.09, 0.98)),
    Row("unified", "unified_halo_tiny", (0.50, 0.64)),
    Row("unified", "unified_pvt_tiny", (0.97, 0.96)),
    Row("unified", "unified_swin_tiny", (0.89, 0.93)),
    Row("unified", "unified_dcn_v3_tiny", (0.52, 0.43)),
)


@dataclass(frozen=True)
class Verdict:
    """The comparisons of one row, by mode.

    Attributes:
        baseline: images per second as a multiple of the baseline's, round by round.
        original: the median of `baseline` over the original's; empty where the conditions differ from the table's.
        peer: images per second as a multiple of timm's.
        memory: peak memory as a multiple of timm's.
        drift: timm's multiple of the baseline now over its multiple then. Far from 1, this machine is of another
            type, and the original's figures are of little use here.
    """

    row: Row
    baseline: Mapping[str, Spread]
    original: Mapping[str, float]
    peer: Mapping[str, Spread]
    memory: Mapping[str, float]
    drift: Mapping[str, float]


def judge(row: Row, results: Mapping[str, Result], *, comparable: bool) -> Verdict:
    """Compare the results of one group, by name, as far as `row` is concerned."""
    beside_baseline = compare(results[row.model], results[BASELINE])
    beside_peer = compare(results[row.model], results[row.peer]) if row.peer else None
    peer_now = compare(results[row.peer], results[BASELINE]).speed if row.peer else {}
    return Verdict(
        row,
        beside_baseline.speed,
        _over(beside_baseline.speed, row.original if comparable else None),
        beside_peer.speed if beside_peer else {},
        beside_peer.peak if beside_peer else {},
        _over(peer_now, row.peer_then if comparable else None),
    )


def _over(now: Mapping[str, Spread], then: tuple[float, float] | None) -> dict[str, float]:
    """Return medians as multiples of earlier figures, by mode."""
    if then is None:
        return {}
    before: dict[str, float] = dict(zip(MODES, then, strict=True))
    return {mode: speed.median / before[mode] for mode, speed in now.items()}


def comparable(options: Options, device: str) -> bool:
    """Return whether the original's figures, which are of a CPU, were measured under these conditions."""
    default = options.dtype == "float32" and not (options.compile or options.channels_last)
    return device == "cpu" and default and options.batch_size == 8


def by_family(verdicts: Sequence[Verdict], mode: str) -> dict[str, float]:
    """Return ours over the original by family: the geometric mean of its members."""
    members: dict[str, list[float]] = {}
    for verdict in verdicts:
        if mode in verdict.original:
            members.setdefault(verdict.row.family, []).append(verdict.original[mode])
    return {family: geometric_mean(values) for family, values in members.items()}


# ------------------------------------------------------------------------------------------------- on the screen


def head(modes: Sequence[str]) -> list[str]:
    return [
        "model",
        *(text for mode in modes for text in (f"{mode} x baseline", "x original", "x timm", "MiB x timm")),
    ]


def cells(verdict: Verdict, modes: Sequence[str]) -> list[str]:
    out = [verdict.row.model]
    for mode in modes:
        out += [_spread(verdict.baseline.get(mode)), _number(verdict.original.get(mode))]
        out += [_spread(verdict.peer.get(mode)), _number(verdict.memory.get(mode))]
    return out


def _spread(value: Spread | None) -> str:
    return "-" if value is None else f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def summary(verdicts: Sequence[Verdict], modes: Sequence[str]) -> list[str]:
    """Return the lines that sum up the run."""
    out = []
    for mode in modes:
        families = by_family(verdicts, mode)
        if not families:
            continue
        mean = geometric_mean(list(families.values()))
        lowest = min((v for v in verdicts if mode in v.original), key=lambda v: v.original[mode])
        each = ", ".join(f"{family} {value:.2f}" for family, value in families.items())
        out.append(
            f"{mode}: {mean:.2f} times the original, geometric mean over families ({each}); "
            f"lowest {lowest.row.model} {lowest.original[mode]:.2f}"
        )
        drift = ", ".join(f"{v.row.peer} {v.drift[mode]:.2f}" for v in verdicts if mode in v.drift)
        out += [f"{mode}: timm's multiple of the baseline, now over then: {drift}"] if drift else []
    return out or ["The original's figures are of a CPU, float32, eager, batch 8; this run has none to compare with."]


def show(verdicts: Sequence[Verdict], modes: Sequence[str]) -> None:
    table = Table(*head(modes), box=None, pad_edge=False, header_style="bold")
    for verdict in verdicts:
        table.add_row(*cells(verdict, modes))
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width: cut nothing off
        console = Console(highlight=False, width=250)
    console.print(table)
    print("\n".join(["", *summary(verdicts, modes)]))


# ----------------------------------------------------------------------------------------------------- in a file


def lines(
    verdict: Verdict, results: Mapping[str, Result], options: Options, where: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the record of one row."""
    result = results[verdict.row.model]
    out = line(result, options, where, compare(result, results[BASELINE]))
    out["over_original"] = {mode: round(value, 3) for mode, value in verdict.original.items()}
    if verdict.row.peer:
        out["peer"] = verdict.row.peer
        out["over_peer"] = {mode: round(value.median, 3) for mode, value in verdict.peer.items()}
        out["peer_over_then"] = {mode: round(value, 3) for mode, value in verdict.drift.items()}
        out["peak_over_peer"] = {mode: round(value, 3) for mode, value in verdict.memory.items()}
    return out


def file_for(options: Options, where: Mapping[str, Any]) -> Path:
    """Return a file name that holds the device and the options."""
    words = [where["gpu"] or f"{where['cpu']} {where['threads']} threads", options.dtype]
    words += ["compiled"] * options.compile + ["channels last"] * options.channels_last
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(["backbones", *words]).lower()).strip("-")
    return RESULTS / f"{slug}.jsonl"


# ------------------------------------------------------------------------------------------------------- the run


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each family."""
    families = dict.fromkeys(row.family for row in rows)
    return [[row for row in rows if row.family == family] for family in families]


def models(rows: Sequence[Row]) -> list[str]:
    """Return the names that take turns: the baseline, then each of ours followed by its peer."""
    return [BASELINE, *(name for row in rows for name in (row.model, row.peer) if name)]


def run(rows: Sequence[Row], options: Options, out: Path | None, *, quiet: bool = False) -> list[Verdict]:
    """Measure the rows family by family; each family is written to the file before the next begins."""
    setting = set_up(options)
    verdicts: list[Verdict] = []
    with environment(options), Bar("backbones", total=1, show=not quiet) as bar:
        where = machine(setting.device)
        families = groups(rows)
        progress = Progress(bar, sum(len(models(family)) for family in families), len(options.modes()))
        for family in families:
            results = {result.model: result for result in measure(models(family), setting, progress)}
            free_memory(setting.device)
            same_conditions = comparable(options, setting.device.type)
            fresh = [judge(row, results, comparable=same_conditions) for row in family]
            verdicts += fresh
            path = out or file_for(options, where)
            path.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(path, [lines(verdict, results, options, where) for verdict in fresh])
    return verdicts


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument(
        "--models", default="*", metavar="PATTERN", help="wildcard on our names; default: all of the table"
    )
    top.add_argument("--device", choices=DEVICES, default="auto")
    top.add_argument("--threads", type=int, metavar="N")
    top.add_argument("--seconds", type=float, default=20.0, metavar="S", help="for each model and mode; default: 20")
    top.add_argument("--batch-size", type=int, default=8, metavar="N")
    top.add_argument("--dtype", choices=DTYPES, default="float32")
    top.add_argument("--channels-last", action="store_true")
    top.add_argument("--compile", action="store_true")
    top.add_argument("--inference-only", action="store_true", help="leave the training step out")
    top.add_argument("--cpu-time", action="store_true", help="count processor seconds, for a machine that is shared")
    top.add_argument("--out", type=Path, metavar="FILE", help="where lines go; default: a file in benchmarks/results")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    rows = [row for row in ROWS if fnmatchcase(row.model, args.models)]
    try:
        if not rows:
            raise ValueError(f"none of the table's models matches {args.models!r}: {', '.join(r.model for r in ROWS)}")
        options = Options(
            device=args.device,
            dtype=args.dtype,
            channels_last=args.channels_last,
            compile=args.compile,
            batch_size=args.batch_size,
            seconds=args.seconds,
            threads=args.threads,
            train=not args.inference_only,
            clock="cpu" if args.cpu_time else "wall",
        )
        show(run(rows, options, args.out), options.modes())
    except ValueError as error:
        print(f"backbones: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
