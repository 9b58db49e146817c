"""Run folders as pages and pictures. Importing this costs nothing; the work is imported when it is asked for."""

from pathlib import Path


def write_report(run: str | Path) -> Path:
    """Write `report.html` into a run folder: one file that needs no network and opens by double click.

    Whatever the folder lacks (a run that stopped early has no evaluation), the report says so instead.

    Args:
        run: the folder that `fourstage train` wrote; only its `recipe.yaml` must be there.

    Returns:
        The path of the report. A reader never sees half of one: it is written aside and renamed.

    Raises:
        ValueError: the folder is not a run folder, or one of its files is damaged.
    """
    from fourstage.report.page import write

    return write(Path(run))
