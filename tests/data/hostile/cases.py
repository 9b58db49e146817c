"""Hostile data sets: what damaged, careless and malicious people may hand over. Each is a sound one with one damage."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.hostile import exports, images, labels, objects
from data.hostile.sound import SOUND, TASKS, imagefolder, write

Build = Callable[[Path], object]
NAMES = {  # names of files and folders
    "newline": "a\nb", "escape": "\x1b]0;title\x07\x1b[2J", "undecodable": os.fsdecode(b"\xff\xfe"), "equals": "=1+1",
    "markup": "<script>alert(1)<!--", "long": "n" * 255, "quote": "'\"; touch EXECUTED;", "percent": "%s%n{}{0}",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One hostile data set."""

    name: str
    format: str
    build: Build  # writes it into a new folder

    @property
    def task(self) -> str:
        return TASKS.get(self.format, "classification")


def all_cases() -> dict[str, Case]:
    """Return every case by its name, `<format>/<damage>`."""
    cases = [Case(f"{format}/sound", format, build) for format, build in SOUND.items()]
    for name, content in images.BYTES.items():
        cases.append(Case(f"imagefolder/{name}", "imagefolder", partial(_with_image, content)))
    for name, place in images.PLACES.items():
        cases.append(Case(f"imagefolder/{name}", "imagefolder", partial(_with_place, place, "train/cat", name)))
        cases.append(Case(f"coco/{name}", "coco", partial(_coco_with_place, place)))
    for name, text in NAMES.items():
        cases.append(Case(f"imagefolder/class {name}", "imagefolder", partial(_with_class, text)))
    for name, build in TREES.items():
        cases.append(Case(f"imagefolder/{name}", "imagefolder", build))
    for format, damages in (labels.DAMAGES | objects.DAMAGES | exports.DAMAGES).items():
        cases += [Case(f"{format}/{name}", format, build) for name, build in damages.items()]
    assert len({case.name for case in cases}) == len(cases), "two cases have one name"
    return {case.name: case for case in cases}


def _with_image(content: Callable[[], bytes], root: Path) -> None:
    imagefolder(root)
    write(root / "train" / "cat" / "evil.png", content())


def _with_place(place: Build, folder: str, name: str, root: Path) -> None:
    imagefolder(root)
    place(root / folder / name)


def _coco_with_place(place: Build, root: Path) -> None:
    SOUND["coco"](root)
    image = root / "train" / "000.png"
    image.unlink()
    place(image)


def _with_class(text: str, root: Path) -> None:
    imagefolder(root)
    for split in ("train", "val"):
        (root / split / "dog").rename(root / split / text.replace("/", "_"))


def _to_the_top(root: Path) -> None:
    imagefolder(root)
    (root / "train" / "cat" / "all").symlink_to("/")


def _to_itself(root: Path) -> None:
    imagefolder(root)
    (root / "train" / "cat" / "up").symlink_to("..")


def _classes_in_a_ring(root: Path) -> None:
    imagefolder(root)
    (root / "train" / "a").symlink_to("b")
    (root / "train" / "b").symlink_to("a")


def _deep(root: Path) -> None:
    imagefolder(root)
    before = Path.cwd()
    os.chdir(root / "train" / "cat")
    for _ in range(300):  # a walk that calls itself ends in a RecursionError soon
        Path("d").mkdir()
        os.chdir("d")
    os.chdir(before)


def _pipe_as_yaml(root: Path) -> None:
    imagefolder(root)
    os.mkfifo(root / "data.yaml")
    os.mkfifo(root / "other.yaml")


def _pipe_beside(root: Path) -> None:
    imagefolder(root)
    for name in ("classes.txt", "dataset_dict.json", "real.json", "train.zip", "train-0.tar", "train.parquet"):
        os.mkfifo(root / name)


def _many_classes(root: Path) -> None:
    imagefolder(root)
    for i in range(3000):
        (root / "train" / f"empty{i}").mkdir()


TREES: dict[str, Build] = {
    "link to the top": _to_the_top, "link to itself": _to_itself, "ring of links": _classes_in_a_ring, "deep": _deep,
    "pipe as yaml": _pipe_as_yaml, "pipes beside": _pipe_beside, "many classes": _many_classes,
}  # fmt: skip
