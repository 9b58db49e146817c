"""`fourstage data check`: what is wrong with a data set, by the checker of its format."""

from pathlib import Path
from time import perf_counter

from fourstage.data.checks.training import with_refusals
from fourstage.data.embedded.digit_scenes import cached_digit_scenes
from fourstage.data.embedded.digits import Digits
from fourstage.data.findings import Checked, Finding, SplitSummary, Summary, render
from fourstage.data.formats import Format, all_formats, find_format
from fourstage.data.limits import TEXT_BYTES, other_encoding
from fourstage.data.sample import Progress, Truth
from fourstage.files import read_bytes

NAME_LISTS = ("classes.txt", "labels.txt", "labelmap.txt", "obj.names", "data.yml")

__all__ = ["Checked", "Finding", "Summary", "check", "render"]


def check(data: str | Path, progress: Progress | None = None, truth: Truth | None = None) -> Checked:
    """Read all of a data set and return what is wrong with it.

    Args:
        data: what `open_dataset` takes.
        progress: called with (images done, images in all).
        truth: how a folder is read that could be read in several ways; see `open_dataset`. None: as boxes and as label
            maps, where it has both.

    Returns:
        Findings, in the order in which they were met, and a summary. Data without a finding of severity "error" trains.

    Raises:
        ValueError: there is no such folder, no known layout fits, or its format has no checker.
    """
    started, progress = perf_counter(), progress or (lambda done, total: None)
    if str(data) == "digits":
        checked = _check_digits(progress)
    else:
        data = cached_digit_scenes() if str(data) == "digit_scenes" else data
        format = find_format(data, truth)
        checked = _of_format(format, data, progress)
        for other in _others(Path(data), format) if truth is None else ():
            checked = _merged(checked, _of_format(other, data, progress))
        checked = Checked([*checked.findings, *_encodings(Path(data))], checked.summary)
    checked.summary.seconds = perf_counter() - started
    return checked


def _of_format(format: Format, data: str | Path, progress: Progress) -> Checked:
    """Return what the checker of a format finds, and what training would refuse beside it."""
    findings, summary = format.checker()(format.place(data), progress)
    return Checked(with_refusals(data, format.truth, _notes_once(findings)), summary)


def _notes_once(findings: list[Finding]) -> list[Finding]:
    """Return the findings with each note once: both splits of one file have the same notes."""
    notes = dict.fromkeys(one for one in findings if one.severity == "note")
    return [one for one in findings if one.severity != "note" or notes.pop(one, False) is None]


def _encodings(root: Path) -> list[Finding]:
    """Return a note for each list of names that is not UTF-8: letters beyond English may be read wrongly."""
    paths = [root / name for name in NAME_LISTS] + sorted(root.glob("*.yaml"))[:10] if root.is_dir() else []
    do = "save it as UTF-8, if names look wrong"
    return [
        Finding("note", "text that is not UTF-8", str(path), f"is read as {encoding}", do)
        for path in paths
        if path.is_file() and (encoding := _encoding(path))
    ]


def _encoding(path: Path) -> str:
    """Return the encoding of a text that is not UTF-8; empty also for a file that cannot be a list of names."""
    try:
        return other_encoding(read_bytes(path, TEXT_BYTES))
    except (OSError, ValueError):
        return ""


def _others(root: Path, first: Format) -> list[Format]:
    """Return the other format of a folder that holds both boxes and label maps, if it can be checked."""
    if first.truth == "label":
        return []
    others = [one for one in all_formats() if one.truth not in ("label", first.truth) and one.check is not None]
    return [one for one in others if one.fits_folder(root)][:1]


def _merged(one: Checked, other: Checked) -> Checked:
    """Return both; a finding about an image is kept once."""
    one.summary.also.append(other.summary)
    return Checked(list(dict.fromkeys([*one.findings, *other.findings])), one.summary)


def _check_digits(progress: Progress) -> Checked:
    """Return the summary of the embedded data, in which nothing is wrong."""
    summary = Summary("digits")
    for split in ("train", "val"):
        dataset = Digits(split)
        sizes = [dataset.sample(index).original_size for index in range(len(dataset))]
        counts = SplitSummary(images=len(dataset), sizes=sizes)
        counts.per_class.update(dataset.classes[label] for label in dataset.labels_N)
        summary.splits[split] = counts
    total = sum(split.images for split in summary.splits.values())
    progress(total, total)
    return Checked([], summary)
