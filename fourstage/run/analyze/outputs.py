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
    return paths


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
