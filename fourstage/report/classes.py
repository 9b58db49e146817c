"""Tables of classes with bars, the worst class first; every task uses them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from fourstage.plurals import plural
from fourstage.report.common import section
from fourstage.report.markup import Markup, tag

Row = TypeVar("Row")


def bar(share: float, class_: str = "bar") -> Markup:
    """Return a horizontal bar; `share` is from 0 to 1."""
    return tag(
        "span", tag("i", style=f"width:{100 * min(max(share, 0.0), 1.0):.1f}%"), class_=class_, aria_hidden="true"
    )


def omitted_classes(absent: int, why: str) -> Markup | None:
    """Return a sentence on classes that have no row; None where there is no such class."""
    return tag("p", f"{plural(absent, 'class', 'classes')} {why}.", class_="quiet") if absent else None


def class_section(
    quantity: str,
    rows: Sequence[Row],
    bars: Callable[[Sequence[Row], str], Markup],
    *,
    visible: int,
    note: str = "",
    missing: Markup | None,
) -> Markup:
    """Return a section with a table of classes.

    Args:
        quantity: heading of the section, such as "Accuracy".
        rows: one per class, the worst first.
        bars: returns the table of some rows with a caption.
        visible: rows before the others are folded.
        note: follows the sentence on the order.
        missing: from `omitted_classes`.
    """
    folded = None
    if len(rows) > visible + 5:  # a few rows more do not need to be folded
        summary = tag("summary", f"The other {plural(len(rows) - visible, 'class', 'classes')}")
        folded = tag("details", summary, bars(rows[visible:], f"{quantity} of the other classes"))
        rows = rows[:visible]
    order = tag("p", f"The worst class comes first. {note}".strip(), class_="quiet")
    return section("classes", f"{quantity} by class", order, bars(rows, f"{quantity} by class"), folded, missing)
