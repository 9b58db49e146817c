"""Results of measurements: printed as a table, written as CSV with timm's column names and as JSON lines."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fourstage.bench.count import Count
from fourstage.bench.machine import machine
from fourstage.bench.model_table import side
from fourstage.bench.options import Options
from fourstage.bench.timing import Spread, quantile, ratio, spread
from fourstage.engine.devices import choose_device
from fourstage.files import csv_cell, write_text
from fourstage.plurals import plural

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
    """The throughput of one model in one mode."""

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
    """The measurements of one model, taken in rounds with the other models of its group.

    Attributes:
        speeds: by mode: "infer", and "train" where it was measured.
        latencies: seconds of single images.
        notes: sentences on what was measured otherwise than requested, such as a smaller batch.
    """

    model: str
    count: Count
    speeds: Mapping[str, Speed]
    latencies: tuple[float, ...]
    notes: tuple[str, ...] = field(default=())

    def latency_ms(self, share: float) -> float:
        return 1000 * quantile(self.latencies, share)

    def against(self, other: "Result", mode: str) -> Spread:
        """Return images per second as a multiple of another model's of the same group, round by round."""
        return ratio(self.speeds[mode].rates, other.speeds[mode].rates)


@dataclass(frozen=True)
class Comparison:
    """A model's speed and memory as multiples of its baseline's."""

    model: str
    against: str
    speed: Mapping[str, Spread]  # by mode: images per second, as a multiple
    peak: Mapping[str, float]  # by mode: bytes for one image of the batch, as a multiple; only where both are known


def compare(result: Result, other: Result) -> Comparison:
    """Return the comparison of two results of the same group; memory is compared only at the same batch."""
    speed = {mode: result.against(other, mode) for mode in result.speeds}
    peak = {}
    for mode, one in result.speeds.items():
        its = other.speeds[mode]
        if one.peak and its.peak and one.batch == its.batch:
            peak[mode] = one.peak / its.peak
    return Comparison(result.model, other.model, speed, peak)


# ----------------------------------------------------------------------------------------------- the printed table


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of the printed table. The column ± holds half the range of the quartiles."""
    head = ["model", "", "images/s", "± %", "batch", "MiB", "p50 ms", "p95 ms", "M params", "G MACs", "px"]
    return head, [row for result in results for row in _rows(result)]


def _rows(result: Result) -> list[list[str]]:
    cost = result.count
    known = cost.parameters > 0  # not of an exported file
    costs = [f"{cost.parameters / 1e6:.2f}" if known else "-", f"{cost.macs / 1e9:.2f}" if known else "-"]
    costs.append(side(cost.size))
    latencies = [_digits(result.latency_ms(share)) for share in (0.5, 0.95)]
    rows = []
    for mode, speed in result.speeds.items():
        rate, peak = speed.rate, "-" if speed.peak is None else f"{speed.peak / 2**20:.0f}"
        around = f"{50 * (rate.high - rate.low) / rate.median:.1f}"
        row = [result.model, WORDS[mode], _digits(rate.median), around, str(speed.batch), peak]
        rows.append(row + (latencies if mode == "infer" else ["", ""]) + costs)
    return rows


def _digits(value: float) -> str:
    """Format with four significant digits, never with a power of ten."""
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def sentence(comparison: Comparison) -> str:
    """Return the comparison as one line of text."""
    clauses = []
    for mode, speed in comparison.speed.items():
        clause = f"{WORDS[mode]} {speed.median:.2f} times as fast ({speed.low:.2f} to {speed.high:.2f})"
        if mode in comparison.peak:
            clause += f" with {comparison.peak[mode]:.2f} times the memory"
        clauses.append(clause)
    return f"{comparison.model} against {comparison.against}: " + "; ".join(clauses)


# ------------------------------------------------------------------------------------------------------- in files


def record(result: Result) -> dict[str, Any]:
    """Return one flat row; columns that timm's result files also have keep timm's names."""
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
    """Write timm's columns, then ours, without those of a mode that was not measured."""
    rows = [record(result) for result in results]
    rows = [{key: csv_cell(one) if isinstance(one, str) else one for key, one in row.items()} for row in rows]
    columns = [column for column in (*TIMM_COLUMNS, *MORE_COLUMNS) if any(column in row for row in rows)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def line(
    result: Result, options: Options, where: Mapping[str, Any], comparison: Comparison | None = None
) -> dict[str, Any]:
    """Return a complete record of a result: row, exact counts, every round, comparison, options and machine."""
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
    """Result files that are written after each group, so that a later failure loses nothing."""

    def __init__(self, options: Options, csv: Path | None = None, jsonl: Path | None = None) -> None:
        self.options, self.csv, self.jsonl = options, csv, jsonl
        self.results: list[Result] = []
        self.machine: dict[str, Any] = {}

    def add(self, fresh: Sequence[Result], compared: Mapping[str, Comparison]) -> None:
        """Write the results of one group and their comparisons by model name."""
        self.machine = machine(choose_device(self.options.device))
        self.results += fresh
        if self.jsonl is not None:
            append_jsonl(self.jsonl, [line(r, self.options, self.machine, compared.get(r.model)) for r in fresh])
        if self.csv is not None:
            write_csv(self.csv, self.results)

    def conditions(self) -> str:
        """Return device, versions and options of the measurement as one line of text."""
        options, where = self.options, self.machine
        words = [
            where["gpu"] or f"{where['cpu']}, {plural(where['threads'], 'thread')}",
            f"torch {where['torch']}",
            options.dtype,
        ]
        words += ["channels-last"] * options.channels_last + ["compiled"] * options.compile + ["dense"] * options.dense
        words += ["processor time"] if options.clock == "cpu" else []
        return ", ".join(words)


def append_jsonl(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Append one JSON line for each record to the file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in lines)
