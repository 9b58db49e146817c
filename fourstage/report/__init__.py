"""Run folders as HTML pages and pictures. The functions import their modules when they are called."""

from collections.abc import Sequence
from pathlib import Path


def render_comparison(runs: Sequence[str | Path]) -> str:
    """Return one HTML page for several run folders; see `render_report`."""
    from fourstage.report.comparison_page import comparison_page

    return comparison_page(runs)


def render_report(run: str | Path) -> str:
    """Return the report of a run folder as one HTML page that needs no network.

    Where a file of the folder is missing (a run that stopped early has no evaluation), the report says so.

    Args:
        run: the folder that `fourstage train` wrote; only its `recipe.yaml` is required.

    Raises:
        ValueError: the folder is not a run folder, or one of its files is damaged.
    """
    from fourstage.report.page import page
    from fourstage.report.read import damage, read_run

    with damage(Path(run)):  # what only the page reads may be damaged too
        return page(read_run(Path(run)))
