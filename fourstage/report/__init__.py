"""Run folders as pages and pictures. Importing this costs nothing; the work is imported when it is asked for."""

from collections.abc import Sequence
from pathlib import Path


def render_together(runs: "Sequence[str | Path]") -> str:
    """Several run folders on one page; see `render_report`."""
    from fourstage.report.several_runs import together

    return together(runs)


def render_report(run: str | Path) -> str:
    """The report of a run folder as one HTML page that needs no network and opens by double click.

    Whatever the folder lacks (a run that stopped early has no evaluation), the report says so instead.

    Args:
        run: the folder that `fourstage train` wrote; only its `recipe.yaml` must be there.

    Raises:
        ValueError: the folder is not a run folder, or one of its files is damaged.
    """
    from fourstage.report.page import page
    from fourstage.report.read import read_run

    return page(read_run(Path(run)))
