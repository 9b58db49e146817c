"""The table of a comparison as markdown, CSV, JSON and LaTeX."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from fourstage.analysis.comparison import ArmResult, Comparison, PairResult, Speed
from fourstage.analysis.paired import Interval
from fourstage.files import csv_cell
from fourstage.plurals import plural
from fourstage.report.arms.columns import column_table, flat_columns, similarity_table
from fourstage.report.number_format import NOTHING, duration, signed, significant

Row = Sequence[str]
TEX = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
       "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "\u2212": "$-$", "±": r"$\pm$", "\u202f": r"\,",
       "–": "--"}  # fmt: skip


def arm_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the head and one row for each arm: costs, speed, memory, and the metric. Unknown columns are left out."""
    columns: list[tuple[str, Callable[[ArmResult], str]]] = [
        ("arm", lambda arm: arm.name),
        (comparison.label, _mean),
        ("95 % interval", lambda arm: interval(Interval(arm.summary.low, arm.summary.high))),
        ("parameters", lambda arm: _millions(arm.parameters)),
        ("MACs", lambda arm: _macs(arm.macs)),
        ("images/s", lambda arm: _rate(arm.infer)),
        ("MiB", lambda arm: _memory(arm.infer)),
        ("training images/s", lambda arm: _rate(arm.train)),
        ("training MiB", lambda arm: _memory(arm.train)),
        ("training time", lambda arm: NOTHING if arm.hours is None else duration(3600 * arm.hours)),
        ("tuning", lambda arm: arm.tuning),
    ]
    rows = [[cell(arm) for _, cell in columns] for arm in comparison.arms]
    shown = [i for i in range(len(columns)) if any(row[i] != NOTHING for row in rows)]
    return [columns[i][0] for i in shown], [[row[i] for i in shown] for row in rows]


def seed_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the head and one row for each arm with its metric by seed."""
    head = ["arm", *(f"seed {seed}" for seed in comparison.seeds)]
    return head, [[arm.name, *(f"{value:.2f}" for value in arm.values)] for arm in comparison.arms]


def pair_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the head and one row for each pair: difference, its three intervals, p-values, P(A > B), verdict."""
    head = [f"against {comparison.pairs[0].reference}", "difference", "over seeds", "over images", "over both"]
    head += ["p, seeds", "Holm", "p, both", "Holm", "P(A > B)", "verdict"]
    rows = []
    for row in comparison.pairs:
        pair = row.pair
        rows.append(
            [
                row.arm,
                signed(pair.difference.mean),
                interval(Interval(pair.difference.low, pair.difference.high)),
                interval(pair.over_images),
                interval(pair.together),
                _p(pair.p),
                _p(pair.holm),
                _p(pair.p_together),
                _p(pair.holm_together),
                f"{pair.better.value:.2f} [{pair.better.low:.2f}, {pair.better.high:.2f}]",
                row.verdict.word,
            ]
        )
    return head, rows


def markdown(comparison: Comparison) -> str:
    """Return the complete result as markdown."""
    blocks = [
        f"# {_cell(comparison.title)}",
        f"{summary_line(comparison)}",
        _markdown_list(["**Warning:** " + _cell(text) + "." for text in comparison.warnings]),
        _markdown_list([_cell(row.sentence) for row in comparison.pairs]),
        _markdown_list([f"**Not ended, and not in the table:** {_cell(text)}." for text in comparison.missing]),
        _markdown_table(*arm_table(comparison)),
        _markdown_table(*seed_table(comparison)),
        _markdown_table(*pair_table(comparison)),
        *(_markdown_table(*one) for one in (column_table(comparison), similarity_table(comparison)) if one is not None),
        _markdown_list([_cell(text) + "." for text in comparison.remarks]),
        _markdown_table(["condition", "value"], [list(row) for row in comparison.conditions]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def summary_line(comparison: Comparison) -> str:
    """Return what was compared in one sentence."""
    images = f" on {plural(comparison.images, 'validation image')}" if comparison.images else ""
    seeds = plural(len(comparison.seeds), "seed")
    lower = "" if comparison.higher_is_better else ", lower is better"
    unit = " in per cent" if comparison.percent else ""
    return f"{comparison.label}{unit}{lower}; {seeds}{images}; mean ± standard deviation over seeds."


def csv_table(comparison: Comparison) -> str:
    """Return one row for each arm, with the numbers of its pair with the reference, unrounded."""
    by_arm = {row.arm: row for row in comparison.pairs}
    return _csv([_flat(arm, by_arm.get(arm.name), comparison) for arm in comparison.arms])


def csv_runs(comparison: Comparison) -> str:
    """Return one row for each run."""
    rows = list[dict[str, object]]()
    for arm in comparison.arms:
        for i, (seed, value, folder) in enumerate(zip(comparison.seeds, arm.values, arm.runs, strict=True)):
            columns = {column.key: column.values[i] for column in arm.columns if column.values}
            rows.append({"arm": arm.name, "seed": seed, comparison.metric: value, **columns, "folder": folder})
    return _csv(rows)


def json_table(comparison: Comparison) -> str:
    """Return every number of the comparison; what is unknown is null."""
    values = asdict(replace(comparison, pictures=None))
    del values["pictures"]  # arrays, which the page draws
    return json.dumps(_plain(values), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def latex(comparison: Comparison) -> str:
    """Return `tabular` environments, of arms, pairs, analyses and similarities, for a document with booktabs."""
    tables = (arm_table(comparison), pair_table(comparison), column_table(comparison), similarity_table(comparison))
    known = [_latex_table(*one) for one in tables if one is not None]
    return "\n\n".join([f"% {_tex(summary_line(comparison))}", *known]) + "\n"


def interval(one: Interval | None) -> str:
    """Return `[93.12, 95.30]`, or a dash where the interval is unknown."""
    if one is None or math.isnan(one.low):
        return NOTHING
    return f"[{one.low:.2f}, {one.high:.2f}]".replace("-", "\u2212")


def _mean(arm: ArmResult) -> str:
    spread = "" if math.isnan(arm.summary.sd) else f" ± {arm.summary.sd:.2f}"
    return f"{arm.summary.mean:.2f}{spread}"


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _millions(value: int | None) -> str:
    return NOTHING if value is None else f"{value / 1e6:.2f} M"


def _macs(value: int | None) -> str:
    if value is None:
        return NOTHING
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"


def _rate(speed: Speed | None) -> str:
    if speed is None:
        return NOTHING
    digits = f"{speed.median:.0f}" if speed.median >= 100 else significant(speed.median, 3)
    return f"{digits} ± {50 * (speed.high - speed.low) / speed.median:.0f} %"


def _memory(speed: Speed | None) -> str:
    return NOTHING if speed is None or speed.peak is None else f"{speed.peak / 2**20:.0f}"


def _flat(arm: ArmResult, row: PairResult | None, comparison: Comparison) -> dict[str, object]:
    values: dict[str, object] = {
        "arm": arm.name,
        "network": arm.network,
        "parameters": arm.parameters,
        "macs": arm.macs,
        "infer_images_per_second": arm.infer.median if arm.infer else None,
        "infer_peak_bytes": arm.infer.peak if arm.infer else None,
        "train_images_per_second": arm.train.median if arm.train else None,
        "train_peak_bytes": arm.train.peak if arm.train else None,
        "metric": comparison.metric,
        **{key: getattr(arm.summary, key) for key in ("mean", "sd", "low", "high", "count")},
        "hours": arm.hours,
        "tuning": arm.tuning,
        **flat_columns(arm.columns),
    }
    if row is None:
        return values
    pair = row.pair
    values |= {"reference": row.reference, "difference": pair.difference.mean}
    for name, one in (("seeds", pair.difference), ("images", pair.over_images), ("both", pair.together)):
        values |= {f"{name}_low": getattr(one, "low", None), f"{name}_high": getattr(one, "high", None)}
    values |= {"p": pair.p, "holm": pair.holm, "p_both": pair.p_together, "holm_both": pair.holm_together}
    return values | {"p_better": pair.better.value, "verdict": row.verdict.word, "sentence": row.sentence}


def _csv(rows: Sequence[dict[str, object]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _csv_value(value) for key, value in row.items()})
    return text.getvalue()


def _csv_value(value: object) -> object:
    if isinstance(value, str):
        return csv_cell(value)
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def _plain(value: object) -> object:
    """Return a value for JSON, which has no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _markdown_list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _markdown_table(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _tex(text: str) -> str:
    return re.sub("[" + re.escape("".join(TEX)) + "<>]", lambda found: TEX.get(found[0], f"${found[0]}$"), text)


def _latex_table(head: Row, rows: Sequence[Row]) -> str:
    lines = [r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule", _tex_row(head), r"\midrule"]
    return "\n".join([*lines, *map(_tex_row, rows), r"\bottomrule", r"\end{tabular}"])


def _tex_row(cells: Row) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"
