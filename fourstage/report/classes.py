"""What every task's results of single classes are shown with: tables of bars, the worst first."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from fourstage.report.common import section
from fourstage.report.markup import Markup, tag
from fourstage.report.words import plural

Row = TypeVar("Row")


def bar(share: float, class_: str = "bar") -> Markup:
    return tag(
        "span", tag("i", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%"), class_=class_, aria_hidden="true"
    )


def left_out(absent: int, why: str) -> Markup | None:
    """So many classes have no row."""
    return tag("p", f"{plural(absent, 'class', 'classes')} {why}.", class_="quiet") if absent else None


def worst_first(
    what: str,
    rows: Sequence[Row],
    bars: Callable[[Sequence[Row], str], Markup],
    *,
    most: int,
    note: str = "",
    missing: Markup | None,
) -> Markup:
    """A section with a table of classes.

    Args:
        what: is told of each class, such as "Accuracy".
        rows: the worst first.
        bars: the table of some rows with a caption.
        most: rows before the rest is folded.
        note: follows what is said of the order.
        missing: from `left_out`.
    """
    folded = None
    if len(rows) > most + 5:  # folding away a handful would only hide them
        summary = tag("summary", f"The other {plural(len(rows) - most, 'class', 'classes')}")
        folded = tag("details", summary, bars(rows[most:], f"{what} of the other classes"))
        rows = rows[:most]
    order = tag("p", f"The worst first. {note}".strip(), class_="quiet")
    return section("classes", f"{what} by class", order, bars(rows, f"{what} by class"), folded, missing)
