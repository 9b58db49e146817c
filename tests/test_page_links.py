"""Links of the pages lead to files and headings that exist, and options in their text are those of a command."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fourstage.cli.entry import parser

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted(ROOT.glob("docs/*.md"))]
OF_OTHERS = {"docs/clusters.md": {"--max-restarts", "--nnodes"}}  # options of torchrun
HISTORY = ("CHANGELOG.md", "log.md")  # name what is no longer there
THEIRS = "coming-from.md"  # names options of other repositories


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def options(top: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the options of a parser and of all verbs below it."""
    for action in top._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from options(verb)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_options_on_the_pages_exist() -> None:
    known = set(options(parser()))
    for page in PAGES:
        if page.name not in (*HISTORY, THEIRS):
            named = set(re.findall(r"`(--[a-z][a-z-]+)", page.read_text()))
            unknown = named - known - OF_OTHERS.get(str(page.relative_to(ROOT)), set())
            assert not unknown, f"{page.name}: {sorted(unknown)}"
