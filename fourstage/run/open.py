"""`fourstage.load`: from a run, a checkpoint, a name or an exported file to a network that is ready to predict.

An exported file is opened without torch, which is imported for all other networks.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fourstage.exported.runtime import is_exported, open_runtime
from fourstage.predict.base import ImagePredictor, Tiling
from fourstage.predict.exported import exported_predictor
from fourstage.predict.predictor import Predictor, check_batch_size
from fourstage.resources import sentences
from fourstage.user_files import as_files

OVERLAP = 0.2  # of neighbouring tiles
TILES_AT_ONCE = 4  # that pass the network together at least


@dataclass(frozen=True)
class Options:
    """How a network is loaded; see `load`."""

    weights: str | Path | None = None
    which: str = "model"
    threshold: float | None = None
    tiling: Tiling | None = None
    device: str = "auto"
    precision: str = "float32"
    imports: Iterable[str | Path] = ()


@sentences("choose another device")
def load(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    which: str = "model",
    threshold: float | None = None,
    batch_size: int = 1,
    tile: int | None = None,
    overlap: float | None = None,
    device: str = "auto",
    precision: str = "float32",
    imports: Iterable[str | Path] = (),
    show: bool = True,
) -> Predictor:
    """Return a trained network that takes images in any form and returns typed results.

    Args:
        source: a run folder; a folder of `save_pretrained`; a checkpoint of a run, or one of MMDetection or
            MMSegmentation with its configuration; `hf-hub:user/name`, a repository of Hugging Face's hub with such a
            checkpoint; the name of a model; a recipe of a detector or segmentor, by name or file; or an exported file,
            `.onnx`, `.xml` or `.pt2`.
        weights: the checkpoint for a model or a recipe; it may be left out where one is published.
        which: "model", or "ema" for the averaged weights of a run or a checkpoint that has them.
        threshold: lowest score of the objects that a detector returns; None: 0.3. With 0 it returns all, and pictures
            show those from 0.3 on.
        batch_size: images that pass the network together. The predictions do not depend on it.
        tile: side in pixels of the tiles in which a detector finds the objects of large images, or of the windows that
            a segmentor averages; None: the network reads complete images, resized as in its evaluation.
        overlap: the share of a tile that the next one shows too; None: 0.2.
        device: "auto", "cpu" or "cuda"; an exported file runs on the CPU.
        precision: "float32", or "bfloat16" or "float16" for the operations that autocast runs in it.
        imports: Python files of your own that register what the network is built from. A checkpoint may name such
            files, and they are run only if they are given here.
        show: show a progress bar for the tiles of an image.

    Raises:
        ValueError, OSError: there is no such network, its weights do not fit, or an argument is wrong; one sentence on
            what came, what was needed and what to type next.
    """
    tiling = tiling_of(tile, overlap, batch_size)
    options = Options(weights, which, threshold, tiling, device, precision, as_files(imports))
    if is_exported(source):
        return Predictor(opener(source, options)(), batch_size=batch_size, show=show)
    from fourstage.run.load import load as load_network

    return load_network(source, options, batch_size=batch_size, show=show)


def tiling_of(tile: int | None, overlap: float | None, batch_size: int) -> Tiling | None:
    """Return how large images are cut; None: they are not. Raises ValueError for impossible tiles."""
    if tile is None and overlap is not None:
        raise ValueError("overlap is that of tiles, and no tile size was given; add tile=640, or leave overlap out")
    check_batch_size(batch_size)
    batch_size = max(batch_size, TILES_AT_ONCE)
    return None if tile is None else Tiling(tile, OVERLAP if overlap is None else overlap, batch_size)


def opener(source: str | Path, options: Options) -> Callable[[], ImagePredictor]:
    """Return a function that loads the network, after all checks that need no network; run the user's files.

    Raises:
        ValueError, OSError: as `load`; so does the function.
    """
    if is_exported(source):
        check_exported(source, options)
        return lambda: exported_predictor(open_runtime(source), options.threshold, options.tiling)
    from fourstage.predict.tasks import image_predictor
    from fourstage.run.load import begin, load_task

    name, device = begin(source, options.weights, options.which, options.device, options.imports)

    def opened() -> ImagePredictor:
        protocol, task = load_task(name, options.weights, options.which)
        transform = protocol.evaluation_transform()
        return image_predictor(task.to(device).eval(), transform, options.threshold, options.tiling)

    return opened


def check_exported(source: str | Path, options: Options) -> None:
    """Raise ValueError for options that an exported file cannot have."""
    refused = {
        "weights": (options.weights is not None, "it has its own weights"),
        "which": (options.which != "model", "it has one set of weights"),
        "precision": (options.precision != "float32", "its precision is fixed; export it with --half"),
        "imports": (bool(options.imports), "it needs no Python files"),
        "device": (options.device not in ("auto", "cpu"), "it runs on the CPU"),
    }
    for name, (is_given, reason) in refused.items():
        if is_given:
            raise ValueError(f"{source} is an exported file, and {reason}; leave {name} out")
