"""The report of one run: its sections in order, with style and script inlined."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from importlib.resources import files

from fourstage.report import classification, common, detection, segmentation
from fourstage.report.markup import Markup, tag
from fourstage.report.next_steps import next_steps
from fourstage.report.read import Run

Section = Callable[[Run], Markup | None]  # returns None where the run lacks the data for it

BEFORE: tuple[Section, ...] = (common.headline, common.curves, common.numbers)
AFTER: tuple[Section, ...] = (common.recipe, common.analyses, next_steps, common.own_data)
OF_TASK: dict[str, tuple[Section, ...]] = {
    "classification": (classification.confusion, classification.per_class, classification.predictions),
    "detection": (detection.precision_recall, detection.per_class, detection.predictions),
    "segmentation": (segmentation.per_class, segmentation.confused, segmentation.predictions),
}


def page(run: Run) -> str:
    """Return the complete page. It loads nothing from the network, and its security policy forbids that."""
    sections = [section(run) for section in (*BEFORE, *OF_TASK.get(run.task, ()), *AFTER)]
    return document(run.title, sections)


def document(title: str, sections: Sequence[Markup | None]) -> str:
    """Return a page of these sections."""
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} – fourstage"),
        tag("style", Markup(_file("style.css"))),
    )
    body = tag("body", tag("main", *sections), tag("script", Markup(script)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _file(name: str) -> str:
    return files("fourstage.report").joinpath(name).read_text(encoding="utf-8")
