"""`fourstage predict`: what a trained network sees in pictures and videos."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage.api import list_models
from fourstage.data.images import is_image_name, read_image
from fourstage.data.sample import Sample
from fourstage.engine.devices import choose_device
from fourstage.engine.state import write_whole
from fourstage.progress import Bar
from fourstage.recipe import Recipe, from_mapping, list_recipes, resolve
from fourstage.registry import find
from fourstage.report.number_format import plural
from fourstage.run import build, videos
from fourstage.run.complete_checkpoints import fitting_recipes, published_of
from fourstage.run.described import about_of, classes_of, recipe_of
from fourstage.run.folder import RunFolder
from fourstage.run.outputs import CocoResults, JsonRows, make_folder
from fourstage.run.task_protocol import AnyTask, Seen, import_kind, kind_of
from fourstage.weights import catalog
from fourstage.weights.complete_checkpoints import fill_completely
from fourstage.weights.openmmlab.network import network_of_checkpoint
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

RESULTS = "results.json"  # of a detector, in the folder of the pictures
LABELS = "_labels"  # what the name of a picture ends in whose pixels are labels
ENDINGS = ("", LABELS)
OPACITY = 0.6  # of label maps over the frames of a video
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Prediction:
    """What was found in one image or video."""

    image: Path
    text: str  # for a person, one line
    values: dict[str, Any]  # for a program: classes with probabilities, best first; of a video how long it is
    picture: Path | None = None  # where it is drawn

    @property
    def is_video(self) -> bool:
        return videos.is_video_name(self.image.name)


def predict(
    source: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    weights: str | Path | None = None,
    which: str = "model",
    out: str | Path | None = None,
    device: str = "auto",
    show: bool = True,
) -> list[Prediction]:
    """What a trained network sees in pictures and videos.

    Args:
        source: a run folder; a checkpoint of a run, or of MMDetection or MMSegmentation that says what it is; the name
            of a model, or a recipe of a detector or segmentor by name or file.
        weights: the checkpoint for a model or a recipe, which may be left out where one is published.
        which: "model", or "ema" for the averaged weights of a run or a checkpoint that has them.
        images: image and video files, or folders of them.
        out: folder for a picture of each image and a video of each video. Detectors write `results.json` there too,
            in COCO's results format, others a line of JSON for each frame of a video. None writes nothing.

    Raises:
        ValueError, FileNotFoundError: nothing is predicted or written when one of the files is no image or video.
    """
    where, source = choose_device(device), _recipe_or(str(source))
    _check_source(source, weights, which)
    files = _files([images] if isinstance(images, str | Path) else images)
    recipe, task = _task(source, weights, which)
    seer = _Seer(recipe, task.to(where).eval())
    lengths = [videos.look_at(file).frames if videos.is_video_name(file.name) else 1 for file in files]
    for file in files:
        if not videos.is_video_name(file.name):
            seer.read(file)  # all of them, before anything is written
    drawn = _drawn_paths(files, Path(out)) if out is not None else [None] * len(files)
    found: list[Prediction] = []
    with ExitStack() as stack:
        results = None
        if out is not None:
            make_folder(Path(out))
            if recipe.task == "detection":
                ids = getattr(task, "category_ids", None)  # of the data that it was trained on
                results = stack.enter_context(CocoResults(Path(out) / RESULTS, task.classes, ids))
        book = _Book(files, results)
        bar = stack.enter_context(Bar("predicting", sum(lengths), show=show))
        for file, path in zip(files, drawn, strict=True):
            look = seer.video if videos.is_video_name(file.name) else seer.image
            found.append(look(file, path, book, bar))
    return found


class _Book:
    """Which number and name each image has in the results, and where they go.

    Images whose names are numbers, as COCO's are, keep them; else they count from 1, frames of videos too.
    """

    def __init__(self, files: Sequence[Path], results: CocoResults | None) -> None:
        names = Counter(file.name for file in files)
        self._names = {file: file.name if names[file.name] == 1 else str(file) for file in files}
        numbers = [int(file.stem) for file in files if file.stem.isascii() and file.stem.isdecimal()]
        images = not any(videos.is_video_name(file.name) for file in files)
        self._own = images and len(set(numbers)) == len(files)
        self._results, self._count = results, 0

    def add(self, file: Path, seen: Seen, **more: object) -> None:
        self._count += 1
        if self._results is not None:
            number = int(file.stem) if self._own else self._count
            self._results.put(number, self._names[file], seen.values["objects"], **more)


class _Seer:
    """A task that looks at files."""

    def __init__(self, recipe: Recipe, task: AnyTask) -> None:
        self.recipe, self.task, self.kind = recipe, task, kind_of(recipe)

    def read(self, file: Path) -> np.ndarray:
        """(H, W, 3) uint8, turned as its EXIF says where the task's data is read like that."""
        return read_image(file, orient=self.recipe.task != "classification")

    def see(self, name: str, image_HW3: np.ndarray, title: str) -> Seen:
        sample = Sample(name, image_HW3, (image_HW3.shape[0], image_HW3.shape[1]))
        return self.kind.see(self.task, self.recipe, sample, title)

    def image(self, file: Path, path: Path | None, book: _Book, bar: Bar) -> Prediction:
        seen = self.see(str(file), self.read(file), file.name)
        if path is not None:
            for ending, drawn in seen.pictures().items():
                _write_picture(path.with_name(f"{path.stem}{ending}.png"), drawn)
        book.add(file, seen)
        bar.update(bar.done + 1)
        return Prediction(file, seen.text, seen.values, path)

    def video(self, file: Path, path: Path | None, book: _Book, bar: Bar) -> Prediction:
        """Every frame by itself, drawn into a video at `path`; where no detector looks, its values beside it."""
        about, first, frames = videos.look_at(file), bar.done, 0
        with ExitStack() as stack:
            drawn = rows = None
            if path is not None:
                drawn = stack.enter_context(videos.writer(path, about.rate))
                if self.recipe.task != "detection":
                    rows = stack.enter_context(JsonRows(path.with_suffix(".jsonl"), whole=False))
            for frame_HW3 in videos.frames_of(file):
                place = {"frame": frames, "seconds": round(frames / about.rate, 3)}
                seen = self.see(f"{file}#{frames}", frame_HW3, f"{file.name}  {place['seconds']:.1f} s")
                if drawn is not None:
                    drawn.add(_frame(seen, frame_HW3))
                if rows is not None:
                    rows.add({**place, **seen.values})
                book.add(file, seen, **place)
                frames += 1
                bar.update(min(first + frames, bar.total))
        bar.resize(bar.total - about.frames + frames)
        bar.update(first + frames)
        seconds = frames / about.rate
        text = f"{plural(frames, 'frame')}, {seconds:.1f} s"
        if about.frames > frames:
            text += f"; {about.frames - frames} more were announced and cannot be read"
        return Prediction(file, text, {"frames": frames, "seconds": seconds, "frames_per_second": about.rate}, path)


def _frame(seen: Seen, frame_HW3: np.ndarray) -> np.ndarray:
    """The picture of one frame, (H, W, 3) uint8; all frames of a video give the same size."""
    from PIL import Image

    pictures = seen.pictures()
    if LABELS not in pictures:
        return np.asarray(pictures[""].convert("RGB"))
    return np.asarray(Image.blend(Image.fromarray(frame_HW3), pictures[LABELS].convert("RGB"), OPACITY))


def _recipe_or(source: str) -> str:
    """The recipe of a published detector or segmentor that is named as the catalogue has it; else `source`."""
    model, tag = catalog.split(source)
    if tag is None or Path(source).exists() or model not in list_models():
        return source
    rows = catalog.published(find(model).name)
    return next((weight.recipe for weight in rows if weight.tag == tag and weight.recipe), source)


def _check_source(source: str, weights: str | Path | None, which: str) -> None:
    """Raise ValueError unless something is called so, and has weights."""
    if Path(source).exists():
        return
    if weights is None and which != "model":
        raise ValueError(f"published weights are no averages; leave --which out, or add --weights FILE for {source}")
    if source.endswith(YAML):
        return
    model, tag = catalog.split(source)
    if model not in (known := list_models()):
        recipes = list_recipes()
        if source in recipes:
            _check_dense(source)
            if weights is None:
                published_of(source)  # this one will be fetched
            return
        close = get_close_matches(source, [*known, *recipes], n=1)
        hint = f"did you mean {close[0]}?" if close else "`fourstage models` lists the models, `ls runs` your runs"
        raise ValueError(f"neither a run folder nor a checkpoint nor a model nor a recipe is called {source!r}; {hint}")
    if weights is not None:
        return
    if not catalog.published(find(model).name):
        raise ValueError(f"nobody has published weights of {model}; add --weights FILE")
    catalog.find(find(model).name, tag)  # this one will be fetched


def _files(images: Iterable[str | Path]) -> list[Path]:
    files: list[Path] = []
    for image in map(Path, images):
        if image.is_dir():
            names = (path for path in image.iterdir() if is_image_name(path.name) or videos.is_video_name(path.name))
            if not (inside := sorted(names)):
                raise ValueError(
                    f"the folder {image} holds no images and no videos; name files, or a folder with .jpg, .png or "
                    f".mp4 files"
                )
            files += inside
        elif image.is_file():
            files.append(image)
        else:
            raise FileNotFoundError(f"there is no image or video {image}; check the path")
    return files


def _task(source: str, weights: str | Path | None, which: str) -> tuple[Recipe, AnyTask]:
    """The network that `source` means, with its weights and the recipe that says how images reach it."""
    path = Path(source)
    if path.is_dir():
        run = RunFolder(path)
        recipe = run.recipe()  # before its checkpoints: the folder may be none of a run
        if weights is None:
            return _of_run(*_stored(run, which), recipe)
        return _of_run(read_checkpoint(weights), which, recipe)
    if source.endswith(YAML) or (not path.exists() and source in list_recipes()):
        return _named(_check_dense(source), source, weights, which)
    if path.is_file():
        if weights is not None:
            raise ValueError(f"{source} is a checkpoint already; leave --weights out, or name a model or a recipe")
        return task_of_file(read_checkpoint(path), which)
    return _named("classification", source, weights, which)


def _named(task: str, source: str, weights: str | Path | None, which: str) -> tuple[Recipe, AnyTask]:
    """The network of a model or recipe that is named."""
    kind = import_kind(task)
    recipe, made = kind.named(source, weights)
    if weights is not None and which != "model":
        kind.load(made, weights, which)
    return recipe, made


def _check_dense(source: str) -> str:
    """The task of a recipe, by name or file. Raises ValueError for classification, where networks have the names."""
    recipe = resolve(source).recipe
    if recipe.task == "classification":
        raise ValueError(
            f"{source} is a recipe of classification; name its network: predict {recipe.subject} IMAGE --weights FILE"
        )
    return recipe.task


def _stored(run: RunFolder, which: str) -> tuple[Checkpoint, str]:
    path, called = run.kept(which)
    return read_checkpoint(path), called


def task_of_file(file: Checkpoint, which: str = "model") -> tuple[Recipe, AnyTask]:
    """A checkpoint says itself what it is: one of our runs, one that we converted, or one of OpenMMLab's."""
    if (converted := file.metadata.get("model")) is not None:
        return _named("classification", converted, file.path, which)
    if file.content.get("fourstage") == 1 and "recipe" in file.content:
        return _of_run(file, which, None)
    described = network_of_checkpoint(file)
    if described is None:
        fitting = fitting_recipes(file)
        name = fitting[0] if fitting else "MODEL or RECIPE, as `fourstage models` and `fourstage recipes` list them,"
        hint = "it looks like" if fitting else "add it:"
        raise ValueError(
            f"{file.path} does not say which network it is for; {hint} predict {name} IMAGE --weights {file.path}"
        )
    recipe = recipe_of(described, file.path)
    try:
        task = kind_of(recipe).build_task(recipe, classes_of(described), about_of(described))
    except (RuntimeError, MemoryError, TypeError, ValueError) as error:  # such as sizes that no machine has
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file.path} describes a network that cannot be built here ({reason:.200}); name a recipe with --weights"
        ) from error
    fill_completely(task.network, file, which)
    return recipe, task


def _of_run(file: Checkpoint, which: str, recipe: Recipe | None) -> tuple[Recipe, AnyTask]:
    content = file.content
    if content.get("fourstage") != 1 or "recipe" not in content:
        raise ValueError(f"{file.path} is no checkpoint of a run; predict MODEL or RECIPE IMAGE --weights {file.path}")
    recipe = recipe or from_mapping(content["recipe"], str(file.path)).recipe
    build.run_imports(recipe)
    task = kind_of(recipe).build_task(recipe, tuple(content["classes"]), content.get("about") or {})
    kind_of(recipe).load(task, file.path, which)
    return recipe, task


def _drawn_paths(files: Sequence[Path], out: Path) -> list[Path]:
    """A free name in `out` for each file: nothing takes the place of another one or of a file that was given."""
    paths: list[Path] = []
    taken = {file.resolve() for file in files}
    for file in files:
        video = videos.is_video_name(file.name)
        endings = (".mp4", ".jsonl") if video else tuple(f"{ending}.png" for ending in ENDINGS)
        stem, number = file.stem, 2
        while any((out / (stem + ending)).resolve() in taken for ending in endings):
            stem, number = f"{file.stem}-{number}", number + 1
        taken |= {(out / (stem + ending)).resolve() for ending in endings}
        paths.append(out / (stem + endings[0]))
    return paths


def _write_picture(path: Path, picture: "Image") -> None:
    write_whole(path, lambda file: picture.save(file, "PNG"))
