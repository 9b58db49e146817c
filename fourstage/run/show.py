"""`fourstage data show`: a sheet of images as a training sees them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fourstage.data.formats import open_dataset
from fourstage.data.sample import Dataset, Truth
from fourstage.engine.state import write_whole
from fourstage.progress import Bar
from fourstage.recipe import Recipe, resolve
from fourstage.run.splits import data_path
from fourstage.run.task_protocol import kind_of

EMBEDDED = {"digits": "digits_visformer", "digit_scenes": "digit_scenes_mask_rcnn"}  # data -> its own recipe
DEFAULTS = {  # what data has -> the recipe where none is named
    "label": "smt_tiny_in1k",
    "objects": "mask_rcnn_smt_small_coco_1x",
    "label_map_HW": "upernet_smt_small_ade20k_160k",
}
WORDS = {"label": "a class for each image", "objects": "boxes", "label_map_HW": "label maps"}


@dataclass(frozen=True)
class Shown:
    """A sheet that was written."""

    path: Path
    recipe: str  # whose augmentation it shows
    default_for: str = ""  # what data has whose default this recipe is; empty where it was named

    def __str__(self) -> str:
        why = f", the default for data with {self.default_for}; another one: --recipe NAME" if self.default_for else ""
        return f"{self.path}, augmented by {self.recipe}{why}"


def show(
    data: str | Path,
    *,
    recipe: str | Path | None = None,
    out: str | Path = "samples.png",
    changes: Iterable[str] = (),
    progress: bool = True,
) -> Shown:
    """Draw some training images with their truth, each as it is, augmented, and mixed with others where it applies.

    Args:
        data: what `--data` takes.
        recipe: a name or file; default: the embedded data's own, or that of `DEFAULTS` for what the data has.
        out: the PNG to write; an older one is replaced.
        changes: `key=value` strings, such as "augmentation.mixup=0".

    Raises:
        ValueError: no such data or recipe, data without what the recipe learns from, a file that is no .png.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png; pictures are written in that format only")
    path = data_path(data)
    name = recipe or EMBEDDED.get(path)
    if name:
        resolved = _resolved(name, changes, path)
        dataset = _opened(path, cast(Truth, kind_of(resolved).TRUTH), progress=progress)
        _check_truth(data, dataset, str(name), resolved)
    else:
        dataset = _opened(path, None, progress=progress)
        name = DEFAULTS[dataset.truths[0]]
        resolved = _resolved(name, changes, path)
    if not len(dataset):
        raise ValueError(f"{data} has no training images; add some, at least two for each class")
    from fourstage.run.sheets import draw_sheet

    sheet = draw_sheet(dataset, resolved)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda file: sheet.save(file, "PNG"))
    return Shown(out, resolved.name, "" if recipe else WORDS[kind_of(resolved).TRUTH])


def _resolved(name: str | Path, changes: Iterable[str], path: str) -> Recipe:
    """The recipe for data of any number of classes: it does not matter for a picture."""
    recipe = resolve(name, changes, {"data": path}).recipe
    return recipe.model_copy(update={"num_classes": None})


def _opened(path: str, truth: Truth | None, *, progress: bool) -> Dataset:
    what = "making digit_scenes" if path == "digit_scenes" else "indexing"
    with Bar(what, 1, show=progress, every=5) as bar:
        return open_dataset(path, "train", truth=truth, progress=bar.of)


def _check_truth(data: str | Path, dataset: Dataset, name: str, recipe: Recipe) -> None:
    """Raise ValueError unless the data has what the recipe learns from."""
    needed, has = kind_of(recipe).TRUTH, dataset.truths[0]
    if needed not in dataset.truths:
        fitting = EMBEDDED.get(str(data), DEFAULTS[has])
        raise ValueError(
            f"{data} has {WORDS[has]}, and {name} is a {recipe.task} recipe, which needs {WORDS[needed]}; give data "
            f"with {WORDS[needed]}, or name a recipe that fits this data, such as --recipe {fitting}"
        )
