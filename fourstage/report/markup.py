"""HTML as values. Plain strings are escaped when they enter a tag; only `Markup` goes in as it is."""

import html
import re
from collections.abc import Iterable

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # what HTML or UTF-8 forbids
VOID = {"img", "meta", "circle", "line", "path"}  # have no content; SVG ones are closed by a slash


class Markup(str):
    """Text that is HTML already."""


def escape(text: object) -> Markup:
    """Any value as text that shows itself: in content and in quoted attributes alike."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(CONTROL.sub("\ufffd", str(text)), quote=True))


def tag(name_: str, *children: object, **attributes: object) -> Markup:
    """One element. `class_` gives class, `data_x` gives data-x; an attribute that is None is left out.

    The children are escaped unless they are `Markup`; None is nothing.
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = name_ + "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    if name_ in VOID:
        assert not children, f"<{name_}> holds nothing"
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(children)}</{name_}>")


def join(children: Iterable[object], between: str = "") -> Markup:
    return Markup(between.join(escape(child) for child in children if child is not None))


def name(text: object) -> Markup:
    """A name that came with the data. Isolated, so that right-to-left letters do not reorder what stands beside it.

    A long one may be cut by the style; then the pointer shows it in full.
    """
    return tag("bdi", text, title=text if len(str(text)) > 12 else None)


def table(head: Iterable[object], rows: Iterable[Iterable[object]], *, caption: str, class_: str = "") -> Markup:
    """A table whose first column heads its rows. `caption` is read aloud, and seen where the style shows it."""
    heading = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = []
    for first, *rest in rows:
        body.append(tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)))
    parts = tag("caption", caption), tag("thead", heading), tag("tbody", *body)
    return tag(
        "div",
        tag("table", *parts, class_=class_ or None),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )
