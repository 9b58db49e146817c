"""HTML as values: a tag escapes plain strings and inserts only `Markup` unchanged."""

import html
import re
from collections.abc import Callable, Iterable, Sequence

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # HTML or UTF-8 forbid these
VOID = {"img", "meta", "circle", "line", "path"}  # elements without content


class Markup(str):
    """A string of HTML."""


def escape(text: object) -> Markup:
    """Return any value as HTML text, safe in content and in quoted attributes."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(CONTROL.sub("\ufffd", str(text)), quote=True))


def tag(name_: str, *children: object, **attributes: object) -> Markup:
    """Return one element. `class_` gives class, `data_x` gives data-x; an attribute that is None is left out.

    Children are escaped unless they are `Markup`; a child that is None is left out.
    """
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items() if value is not None)
    opening = name_ + "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    if name_ in VOID:
        assert not children, f"<{name_}> holds nothing"
        return Markup(f"<{opening}/>")
    return Markup(f"<{opening}>{join(children)}</{name_}>")


def join(children: Iterable[object], between: str = "") -> Markup:
    """Return the children, escaped and joined, without those that are None."""
    return Markup(between.join(escape(child) for child in children if child is not None))


def name(text: object) -> Markup:
    """Return a name from the data in a <bdi>, so that right-to-left letters do not reorder the text beside it.

    The style may cut a long name; its tooltip holds the complete name.
    """
    return tag("bdi", text, title=text if len(str(text)) > 12 else None)


def shortened(names: Sequence[str], most: int) -> list[str]:
    """Return names of at most `most` letters that stay different: cut at the end, in the middle, or at the beginning.

    Names that no cut keeps apart are numbered.
    """
    half = most // 2
    cuts: list[Callable[[str], str]] = [
        lambda one: f"{one[: most - 1]}…",
        lambda one: f"{one[:half]}…{one[half + 1 - most :]}",
        lambda one: f"…{one[1 - most :]}",
    ]
    for cut in cuts:
        short = [one if len(one) <= most else cut(one) for one in names]
        if len(set(short)) == len(set(names)):
            return short
    return [f"{i}: {one}"[:most] for i, one in enumerate(names, 1)]


def table(head: Iterable[object], rows: Iterable[Iterable[object]], *, caption: str, class_: str = "") -> Markup:
    """Return a table whose first column holds the row headers; screen readers read `caption` aloud."""
    heading = tag("tr", *(tag("th", cell, scope="col") for cell in head))
    body = []
    for first, *rest in rows:
        body.append(tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)))
    content = tag("caption", caption), tag("thead", heading), tag("tbody", *body)
    return tag(
        "div",
        tag("table", *content, class_=class_ or None),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )
