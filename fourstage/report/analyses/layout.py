"""What the pages of all analyses share."""

from collections.abc import Iterable, Sequence

from fourstage.report.markup import Markup, tag
from fourstage.report.page import document


def analysis_page(title: str, lede: str, sections: Sequence[Markup | None]) -> str:
    """Return a self-contained page with a heading, one sentence on the images, and the sections of an analysis."""
    brand = tag("p", "fourstage", tag("span", " analysis", class_="quiet"), class_="brand")
    head = tag("header", brand, tag("h1", title), tag("p", lede, class_="lede"))
    return document(title, [head, *sections])


def section(title: str, *children: object) -> Markup:
    return tag("section", tag("h2", title), *children)


def figure(drawing: object, title: object, *lines: object) -> Markup:
    """Return a drawing with its title above it and quiet lines below the title."""
    caption = tag("figcaption", tag("b", title), *(tag("span", line, class_="quiet") for line in lines))
    return tag("figure", caption, drawing)


def panels(figures: Iterable[Markup], *, wide: bool = False) -> Markup:
    """Return figures side by side, as many in a row as fit; wide ones at most two."""
    return tag("div", *figures, class_="panels wide" if wide else "panels")


def notes(sentences: Iterable[str]) -> Markup:
    """Return a list of remarks on how to read the figures."""
    return tag("ul", *(tag("li", sentence) for sentence in sentences), class_="notes")
