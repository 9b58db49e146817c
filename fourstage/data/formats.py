"""Which data set lies behind a name or a folder. A format more is a line more in the table."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fourstage.data.coco import Coco, is_coco
from fourstage.data.digit_scenes import cached_digit_scenes
from fourstage.data.digits import Digits
from fourstage.data.imagefolder import ImageFolder, is_imagefolder
from fourstage.data.sample import Dataset

Split = Literal["train", "val"]
Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Format:
    """A layout of folders that is recognised by looking at it."""

    name: str
    layout: str  # how it looks, for the sentence that lists what is known
    fits: Callable[[Path], bool]
    open: Callable[[Path, Split], Dataset]


FORMATS = (  # the first that fits is taken; the more particular come first
    Format("COCO", "annotations/instances_train*.json, or train/_annotations.coco.json", is_coco, Coco),
    Format("ImageFolder", "train/<class>/*.jpg, or <class>/*.jpg", is_imagefolder, ImageFolder),
)


def open_dataset(data: str | Path, split: Split, *, progress: Progress | None = None) -> Dataset:
    """Open one split.

    Args:
        data: `digits`, `digit_scenes`, or a folder. The names win over folders of that name, which are `./digits`.
        progress: called with (done, total) while `digit_scenes` are made, which happens once.

    Raises:
        ValueError: there is no such folder, no known layout fits, or the data is broken; one sentence.
    """
    if str(data) == "digits":
        return Digits(split)
    if str(data) == "digit_scenes":
        data = cached_digit_scenes(progress)
    root = Path(data)
    return find_format(root).open(root, split)


def find_format(root: Path) -> Format:
    """The layout of a folder. Raises ValueError when there is no folder, or none fits."""
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}: give the folder of a data set, or one of the names digits and digit_scenes")
    for format in FORMATS:
        if format.fits(root):
            return format
    known = "; ".join(f"{format.name} ({format.layout})" for format in FORMATS)
    raise ValueError(f"{root} {_content(root)}, which is no layout that is known{_nearby(root)}: {known}")


def _content(root: Path) -> str:
    entries = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    folders = [path.name for path in entries if path.is_dir()]
    kinds = Counter(path.suffix.lower() or "no ending" for path in entries if path.is_file())
    shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
    parts = [f"the folders {shown}"] if folders else []
    if kinds:
        parts.append(
            f"{kinds.total():,} file{'s' * (kinds.total() > 1)} ({', '.join(kind for kind, _ in kinds.most_common(3))})"
        )
    return f"holds {' and '.join(parts)}" if parts else "is empty"


def _nearby(root: Path) -> str:
    """Archives often unpack into one folder more than expected."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if any(format.fits(folder) for format in FORMATS):
            return f" (did you mean {folder}?)"
    return ""
