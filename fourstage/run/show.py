"""`fourstage data show`: a sheet of training images after augmentation."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fourstage.data.formats import open_dataset
from fourstage.data.sample import Dataset, Truth
from fourstage.files import write_file
from fourstage.progress import Bar
from fourstage.recipe import data_path, resolve
from fourstage.run.task_protocol import AnyProtocol, protocol_of
from fourstage.user_files import import_files

EMBEDDED = {"digits": "digits_visformer", "digit_scenes": "digit_scenes_mask_rcnn"}  # data -> its own recipe
DEFAULTS = {  # truth of the data -> its recipe where the user names none
    "label": "smt_tiny_in1k",
    "objects": "mask_rcnn_smt_small_coco_1x",
    "label_map_HW": "upernet_smt_small_ade20k_160k",
}
WORDS = {"label": "a class for each image", "objects": "boxes", "label_map_HW": "label maps"}


@dataclass(frozen=True)
class Sheet:
    """A sheet of samples that was written."""

    path: Path
    recipe: str  # the recipe whose augmentation it shows
    default_for: str = ""  # the truth of data with this default recipe; empty where the user named the recipe

    def __str__(self) -> str:
        why = (
            f", the default for data with {self.default_for}; choose another one with --recipe NAME"
            if self.default_for
            else ""
        )
        return f"{self.path}, augmented by {self.recipe}{why}"


def show(
    data: str | Path,
    *,
    recipe: str | Path | None = None,
    out: str | Path = "samples.png",
    changes: Iterable[str] = (),
    imports: Iterable[str | Path] = (),
    progress: bool = True,
) -> Sheet:
    """Draw some training images with their truth: the original, augmented and, where a recipe mixes, mixed versions.

    Args:
        data: what `--data` takes.
        recipe: a name or file; default: that of the embedded data, or the one of `DEFAULTS` for the data's truth.
        out: the PNG file to write; an older file is replaced.
        changes: `key=value` strings, such as "augmentation.mixup=0".
        imports: Python files of your own that register a format of data.

    Raises:
        ValueError: no such data or recipe, data without the truth that the recipe needs, or an `out` that is no .png.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png: the sheet is a PNG file")
    path, changes = data_path(data), (changes,) if isinstance(changes, str) else tuple(changes)
    import_files(imports)
    name = recipe or EMBEDDED.get(path)
    if name:
        protocol = _protocol(name, changes, path)
        dataset = _open(path, protocol.truth, progress=progress)
        _check_truth(data, dataset, str(name), protocol)
    else:
        dataset = _open(path, None, progress=progress)
        name = DEFAULTS[dataset.truths[0]]
        protocol = _protocol(name, changes, path)
    if not len(dataset):
        raise ValueError(f"{data} has no training images; add at least two for each class")
    from fourstage.run.sheets import draw_sheet

    sheet = draw_sheet(dataset, protocol)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, lambda file: sheet.save(file, "PNG"))
    return Sheet(out, protocol.recipe.name, "" if recipe else WORDS[protocol.truth])


def _protocol(name: str | Path, changes: Iterable[str], path: str) -> AnyProtocol:
    """Return the protocol of a recipe without its number of classes, which does not matter for a picture."""
    recipe = resolve(name, changes, {"data": path}).recipe
    import_files(recipe.imports)
    return protocol_of(recipe.model_copy(update={"num_classes": None}))


def _open(path: str, truth: Truth | None, *, progress: bool) -> Dataset:
    what = "making digit_scenes" if path == "digit_scenes" else "indexing"
    with Bar(what, 1, show=progress, every=5) as bar:
        return open_dataset(path, "train", truth=truth, progress=bar.of)


def _check_truth(data: str | Path, dataset: Dataset, name: str, protocol: AnyProtocol) -> None:
    """Raise ValueError unless the data has the truth that the recipe learns from."""
    needed, has = protocol.truth, dataset.truths[0]
    if needed not in dataset.truths:
        fitting = EMBEDDED.get(str(data), DEFAULTS[has])
        raise ValueError(
            f"{data} has {WORDS[has]}, but {name} is a {protocol.recipe.task} recipe and needs {WORDS[needed]}; give "
            f"data with {WORDS[needed]}, or name a recipe that fits this data, such as --recipe {fitting}"
        )
