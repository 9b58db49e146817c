"""The report card as text of 80 columns."""

from collections.abc import Iterator, Sequence
from textwrap import wrap

from fourstage.check.card import Card, Line
from fourstage.check.figures import Figures

WIDTH = 80
NAME, STATUS = 20, 6  # columns
MARKS = {"pass": "pass", "warn": "WARN", "fail": "FAIL", "skip": "-"}
HEAD = ("", "M", "MACs", "ms", "ms", "MiB", "field", "stays", "top-1")
UNDER = ("", "param.", "M", "infer", "train", "kept", "px", "%", "%")


def render(card: Card) -> str:
    """Return the lines of the card, the table of networks, and the sum."""
    parts = [f"{card.name}, a {card.kind}", *(text for line in card.lines for text in _line(line))]
    if card.table:
        parts += ["", *_table(list(card.table.values()))]
    return "\n".join([*parts, "", _sum(card)])


def _line(line: Line) -> Iterator[str]:
    finding = line.finding
    begin = f"{line.name:<{NAME}}{MARKS[finding.status]:<{STATUS}}"
    yield from wrap(finding.found, WIDTH, initial_indent=begin, subsequent_indent=" " * (NAME + STATUS))
    if finding.advice:
        indent = " " * (NAME + STATUS)
        yield from wrap(f"-> {finding.advice}", WIDTH, initial_indent=indent, subsequent_indent=f"{indent}   ")


def _table(rows: Sequence[Figures]) -> Iterator[str]:
    for cells in (HEAD, UNDER, *map(_cells, rows)):
        first, *others = cells
        yield f"{first[: NAME - 1]:<{NAME}}" + "".join(f"{cell:>7}" for cell in others)


def _cells(row: Figures) -> tuple[str, ...]:
    return (
        row.name,
        _number(None if row.parameters is None else row.parameters / 1e6, 2),
        _number(None if row.macs is None else row.macs / 1e6, 1),
        _number(row.infer_ms, 2),
        _number(row.train_ms, 2),
        _number(row.kept_mib, 2),
        _number(row.field_px, 1),
        _number(row.consistent, 0),
        _number(row.top1, 0),
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _sum(card: Card) -> str:
    counts = {status: card.count(status) for status in ("pass", "warn", "fail", "skip")}
    text = f"{counts['pass']} passed, {counts['warn']} warned, {counts['fail']} failed"
    return f"{text}, {counts['skip']} not tried" if counts["skip"] else text
