"""`fourstage predict`: the predictions of a trained network for images and videos."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fourstage.api import list_models
from fourstage.build import try_on_meta
from fourstage.data.images import read_image
from fourstage.data.sample import BadImage, Sample
from fourstage.engine.devices import Ranks, choose_device
from fourstage.engine.waiting import yielding_cores
from fourstage.files import write_file
from fourstage.progress import Bar
from fourstage.recipe import Recipe, from_mapping, list_recipes, resolve
from fourstage.registry import find
from fourstage.report.number_format import plural
from fourstage.resources import sentences
from fourstage.run import computation, videos
from fourstage.run.coco_ids import CocoIds, Id
from fourstage.run.complete_checkpoints import fitting_recipes, published_of
from fourstage.run.described import check_recipe_of_file, classes_of, metadata_of, recipe_of
from fourstage.run.folder import RunFolder
from fourstage.run.inputs import LABELS, Input, drawn_paths, find_inputs
from fourstage.run.outputs import ClassResults, CocoResults, JsonRows, make_folder
from fourstage.run.task_protocol import AnyProtocol, AnyTask, ImageResult, protocol_class, protocol_of
from fourstage.user_files import import_files, imports_option
from fourstage.weights import catalog
from fourstage.weights.complete_checkpoints import fill_completely
from fourstage.weights.openmmlab.network import network_of_checkpoint
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from PIL.Image import Image

RESULTS = "results.json"  # of a detector, in the folder of the pictures
CLASS_RESULTS = "results.csv"  # of a classifier, in the same place
OPACITY = 0.6  # of label maps over the frames of a video
YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Prediction:
    """The predictions for one image or video."""

    image: Path
    text: str  # one line for a person
    values: dict[str, Any]  # for a program: classes with probabilities, best first; for a video, its length
    picture: Path | None = None  # the file with the drawing
    error: str = ""  # why the file cannot be read; then there is no prediction

    @property
    def is_video(self) -> bool:
        return videos.is_video_name(self.image.name)


@sentences("use smaller images or another --device")
def predict(
    source: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    weights: str | Path | None = None,
    which: str = "model",
    out: str | Path | None = None,
    ids: str | Path | None = None,
    device: str = "auto",
    imports: Iterable[str | Path] = (),
    show: bool = True,
) -> list[Prediction]:
    """Predict images and videos with a trained network.

    A file that cannot be read does not stop the others: its prediction has an `error`.

    Args:
        source: a run folder; a checkpoint of a run, or one of MMDetection or MMSegmentation with its configuration;
            the name of a model; or a recipe of a detector or segmentor, by name or file.
        weights: the checkpoint for a model or a recipe; it may be left out where one is published.
        which: "model", or "ema" for the averaged weights of a run or a checkpoint that has them.
        images: image and video files, or folders of them and of folders.
        out: folder for a picture of each image and a video of each video, in folders as the images are. A detector also
            writes `results.json` in COCO's results format, and a classifier `results.csv`; networks other than
            detectors write one line of JSON for each frame of a video. None: no files.
        ids: a COCO json that lists the images; `results.json` has its ids of images and categories.
        imports: Python files of your own that register what the network is built from. A checkpoint may name such
            files, and they are run only if they are given here.

    Raises:
        ValueError, FileNotFoundError: a file does not exist, or no file can be read as an image or video; then nothing
            is predicted or written.
    """
    torch_device, source = choose_device(device), _recipe_or(str(source))
    _check_source(source, weights, which)
    import_files(imports)
    given = [images] if isinstance(images, str | Path) else images
    inputs = find_inputs(given, Path(out) if out is not None else None)
    known = None if ids is None else CocoIds(Path(ids))
    image_ids = None if known is None else known.of_images(inputs)
    protocol, task = _load(source, weights, which)
    results = _results_file(protocol, task, None if out is None else Path(out), known, inputs)
    predictor = Predictor(protocol, task.to(torch_device).eval())
    _check_one_readable(inputs, predictor)
    frames = [_frames(one) for one in inputs]
    drawn = drawn_paths(inputs, Path(out)) if out is not None else [None] * len(inputs)
    with ExitStack() as stack:
        stack.enter_context(yielding_cores())
        if out is not None:
            make_folder(Path(out))
        if results is not None:
            stack.enter_context(results)
        bar = stack.enter_context(Bar("predicting", sum(frames), show=show))
        predictions = _each(predictor, inputs, frames, drawn, ResultWriter(inputs, results, image_ids), bar)
    if isinstance(results, CocoResults) and results.left_out:
        print(
            f"fourstage: {results.left_out:,} detections are of classes that {ids} does not list, and are left out of "
            f"{results.path}",
            file=sys.stderr,
        )
    return predictions


def _each(
    predictor: "Predictor",
    inputs: Sequence[Input],
    frames: Sequence[int],
    drawn: Sequence[Path | None],
    writer: "ResultWriter",
    bar: Bar,
) -> list[Prediction]:
    """Predict the inputs one after the other; one that cannot be read gets an error instead of a prediction."""
    out: list[Prediction] = []
    for one, count, path in zip(inputs, frames, drawn, strict=True):
        predict_input = predictor.video if one.is_video else predictor.image
        try:
            out.append(predict_input(one, path, writer, bar))
        except (BadImage, videos.BadVideo) as error:
            out.append(Prediction(one.path, str(error), {"error": str(error)}, error=str(error)))
            bar.resize(bar.total - count)
    return out


def _results_file(
    protocol: AnyProtocol, task: AnyTask, out: Path | None, known: CocoIds | None, inputs: Sequence[Input]
) -> CocoResults | ClassResults | None:
    """Return the file for the results of all images; None: the task has none.

    Raises:
        ValueError: ids for a task without boxes, or of other classes than the network's.
    """
    if protocol.truth != "objects":
        if known is not None:
            raise ValueError("--ids is for the results of a detector, and this network finds no boxes; remove --ids")
        images = any(not one.is_video for one in inputs)
        return ClassResults(out / CLASS_RESULTS) if protocol.truth == "label" and images and out is not None else None
    own = getattr(task, "category_ids", None)  # of the training data
    ids = known.of_classes(task.classes) if known is not None else own
    return None if out is None else CocoResults(out / RESULTS, task.classes, ids)


def _frames(one: Input) -> int:
    """Return the frames of a video, 1 for an image, and 0 for a video that cannot be read, which is said later."""
    try:
        return videos.read_properties(one.path).frames if one.is_video else 1
    except videos.BadVideo:
        return 0


def _check_one_readable(inputs: Sequence[Input], predictor: "Predictor") -> None:
    """Raise ValueError where no input can be read; the first that can be read is enough."""
    errors: list[ValueError] = []
    for one in inputs:
        try:
            videos.read_properties(one.path) if one.is_video else predictor.read(one.path)
        except (BadImage, videos.BadVideo) as error:
            errors.append(error)
        else:
            return
    if len(errors) == 1:
        raise errors[0]
    raise ValueError(f"none of the {len(inputs)} files can be read; the first: {errors[0]}")


class ResultWriter:
    """Writes the predictions of each image to the results file, with the image's number and name.

    Images whose names are numbers, as COCO's are, keep these numbers. All others, and the frames of videos, are counted
    from 1.

    Args:
        results: the file; None: there is none.
        ids: the id of each image by its path; None: as above.
    """

    def __init__(
        self, inputs: Sequence[Input], results: CocoResults | ClassResults | None, ids: Mapping[Path, Id] | None = None
    ) -> None:
        numbers = [int(stem) for one in inputs if (stem := one.path.stem).isascii() and stem.isdecimal()]
        images = not any(one.is_video for one in inputs)
        self._own = images and len(set(numbers)) == len(inputs)
        self._results, self._ids, self._count = results, ids, 0

    def add(self, one: Input, result: ImageResult, **more: object) -> None:
        self._count += 1
        if isinstance(self._results, CocoResults):
            number = int(one.path.stem) if self._own else self._count
            id = number if self._ids is None else self._ids[one.path]
            self._results.put(id, one.name, result.values["objects"], **more)
        elif self._results is not None and not one.is_video:
            self._results.put(one.name, [(row["class"], row["probability"]) for row in result.values["top"]])


class Predictor:
    """Predicts image and video files with a task."""

    def __init__(self, protocol: AnyProtocol, task: AnyTask) -> None:
        self.protocol, self.task = protocol, task

    def read(self, file: Path) -> np.ndarray:
        """Read an image as (H, W, 3) uint8, turned by its EXIF orientation where the task's data is read so."""
        return read_image(file, orient=self.protocol.truth != "label")

    def predict(self, name: str, image_HW3: np.ndarray, title: str) -> ImageResult:
        sample = Sample(name, image_HW3, (image_HW3.shape[0], image_HW3.shape[1]))
        return self.protocol.predict_image(self.task, sample, title)

    def image(self, one: Input, path: Path | None, writer: ResultWriter, bar: Bar) -> Prediction:
        """Predict an image and draw it into a picture at `path`."""
        file = one.path
        result = self.predict(str(file), self.read(file), file.name)
        if path is not None:
            make_folder(path.parent)
            for ending, drawn in result.pictures().items():
                _write_picture(path.with_name(f"{path.stem}{ending}.png"), drawn)
        writer.add(one, result)
        bar.update(bar.done + 1)
        return Prediction(file, result.text, result.values, path)

    def video(self, one: Input, path: Path | None, writer: ResultWriter, bar: Bar) -> Prediction:
        """Predict each frame and draw it into a video at `path`; tasks without a results file write rows beside it."""
        file = one.path
        video, first, frames = videos.read_properties(file), bar.done, 0
        with ExitStack() as stack:
            drawn = rows = None
            if path is not None:
                drawn = stack.enter_context(videos.writer(path, video.rate))
                if self.protocol.truth != "objects":
                    rows = stack.enter_context(JsonRows(path.with_suffix(".jsonl"), as_list=False))
            for frame_HW3 in videos.frames_of(file):
                place = {"frame": frames, "seconds": round(frames / video.rate, 3)}
                result = self.predict(f"{file}#{frames}", frame_HW3, f"{file.name}  {place['seconds']:.1f} s")
                if drawn is not None:
                    drawn.add(_draw_frame(result, frame_HW3))
                if rows is not None:
                    rows.add({**place, **result.values})
                writer.add(one, result, **place)
                frames += 1
                bar.update(min(first + frames, bar.total))
        bar.resize(bar.total - video.frames + frames)
        bar.update(first + frames)
        seconds = frames / video.rate
        text = f"{plural(frames, 'frame')}, {seconds:.1f} s"
        if video.frames > frames:
            text += f"; {video.frames - frames} more frames are stated in the file but cannot be read"
        return Prediction(file, text, {"frames": frames, "seconds": seconds, "frames_per_second": video.rate}, path)


def _draw_frame(result: ImageResult, frame_HW3: np.ndarray) -> np.ndarray:
    """Return the picture of one frame, (H, W, 3) uint8, of the same size for all frames of a video."""
    from PIL import Image

    pictures = result.pictures()
    if LABELS not in pictures:
        return np.asarray(pictures[""].convert("RGB"))
    return np.asarray(Image.blend(Image.fromarray(frame_HW3), pictures[LABELS].convert("RGB"), OPACITY))


def _recipe_or(source: str) -> str:
    """Return the recipe of a published detector or segmentor whose catalogue name is `source`; else `source`."""
    model, tag = catalog.split(source)
    if tag is None or Path(source).exists() or model not in list_models():
        return source
    rows = catalog.published(find(model).name)
    return next((weight.recipe for weight in rows if weight.tag == tag and weight.recipe), source)


def _check_source(source: str, weights: str | Path | None, which: str) -> None:
    """Raise ValueError unless `source` exists by name or as a file, and has weights."""
    if Path(source).exists():
        return
    if weights is None and which != "model":
        raise ValueError(
            f"published weights have no separate average; leave --which out, or add --weights FILE for {source}"
        )
    if source.endswith(YAML):
        return
    model, tag = catalog.split(source)
    if model not in (known := list_models()):
        recipes = list_recipes()
        if source in recipes:
            _task_of_recipe(source)
            if weights is None:
                published_of(source)  # raises now where there is none to fetch
            return
        close = get_close_matches(source, [*known, *recipes], n=1)
        hint = f"did you mean {close[0]}?" if close else "`fourstage models` and `fourstage recipes` list the names"
        raise ValueError(f"there is no run folder, checkpoint, model or recipe {source!r}; {hint}")
    if weights is not None:
        return
    if not catalog.published(find(model).name):
        raise ValueError(f"no weights of {model} are published; add --weights FILE")
    catalog.find(find(model).name, tag)  # raises now where there is none to fetch


def _load(source: str, weights: str | Path | None, which: str) -> tuple[AnyProtocol, AnyTask]:
    """Build the network that `source` names, with its weights."""
    path = Path(source)
    if path.is_dir():
        run = RunFolder(path)
        recipe = run.recipe()  # first, to report a folder that is no run folder
        if weights is None:
            return _load_run(*_stored(run, which), recipe, run)
        return _load_run(read_checkpoint(weights), which, recipe, run)
    if source.endswith(YAML) or (not path.exists() and source in list_recipes()):
        return _load_named(_task_of_recipe(source), source, weights, which)
    if path.is_file():
        if weights is not None:
            raise ValueError(
                f"{source} is already a checkpoint; remove --weights, or name a model or a recipe before it"
            )
        return load_file(read_checkpoint(path), which)
    return _load_named("classification", source, weights, which)


def _load_named(task_name: str, source: str, weights: str | Path | None, which: str) -> tuple[AnyProtocol, AnyTask]:
    """Build the network of a model or a recipe."""
    protocol, task = protocol_class(task_name).from_name(source, weights)
    if weights is not None and which != "model":
        protocol.load_weights(task, weights, which)
    return protocol, task


def _task_of_recipe(source: str) -> str:
    """Return the task of a recipe. Raises ValueError for classification, where the model is to be named."""
    recipe = resolve(source).recipe
    if recipe.task == "classification":
        raise ValueError(
            f"{source} is a classification recipe; name its model: predict {recipe.network_name} IMAGE --weights FILE"
        )
    return recipe.task


def _stored(run: RunFolder, which: str) -> tuple[Checkpoint, str]:
    path, name = run.kept(which)
    return read_checkpoint(path), name


def load_file(file: Checkpoint, which: str = "model") -> tuple[AnyProtocol, AnyTask]:
    """Build the network of a checkpoint that describes itself: of a run, a converted one, or one of OpenMMLab."""
    if (converted := file.metadata.get("model")) is not None:
        return _load_named("classification", converted, file.path, which)
    if file.content.get("fourstage") == 1 and "recipe" in file.content:
        return _load_run(file, which, None)
    described = network_of_checkpoint(file)
    if described is None:
        fitting = fitting_recipes(file)
        name = fitting[0] if fitting else "MODEL"
        hint = "try" if fitting else "name it, from `fourstage models` or `fourstage recipes`:"
        raise ValueError(
            f"{file.path} does not say which network it is for; {hint} predict {name} IMAGE --weights {file.path}"
        )
    protocol = protocol_of(recipe_of(described, file.path))
    check_recipe_of_file(protocol.recipe, file)
    try:
        try_on_meta(lambda: protocol.build_task(classes_of(described), metadata_of(described)), file)
        task = protocol.build_task(classes_of(described), metadata_of(described))
    except (RuntimeError, MemoryError, TypeError, ValueError) as error:  # such as sizes beyond any memory
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{file.path} describes a network that cannot be built here ({reason:.200}); name a recipe, and "
            f"add --weights {file.path}"
        ) from error
    fill_completely(task.network, file, which)
    return protocol, task


def _load_run(
    file: Checkpoint, which: str, recipe: Recipe | None, run: RunFolder | None = None
) -> tuple[AnyProtocol, AnyTask]:
    content = file.content
    if content.get("fourstage") != 1 or "recipe" not in content:
        raise ValueError(
            f"{file.path} is not a checkpoint of a run; name its network: predict MODEL IMAGE --weights {file.path}"
        )
    protocol, task = _build_stored(file, recipe)
    protocol.load_weights(task, file.path, which)
    computation.take(content, run, Ranks())
    return protocol, task


def _build_stored(file: Checkpoint, recipe: Recipe | None) -> tuple[AnyProtocol, AnyTask]:
    """Build the task of a checkpoint by a recipe; None: by its own. The files that the recipe imports are not run."""
    classes, about = file.classes, file.content.get("about") or {}
    stored = file.content["recipe"]
    if not classes or not isinstance(about, dict) or not isinstance(stored, dict):
        raise ValueError(f"{file.path} is damaged (classes, about or recipe is wrong); give another checkpoint")
    recipe = recipe or from_mapping(stored, str(file.path)).recipe
    protocol = protocol_of(recipe)
    check_recipe_of_file(recipe, file)
    try:
        try_on_meta(lambda: protocol.build_task(tuple(classes), about), file)
        return protocol, protocol.build_task(tuple(classes), about)
    except ValueError as error:
        if not recipe.imports:
            raise
        raise ValueError(
            f"{file.path} describes a network that cannot be built here ({error}); its recipe imports Python files, "
            f"which a run folder or a checkpoint alone does not run: if you trust them, add "
            f"{imports_option(recipe.imports)}"
        ) from error


def _write_picture(path: Path, picture: "Image") -> None:
    write_file(path, lambda file: picture.save(file, "PNG"))
