"""What came out: on the screen, as CSV with timm's column names, as JSON lines."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fourstage.bench.count import Count, side
from fourstage.bench.machine import machine
from fourstage.bench.options import Options
from fourstage.bench.timing import Spread, quantile, ratio, spread
from fourstage.engine.devices import choose_device

WORDS = {"infer": "inference", "train": "training"}
TIMM_COLUMNS = (
    "model",
    *(f"infer_{key}" for key in ("samples_per_sec", "step_time", "batch_size", "img_size", "gmacs", "macts")),
    *(f"train_{key}" for key in ("samples_per_sec", "step_time", "batch_size", "img_size")),
    "param_count",
)
MORE_COLUMNS = ("infer_latency_p50", "infer_latency_p95", "infer_peak_mib", "train_peak_mib")


@dataclass(frozen=True)
class Speed:
    """One mode of one model."""

    batch: int
    rates: tuple[float, ...]  # images per second, round by round
    peak: int | None  # bytes

    @property
    def rate(self) -> Spread:
        return spread(self.rates)

    @property
    def step_ms(self) -> float:
        return 1000 * self.batch / self.rate.median


@dataclass(frozen=True)
class Result:
    """One model, measured in rounds with the others of its group.

    Attributes:
        speeds: by mode, "infer" and perhaps "train".
        latencies: seconds of single images.
        notes: what did not go as asked.
    """

    model: str
    count: Count
    speeds: Mapping[str, Speed]
    latencies: tuple[float, ...]
    notes: tuple[str, ...] = field(default=())

    def latency_ms(self, share: float) -> float:
        return 1000 * quantile(self.latencies, share)

    def against(self, other: "Result", mode: str) -> Spread:
        """Images per second as a multiple of those of another model of the same group, round by round."""
        return ratio(self.speeds[mode].rates, other.speeds[mode].rates)


@dataclass(frozen=True)
class Comparison:
    """A model beside the one that it is measured against."""

    model: str
    against: str
    speed: Mapping[str, Spread]  # by mode: images per second, as a multiple
    peak: Mapping[str, float]  # by mode: bytes for one image of the batch, as a multiple; only where both are known


def compare(result: Result, other: Result) -> Comparison:
    speed = {mode: result.against(other, mode) for mode in result.speeds}
    peak = {}
    for mode, one in result.speeds.items():
        its = other.speeds[mode]
        if one.peak and its.peak and one.batch == its.batch:  # at another batch it would say nothing
            peak[mode] = one.peak / its.peak
    return Comparison(result.model, other.model, speed, peak)


# --------------------------------------------------------------------------------------------------- on the screen


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Head and rows for a person. Half of the rounds lie within the per cents after ±."""
    head = ["model", "", "images/s", "± %", "batch", "MiB", "p50 ms", "p95 ms", "M params", "G MACs", "px"]
    return head, [row for result in results for row in _rows(result)]


def _rows(result: Result) -> list[list[str]]:
    cost = result.count
    costs = [f"{cost.parameters / 1e6:.2f}", f"{cost.macs / 1e9:.2f}", side(cost.size)]
    latencies = [_digits(result.latency_ms(share)) for share in (0.5, 0.95)]
    rows = []
    for mode, speed in result.speeds.items():
        rate, peak = speed.rate, "-" if speed.peak is None else f"{speed.peak / 2**20:.0f}"
        around = f"{50 * (rate.high - rate.low) / rate.median:.1f}"
        row = [result.model, WORDS[mode], _digits(rate.median), around, str(speed.batch), peak]
        rows.append(row + (latencies if mode == "infer" else ["", ""]) + costs)
    return rows


def _digits(value: float) -> str:
    """Four digits that count, never in powers of ten."""
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def sentence(comparison: Comparison) -> str:
    """The comparison in a line."""
    parts = []
    for mode, speed in comparison.speed.items():
        part = f"{WORDS[mode]} {speed.median:.2f} times as fast ({speed.low:.2f} to {speed.high:.2f})"
        if mode in comparison.peak:
            part += f" with {comparison.peak[mode]:.2f} times the memory"
        parts.append(part)
    return f"{comparison.model} against {comparison.against}: " + "; ".join(parts)


# ------------------------------------------------------------------------------------------------------- in files


def record(result: Result) -> dict[str, Any]:
    """One flat row; columns that timm's result files have too bear their names."""
    cost = result.count
    row: dict[str, Any] = {"model": result.model}
    for mode, speed in result.speeds.items():
        row[f"{mode}_samples_per_sec"] = round(speed.rate.median, 2)
        row[f"{mode}_step_time"] = round(speed.step_ms, 3)
        row[f"{mode}_batch_size"] = speed.batch
        row[f"{mode}_img_size"] = int(side(cost.size)) if cost.size[0] == cost.size[1] else side(cost.size)
        row[f"{mode}_peak_mib"] = None if speed.peak is None else round(speed.peak / 2**20, 1)
    row["infer_gmacs"] = round(cost.macs / 1e9, 2)
    row["infer_macts"] = round(cost.activations / 1e6, 2)
    row["infer_latency_p50"] = round(result.latency_ms(0.5), 3)
    row["infer_latency_p95"] = round(result.latency_ms(0.95), 3)
    row["param_count"] = round(cost.parameters / 1e6, 2)
    return row


def write_csv(path: Path, results: Sequence[Result]) -> None:
    """Timm's columns, then ours; those of a mode that nobody measured are left out."""
    rows = [record(result) for result in results]
    columns = [column for column in (*TIMM_COLUMNS, *MORE_COLUMNS) if any(column in row for row in rows)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def line(
    result: Result, options: Options, where: Mapping[str, Any], comparison: Comparison | None = None
) -> dict[str, Any]:
    """All that is known of a result: the row, exact counts, every round, the comparison, options and machine."""
    row = record(result)
    row["counts"] = asdict(result.count)
    row["rounds"] = {mode: [round(rate, 3) for rate in speed.rates] for mode, speed in result.speeds.items()}
    if result.notes:
        row["notes"] = list(result.notes)
    if comparison is not None:
        row["against"] = comparison.against
        row["ratio"] = {
            mode: {key: round(value, 4) for key, value in asdict(speed).items()}
            for mode, speed in comparison.speed.items()
        }
        row["peak_ratio"] = {mode: round(value, 4) for mode, value in comparison.peak.items()}
    return {**row, "options": asdict(options), "machine": dict(where)}


class Files:
    """Where results go while they come in: what was measured is safe when a later model fails."""

    def __init__(self, options: Options, csv: Path | None = None, jsonl: Path | None = None) -> None:
        self.options, self.csv, self.jsonl = options, csv, jsonl
        self.results: list[Result] = []
        self.machine: dict[str, Any] = {}

    def add(self, found: Sequence[Result], compared: Mapping[str, Comparison]) -> None:
        """What one group gave; `compared` by name."""
        self.machine = machine(choose_device(self.options.device))
        self.results += found
        if self.jsonl is not None:
            append_jsonl(self.jsonl, [line(r, self.options, self.machine, compared.get(r.model)) for r in found])
        if self.csv is not None:
            write_csv(self.csv, self.results)

    def conditions(self) -> str:
        """What the numbers were measured on, in a line."""
        options, where = self.options, self.machine
        words = [
            where["gpu"] or f"{where['cpu']}, {where['threads']} threads",
            f"torch {where['torch']}",
            options.dtype,
        ]
        words += ["channels-last"] * options.channels_last + ["compiled"] * options.compile + ["dense"] * options.dense
        words += ["processor time"] if options.clock == "cpu" else []
        return ", ".join(words)


def append_jsonl(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """One line each, after what the file holds."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
