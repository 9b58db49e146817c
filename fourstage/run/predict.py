"""`fourstage predict`: what a trained network sees in a picture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourstage.api import list_models
from fourstage.data.images import is_image_name, read_image
from fourstage.data.sample import Sample
from fourstage.engine.devices import choose_device
from fourstage.engine.log import Bar
from fourstage.engine.state import write_whole
from fourstage.recipe import Recipe, from_mapping
from fourstage.registry import find
from fourstage.run import build
from fourstage.run.folder import RunFolder
from fourstage.run.kinds import AnyTask, import_kind, kind_of
from fourstage.weights import catalog
from fourstage.weights.safe import read_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Prediction:
    """What was found in one image."""

    image: Path
    text: str  # for a person, one line
    values: dict[str, Any]  # for a program: classes with probabilities, best first
    picture: Path | None = None  # where it is drawn


def predict(
    source: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    weights: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    show: bool = True,
) -> list[Prediction]:
    """What a trained network sees in pictures.

    Args:
        source: a run folder, a checkpoint of a run, or the name of a model, which needs `weights`.
        images: files, or folders whose images are taken.
        out: folder for one picture per image; None draws none.

    Raises:
        ValueError, FileNotFoundError: nothing is predicted or written when one of the files is not an image.
    """
    where = choose_device(device)
    _check_source(str(source), weights)
    files = _files([images] if isinstance(images, str | Path) else images)
    recipe, task = _task(str(source), weights)
    kind, task = kind_of(recipe), task.to(where).eval()
    pictures = _picture_paths(files, Path(out)) if out is not None else [None] * len(files)
    for file in files:
        read_image(file)  # all of them, before anything is written
    found: list[Prediction] = []
    with Bar("predicting", len(files), show=show) as bar:
        for file, picture in zip(files, pictures, strict=True):
            image = read_image(file)
            sample = Sample(str(file), image, (image.shape[0], image.shape[1]))
            seen = kind.see(task, recipe, sample, file.name)
            if picture is not None:
                for ending, drawn in seen.pictures().items():
                    _write_picture(picture.with_name(f"{picture.stem}{ending}.png"), drawn)
            found.append(Prediction(file, seen.text, seen.values, picture))
            bar.update(len(found))
    return found


def _check_source(source: str, weights: str | Path | None) -> None:
    """Raise ValueError unless something is called so, and has weights."""
    if Path(source).exists():
        return
    model, tag = catalog.split(source)
    if model not in (known := list_models()):
        close = get_close_matches(model, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "`fourstage models` lists the models, `ls runs` your runs"
        raise ValueError(f"neither a run folder nor a checkpoint nor a model is called {source!r}; {hint}")
    if weights is not None:
        return
    if not catalog.published(find(model).name):
        raise ValueError(f"nobody has published weights of {model}; add --weights FILE")
    catalog.find(find(model).name, tag)  # this one will be fetched


def _files(images: Iterable[str | Path]) -> list[Path]:
    files: list[Path] = []
    for image in map(Path, images):
        if image.is_dir():
            inside = sorted(path for path in image.iterdir() if is_image_name(path.name))
            if not inside:
                raise ValueError(f"the folder {image} holds no images; name files, or a folder with .jpg or .png files")
            files += inside
        elif image.is_file():
            files.append(image)
        else:
            raise FileNotFoundError(f"there is no image {image}; check the path")
    return files


def _task(source: str, weights: str | Path | None) -> tuple[Recipe, AnyTask]:
    """The network that `source` means, with its weights and the recipe that says how images reach it."""
    path = Path(source)
    if path.is_dir():
        return _from_checkpoint(Path(weights) if weights else RunFolder(path).require_best(), RunFolder(path).recipe())
    if path.is_file():
        converted = read_checkpoint(path).metadata.get("model")
        return (
            _from_checkpoint(path, None) if converted is None else import_kind("classification").named(converted, path)
        )
    return import_kind("classification").named(source, weights)


def _from_checkpoint(path: Path, recipe: Recipe | None) -> tuple[Recipe, AnyTask]:
    """A checkpoint that a run wrote says itself what it is."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}; check the path")
    content = read_checkpoint(path).content
    if content.get("fourstage") != 1 or "recipe" not in content:
        raise ValueError(f"{path} does not say which network it is for; add it: predict MODEL ... --weights {path}")
    recipe = recipe or from_mapping(content["recipe"], str(path)).recipe
    build.run_imports(recipe)
    task = kind_of(recipe).build_task(recipe, tuple(content["classes"]), content.get("about") or {})
    kind_of(recipe).load(task, path, "model")
    return recipe, task


def _picture_paths(files: Sequence[Path], out: Path) -> list[Path]:
    """A free name in `out` for each image: no picture takes the place of another one or of an image that was given."""
    paths: list[Path] = []
    given = {file.resolve() for file in files}
    for file in files:
        path, number = out / f"{file.stem}.png", 2
        while path in paths or path.resolve() in given:
            path, number = out / f"{file.stem}-{number}.png", number + 1
        paths.append(path)
    return paths


def _write_picture(path: Path, picture: "Image") -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path.parent} cannot be made ({error.strerror}); choose another --out") from None
    write_whole(path, lambda file: picture.save(file, "PNG"))
