"""The images and videos that `fourstage predict` is given, and the names of what it writes for them."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path

from fourstage.data.images import is_image_name
from fourstage.data.walk import all_files
from fourstage.files import real_path
from fourstage.predict.images import is_address, is_other_address
from fourstage.predict.videos import is_video_name

LABELS = "_labels"  # ending of the names of pictures whose pixels are labels
ENDINGS = ("", LABELS)


@dataclass(frozen=True)
class Input:
    """One image or video.

    Attributes:
        name: the path below the folder that was given, written with `/`; for a file that was given, its name.
        folder: the folder below the one of all results that its results are in.
    """

    path: Path
    name: str
    folder: str = ""

    @property
    def is_video(self) -> bool:
        return is_video_name(self.path.name)


def find_inputs(given: Iterable[str | Path], out: Path | None = None) -> list[Input]:
    """Return files that were given, those that match a pattern, and all images and videos below folders.

    Names of files from several folders begin with the folder's path below the one that all of them are in.

    Args:
        out: where results will be; what is in it is left out of a folder around it.

    Raises:
        ValueError, FileNotFoundError: a folder without images and videos; a path that does not exist.
    """
    paths = [path for one in given for path in _paths(str(one))]
    folders = [Path(os.path.abspath(path)) for path in paths if path.is_dir()]  # noqa: PTH100 - links stay
    common = Path(os.path.commonpath(folders)) if folders else Path()
    inputs: dict[tuple[Path, int], Input] = {}
    for number, path in enumerate(paths):
        if path.is_dir():
            below = Path(os.path.abspath(path)).relative_to(common)  # noqa: PTH100
            for one in _inside(path, below, out):
                inputs.setdefault((Path(os.path.abspath(one.path)), -1), one)  # noqa: PTH100
        elif path.is_file():
            inputs[path, number] = Input(path, path.name)
        else:
            raise FileNotFoundError(f"there is no image or video {path}; check the path")
    return _with_different_names(list(inputs.values()))


def _paths(text: str) -> list[Path]:
    """Return the path that was given, or those that match it as a pattern such as `photos/*.jpg`.

    Raises:
        ValueError, FileNotFoundError: nothing matches, or the text is empty or an address.
    """
    if not text:
        raise ValueError("a path is empty; give an image, a video or a folder")
    if is_address(text):
        raise ValueError(f"{text} is an address, and files are needed; download it, or use fourstage.load in Python")
    if is_other_address(text) and not Path(text).exists():
        raise ValueError(f"{text} is an address, and files are needed; download it")
    if Path(text).exists() or not has_magic(text):
        return [Path(text)]
    return matching(text)


def matching(pattern: str) -> list[Path]:
    """Return the paths that match a pattern, sorted; what is inside of a folder that matches comes with the folder.

    Raises:
        FileNotFoundError: nothing matches.
    """
    matches = [Path(match) for match in sorted(glob(pattern, recursive=True))]  # noqa: PTH207 - Path.glob takes no absolute pattern
    if not matches:
        raise FileNotFoundError(f"no file matches {pattern}; check the pattern, and put it in quotes in a shell")
    folders = {match for match in matches if match.is_dir()}
    return [match for match in matches if folders.isdisjoint(match.parents)]


def _inside(folder: Path, below: Path, out: Path | None) -> list[Input]:
    names = [name for name in all_files(folder) if is_image_name(file := Path(name).name) or is_video_name(file)]
    if out is not None and real_path(folder) in real_path(out).parents:
        names = [name for name in names if real_path(out) not in real_path(folder / name).parents]
    if not names:
        raise ValueError(
            f"the folder {folder} holds no images or videos; give files, or a folder with .jpg, .png or .mp4 files"
        )
    return [Input(folder / name, (below / name).as_posix(), (below / name).parent.as_posix()) for name in names]


def _with_different_names(inputs: Sequence[Input]) -> list[Input]:
    """Name those by their complete path whose names are equal otherwise."""
    names = Counter(one.name for one in inputs)
    return [one if names[one.name] == 1 else replace(one, name=str(one.path)) for one in inputs]


def drawn_paths(inputs: Sequence[Input], out: Path) -> list[Path]:
    """Return a name for each drawing that neither another output nor a given file has; folders stay as in the names."""
    paths: list[Path] = []
    taken = {real_path(one.path) for one in inputs}
    for one in inputs:
        folder = out / one.folder
        endings = (".mp4", ".jsonl") if one.is_video else tuple(f"{ending}.png" for ending in ENDINGS)
        stem, number = one.path.stem, 2
        while any(real_path(folder / (stem + ending)) in taken for ending in endings):
            stem, number = f"{one.path.stem}-{number}", number + 1
        taken |= {real_path(folder / (stem + ending)) for ending in endings}
        paths.append(folder / (stem + endings[0]))
    return paths
