"""`fourstage analyze robustness`: accuracy on ImageNet's other test sets, and on images that are corrupted here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.analysis import robustness as rb
from fourstage.analysis.images import evaluated, normalised
from fourstage.analysis.networks import LoadedNetwork
from fourstage.analysis.statistics import bootstrap_means
from fourstage.analysis.unsuitable import naming
from fourstage.data.labels.imagenet_variants import CLASSES, Variant, find_variant, read_real
from fourstage.data.sample import Dataset, Sample
from fourstage.files import write_text
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.report.analyses.robustness import NetworkRobustness, robustness_page
from fourstage.resources import sentences
from fourstage.run.analyze.inputs import (
    Chosen,
    Loading,
    Order,
    check_side,
    check_words,
    choose,
    few_words,
    load_networks,
    open_images,
    read,
    with_networks,
)
from fourstage.run.analyze.labels import labelled_for
from fourstage.run.analyze.outputs import Outcome, as_csv, check_folder, write

SIDE_C = 224  # pixels of ImageNet-C's images, of which the centre is taken without a resize
AT_ONCE = 32  # images in memory
FEW = 100  # images that are corrupted here unless --images says more
Seen = Callable[[LoadedNetwork, Sample], Tensor]


@dataclass(frozen=True)
class RobustnessSetting:
    """What is measured; see `analysis/robustness.py`.

    Attributes:
        images: of a test set; None: all of a published one, 100 of a set that is corrupted here.
        corruptions: that are applied here; none: the fifteen of ImageNet-C.

    Raises:
        ValueError: no severity, or one that is not 1 to 5; a size out of range.
    """

    images: int | None = None
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = rb.SEVERITIES
    size: int | None = None
    order: Order = "spread"
    seed: int = 0

    def __post_init__(self) -> None:
        check_words(self)
        check_side(self.size)
        if not self.severities or any(severity not in rb.SEVERITIES for severity in self.severities):
            raise ValueError(f"--severity is 1 to 5; got {', '.join(map(str, self.severities)) or 'none'}")


@sentences("use fewer --images or a smaller --size")
@with_networks
def analyze_robustness(
    sources: Sequence[str | Path | nn.Module],
    data: str | Path,
    out: str | Path,
    setting: RobustnessSetting | None = None,
    *,
    loading: Loading | None = None,
    show: bool = True,
) -> Outcome:
    """Measure accuracy under change and write `robustness.npz`, `.csv` and `.html`.

    Args:
        data: ImageNet-C by corruptions and severities; ImageNet-A, -R, -Sketch, ImageNetV2 or ImageNet's validation
            images by classes; or any labelled data set, whose images are corrupted here.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    setting, folder = setting or RobustnessSetting(), check_folder(out)
    published = folders_of_imagenet_c(Path(data))
    variant = None if published else find_variant(Path(data))
    if not published and variant is None:
        rb.check_corruptions(setting.corruptions)
    networks = load_networks(sources, "logits", loading or Loading())
    if published:
        found, notes = _imagenet_c(networks, published, setting, show)
    elif variant is not None:
        found, notes = _variant(networks, Variant(variant), Path(data), setting, show)
    else:
        found, notes = _corrupted_here(networks, data, setting, show)
    files = write(
        folder,
        "robustness",
        arrays=_arrays(found),
        columns=_COLUMNS,
        rows=list(_rows(found)),
        page=robustness_page(found, Path(data).name, notes),
    )
    if variant is not None:
        files = (*files, *_write_for_timm(folder, networks, found, setting))
    return Outcome(_HEAD, tuple(_printed(found)), notes, files)


def folders_of_imagenet_c(root: Path) -> dict[tuple[str, int], Path]:
    """Return the folders CORRUPTION/SEVERITY of ImageNet-C, also below those of its archives, such as noise/."""
    if not root.is_dir():
        return {}
    below = [root, *(child for child in sorted(root.iterdir()) if child.is_dir())]
    names = (*rb.CORRUPTIONS, *rb.EXTRA)
    found = {}
    for base in below:
        for name in names:
            for severity in rb.SEVERITIES:
                if (folder := base / name / str(severity)).is_dir():
                    found[name, severity] = folder
    return found


def _imagenet_c(
    networks: Sequence[LoadedNetwork], folders: dict[tuple[str, int], Path], setting: RobustnessSetting, show: bool
) -> tuple[list[NetworkRobustness], tuple[str, ...]]:
    """Measure the published images: the centre of 224 pixels, without a resize."""
    _check_imagenet(networks)
    accuracies: list[dict[tuple[str, int], rb.Accuracy]] = [{} for _ in networks]
    notes = ["ImageNet-C's images are taken as published: the centre of 224 pixels, without a resize."]
    with Bar("measuring robustness", len(folders), show=show) as bar:
        for i, (key, folder) in enumerate(folders.items()):
            data = Variant(folder)
            chosen = _chosen(data, setting.images, setting, folder)
            notes += chosen.notes
            correct = _correct(networks, data, chosen.positions, _centre, data.among)
            for known, right in zip(accuracies, correct, strict=True):
                known[key] = right
            bar.update(i + 1)
    found = []
    for loaded, known in zip(networks, accuracies, strict=True):
        errors = rb.corruption_errors({key: one.error for key, one in known.items()})
        found.append(NetworkRobustness(loaded.name, loaded.weights, "ImageNet-C", None, known, errors))
        if errors.missing:
            notes.append(f"There is no mCE: these corruptions are missing: {'; '.join(errors.missing)}.")
    if setting.images is not None:
        notes.append(
            f"Of each corruption {plural(setting.images, 'image')} {'was' if setting.images == 1 else 'were'} "
            "measured, not all."
        )
    return found, tuple(dict.fromkeys(notes))


def _variant(
    networks: Sequence[LoadedNetwork], data: Variant, root: Path, setting: RobustnessSetting, show: bool
) -> tuple[list[NetworkRobustness], tuple[str, ...]]:
    """Measure a test set whose folders are ImageNet's classes."""
    _check_imagenet(networks)
    chosen = _chosen(data, setting.images, setting, root)
    positions = chosen.positions
    real = read_real(root, data)
    found = []
    notes = [*chosen.notes, *([f"{data.note[0].upper()}{data.note[1:]}."] if data.note else [])]
    with Bar("measuring robustness", len(networks), show=show) as bar:
        for i, loaded in enumerate(networks):
            best_N5 = _best([loaded], data, positions, _standard(setting), data.among)[0]
            own = _accuracy(best_N5, [[label] for label in data.labels_N[positions].tolist()])
            found.append(NetworkRobustness(loaded.name, loaded.weights, root.name, own, {}, None))
            if real is not None:
                labels = [real[data.id(position)] for position in positions]
                if any(labels):
                    own = _accuracy(best_N5[[bool(one) for one in labels]], [one for one in labels if one])
                    found.append(NetworkRobustness(loaded.name, loaded.weights, f"{root.name}, ReaL", own, {}, None))
            bar.update(i + 1)
    return found, tuple(notes)


def _corrupted_here(
    networks: Sequence[LoadedNetwork], path: str | Path, setting: RobustnessSetting, show: bool
) -> tuple[list[NetworkRobustness], tuple[str, ...]]:
    """Corrupt the validation crops of a labelled set; all networks of one size see the same corrupted images."""
    dataset = open_images(path)
    names, severities = setting.corruptions or rb.CORRUPTIONS, setting.severities
    chosen = choose(dataset, setting.images, setting.order, path, default=FEW)
    positions = chosen.positions
    keys = [("", 0), *((name, severity) for name in names for severity in severities)]
    correct: list[list[np.ndarray]] = [[] for _ in networks]
    labelled = [_labelled(dataset, loaded, path) for loaded in networks]
    with Bar("measuring robustness", len(positions), show=show) as bar:
        for i, position in enumerate(positions):
            kept: dict[tuple[int, float, str, str], list[np.ndarray]] = {}
            for loaded, own, data in zip(networks, correct, labelled, strict=True):
                sample = data.sample(position)
                crops = _crops(sample, loaded, setting, keys, position, kept)
                p = loaded.preparation
                images_BCHW = torch.stack([normalised(crop, p.mean, p.std) for crop in crops])
                with naming(loaded.name):
                    own.append(rb.best_classes(loaded.network, images_BCHW) == sample.label)
            bar.update(i + 1)
    found = []
    for loaded, own in zip(networks, correct, strict=True):
        by_key = np.stack(own, axis=1).astype(float)
        known = {key: rb.Accuracy(by_key[k]) for k, key in enumerate(keys)}
        clean = known.pop(("", 0))
        found.append(NetworkRobustness(loaded.name, loaded.weights, "corrupted here", clean, known, None))
    notes = (
        f"{plural(len(positions), 'image')} were corrupted here after the crop, by imagecorruptions-imaug. They are "
        "not the images of ImageNet-C, so there is no mCE.",
        *chosen.notes,
        *few_words(len(positions)),
    )
    return found, notes


def _labelled(dataset: Dataset, loaded: LoadedNetwork, path: str | Path) -> Dataset:
    usable, note = labelled_for(dataset, loaded, path)
    if usable is None:
        raise ValueError(f"{note[:-1]}; give a data set with the network's classes")
    return usable


def _crops(
    sample: Sample,
    loaded: LoadedNetwork,
    setting: RobustnessSetting,
    keys: Sequence[tuple[str, int]],
    position: int,
    kept: dict[tuple[int, float, str, str], list[np.ndarray]],
) -> list[np.ndarray]:
    """Return the crop of an image, uint8, without and with each corruption; each size is corrupted once."""
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    p = loaded.preparation
    side = setting.size or p.image_size[0]
    prepared_as = (side, p.crop_pct, p.crop_mode, p.interpolation)
    if prepared_as not in kept:
        plain = replace(p, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        view = evaluated(sample.image, side, plain)
        crop_HW3 = np.ascontiguousarray((view * 255).round().byte().permute(1, 2, 0).numpy())
        seed = setting.seed * 1_000_003 + position
        kept[prepared_as] = [crop_HW3 if not name else rb.corrupted(crop_HW3, name, s, seed) for name, s in keys]
    return kept[prepared_as]


def _chosen(dataset: Dataset, images: int | None, setting: RobustnessSetting, data: str | Path) -> Chosen:
    return choose(dataset, images, setting.order, data, default=len(dataset))


def _check_imagenet(networks: Sequence[LoadedNetwork]) -> None:
    for loaded in networks:
        if len(loaded.classes) != CLASSES:
            raise ValueError(
                f"{loaded.name} has {len(loaded.classes)} classes, and this test set is for ImageNet's {CLASSES}; "
                "give a network of these, or a data set of yours"
            )


def _standard(setting: RobustnessSetting) -> Seen:
    def seen(loaded: LoadedNetwork, sample: Sample) -> Tensor:
        assert isinstance(sample.image, np.ndarray), "data sets give arrays"
        side = setting.size or loaded.preparation.image_size[0]
        return evaluated(sample.image, side, loaded.preparation)

    return seen


def _centre(loaded: LoadedNetwork, sample: Sample) -> Tensor:
    from torchvision.transforms.functional import center_crop

    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    image_3HW = normalised(sample.image, loaded.preparation.mean, loaded.preparation.std)
    return center_crop(image_3HW, [SIDE_C, SIDE_C])


def _correct(
    networks: Sequence[LoadedNetwork], data: Variant, positions: Sequence[int], seen: Seen, among: Sequence[int] | None
) -> list[rb.Accuracy]:
    labels = [[label] for label in data.labels_N[list(positions)].tolist()]
    return [_accuracy(best_N5, labels) for best_N5 in _best(networks, data, positions, seen, among)]


def _accuracy(best_N5: np.ndarray, labels: Sequence[Sequence[int]]) -> rb.Accuracy:
    """Return the accuracy of the best classes of each image against its valid labels."""
    hits_N5 = np.array([np.isin(best_5, own) for best_5, own in zip(best_N5, labels, strict=True)], dtype=float)
    return rb.Accuracy(hits_N5[:, 0], hits_N5.max(axis=1))


def _best(
    networks: Sequence[LoadedNetwork], data: Dataset, positions: Sequence[int], seen: Seen, among: Sequence[int] | None
) -> list[np.ndarray]:
    """Return the best five classes (N, 5) of the images for each network; each image is read once."""
    out: list[list[np.ndarray]] = [[] for _ in networks]
    for begin in range(0, len(positions), AT_ONCE):
        samples = list(read(data, positions[begin : begin + AT_ONCE]))
        for loaded, own in zip(networks, out, strict=True):
            images_BCHW = torch.stack([seen(loaded, sample) for sample in samples])
            with naming(loaded.name):
                own.append(rb.best_five(loaded.network, images_BCHW, among))
    return [np.concatenate(own) for own in out]


_HEAD = ("network", "test set", "images", "top-1 %", "interval", "mCE")


def _printed(found: Sequence[NetworkRobustness]) -> Iterator[tuple[str, ...]]:
    for one in found:
        mce = "-" if one.errors is None or one.errors.mce is None else f"{one.errors.mce:.1f}"
        if one.plain is not None:
            low, high = one.plain.interval
            count = str(len(one.plain.correct_N))
            name = "unchanged" if one.by_corruption else one.test_set
            yield (one.name, name, count, f"{one.plain.top1:.1f}", f"[{low:.1f}, {high:.1f}]", "-")
        if one.by_corruption:
            mean, low, high = mean_accuracy(one)
            count = str(len(next(iter(one.by_corruption.values())).correct_N))
            start = "" if one.plain is not None else one.name
            interval = "-" if np.isnan(low) else f"[{low:.1f}, {high:.1f}]"
            yield (start, f"{one.test_set}, mean", count, f"{mean:.1f}", interval, mce)


def mean_accuracy(one: NetworkRobustness) -> tuple[float, float, float]:
    """Return the mean over corruptions and severities, and its interval over images where all have the same ones."""
    rows = [accuracy.correct_N for accuracy in one.by_corruption.values()]
    mean = 100 * float(np.mean([row.mean() for row in rows]))
    if len({len(row) for row in rows}) > 1:
        return mean, float("nan"), float("nan")
    low_1, high_1 = bootstrap_means(100 * np.mean(rows, axis=0)[None])
    return mean, float(low_1[0]), float(high_1[0])


_COLUMNS = (
    *("network", "weights", "test_set", "corruption", "severity", "images"),
    *("top1", "low", "high", "top5", "ce"),
)


def _rows(found: Sequence[NetworkRobustness]) -> Iterator[tuple[object, ...]]:
    """Yield a row for each severity, with the CE of its corruption, and a row of means with the mCE."""
    for one in found:
        if one.plain is not None:
            count, top5 = len(one.plain.correct_N), one.plain.top5
            yield (one.name, one.weights, one.test_set, "", 0, count, one.plain.top1, *one.plain.interval, top5, None)
        for (name, severity), accuracy in one.by_corruption.items():
            start = (one.name, one.weights, one.test_set, name, severity, len(accuracy.correct_N))
            ce = one.errors.ce.get(name) if one.errors else None
            yield (*start, accuracy.top1, *accuracy.interval, accuracy.top5, ce)
        if one.errors is not None and one.errors.mce is not None:
            count = len(next(iter(one.by_corruption.values())).correct_N)
            start = (one.name, one.weights, one.test_set, "mean of all", "", count)
            yield (*start, *mean_accuracy(one), None, one.errors.mce)


TIMM = ("model", "img_size", "top1", "top1_err", "top5", "top5_err", "param_count", "crop_pct", "interpolation")


def _write_for_timm(
    folder: Path, networks: Sequence[LoadedNetwork], found: Sequence[NetworkRobustness], setting: RobustnessSetting
) -> Iterator[Path]:
    """Write the columns of timm's tables of results, a file for each kind of labels; yield their paths."""
    by_name = {loaded.name: loaded for loaded in networks}
    for file, is_real in (("timm.csv", False), ("timm-real.csv", True)):
        own = [one for one in found if one.test_set.endswith(", ReaL") == is_real]
        if own:
            write_text(folder / file, as_csv(TIMM, [_row_for_timm(by_name[one.name], one, setting) for one in own]))
            yield folder / file


def _row_for_timm(loaded: LoadedNetwork, one: NetworkRobustness, setting: RobustnessSetting) -> tuple[object, ...]:
    assert one.plain is not None, "a published test set is measured as it is"
    assert one.plain.top5 is not None, "the best five classes of its images are kept"
    p, shares = loaded.preparation, (one.plain.top1, one.plain.top5)
    numbers = [round(value, 4) for share in shares for value in (share, 100 - share)]
    millions = round(sum(parameter.numel() for parameter in loaded.network.parameters()) / 1e6, 2)
    size = setting.size or p.image_size[0]
    name = loaded.name.removeprefix("timm/").partition("=")[0]  # of NAME=FILE
    return (name, size, *numbers, millions, p.crop_pct, p.interpolation)


def _arrays(found: Sequence[NetworkRobustness]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for one in found:
        key = f"{one.name} {one.weights}__{one.test_set}"
        if one.plain is not None:
            out[f"{key}__correct"] = one.plain.correct_N.astype(bool)
        for (name, severity), accuracy in one.by_corruption.items():
            out[f"{key}__{name}__{severity}"] = accuracy.correct_N.astype(bool)
    return out
