"""What an analysis writes: arrays, a table and a page, in one folder."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fourstage.files import csv_cell, write_file, write_text
from fourstage.predict.outputs import make_folder
from fourstage.recipe.resolve import RUN_RECIPE
from fourstage.report import render_report

INSIDE = "analysis"  # folder within that of a run


@dataclass(frozen=True)
class Outcome:
    """What the command line prints of an analysis.

    Attributes:
        head, rows: a table for 80 columns.
        notes: sentences below it.
        files: what was written.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = field(default=())


def check_folder(out: str | Path) -> Path:
    """Return the folder for results, before anything heavy starts. Raises ValueError where it cannot be one."""
    if not str(out):
        raise ValueError("--out is empty; give a folder for the results")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --out")
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{folder} cannot be written; choose another --out")
    return folder


def write(
    folder: Path,
    what: str,
    *,
    arrays: Mapping[str, np.ndarray],
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    page: str,
) -> tuple[Path, ...]:
    """Write `WHAT.npz`, `WHAT.csv` and `WHAT.html` into a folder, each under its name when it is complete."""
    make_folder(folder)
    paths = tuple(folder / f"{what}{ending}" for ending in (".npz", ".csv", ".html"))
    write_file(paths[0], lambda file: np.savez_compressed(file, **arrays))  # pyright: ignore[reportArgumentType]
    write_text(paths[1], as_csv(columns, rows))
    write_text(paths[2], page)
    _link_in_report(folder)
    return paths


def default_folder(what: str, first: str | Path) -> Path:
    """Return where results go unless the user says it: into the folder of a run, if that is the first network."""
    is_run = (Path(first) / RUN_RECIPE).is_file()
    return (Path(first) if is_run else Path()) / INSIDE / what


def _link_in_report(folder: Path) -> None:
    """Write the report of a run again, with a link to the new page, where the results are in its folder."""
    if folder.parent.name != INSIDE:
        return
    run = folder.parent.parent
    if (run / RUN_RECIPE).is_file() and (run / "report.html").is_file():
        write_text(run / "report.html", render_report(run))


def with_interval(value: float, low: float, high: float, form: str) -> str:
    """Return `80 [77, 82]`; the value alone where there is no interval, as of a single image."""
    shown = format(value, form)
    return shown if np.isnan(low) else f"{shown} [{format(low, form)}, {format(high, form)}]"


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as CSV; numbers in full, NaN and None as empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def _cell(value: object) -> object:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    if isinstance(value, float | np.floating):
        return f"{float(value):.10g}"
    return csv_cell(value) if isinstance(value, str) else value
