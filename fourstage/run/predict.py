"""`fourstage predict`: a predictor's results for files, written as pictures, videos and tables."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourstage.data.errors import BadImage
from fourstage.data.images import read_image
from fourstage.exported.runtime import is_exported
from fourstage.files import write_file
from fourstage.plurals import plural
from fourstage.predict import videos
from fourstage.predict.base import ImagePredictor
from fourstage.predict.files import Input, drawn_paths, find_inputs
from fourstage.predict.images import from_file
from fourstage.predict.inputs import video_frames
from fourstage.predict.objects import ObjectPredictor
from fourstage.predict.outputs import ClassResults, CocoResults, JsonRows, make_folder
from fourstage.predict.predictor import Predictor
from fourstage.predict.results import ClassResult, Result
from fourstage.progress import Bar
from fourstage.resources import sentences
from fourstage.run.open import Options, opener, tiling_of
from fourstage.user_files import as_files

if TYPE_CHECKING:
    from PIL.Image import Image

    from fourstage.run.coco_ids import CocoIds, Id

RESULTS = "results.json"  # of a detector, in the folder of the pictures
CLASS_RESULTS = "results.csv"  # of a classifier, in the same place


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
    threshold: float | None = None,
    batch_size: int = 1,
    tile: int | None = None,
    overlap: float | None = None,
    device: str = "auto",
    precision: str = "float32",
    imports: Iterable[str | Path] = (),
    show: bool = True,
) -> list[Prediction]:
    """Predict images and videos with a trained network, and write what the command line writes.

    `fourstage.load` is the function for results in Python. A file that cannot be read does not stop the others: its
    prediction has an `error`.

    Args:
        source, weights, which, batch_size, tile, overlap, device, precision, imports: as in `fourstage.load`.
        images: image and video files, or folders of them and of folders.
        out: folder for a picture of each image and a video of each video, in folders as the images are. A detector also
            writes `results.json` in COCO's results format, and a classifier `results.csv`; networks other than
            detectors write one line of JSON for each frame of a video. None: no files.
        ids: a COCO json that lists the images; `results.json` has its ids of images and categories.
        threshold: lowest score of objects; None: files have all of them, and pictures those from 0.3 on.

    Raises:
        ValueError, FileNotFoundError: a file does not exist, or no file can be read as an image or video; then nothing
            is predicted or written.
    """
    if out is not None and not str(out):
        raise ValueError("--out is empty; give a folder for the results")
    options = Options(
        weights, which, threshold, tiling_of(tile, overlap, batch_size), device, precision, as_files(imports)
    )
    opened = opener(source, options)
    given = [images] if isinstance(images, str | Path) else images
    inputs = find_inputs(given, Path(out) if out is not None else None)
    if not inputs:
        raise ValueError("no image was given; give an image, a video or a folder")
    known = None if ids is None else _ids_of(Path(ids))
    image_ids = None if known is None else known.of_images(inputs)
    predicts = opened()
    if threshold is None and isinstance(predicts, ObjectPredictor):
        predicts.threshold = 0.0  # files have every detection
    predictor = Predictor(predicts, batch_size=batch_size, precision=precision)
    results = _results_file(predicts, None if out is None else Path(out), known, inputs)
    _check_one_readable(inputs, predicts.orient)
    frames = [_frames(one) for one in inputs]
    drawn = drawn_paths(inputs, Path(out)) if out is not None else [None] * len(inputs)
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if is_exported(source) else _yielding_cores())
        if out is not None:
            make_folder(Path(out))
        if results is not None:
            stack.enter_context(results)
        bar = stack.enter_context(Bar("predicting", sum(frames), show=show))
        predicts.progress = lambda done, total: bar.update(
            bar.done, "" if done == total else f"{done / total:.0%} of an image"
        )
        session = _Session(predictor, ResultWriter(inputs, results, image_ids), bar)
        predictions = session.each([_Place(*columns) for columns in zip(inputs, frames, drawn, strict=True)])
    if isinstance(results, CocoResults) and results.left_out:
        _report_left_out(results, ids)
    return predictions


def _ids_of(path: Path) -> "CocoIds":
    from fourstage.run.coco_ids import CocoIds  # here, because it imports torch

    return CocoIds(path)


def _yielding_cores() -> AbstractContextManager[object]:
    from fourstage.engine.waiting import yielding_cores  # here, because it imports torch

    return yielding_cores()


def _report_left_out(results: CocoResults, ids: str | Path | None) -> None:
    print(
        f"fourstage: {results.left_out:,} detections are of classes that {ids} does not list, and are left out of "
        f"{results.path}",
        file=sys.stderr,
    )


def _results_file(
    predicts: ImagePredictor, out: Path | None, known: "CocoIds | None", inputs: Sequence[Input]
) -> CocoResults | ClassResults | None:
    """Return the file for the results of all images; None: the task has none.

    Raises:
        ValueError: ids for a task without boxes, or of other classes than the network's.
    """
    if predicts.gives != "objects":
        if known is not None:
            raise ValueError("--ids is for the results of a detector, and this network predicts no boxes; remove --ids")
        images = any(not one.is_video for one in inputs)
        return ClassResults(out / CLASS_RESULTS) if predicts.gives == "classes" and images and out is not None else None
    ids = known.of_classes(predicts.class_names) if known is not None else predicts.category_ids
    return None if out is None else CocoResults(out / RESULTS, predicts.class_names, ids)


def _frames(one: Input) -> int:
    """Return the frames of a video, 1 for an image, and 0 for a video that cannot be read, which is reported later."""
    try:
        return videos.read_properties(one.path).frames if one.is_video else 1
    except videos.BadVideo:
        return 0


def _check_one_readable(inputs: Sequence[Input], orient: bool) -> None:
    """Raise ValueError where no input can be read; the first that can be read is enough."""
    errors: list[ValueError] = []
    for one in inputs:
        try:
            videos.read_properties(one.path) if one.is_video else read_image(one.path, orient=orient)
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
        self,
        inputs: Sequence[Input],
        results: CocoResults | ClassResults | None,
        ids: "Mapping[Path, Id] | None" = None,
    ) -> None:
        numbers = [int(stem) for one in inputs if (stem := one.path.stem).isascii() and stem.isdecimal()]
        images = not any(one.is_video for one in inputs)
        self._own = images and len(set(numbers)) == len(inputs)
        self._results, self._ids, self._count = results, ids, 0

    def add(self, one: Input, result: Result, values: Mapping[str, Any], **more: object) -> None:
        """Add a result, and `values`, which are its `to_dict()`."""
        self._count += 1
        if isinstance(self._results, CocoResults):
            number = int(one.path.stem) if self._own else self._count
            id = number if self._ids is None else self._ids[one.path]
            self._results.put(id, one.name, values["objects"], **more)
        elif isinstance(self._results, ClassResults) and isinstance(result, ClassResult) and not one.is_video:
            self._results.put(one.name, result.top)


@dataclass(frozen=True)
class _Place:
    """A file, how many images it counts for, and where its drawing goes."""

    input: Input
    frames: int
    drawn: Path | None


class _Session:
    """Predicts the files of one command and writes what it finds."""

    def __init__(self, predictor: Predictor, writer: ResultWriter, bar: Bar) -> None:
        self.predictor, self.writer, self.bar = predictor, writer, bar

    def each(self, places: Iterable[_Place]) -> list[Prediction]:
        """Predict the files in order; one that cannot be read gets an error instead of a prediction."""
        out: list[Prediction] = []
        for is_video, group in groupby(places, key=lambda place: place.input.is_video):
            some = list(group)
            out += map(self.video, some) if is_video else self.images(some)
        return out

    def images(self, places: Sequence[_Place]) -> Iterator[Prediction]:
        """Predict images and draw each into a picture."""
        images = (from_file(place.input.path, orient=self.predictor.task.orient) for place in places)
        for place, (_, result) in zip(places, self.predictor.each(images), strict=True):
            yield self._unreadable(place, result) if isinstance(result, BadImage) else self.image(place, result)

    def image(self, place: _Place, result: Result) -> Prediction:
        """Write the result of an image."""
        if (path := place.drawn) is not None:
            make_folder(path.parent)
            for ending, drawn in result.pictures().items():
                _write_picture(path.with_name(f"{path.stem}{ending}.png"), drawn)
        values = result.to_dict()
        self.writer.add(place.input, result, values)
        self.bar.update(self.bar.done + 1)
        return Prediction(place.input.path, result.text, values, path)

    def video(self, place: _Place) -> Prediction:
        """Predict each frame and draw it into a video; tasks without a results file write rows beside it."""
        try:
            return self._video(place)
        except videos.BadVideo as error:
            return self._unreadable(place, error)

    def _video(self, place: _Place) -> Prediction:
        file, path = place.input.path, place.drawn
        video, first, frames = videos.read_properties(file), self.bar.done, 0
        with ExitStack() as stack:
            drawn = rows = None
            if path is not None:
                drawn = stack.enter_context(videos.writer(path, video.rate))
                if self.predictor.task.gives != "objects":
                    rows = stack.enter_context(JsonRows(path.with_suffix(".jsonl"), as_list=False))
            for image, result in self.predictor.each(video_frames(file)):
                assert isinstance(result, Result), "frames are decoded already"
                at, values = {"frame": image.frame, "seconds": image.seconds}, result.to_dict()
                if drawn is not None:
                    drawn.add(result.frame_picture())
                if rows is not None:
                    rows.add({**at, **values})
                self.writer.add(place.input, result, values, **at)
                frames += 1
                self.bar.update(min(first + frames, self.bar.total))
        self.bar.resize(self.bar.total - video.frames + frames)
        self.bar.update(first + frames)
        seconds = frames / video.rate
        text = f"{plural(frames, 'frame')}, {seconds:.1f} s"
        if video.frames > frames:
            text += f"; {video.frames - frames} more frames are stated in the file but cannot be read"
        return Prediction(file, text, {"frames": frames, "seconds": seconds, "frames_per_second": video.rate}, path)

    def _unreadable(self, place: _Place, error: ValueError) -> Prediction:
        self.bar.resize(self.bar.total - place.frames)
        return Prediction(place.input.path, str(error), {"error": str(error)}, error=str(error))


def _write_picture(path: Path, picture: "Image") -> None:
    write_file(path, lambda file: picture.save(file, "PNG"))
