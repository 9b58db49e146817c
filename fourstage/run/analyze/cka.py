"""`fourstage analyze cka`: how alike the feature maps of networks are."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.analysis import cka
from fourstage.analysis.images import prepared
from fourstage.analysis.networks import LoadedNetwork, untrained_twin
from fourstage.analysis.taps import block_taps, stage_maps, taken_by
from fourstage.analysis.unsuitable import UnsuitableNetwork, naming
from fourstage.data.sample import Dataset
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.report.analyses.cka import Pair, cka_page
from fourstage.resources import sentences
from fourstage.run.analyze.inputs import (
    Loading,
    Order,
    check_side,
    check_words,
    choose,
    device_of,
    load_networks,
    open_images,
    read,
    with_networks,
)
from fourstage.run.analyze.outputs import Outcome, check_folder, with_interval, write

_OWN_STAGES = "CKA compares stages, so give your network `levels` and let it return its maps (docs/backbones.md)"
IMAGES = 512  # where the data has as many


@dataclass(frozen=True)
class CkaSetting:
    """How networks are compared; see `analysis/cka.py`.

    Attributes:
        images: None: 512, or all where there are fewer.
        batch: images of a batch; a smaller last batch is left out. None: 256, or all where there are fewer.
        by: compare the maps of stages, or of blocks.
        size: side of the images, pixels, the same for all networks; None: the first network's.
        ceiling: another training of the first network, such as one with another seed; None: for an untrained network,
            the same with another seed.

    Raises:
        ValueError: a batch that is too small, or a size out of range.
    """

    images: int | None = None
    batch: int | None = None
    by: Literal["stage", "block"] = "stage"
    pooling: cka.Pooling = "flatten"
    estimator: cka.Estimator = "unbiased"
    size: int | None = None
    ceiling: str | None = None
    order: Order = "spread"

    def __post_init__(self) -> None:
        check_words(self)
        if self.batch is not None and self.batch < cka.FEWEST:
            raise ValueError(f"--batch-size needs at least {cka.FEWEST} images for CKA; got {self.batch}")
        check_side(self.size)


@sentences("use a smaller --batch-size or --size")
@with_networks
def analyze_cka(
    sources: Sequence[str | Path | nn.Module],
    data: str | Path,
    out: str | Path,
    setting: CkaSetting | None = None,
    *,
    loading: Loading | None = None,
    show: bool = True,
) -> Outcome:
    """Compare the first network with itself, with a ceiling and with the others; write `cka.npz`, `.csv` and `.html`.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    setting, folder, loading = setting or CkaSetting(), check_folder(out), loading or Loading()
    dataset = open_images(data)
    chosen = choose(dataset, setting.images, setting.order, data, default=IMAGES, fewest=cka.FEWEST)
    positions = _shuffled(chosen.positions)
    batch = _batch_size(setting, len(positions))
    first, *others = load_networks(sources, "maps", loading)
    ceiling = _ceiling(first, setting, loading)
    compared = [(first, "itself"), *([(ceiling, "ceiling")] if ceiling else []), *((one, "other") for one in others)]
    side = setting.size or first.preparation.image_size[0]
    networks = [one for one, _ in compared]
    with Bar("comparing", len(positions), show=show) as bar:
        found = cka.compare_with_first(
            [one.network for one in networks],
            _batches(dataset, positions, networks, side, batch, bar),
            [_taps(one, setting, side) for one in networks],
            estimator=setting.estimator,
            pooling=setting.pooling,
        )
    pairs = [
        Pair(first.name, first.weights, other.name, other.weights, role, one)
        for (other, role), one in zip(compared, found, strict=True)
    ]
    notes = (*_notes(pairs), *chosen.notes)
    words = (
        f"{plural(pairs[0].cka.images, 'image')} of {Path(data).name} in batches of {pairs[0].cka.batch}, {side} pixels"
    )
    files = write(
        folder,
        "cka",
        arrays=_arrays(pairs),
        columns=("network_a", "weights_a", "map_a", "network_b", "weights_b", "map_b", "role", "cka", "low", "high"),
        rows=list(_rows(pairs)),
        page=cka_page(pairs, words, notes),
    )
    return Outcome(_HEAD, tuple(_printed(pairs)), notes, files)


def _batch_size(setting: CkaSetting, images: int) -> int:
    """Return the images of a batch. Raises ValueError where they fill no batch, or are fewer than CKA needs."""
    if images < cka.FEWEST:
        raise ValueError(f"CKA needs at least {cka.FEWEST} images; got {images}; give more images")
    if setting.batch is not None and images < setting.batch:
        raise ValueError(f"{plural(images, 'image')} fill no batch of {setting.batch}; type --batch-size {images}")
    return setting.batch or min(cka.ENOUGH, images)


def _shuffled(positions: Sequence[int]) -> list[int]:
    """Return the positions in an order that mixes classes within batches; the same in every call."""
    return [positions[i] for i in np.random.default_rng(0).permutation(len(positions))]


def _ceiling(first: LoadedNetwork, setting: CkaSetting, loading: Loading) -> LoadedNetwork | None:
    if setting.ceiling is not None:
        [given] = load_networks([setting.ceiling], "maps", loading)
        return given
    if first.trained or first.rebuild is None:
        return None
    twin = untrained_twin(first, loading.seed + 1)
    twin.network.to(device_of(first.network))
    return replace(twin, name=f"{first.name}, seed {loading.seed + 1}")


def _taps(loaded: LoadedNetwork, setting: CkaSetting, side: int) -> tuple[str, ...]:
    if setting.by == "block":
        with naming(loaded.name, lambda _: "leave --by block out, so that stages are compared"):
            return block_taps(loaded.network)
    image_BCHW = taken_by(loaded.network, torch.zeros(1, 3, side, side))
    with torch.inference_mode(), naming(loaded.name, partial(_without_stages, loaded.network)):
        count = len(stage_maps(loaded.network, image_BCHW))
    return tuple(f"stage{i + 1}" for i in range(count))


def _without_stages(network: nn.Module, _: UnsuitableNetwork) -> str:
    """Return what to type for a network whose stages are not known."""
    try:
        block_taps(network)
    except ValueError:
        return _OWN_STAGES
    return "add --by block, which compares its blocks"


def _batches(
    dataset: Dataset, positions: Sequence[int], networks: Sequence[LoadedNetwork], side: int, size: int, bar: Bar
) -> Iterator[list[Tensor]]:
    """Yield batches of the same crops, normalised for each of the networks."""
    for begin in range(0, len(positions), size):
        images = [sample.image for sample in read(dataset, positions[begin : begin + size])]
        arrays = [image for image in images if isinstance(image, np.ndarray)]
        yield [
            torch.stack([prepared(image, side, one.preparation, "short_side") for image in arrays]) for one in networks
        ]
        bar.update(begin + len(images))


_HEAD = ("first network", "second network", "map", "with the same map", "most alike")


def _printed(pairs: Sequence[Pair]) -> Iterator[tuple[str, ...]]:
    for pair in pairs:
        found = pair.cka
        for i, tap in enumerate(found.taps_a):
            row_B = found.value_AB[i]
            same = _cell(found, i, i) if i < len(found.taps_b) and len(found.taps_a) == len(found.taps_b) else "-"
            best = int(np.nanargmax(row_B)) if np.isfinite(row_B).any() else None
            start = (pair.name_a, pair.name_b) if i == 0 else ("", "")
            most = "-" if best is None else f"{row_B[best]:.2f} {found.taps_b[best]}"
            yield (*start, tap, same, most)


def _cell(found: cka.Cka, i: int, j: int) -> str:
    value, low, high = (table[i, j] for table in (found.value_AB, found.low_AB, found.high_AB))
    if np.isnan(value):
        return "-"
    return with_interval(value, low, high, ".2f")


def _notes(pairs: Sequence[Pair]) -> tuple[str, ...]:
    found = pairs[0].cka
    notes = []
    if found.estimator == "biased":
        notes.append(
            "The biased form tends to 1 where a map has more features than there are images, whatever the networks; "
            "leave --biased out."
        )
    if found.few:
        enough = f"{cka.ENOUGH} or more, in batches of {cka.ENOUGH}"
        notes.append(f"{found.images} images are few, and these numbers are noisy; use {enough}.")
    if not any(pair.role == "ceiling" for pair in pairs):
        notes.append("No ceiling was given: add --ceiling RUN, the first network trained with another seed.")
    if dropped := found.dropped:
        notes.append(
            f"{plural(dropped, 'image')} of a last, incomplete batch {'is' if dropped == 1 else 'are'} left out."
        )
    return tuple(notes)


def _rows(pairs: Sequence[Pair]) -> Iterator[tuple[object, ...]]:
    for pair in pairs:
        found = pair.cka
        for i, a in enumerate(found.taps_a):
            for j, b in enumerate(found.taps_b):
                ends = (found.value_AB[i, j], found.low_AB[i, j], found.high_AB[i, j])
                yield (pair.name_a, pair.weights_a, a, pair.name_b, pair.weights_b, b, pair.role, *ends)


def _arrays(pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for pair in pairs:
        key = f"{pair.name_a}__{pair.name_b}__{pair.role}"
        out |= {f"{key}__cka": pair.cka.value_AB, f"{key}__low": pair.cka.low_AB, f"{key}__high": pair.cka.high_AB}
        out |= {f"{key}__maps_a": np.array(pair.cka.taps_a), f"{key}__maps_b": np.array(pair.cka.taps_b)}
    return out
