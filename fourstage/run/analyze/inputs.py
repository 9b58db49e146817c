"""What an analysis reads: networks and images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from fourstage.analysis.subjects import Form, Subject, load_subject, untrained_twin
from fourstage.data.formats import open_dataset
from fourstage.data.images import is_image_name, read_image
from fourstage.data.sample import Dataset, Sample, Split
from fourstage.engine.devices import choose_device
from fourstage.report.number_format import plural
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.user_files import import_files

Order = Literal["first", "spread"]
MULTIPLE = 32  # pixels; a padded image would not be the one that is drawn
LARGEST = 640  # pixels a side, of images for detectors and segmentors, unless a size is given


@dataclass(frozen=True)
class Loading:
    """How the networks of a call are loaded; see `load_subject`."""

    pretrained: bool = False
    which: str = "model"
    seed: int = 0
    device: str = "auto"
    imports: tuple[str, ...] = ()


def load_subjects(
    sources: Sequence[str | Path | nn.Module], form: Form, loading: Loading, *, untrained: bool = False
) -> list[Subject]:
    """Return the networks on the device, each under a name of its own.

    Args:
        untrained: put the same network with fresh weights behind each trained one.
    """
    device = choose_device(loading.device)
    import_files(loading.imports)
    found: list[Subject] = []
    for source in sources:
        one = load_subject(source, form=form, pretrained=loading.pretrained, which=loading.which, seed=loading.seed)
        found.append(one)
        if untrained and one.trained:
            found.append(untrained_twin(one, loading.seed))
    for one in found:
        one.network.to(device)
    return _named_apart(found)


def _named_apart(subjects: Sequence[Subject]) -> list[Subject]:
    """Return the subjects with numbers behind names that come more than once with the same kind of weights."""
    times = Counter((one.name, one.trained) for one in subjects)
    seen: Counter[tuple[str, bool]] = Counter()
    out = []
    for one in subjects:
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


def open_images(data: str | Path, split: Split = "val") -> Dataset:
    """Return the images of a data set, of a folder without labels, or one image file."""
    path = Path(data)
    if path.is_file() and is_image_name(path.name):
        return ImageFiles([path])
    if path.is_dir() and not any(child.is_dir() for child in path.iterdir()):
        files = sorted(child for child in path.iterdir() if is_image_name(child.name))
        if files:
            return ImageFiles(files)
    return open_dataset(data, split)


def choose(dataset: Dataset, count: int, order: Order, data: str | Path) -> list[int]:
    """Return the positions of `count` images: the first ones, or evenly spread over the data.

    Raises:
        ValueError: the data has fewer images.
    """
    if count < 1:
        raise ValueError(f"an analysis needs at least one image, and --images {count} came; give a number from 1 on")
    if len(dataset) < count:
        raise ValueError(
            f"{data} has {plural(len(dataset), 'image')} and {count} are needed; type --images {len(dataset)}, or give "
            "more data"
        )
    if order == "first":
        return list(range(count))
    return [i * len(dataset) // count for i in range(count)]


def read(dataset: Dataset, positions: Iterable[int]) -> Iterator[Sample]:
    """Yield the samples at these positions."""
    for position in positions:
        yield dataset.sample(position)


def side_for(subject: Subject, image_HW3: np.ndarray, size: int | None) -> int:
    """Return the side of square views: as requested, else the network's own, else of dense tasks the image's.

    Views of detectors and segmentors have multiples of 32 pixels, to which detectors pad.
    """
    if not isinstance(subject.network, Detector | Segmentor):
        return size or subject.preparation.image_size[0]
    side = size or min(LARGEST, *image_HW3.shape[:2])
    return max(MULTIPLE, round(side / MULTIPLE) * MULTIPLE)


def device_of(network: nn.Module) -> torch.device:
    return next(iter(network.parameters()), torch.empty(0)).device
