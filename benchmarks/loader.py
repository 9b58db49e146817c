"""Compare our loader with timm's and torchvision's on the same JPEG files, and with decoding alone.

    python benchmarks/loader.py [--task evaluation] [--workers 1] [--images 320] [--rounds 8]

The files are crops of the photographs in scikit-image and scikit-learn, 500 x 375 pixels at quality 95, about as large
as ImageNet's, in a temporary folder. The loaders take turns, each in a separate process, pass by pass over the files.
Evaluation is a 0.875 crop, bicubic, 224 pixels; training is the complete recipe (random resized crop, flip,
RandAugment, random erasing, mixup and cutmix). Both end with normalised float32 batches in the main process. The
figures use the processor time of that process and of its workers, so that they are per core and stay valid on a shared
machine; wall time is recorded beside it.

| loader | description |
| --- | --- |
| fourstage | the recipe, as `fourstage train` and `fourstage evaluate` load it |
| timm | `create_loader` as it is: bytes are collated and mixed, then normalised and erased batch by batch |
| timm, no prefetcher | `create_loader` with floats from the start, mixed in the main process as in timm's script |
| torchvision | torch's DataLoader and the transforms of the reference recipe, on PIL images as in that recipe |
| torchvision, tensors | the v2 transforms on tensors: another bicubic, hence other pixels |
| decoding alone | PIL opens and decodes the same files, nothing else: the limit |

torchvision's RandAugment has no probability for each operation; here it gets timm's, so that both apply equally many.
Each loader adds a line to a file in benchmarks/results/.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, default_collate

from fourstage.bench.machine import machine
from fourstage.bench.results import append_jsonl
from fourstage.bench.timing import Spread, ratio, spread
from fourstage.data.labels.imagefolder import ImageFolder
from fourstage.data.loader import TrainPlan, evaluation_batches, train_batches
from fourstage.freed_memory import keep_all_freed_memory
from fourstage.progress import Bar
from fourstage.recipe import resolve
from fourstage.recipe.classification import Classification
from fourstage.run.tasks.classification import ClassificationProtocol

RESULTS = Path(__file__).parent / "results" / "loader.jsonl"
TASKS = ("evaluation", "training")
RECIPE, SIDE, CLASSES = "smt_tiny_in1k", 224, 8
WIDTH, HEIGHT, QUALITY = 500, 375, 95
OURS, LIMIT = "fourstage", "decoding alone"
OTHER_PIXELS = "torchvision, tensors"

Pass = Callable[[], int]  # reads all files once and returns the number of images


@dataclass(frozen=True)
class Options:
    images: int = 320
    batch_size: int = 64
    rounds: int = 8
    workers: int = 0


# -------------------------------------------------------------------------------------------------------- the files


def photographs() -> list[np.ndarray]:
    """Return the colour photographs in scikit-image and scikit-learn, (H, W, 3) uint8."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
    left, right, _ = data.stereo_motorcycle()
    return [*(getattr(data, name)() for name in names), left, right, *load_sample_images().images]


def write_files(folder: Path, images: int) -> float:
    """Write train/<class>/*.jpg and a copy below val/. Return the mean size of a file in kilobytes."""
    from PIL import Image

    photos = [Image.fromarray(photo) for photo in photographs()]
    chance = np.random.default_rng(0)
    paths = [folder / "train" / f"class_{i % CLASSES}" / f"{i:04}.jpg" for i in range(images)]
    for i, path in enumerate(paths):
        photo = photos[i % len(photos)]
        share = chance.uniform(0.7, 1.0) * min(photo.width / WIDTH, photo.height / HEIGHT)
        width, height = share * WIDTH, share * HEIGHT
        left, top = chance.uniform(0, photo.width - width), chance.uniform(0, photo.height - height)
        box = (left, top, left + width, top + height)
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS, box=box).save(path, quality=QUALITY)
    copytree(folder / "train", folder / "val")
    return sum(path.stat().st_size for path in paths) / images / 1000


# ------------------------------------------------------------------------------------------------------ the loaders


def recipe() -> Classification:
    chosen = resolve(RECIPE).recipe
    assert isinstance(chosen, Classification)
    return chosen


def ours(folder: Path, task: str, options: Options) -> Pass:
    protocol = ClassificationProtocol(recipe())
    train, evaluate = protocol.train_transform(), protocol.evaluation_transform()
    if task == "evaluation":
        data = ImageFolder(folder, "val")

        def evaluation() -> int:
            batches = evaluation_batches(data, evaluate, batch_size=options.batch_size, workers=options.workers)
            return _images(batch.images_BCHW for batch in batches)

        return evaluation
    data, epochs = ImageFolder(folder, "train"), count()
    plan = TrainPlan(len(data), options.batch_size)
    mix = protocol.mixing(CLASSES, plan.micro_batch)

    def training() -> int:
        first = next(epochs) * plan.steps_per_epoch
        last = first + plan.steps_per_epoch
        steps = train_batches(data, plan, train, first_step=first, last_step=last, mix=mix, workers=options.workers)
        return _images(batch.images_BCHW for step in steps for batch in step)

    return training


def timms(folder: Path, task: str, options: Options, *, prefetcher: bool = True) -> Pass:
    from timm.data import auto_augment, dataset_factory, loader, mixup

    from fourstage.data.transforms.classification import posterize

    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = posterize  # timm's asks PIL for 0 bits, which raises an error

    own, train = recipe(), task == "training"
    a = own.augmentation
    mixing: dict[str, Any] = {
        "mixup_alpha": a.mixup, "cutmix_alpha": a.cutmix, "prob": a.mixup_prob, "switch_prob": a.mixup_switch_prob,
        "mode": a.mixup_mode, "label_smoothing": a.smoothing, "num_classes": CLASSES,
    }  # fmt: skip
    augmentation: dict[str, Any] = {
        "scale": a.scale, "ratio": a.ratio, "hflip": a.hflip, "color_jitter": a.color_jitter,
        "auto_augment": a.auto_augment, "re_prob": a.reprob, "re_mode": a.remode, "re_count": a.recount,
        "collate_fn": mixup.FastCollateMixup(**mixing) if prefetcher else None,
    }  # fmt: skip
    data: Any = dataset_factory.create_dataset("", str(folder / ("train" if train else "val")))
    batches: Any = loader.create_loader(
        data, SIDE, options.batch_size, is_training=train, interpolation="bicubic", mean=own.mean, std=own.std,
        crop_pct=own.evaluation.crop_pct, num_workers=options.workers, device=torch.device("cpu"),
        persistent_workers=False, use_prefetcher=prefetcher, **(augmentation if train else {}),
    )  # fmt: skip
    mix: Any = mixup.Mixup(**mixing) if train and not prefetcher else lambda images, labels: (images, labels)
    return lambda: _images(mix(images, labels)[0] for images, labels in batches)


def torchvisions(folder: Path, task: str, options: Options, *, tensors: bool = False) -> Pass:
    from torchvision.datasets import ImageFolder as TorchvisionFolder

    train = task == "training"
    data = TorchvisionFolder(folder / ("train" if train else "val"), _torchvision_transform(task, tensors=tensors))
    batches: DataLoader[Any] = DataLoader(
        data,
        options.batch_size,
        shuffle=train,
        drop_last=train,
        num_workers=options.workers,
        collate_fn=_torchvision_mixing() if train else None,
    )
    return lambda: _images(images for images, _ in batches)


def _torchvision_transform(task: str, *, tensors: bool) -> Any:
    """Return the transforms of references/classification/presets.py with the recipe's numbers."""
    from torchvision import transforms as first
    from torchvision.transforms import InterpolationMode, v2

    own, api = recipe(), v2 if tensors else first
    a, bicubic = own.augmentation, InterpolationMode.BICUBIC
    to_tensor = [api.PILToTensor()]
    floats: list[Any] = [
        v2.ToDtype(torch.float32, scale=True) if tensors else first.ConvertImageDtype(torch.float32),
        api.Normalize(own.mean, own.std),
    ]
    if task == "evaluation":
        resize = [api.Resize(int(SIDE / own.evaluation.crop_pct), bicubic), api.CenterCrop(SIDE)]
        return api.Compose([*to_tensor, *resize, *floats] if tensors else [*resize, *to_tensor, *floats])
    rotation = InterpolationMode.BILINEAR if tensors else bicubic  # rotation of tensors has no bicubic mode
    policy = [api.RandomApply([api.RandAugment(1, 9, interpolation=rotation)], p=0.5) for _ in range(2)]
    crop = api.RandomResizedCrop(SIDE, scale=a.scale, ratio=a.ratio, interpolation=bicubic)
    change = [crop, api.RandomHorizontalFlip(a.hflip), *policy]
    noise: Any = "random"
    erase = (v2 if tensors else first).RandomErasing(a.reprob, value=noise)
    return api.Compose([*([*to_tensor, *change] if tensors else [*change, *to_tensor]), *floats, erase])


def _torchvision_mixing() -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    a = recipe().augmentation
    mixes = [v2.MixUp(alpha=a.mixup, num_classes=CLASSES), v2.CutMix(alpha=a.cutmix, num_classes=CLASSES)]
    return _Mixed(v2.RandomChoice(mixes))


class _Mixed:
    def __init__(self, mix: Any) -> None:
        self.mix = mix

    def __call__(self, samples: Any) -> Any:
        return self.mix(*default_collate(samples))


def decoding(folder: Path, task: str, options: Options) -> Pass:
    from PIL import Image

    paths = sorted((folder / "val").glob("*/*.jpg"))

    def decode() -> int:
        for path in paths:
            with Image.open(path) as image:
                image.load()
        return len(paths)

    return decode


def _images(batches: Iterable[torch.Tensor]) -> int:
    """Count the images, and check that they are normalised and of one size, so that all loaders do equal work."""
    total = 0
    for images_BCHW in batches:
        assert images_BCHW.dtype == torch.float32, images_BCHW.dtype
        assert images_BCHW.shape[1:] == (3, SIDE, SIDE), images_BCHW.shape
        total += len(images_BCHW)
    return total


LOADERS: dict[str, Callable[[Path, str, Options], Pass]] = {
    OURS: ours,
    "timm": timms,
    "timm, no prefetcher": lambda *args: timms(*args, prefetcher=False),
    "torchvision": torchvisions,
    OTHER_PIXELS: lambda *args: torchvisions(*args, tensors=True),
    LIMIT: decoding,
}


# ---------------------------------------------------------------------------------------------------- the measuring


@dataclass(frozen=True)
class Speed:
    """Images per second, pass by pass: of one core, and on the wall."""

    core: tuple[float, ...]
    wall: tuple[float, ...]


class LoaderProcess:
    """A loader in a separate process, so that another loader's use of memory does not change its speed."""

    def __init__(self, name: str, folder: Path, task: str, options: Options) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._line, theirs = spawn.Pipe()
        method = multiprocessing.get_start_method()
        self._process = spawn.Process(target=_serve, args=(theirs, method, name, folder, task, options))
        self._process.start()

    def read(self) -> tuple[int, float, float]:
        """Read all files once; return images, processor seconds of the process and its workers, and wall seconds."""
        self._line.send(True)
        return self._line.recv()

    def leave(self) -> None:
        self._line.send(False)
        self._process.join()


def _serve(line: Connection, method: str, name: str, folder: Path, task: str, options: Options) -> None:
    multiprocessing.set_start_method(method, force=True)  # a spawned process would start its workers by spawn too
    torch.set_num_threads(1)  # processor time would include threads that wait for each other
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-(options.workers + 1) :])
    if name == OURS:
        keep_all_freed_memory()  # as every run on a CPU does
    one_pass = LOADERS[name](folder, task, options)
    while line.recv():
        busy, now = _busy(), time.perf_counter()
        images = one_pass()
        line.send((images, _busy() - busy, time.perf_counter() - now))


def run_rounds(task: str, folder: Path, options: Options, bar: Bar) -> dict[str, Speed]:
    """Let each loader read all files once in each round, in alternating order, after one pass to warm up."""
    processes = {name: LoaderProcess(name, folder, task, options) for name in LOADERS}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in LOADERS}
    for number in range(-1, options.rounds):
        for name in LOADERS if number % 2 else reversed(list(LOADERS)):
            images, busy, wall = processes[name].read()
            assert images == options.images, f"{name} gave {images} of {options.images} images"
            if number >= 0:
                taken[name].append((images / busy, images / wall))
        bar.update(number + 2, "")
    for process in processes.values():
        process.leave()
    return {name: Speed(*(tuple(column) for column in zip(*pairs, strict=True))) for name, pairs in taken.items()}


def _busy() -> float:
    """Return processor seconds of this process and of all workers that have ended."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def rivals(results: Mapping[str, Speed]) -> list[str]:
    return [name for name in results if name not in (OURS, LIMIT)]


def fastest(results: Mapping[str, Speed], *, same_pixels: bool) -> str:
    """Return the fastest of the other loaders, by the median per core."""
    names = [name for name in rivals(results) if not (same_pixels and name == OTHER_PIXELS)]
    return max(names, key=lambda name: spread(results[name].core).median)


def against(results: Mapping[str, Speed], name: str, other: str) -> Spread:
    """Return images per second and core of one loader as a multiple of another's, round by round."""
    return ratio(results[name].core, results[other].core)


# ---------------------------------------------------------------------------------------------- on screen and in file


def table(results: Mapping[str, Speed], task: str) -> Table:
    head = (task, "images/s per core", "quartiles", "of decoding", "fourstage is", "quartiles")
    out = Table(*head, box=None, pad_edge=False, header_style="bold")
    for name, speed in results.items():
        rate, share, times = spread(speed.core), against(results, name, LIMIT), against(results, OURS, name)
        ours = ("", "") if name == OURS else (f"{times.median:.2f} x", f"{times.low:.2f} to {times.high:.2f}")
        out.add_row(name, f"{rate.median:.0f}", f"{rate.low:.0f} to {rate.high:.0f}", f"{share.median:.0%}", *ours)
    return out


def verdict(results: Mapping[str, Speed]) -> str:
    clauses = []
    for same, words in ((True, "with the same bicubic"), (False, "of all")):
        name = fastest(results, same_pixels=same)
        times = against(results, OURS, name)
        clauses.append(f"{times.median:.2f} times the fastest {words}, {name} ({times.low:.2f} to {times.high:.2f})")
    return f"{OURS}: " + "; ".join(clauses)


def lines(results: Mapping[str, Speed], task: str, options: Options, where: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of one task, a line for each loader."""
    same, any_ = (fastest(results, same_pixels=same) for same in (True, False))
    out: list[dict[str, Any]] = []
    for name, speed in results.items():
        row: dict[str, Any] = {
            "loader": name,
            "task": task,
            "images_per_core_sec": round(spread(speed.core).median, 1),
            "images_per_sec": round(spread(speed.wall).median, 1),
            "rounds": {key: [round(rate, 1) for rate in rates] for key, rates in asdict(speed).items()},
            "of_decoding": _rounded(against(results, name, LIMIT)),
        }
        if name == OURS:
            row["against"], row["ratio"] = same, _rounded(against(results, OURS, same))
            row["against_any"], row["ratio_any"] = any_, _rounded(against(results, OURS, any_))
        out.append({**row, "options": asdict(options), "machine": dict(where)})
    return out


def _rounded(values: Spread) -> dict[str, float]:
    return {key: round(value, 4) for key, value in asdict(values).items()}


def run(tasks: Sequence[str], options: Options, out: Path, *, quiet: bool = False) -> None:
    """Measure the tasks one after the other; each is written to the file before the next begins."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a pipe has no width: cut nothing off
        console = Console(highlight=False, width=160)
    torch.set_num_threads(1)  # as in the loaders' processes, so that the description of the machine is right
    with TemporaryDirectory() as folder:
        size = write_files(Path(folder), options.images)
        where = {**machine(torch.device("cpu")), "pillow": version("pillow"), "file_kb": round(size, 1)}
        for task in tasks:
            with Bar(task, options.rounds + 1, show=not quiet) as bar:
                results = run_rounds(task, Path(folder), options, bar)
            out.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(out, lines(results, task, options, where))
            console.print(table(results, task))
            print(f"\n{verdict(results)}\n")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--task", choices=TASKS, action="append", help="default: both")
    top.add_argument("--images", type=int, default=Options.images, metavar="N", help="default: %(default)s")
    top.add_argument("--batch-size", type=int, default=Options.batch_size, metavar="N", help="default: %(default)s")
    top.add_argument("--rounds", type=int, default=Options.rounds, metavar="N", help="default: %(default)s")
    top.add_argument("--workers", type=int, default=0, metavar="N", help="processes beside the main one; default: 0")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help="where lines go")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    options = Options(args.images, args.batch_size, args.rounds, args.workers)
    try:
        if (
            options.batch_size % 2
            or options.batch_size < 2
            or options.images % options.batch_size
            or options.images < 1
        ):
            raise ValueError(
                f"--images {options.images} must be a multiple of --batch-size {options.batch_size}, which must be "
                f"even: mixing pairs images; try --images 320 --batch-size 64"
            )
        if options.rounds < 1 or options.workers < 0:
            raise ValueError(f"--rounds {options.rounds} must be 1 or more, --workers {options.workers} 0 or more")
        run(tuple(args.task or TASKS), options, args.out)
    except ValueError as error:
        print(f"loader: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
