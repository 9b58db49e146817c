"""`fourstage analyze robustness`: accuracy on ImageNet's other test sets, and on images that are corrupted here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.analysis import robustness as rb
from fourstage.analysis.images import evaluated, normalised
from fourstage.analysis.networks import LoadedNetwork
from fourstage.analysis.unsuitable import naming
from fourstage.data.labels.imagefolder import find_layout
from fourstage.data.labels.imagenet_variants import CLASSES, Variant, find_variant, read_real
from fourstage.data.sample import Dataset, Sample
from fourstage.data.walk import subfolders
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
from fourstage.run.analyze.outputs import Outcome, check_folder, write
from fourstage.run.analyze.robustness_tables import (
    COLUMNS,
    arrays_of,
    head_of,
    printed,
    rows_of,
    with_pairs,
    write_for_timm,
)

SIDE_C = 224  # pixels of ImageNet-C's images, of which the centre is taken without a resize
RESIZED_C = 256  # pixels of the short side from which that centre was cut
AT_ONCE = 32  # images in memory
FEW = 100  # images that are corrupted here unless --images says more
Seen = Callable[[LoadedNetwork, Sample], Tensor]


@dataclass(frozen=True)
class RobustnessSetting:
    """What is measured; see `analysis/robustness.py`.

    Attributes:
        images: of a test set; None: all of a published one, 100 of a set that is corrupted here.
        corruptions: that are applied here; none: the fifteen of ImageNet-C.
        clean: ImageNet's validation images, for the relative mCE of ImageNet-C; None: it is not measured.

    Raises:
        ValueError: no severity, or one that is not 1 to 5; a size out of range.
    """

    images: int | None = None
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = rb.SEVERITIES
    size: int | None = None
    order: Order = "spread"
    seed: int = 0
    clean: str | Path | None = None

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
    clean = _clean_images(setting.clean, data, published)
    if not published and variant is None:
        rb.check_corruptions(setting.corruptions)
    networks = load_networks(sources, "logits", loading or Loading())
    if published:
        found, notes = _imagenet_c(networks, published, clean, setting, show)
    elif variant is not None:
        found, notes = _variant(networks, Variant(variant), Path(data), setting, show)
    else:
        found, notes = _corrupted_here(networks, data, setting, show)
    found = with_pairs(found)
    files = write(
        folder,
        "robustness",
        arrays=arrays_of(found),
        columns=COLUMNS,
        rows=list(rows_of(found)),
        page=robustness_page(found, Path(data).name, notes),
    )
    if variant is not None:
        files = (*files, *write_for_timm(folder, networks, found, setting.size))
    return Outcome(head_of(found), tuple(printed(found)), notes, files)


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


def _clean_images(clean: str | Path | None, data: str | Path, published: dict[tuple[str, int], Path]) -> Variant | None:
    """Return the unchanged images, which have the classes of the corrupted ones; None: none are given."""
    if clean is None:
        return None
    if not published:
        raise ValueError(f"--clean is for ImageNet-C, and {data} has no folders CORRUPTION/SEVERITY; remove --clean")
    root = Path(clean)
    if not root.is_dir():
        raise ValueError(f"--clean is a folder of ImageNet's validation images by classes; {clean} is none")
    folder = find_layout(root).val or root
    own, corrupted = subfolders(folder), next(iter(published.values()))
    if set(own) != set(others := subfolders(corrupted)):  # predictions among fewer classes are more often right
        raise ValueError(
            f"--clean is a folder of ImageNet's validation images with the same classes as {data}; {folder} has "
            f"{plural(len(own), 'folder')} and {corrupted} {len(others)}, and their names differ"
        )
    return Variant(folder)


def _imagenet_c(
    networks: Sequence[LoadedNetwork],
    folders: dict[tuple[str, int], Path],
    clean: Variant | None,
    setting: RobustnessSetting,
    show: bool,
) -> tuple[list[NetworkRobustness], tuple[str, ...]]:
    """Measure the published images: the centre of 224 pixels, without a resize; and what they were made from."""
    _check_imagenet(networks)
    accuracies: list[dict[tuple[str, int], rb.Accuracy]] = [{} for _ in networks]
    notes = ["ImageNet-C's images are taken as published: the centre of 224 pixels, without a resize."]
    with Bar("measuring robustness", len(folders), show=show) as bar:
        for i, (key, folder) in enumerate(folders.items()):
            data = Variant(folder)
            chosen = _chosen(data, setting.images, setting, folder)
            notes += [*chosen.notes, *_among(data)]
            correct = _correct(networks, data, chosen.positions, _centre, data.among)
            for known, right in zip(accuracies, correct, strict=True):
                known[key] = right
            bar.update(i + 1)
    unchanged: list[rb.Accuracy | None] = [None] * len(networks)
    if clean is not None:
        chosen = _chosen(clean, setting.images, setting, clean.folder)
        unchanged = [*_correct(networks, clean, chosen.positions, _before_corruption, clean.among)]
        notes += chosen.notes
        notes.append(f"Unchanged images are those of {clean.folder}, resized to {RESIZED_C} pixels and cropped to 224.")
    found = []
    for loaded, known, plain in zip(networks, accuracies, unchanged, strict=True):
        errors = rb.corruption_errors(
            {key: one.error for key, one in known.items()}, None if plain is None else plain.error
        )
        found.append(NetworkRobustness(loaded.name, loaded.weights, "ImageNet-C", plain, known, errors))
        if errors.relative_mce is not None:
            notes.append(f"The relative mCE of {loaded.name} is {errors.relative_mce:.1f}.")
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
    notes = [*chosen.notes, *_among(data)]
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


def _among(data: Variant) -> tuple[str, ...]:
    """Return a sentence on predictions among some of ImageNet's classes; nothing for all of them."""
    return (f"{data.note[0].upper()}{data.note[1:]}.",) if data.note else ()


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


def _before_corruption(loaded: LoadedNetwork, sample: Sample) -> Tensor:
    """The view that ImageNet-C's images were made from."""
    assert isinstance(sample.image, np.ndarray), "data sets give arrays"
    made_as = replace(loaded.preparation, crop_pct=SIDE_C / RESIZED_C, crop_mode="center", interpolation="bilinear")
    return evaluated(sample.image, SIDE_C, made_as)


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
