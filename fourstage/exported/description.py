"""What an exported file says about itself, as JSON inside of the file: all that is done before and after its graph.

The writer of a file makes a `Description`, and its reader needs nothing else. This module imports no torch. B images,
C classes, P pairs of a box and a class, N detections, H x W pixels of the input, h x w cells.

The outputs of a graph by `kind`, with the names that `outputs` must have:

    "logits" of a classifier: `logits` (B, C)
    "logits" of a segmentor:  `logits` (B, C, h, w), of any size; they are resized to the input's
    "label_map":              `label_map` (B, H, W), whole numbers
    "detections":             `boxes`, `scores`, `labels`, perhaps `factors`, perhaps `masks`; see `Suppression`
    "maps":                   `map_0`, `map_1` ..., (B, channels, h, w), of a backbone
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from fourstage.documents import parse_json
from fourstage.plurals import plural

FORMAT = 1  # of the description; a reader refuses later ones
KEY = "fourstage"  # under which a file carries it
JSON_BYTES = 16 * 2**20
JSON_VALUES = 1_000_000
LONGEST_SIDE = 2**16  # pixels
MOST_CLASSES = 100_000

Task: TypeAlias = Literal["classification", "detection", "segmentation", "backbone"]
Kind: TypeAlias = Literal["logits", "label_map", "detections", "maps"]
KINDS: dict[str, tuple[str, ...]] = {
    "classification": ("logits",),
    "detection": ("detections",),
    "segmentation": ("logits", "label_map"),
    "backbone": ("maps",),
}
NEEDED: dict[str, tuple[str, ...]] = {
    "logits": ("logits",),
    "label_map": ("label_map",),
    "detections": ("boxes", "scores"),
    "maps": ("map_0",),
}


@dataclass(frozen=True)
class Input:
    """The input of the graph: RGB images (B, 3, H, W).

    Attributes:
        name: of the graph's input.
        dtype: of the values.
        batch, height, width: fixed numbers; None: the axis is dynamic.
        normalised: whether the caller subtracts the mean and divides by the standard deviation. Otherwise the graph
            does, and reads values from 0 to 255.
        mean, std: per channel, in units of 1 (white).
        divisor: the caller fills dynamic sides up to multiples of it, in pixels, on the right and at the bottom, with
            what is 0 after the normalisation. 1: the graph reads any size.
        smallest: pixels of the smallest side that the graph reads; smaller images are filled up to it.
        sizes: the name of a second input: the (H, W) of each image without its padding, (B, 2) int64, for a network
            that leaves padding out; None: there is none.
    """

    name: str
    dtype: Literal["float32", "float16"] = "float32"
    batch: int | None = None
    height: int | None = None
    width: int | None = None
    normalised: bool = True
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    divisor: int = 1
    smallest: int = 1
    sizes: str | None = None

    @property
    def names(self) -> list[str]:
        """Return the names of the graph's inputs, in its order."""
        return [self.name] if self.sizes is None else [self.name, self.sizes]

    def problem(self) -> str:
        """Return what cannot be in words; empty: nothing."""
        for name in ("batch", "height", "width", "divisor", "smallest"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LONGEST_SIDE:
                return f"input.{name} is {value}, and it must be from 1 to {LONGEST_SIDE}"
        if min(self.std) <= 0:
            return f"input.std is {list(self.std)}, and it must be above 0"
        return ""


@dataclass(frozen=True)
class MiddleCrop:
    """A classifier's rule: the short side becomes floor(size / crop_pct), and the middle is cut out; by PIL.

    Attributes:
        size: height and width of the result, pixels.
        mode: "center", or "squash", which resizes to the square and cuts nothing off.
        interpolation: "bicubic", "bilinear", "lanczos" or "nearest".
    """

    size: int
    crop_pct: float = 0.875
    mode: Literal["center", "squash"] = "center"
    interpolation: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    rule: Literal["middle_crop"] = "middle_crop"

    def problem(self) -> str:
        if not 1 <= self.size <= LONGEST_SIDE:
            return f"resize.size is {self.size}, and it must be from 1 to {LONGEST_SIDE}"
        return (
            "" if 0 < self.crop_pct <= 1 else f"resize.crop_pct is {self.crop_pct}, and it must be above 0, at most 1"
        )


@dataclass(frozen=True)
class KeepRatio:
    """A detector's rule: the largest size within two limits, by OpenCV's bilinear on bytes.

    Attributes:
        scale: limits on the longer and the shorter side, pixels, in either order.
    """

    scale: tuple[int, int]
    rule: Literal["keep_ratio"] = "keep_ratio"

    def problem(self) -> str:
        return _scale_problem(self.scale)


@dataclass(frozen=True)
class Views:
    """A segmentor's rule: the views of `tasks.segmentation.protocol.Protocol`, with the same names, by OpenCV.

    Attributes:
        ratios, ratios_of: of the multi-scale evaluation; a prediction has the one view of ratio 1.
    """

    scale: tuple[int, int] | None = (2048, 512)
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    divisor: int = 1
    ratios: tuple[float, ...] = (1.0,)
    ratios_of: Literal["scale", "image"] = "scale"
    rule: Literal["views"] = "views"

    def problem(self) -> str:
        for sides in (self.window, self.stride):
            if sides is not None and not 1 <= min(sides) <= max(sides) <= LONGEST_SIDE:
                return f"resize has the window or stride {list(sides)}, and sides are from 1 to {LONGEST_SIDE}"
        return "" if self.scale is None else _scale_problem(self.scale)


@dataclass(frozen=True)
class Suppression:
    """What remains to be done after the graph of a detector.

    The graph returns one of these forms, boxes as x1 y1 x2 y2 in pixels of the input:

        pairs:   `boxes` (B, P, 4), `scores` (B, P), `labels` (B, P)
        classes: `boxes` (B, P, 4) or (B, P, C, 4), `scores` (B, P, C), perhaps `factors` (B, P): every score above
                 the threshold is a pair, and factors are multiplied afterwards

    Then boxes are clipped to the image without its padding if `clip`, and boxes without area are dropped if
    `drop_empty`. Pairs of one class are suppressed where `iou` is a number, and the best `most` are left. `masks`
    (B, P, M, M) are probabilities on a grid that is stretched over the box; files with masks suppress inside the graph.

    Attributes:
        threshold: pairs score more.
        iou: of the suppression; None: the graph has suppressed, or needs none.
        most: detections of an image.
        where: boxes are suppressed in pixels of the original "image", or of the "input".
        mask_threshold: from this probability on, a pixel belongs to the object.
    """

    threshold: float = 0.0
    iou: float | None = None
    most: int = 100
    where: Literal["image", "input"] = "image"
    drop_empty: bool = False
    clip: bool = True
    mask_threshold: float = 0.5

    def problem(self) -> str:
        if self.most < 1:
            return f"suppression.most is {self.most}, and it must be 1 or more"
        return "" if self.iou is None or 0 <= self.iou <= 1 else f"suppression.iou is {self.iou}, and it is from 0 to 1"


@dataclass(frozen=True)
class Description:
    """An exported network.

    Attributes:
        task: what the network is for.
        kind: of the outputs, see the module.
        outputs: names of the graph's outputs, in its order.
        classes: names, in the order of the labels; empty for a backbone.
        input: what the graph reads.
        network: the name of the network, such as "swin_tiny" or "retinanet over swin_tiny".
        resize: how an image becomes the input; None: a backbone, whose caller decides.
        suppression: what remains to be done for a detector; None for other tasks.
        method: of a detector or segmentor, such as "upernet"; None: a classifier or a backbone.
        align_corners: whether a segmentor's logits are resized with aligned corners.
        strides: of a backbone's maps, pixels.
        category_ids: the id of each class in the COCO json of the training data.
        palette: a colour for each class, bytes of red, green and blue.
        limits: detections of one class in one image that count in COCO's evaluation.
        boundary: whether a segmentor's boundaries are scored too.
        licence: of the weights, as its source states it.
        recipe, recipe_hash: the name of the recipe, and the sha256 of its values.
        versions: of the libraries that wrote the file.
    """

    task: Task
    kind: Kind
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    input: Input
    network: str
    resize: MiddleCrop | KeepRatio | Views | None = None
    suppression: Suppression | None = None
    method: str | None = None
    align_corners: bool = False
    strides: tuple[int, ...] = ()
    category_ids: tuple[int, ...] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    limits: tuple[int, ...] = (1, 10, 100)
    boundary: bool = False
    licence: str | None = None
    recipe: str | None = None
    recipe_hash: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError where the values do not fit together."""
        if text := self.problem():
            raise ValueError(f"the description of an exported file is wrong: {text}")

    def problem(self) -> str:
        """Return what cannot be in words; empty: nothing."""
        if self.kind not in KINDS[self.task]:
            return f"kind is {self.kind!r} for {self.task}"
        if missing := [name for name in NEEDED[self.kind] if name not in self.outputs]:
            return f"outputs lack {missing[0]!r}"
        rules = {"classification": MiddleCrop, "detection": KeepRatio, "segmentation": Views, "backbone": NoneType}
        if not isinstance(self.resize, rules[self.task]):
            return f"resize has no rule for {self.task}"
        if (self.suppression is not None) != (self.task == "detection"):
            return "a detector has a suppression, and other networks have none"
        for part in (self.input, self.resize, self.suppression):
            if part is not None and (text := part.problem()):
                return text
        return self._problem_of_classes()

    def _problem_of_classes(self) -> str:
        if (self.task == "backbone") == bool(self.classes) or len(self.classes) > MOST_CLASSES:
            return f"classes are {len(self.classes)}"
        for name in ("category_ids", "palette"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.classes):
                return f"{name} has {plural(len(values), 'value')} for {plural(len(self.classes), 'class', 'classes')}"
        if self.palette is not None and any(not 0 <= level <= 255 for colour in self.palette for level in colour):
            return "palette has a colour that is not three bytes"
        return ""

    def to_json(self) -> str:
        """Return the text that a file carries."""
        return json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=True)

    @staticmethod
    def from_json(text: bytes | str, where: object) -> "Description":
        """Return the description in a text from anyone.

        Args:
            where: the file, for messages.

        Raises:
            ValueError: it is of a newer version, damaged, or larger than any description.
        """
        values = parse_json(text, f"the description in {where}", most_bytes=JSON_BYTES, most_values=JSON_VALUES)
        if not isinstance(values, dict) or type(number := values.pop("format", None)) is not int or number < 1:
            raise _damaged(where, "it has no format")
        if number > FORMAT:
            raise ValueError(
                f"{where} is of format {number}, and this version of fourstage reads up to {FORMAT}; install a newer "
                f"version, or export the network again with this one"
            )
        try:
            return _built(Description, values, "")
        except (ValueError, TypeError) as error:
            raise _damaged(where, str(error)) from None


def no_description(where: object) -> ValueError:
    """Return the error for a file that carries no description."""
    return ValueError(
        f"{where} has no description by fourstage, so that its classes and the size of its images are not known; give "
        f"a file that `fourstage export` wrote"
    )


def _damaged(where: object, reason: str) -> ValueError:
    reason = reason.removeprefix("the description of an exported file is wrong: ")
    return ValueError(f"the description in {where} is damaged ({reason:.200}); export the network again")


def _scale_problem(scale: tuple[int, int]) -> str:
    if 1 <= min(scale) <= max(scale) <= LONGEST_SIDE:
        return ""
    return f"resize.scale is {list(scale)}, and limits are from 1 to {LONGEST_SIDE}"


def _built(of: type[Any], values: object, name: str) -> Any:
    """Return the dataclass that JSON values describe. Raises ValueError where one has another type."""
    if not isinstance(values, dict):
        raise ValueError(f"{name or 'it'} is not a mapping")
    known, hints = {one.name: one for one in fields(of)}, get_type_hints(of)
    if unknown := next((key for key in values if key not in known), None):
        raise ValueError(f"{name}{unknown:.40} is unknown")
    required = [key for key, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
    if missing := next((key for key in required if key not in values), None):
        raise ValueError(f"{name}{missing} is missing")
    return of(**{key: _checked(hints[key], value, f"{name}{key}") for key, value in values.items()})


def _checked(hint: Any, value: object, name: str) -> Any:
    """Return a JSON value as the type of a field. Raises ValueError where it is of another one."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return _of_union(arguments, value, name)
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        raise ValueError(f"{name} is {value!r:.40}, and it is one of {', '.join(arguments)}")
    if origin is tuple:
        return _tuple(arguments, value, name)
    if origin is Mapping:
        if isinstance(value, dict) and all(isinstance(one, str) for one in value.values()):
            return value
        raise ValueError(f"{name} is not a mapping of texts")
    if hasattr(hint, "__dataclass_fields__"):
        return _built(hint, value, f"{name}.")
    return _plain(hint, value, name)


def _of_union(choices: tuple[Any, ...], value: object, name: str) -> Any:
    """Return the value as one of several types; dataclasses are told apart by their field `rule`."""
    if value is None and NoneType in choices:
        return None
    choices = tuple(one for one in choices if one is not NoneType)
    if len(choices) == 1:
        return _checked(choices[0], value, name)
    rule = value.get("rule") if isinstance(value, dict) else None
    for one in choices:
        if get_args(get_type_hints(one)["rule"]) == (rule,):
            return _built(one, value, f"{name}.")
    raise ValueError(f"{name}.rule is {rule!r:.40}, which is unknown")


def _tuple(arguments: tuple[Any, ...], value: object, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    if arguments[-1] is Ellipsis:
        return tuple(_checked(arguments[0], one, name) for one in value)
    if len(value) != len(arguments):
        raise ValueError(f"{name} has {plural(len(value), 'value')}, and {len(arguments)} are needed")
    return tuple(_checked(hint, one, name) for hint, one in zip(arguments, value, strict=True))


PLAIN: dict[type, tuple[str, Callable[[Any], bool]]] = {
    str: ("a text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: type(value) is int and abs(value) < 2**63),
    float: ("a finite number", lambda value: type(value) in (int, float) and abs(value) < 1e30),
}


def _plain(hint: Any, value: object, name: str) -> Any:
    what, fits = PLAIN[hint]
    if not fits(value):
        raise ValueError(f"{name} is {value!r:.40}, and it must be {what}")
    return float(value) if hint is float else value  # pyright: ignore[reportArgumentType]
