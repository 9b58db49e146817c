"""What an analysis reads: networks and images."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from numbers import Integral
from pathlib import Path
from typing import Concatenate, Literal, ParamSpec, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import nn

from fourstage.analysis.networks import Form, LoadedNetwork, load_network, untrained_twin
from fourstage.build import fetch_into_cache
from fourstage.data.bad_images import find_bad_images
from fourstage.data.formats import open_dataset
from fourstage.data.images import is_image_name, read_image
from fourstage.data.sample import BadImage, Dataset, Sample
from fourstage.data.subset import Subset
from fourstage.engine.devices import choose_device
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.recipe import EMBEDDED
from fourstage.registry import find, list_models
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.user_files import import_files
from fourstage.weights.catalog import published, split

Order = Literal["first", "spread"]
Source: TypeAlias = str | Path | nn.Module  # of a network
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
MULTIPLE = 32  # pixels; a padded image would not be the one that is drawn
FEW = 30  # images, below which intervals over images mean little
MANY = 1000  # images, whose reading shows its progress
NAMED = 5  # files that a note names
LARGEST = 640  # pixels a side, of images for detectors and segmentors, unless a size is given


@dataclass(frozen=True)
class Loading:
    """How the networks of a call are loaded; see `load_network`."""

    pretrained: bool = False
    which: str = "model"
    seed: int = 0
    device: str = "auto"
    imports: tuple[str, ...] = ()


def with_networks(
    analyse: Callable[Concatenate[Sequence[Source], Arguments], Result],
) -> Callable[Concatenate[Source | Iterable[Source], Arguments], Result]:
    """Give an analysis its networks as a list; a single one may come alone.

    Modules of the caller end in the mode and on the device in which they came.

    Raises:
        ValueError: there is no network.
    """

    @wraps(analyse)
    def run(sources: Source | Iterable[Source], *args: Arguments.args, **named: Arguments.kwargs) -> Result:
        listed = [sources] if isinstance(sources, str | Path | nn.Module) else list(sources)
        if not listed:
            raise ValueError("no network was given; name one, such as swin_tiny or runs/mine")
        given = [one for one in listed if isinstance(one, nn.Module)]
        modes = [(module, module.training) for one in given for module in one.modules()]
        devices = [device_of(one) for one in given]
        try:
            return analyse(listed, *args, **named)
        finally:
            for one, device in zip(given, devices, strict=True):
                one.to(device)
            for module, mode in modes:
                module.training = mode

    return run


def load_networks(
    sources: Sequence[Source], form: Form, loading: Loading, *, untrained: bool = False
) -> list[LoadedNetwork]:
    """Return the networks on the device, each under a name of its own.

    Args:
        untrained: put the same network with fresh weights behind each trained one.

    Raises:
        ValueError: as `load_network`.
    """
    device = choose_device(loading.device)
    import_files(loading.imports)
    found: list[LoadedNetwork] = []
    for source in sources:
        if loading.pretrained and isinstance(source, str) and _is_published(source):
            fetch_into_cache(source, "analyze")
        one = load_network(source, form=form, pretrained=loading.pretrained, which=loading.which, seed=loading.seed)
        found.append(one)
        if untrained and one.trained:
            found.append(untrained_twin(one, loading.seed))
    for one in found:
        one.network.to(device)
    return _named_apart(found)


def _is_published(source: str) -> bool:
    """Return whether a text names a network here with published weights, and no file or run."""
    model = split(source)[0]
    return not Path(source).exists() and model in list_models() and bool(published(find(model).name))


def _named_apart(networks: Sequence[LoadedNetwork]) -> list[LoadedNetwork]:
    """Return the networks with numbers behind names that come more than once with the same kind of weights."""
    times = Counter((one.name, one.trained) for one in networks)
    seen: Counter[tuple[str, bool]] = Counter()
    out = []
    for one in networks:
        key = (one.name, one.trained)
        seen[key] += 1
        out.append(replace(one, name=f"{one.name} ({seen[key]})") if times[key] > 1 else one)
    return out


class ImageFiles:
    """Images without ground truth as a data set: one file, or the files of a folder in the order of their names."""

    classes: tuple[str, ...] = ()
    truths: tuple[str, ...] = ()

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)

    def __len__(self) -> int:
        return len(self.files)

    def id(self, index: int) -> str:
        return self.files[index].name

    def sample(self, index: int) -> Sample:
        image_HW3 = read_image(self.files[index])
        return Sample(self.id(index), image_HW3, (image_HW3.shape[0], image_HW3.shape[1]))


def open_images(data: str | Path) -> Dataset:
    """Return the images of a data set, of a folder without labels, or one image file."""
    path = Path(data)
    if str(data) in EMBEDDED:
        return open_dataset(data, "val")
    if path.is_file() and is_image_name(path.name):
        return ImageFiles([path])
    if path.is_dir() and not any(child.is_dir() for child in path.iterdir()):
        files = sorted(child for child in path.iterdir() if is_image_name(child.name))
        if files:
            return ImageFiles(files)
    return open_dataset(data, "val")


@dataclass(frozen=True)
class Chosen:
    """The images of an analysis: positions in the data, all of which can be read, and notes on the choice.

    Attributes:
        requested: how many there would be if all could be read.
    """

    positions: list[int]
    requested: int
    notes: tuple[str, ...] = ()


def choose(
    dataset: Dataset, count: int | None, order: Order, data: str | Path, *, default: int, fewest: int = 1
) -> Chosen:
    """Return `count` images, the first ones or evenly spread over the data, without those that cannot be read.

    Args:
        count: None: `default`, or all where the data has fewer.
        fewest: that the analysis needs.

    Raises:
        ValueError: the data has fewer images than requested, or none of them can be read.
    """
    few = ""
    if count is None:
        count = max(1, min(default, len(dataset)))
        few = f"{data} has {plural(len(dataset), 'image')}, all of which are taken; the default is {default}."
    if not isinstance(count, Integral) or int(count) < 1:
        raise ValueError(f"an analysis needs at least one image; got --images {count}; give a number from 1 on")
    if len(dataset) < fewest:
        raise ValueError(f"{data} has {plural(len(dataset), 'image')} and {fewest} are needed; give more data")
    if len(dataset) < count:
        raise ValueError(
            f"{data} has {plural(len(dataset), 'image')} and {count} are needed; type --images {len(dataset)}, or give "
            "more data"
        )
    positions = list(range(count)) if order == "first" else [i * len(dataset) // count for i in range(count)]
    with Bar("reading images", count, show=count >= MANY) as bar:
        bad = find_bad_images(Subset(dataset, np.array(positions)), lambda done, total: bar.update(done))
    kept = [position for position in positions if dataset.id(position) not in bad]
    if not kept:
        first = next(iter(bad.values()))
        raise ValueError(f"no image of {data} can be read: {first} (1 of {len(bad)}); give images that can be read")
    notes = [few] if count < default and few else []
    return Chosen(kept, count, (*notes, *([_left_out(bad)] if bad else [])))


def few_words(count: int) -> tuple[str, ...]:
    """Return a sentence on means over so few images; nothing for enough."""
    return () if count >= FEW else (f"Means over {plural(count, 'image')} say little about other images.",)


def _left_out(bad: Mapping[str, BadImage]) -> str:
    names = [Path(one.path).name for one in bad.values()]
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    verb = "is" if len(bad) == 1 else "are"
    first = next(iter(bad.values()))
    return f"{plural(len(bad), 'image')} cannot be read and {verb} left out: {shown} (the first: {first.reason})."


def read(dataset: Dataset, positions: Iterable[int]) -> Iterator[Sample]:
    """Yield the samples at these positions."""
    for position in positions:
        yield dataset.sample(position)


def readable(dataset: Dataset, positions: Iterable[int]) -> Iterator[Sample]:
    """Yield the samples at these positions that can be read."""
    for position in positions:
        try:
            yield dataset.sample(position)
        except BadImage:
            continue


def side_for(loaded: LoadedNetwork, image_HW3: np.ndarray, size: int | None) -> int:
    """Return the side of square views: as requested, else the network's own, else of dense tasks the image's.

    Views of detectors and segmentors have multiples of 32 pixels, to which detectors pad.
    """
    if not isinstance(loaded.network, Detector | Segmentor):
        return size or loaded.preparation.image_size[0]
    side = size or min(LARGEST, *image_HW3.shape[:2])
    return max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)


def check_side(size: int | None, of: str = "images", largest: int = 4096) -> None:
    """Raise ValueError for a side of images that is out of range; None stands for each network's own."""
    if size is not None and not (isinstance(size, Integral) and 32 <= int(size) <= largest):
        raise ValueError(f"--size is the side of the {of} in pixels, 32 to {largest}; got {size}")


def check_words(setting: object) -> None:
    """Raise ValueError for a word of a setting that is none of those that its type lists."""
    for name, hint in get_type_hints(type(setting)).items():
        if get_origin(hint) is Literal and (word := getattr(setting, name)) not in get_args(hint):
            raise ValueError(f"{name} is one of {', '.join(map(str, get_args(hint)))}; got {word!r:.80}")


def device_of(network: nn.Module) -> torch.device:
    return next(iter(network.parameters()), torch.empty(0)).device
