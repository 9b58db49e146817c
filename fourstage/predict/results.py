"""The predictions for one image as typed values, and their forms for pictures, JSON and other libraries.

N objects or classes, H x W pixels of the image.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fourstage.data.class_names import category_ids
from fourstage.extras import install
from fourstage.files import write_file
from fourstage.plurals import plural
from fourstage.predict.files import LABELS
from fourstage.predict.images import InputImage
from fourstage.predict.masks import ObjectMasks
from fourstage.tasks.detection.shown import SHOWN_SCORE

if TYPE_CHECKING:
    from PIL.Image import Image

OPACITY = 0.6  # of label maps over the frames of a video
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MOST_NAMED = 5  # predictions that a line names


@dataclass(frozen=True, eq=False)
class Result(ABC):
    """The predictions for one image.

    Attributes:
        source: the image that was predicted.
        size: (H, W) of the image, pixels.
        class_names: the names of all classes; a label is a position in here.
        labels: (N,) int64.
    """

    source: InputImage
    size: tuple[int, int]
    class_names: tuple[str, ...]
    labels: np.ndarray

    @property
    def name(self) -> str:
        """The path or address of the image, or its number among those that were given."""
        return self.source.name

    @property
    def image(self) -> np.ndarray:
        """The image, (H, W, 3) uint8 RGB. Of several files, it is read again, so that a list of results stays small."""
        return self.source.read()

    @property
    def names(self) -> list[str]:
        """The class name of each label."""
        return [self.class_names[label] for label in self.labels]

    @property
    @abstractmethod
    def text(self) -> str:
        """One line for a person."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the predictions as plain JSON values."""

    @abstractmethod
    def pictures(self) -> dict[str, "Image"]:
        """Return the drawings by the ending of their file's name; "" is the one to look at."""

    @abstractmethod
    def to_supervision(self) -> Any:
        """Return the predictions as an object of the library `supervision`. Raises ValueError where it is missing."""

    def to_coco(
        self, image_id: int | str = 1, category_ids: Sequence[int | str | None] | None = None
    ) -> list[dict[str, Any]]:
        """Return the predictions as rows of COCO's results format.

        Args:
            image_id: the id of the image in every row.
            category_ids: the id of each class; classes with None are left out. None: COCO's ids for COCO's own classes,
                else those of the training data, else ids from 1.

        Raises:
            ValueError: the network is a classifier, whose results this format cannot hold, or there are fewer or more
                ids than classes.
        """
        raise ValueError("COCO's results format holds boxes and masks, and a classifier has neither; use to_dict()")

    def with_source(self, source: InputImage) -> Self:
        """Return the same predictions for another form of the image."""
        return replace(self, source=source)

    def picture(self) -> "Image":
        """Return the drawing of the predictions."""
        return self.pictures()[""]

    def frame_picture(self) -> np.ndarray:
        """Return the drawing of a video's frame, (H, W, 3) uint8, of the same size for all frames of a video."""
        return np.asarray(self.picture().convert("RGB"))

    def save(self, path: str | Path) -> Path:
        """Write the drawing to a .png, .jpg or .webp file. Raises ValueError for other endings."""
        path = Path(path)
        form = FORMATS.get(path.suffix.lower())
        if form is None:
            raise ValueError(f"a picture cannot be saved as {path.name!r}; end its name in {', '.join(FORMATS)}")
        _make_folder(path.parent)
        write_file(path, lambda file: self.picture().convert("RGB").save(file, form))
        return path

    def show(self) -> None:
        """Show the drawing: in a notebook below its cell, elsewhere in the viewer of this machine."""
        try:
            from IPython import get_ipython  # pyright: ignore[reportMissingImports]
            from IPython.display import display  # pyright: ignore[reportMissingImports]
        except ImportError:
            self.picture().show()
            return
        display(self) if get_ipython() is not None else self.picture().show()

    def _repr_png_(self) -> bytes:
        """Return the drawing for a notebook, which asks for it by this name."""
        content = BytesIO()
        self.picture().convert("RGB").save(content, "PNG")
        return content.getvalue()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}: {self.text})"


@dataclass(frozen=True, eq=False, repr=False)
class ClassResult(Result):
    """The most probable classes of an image.

    Attributes:
        labels: (N,) up to five, best first.
        scores: (N,) float, the probability of each.
    """

    scores: np.ndarray

    @property
    def top(self) -> list[tuple[str, float]]:
        """The class names with their probabilities, best first."""
        return list(zip(self.names, self.scores.tolist(), strict=True))

    @property
    def text(self) -> str:
        return "   ".join(f"{name} {probability:.1%}" for name, probability in self.top)

    def to_dict(self) -> dict[str, Any]:
        return {"top": [{"class": name, "probability": probability} for name, probability in self.top]}

    def pictures(self) -> dict[str, "Image"]:
        from fourstage.report.pictures import draw_prediction

        return {"": draw_prediction(self.image, self.top, self.source.title)}

    def to_supervision(self) -> Any:
        return _supervision().Classifications(class_id=self.labels, confidence=self.scores)


@dataclass(frozen=True, eq=False, repr=False)
class ObjectResult(Result):
    """The objects in an image.

    Attributes:
        labels: (N,) the class of each object, best score first.
        scores: (N,) float from 0 to 1.
        boxes: (N, 4) float, x1 y1 x2 y2 in pixels of the image, x2 and y2 exclusive.
        object_masks: the masks as the network gives them; None: it gives boxes alone.
        shown_score: the lowest score of an object that a picture shows.
        training_ids: the id of each class in the COCO json of the training data; None: it had none.
    """

    scores: np.ndarray
    boxes: np.ndarray
    object_masks: ObjectMasks | None = None
    shown_score: float = SHOWN_SCORE
    training_ids: tuple[int, ...] | None = None

    @cached_property
    def masks(self) -> np.ndarray | None:
        """The masks, (N, H, W) bool, computed when they are first asked for; None: the network gives boxes alone."""
        return None if self.object_masks is None else self.object_masks.full_size()

    @cached_property
    def run_lengths(self) -> list[str] | None:
        """The masks in COCO's compressed run lengths; None: the network gives boxes alone."""
        return None if self.object_masks is None else self.object_masks.run_lengths()

    @property
    def text(self) -> str:
        rows = zip(self.names, self.scores.tolist(), strict=True)
        return in_a_line([f"{name} {score:.0%}" for name, score in rows if score >= self.shown_score]) or "nothing"

    def to_dict(self) -> dict[str, Any]:
        columns = zip(self.names, *(values.tolist() for values in (self.labels, self.scores, self.boxes)), strict=True)
        objects = [{"class": name, "label": c, "score": score, "box": box} for name, c, score, box in columns]
        for one, counts in zip(objects, self.run_lengths or (), strict=self.run_lengths is not None):
            one["mask"] = {"size": list(self.size), "counts": counts}
        return {"objects": objects}

    def to_coco(
        self, image_id: int | str = 1, category_ids: Sequence[int | str | None] | None = None
    ) -> list[dict[str, Any]]:
        ids = _ids(self.class_names, (self.training_ids or None) if category_ids is None else category_ids)
        objects = self.to_dict()["objects"]
        return [_coco_row(image_id, ids[one["label"]], one) for one in objects if ids[one["label"]] is not None]

    def pictures(self) -> dict[str, "Image"]:
        from fourstage.report.objects import draw_objects

        shown = (self.scores >= self.shown_score).nonzero()[0]
        objects = {"boxes": self.boxes[shown].tolist(), "labels": self.labels[shown].tolist()}
        objects["scores"] = self.scores[shown].tolist()
        if (counts := self.run_lengths) is not None:
            objects["masks"] = [counts[i] for i in shown]
        return {"": draw_objects(self.image, objects, self.class_names)}

    def to_supervision(self) -> Any:
        return _supervision().Detections(
            xyxy=self.boxes.astype(np.float32).reshape(-1, 4),
            mask=self.masks,
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )


@dataclass(frozen=True, eq=False, repr=False)
class LabelMapResult(Result):
    """The class of every pixel of an image.

    Attributes:
        labels: (N,) the classes that occur, the largest area first.
        label_map: (H, W) uint8, the class of each pixel.
        shares: (N,) float, the share of the pixels of each of `labels`.
        palette: a colour for each class, as bytes of red, green and blue; None: separate colours are chosen.
    """

    label_map: np.ndarray
    shares: np.ndarray
    palette: Sequence[tuple[int, int, int]] | None = None

    @property
    def text(self) -> str:
        return in_a_line([f"{name} {share:.1%}" for name, share in zip(self.names, self.shares, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        rows = zip(self.names, self.shares.tolist(), strict=True)
        return {"classes": [{"class": name, "share": share} for name, share in rows]}

    def to_coco(
        self, image_id: int | str = 1, category_ids: Sequence[int | str | None] | None = None
    ) -> list[dict[str, Any]]:
        """Return one row for each class that occurs, with its area as run lengths, as COCO-Stuff has them."""
        from fourstage.data.objects.rle import encode_mask

        ids = _ids(self.class_names, category_ids)
        return [
            {"image_id": image_id, "category_id": ids[label], "segmentation": encode_mask(self.label_map == label)}
            for label in self.labels.tolist()
            if ids[label] is not None
        ]

    def pictures(self) -> dict[str, "Image"]:
        from fourstage.report.label_maps import colours_of, index_picture, overlay_with_legend

        colours = colours_of(len(self.class_names), self.palette)
        overlay = overlay_with_legend(self.image, self.label_map, self.class_names, colours, self.source.title)
        return {"": overlay, LABELS: index_picture(self.label_map, colours)}

    def frame_picture(self) -> np.ndarray:
        from PIL import Image

        from fourstage.report.label_maps import colours_of, index_picture

        coloured = index_picture(self.label_map, colours_of(len(self.class_names), self.palette)).convert("RGB")
        return np.asarray(Image.blend(Image.fromarray(np.ascontiguousarray(self.image)), coloured, OPACITY))

    def save_label_map(self, path: str | Path) -> Path:
        """Write an indexed PNG whose pixels are the labels.

        Raises:
            ValueError: the name does not end in .png.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(
                f"a label map cannot be saved as {path.name!r}; end its name in .png, which loses no label"
            )
        _make_folder(path.parent)
        write_file(path, lambda file: self.pictures()[LABELS].save(file, "PNG"))
        return path

    def to_supervision(self) -> Any:
        masks_NHW = np.stack([self.label_map == label for label in self.labels])
        return _supervision().Detections(
            xyxy=np.stack([_extent(mask_HW) for mask_HW in masks_NHW]),
            mask=masks_NHW,
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be created ({error.strerror}); choose another folder") from None


def _coco_row(image_id: int | str, category_id: int | str | None, one: dict[str, Any]) -> dict[str, Any]:
    """Return a row of COCO's results format for an object of `ObjectResult.to_dict`."""
    x1, y1, x2, y2 = one["box"]
    row = {"image_id": image_id, "category_id": category_id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": one["score"]}
    return row | ({"segmentation": one["mask"]} if "mask" in one else {})


def in_a_line(words: Sequence[str]) -> str:
    """Return the first few words in one line, and the number of the others."""
    more = f"   and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
    return "   ".join(words[:MOST_NAMED]) + more


def _ids(classes: tuple[str, ...], given: Sequence[int | str | None] | None) -> Sequence[int | str | None]:
    if given is not None and len(given) != len(classes):
        raise ValueError(
            f"got {plural(len(given), 'category id')} for {plural(len(classes), 'class', 'classes')}; give one for "
            "each class"
        )
    if given is None:
        return category_ids(classes)
    return given.tolist() if isinstance(given, np.ndarray) else given


def _extent(mask_HW: np.ndarray) -> np.ndarray:
    """Return x1 y1 x2 y2 around the pixels of a mask that is not empty, x2 and y2 exclusive."""
    rows, columns = (np.flatnonzero(mask_HW.any(axis=axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)


def _supervision() -> Any:
    try:
        import supervision  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"to_supervision() needs the library supervision; type: {install('supervision')}") from error
    return supervision
