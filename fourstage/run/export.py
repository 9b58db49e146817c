"""`fourstage export`: a run, a checkpoint or a model as a file for other runtimes, with its proof."""

import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from fourstage.api import CHECKPOINT_ENDINGS, create_backbone, list_models
from fourstage.data.sample import BadImage, Sample
from fourstage.data.shards.dataset import is_pattern
from fourstage.data.transforms.resizing import Normalise, resize_image
from fourstage.export.graphs.base import Graph
from fourstage.export.graphs.build import Output, backbone_graph, graph_of
from fourstage.export.proof import Images, noise_images
from fourstage.export.trace import AXES, Traced, check_axes
from fourstage.export.write import SUFFIXES, Format, Written, check_format, check_out, write
from fourstage.exported.description import Description, Input, KeepRatio, MiddleCrop, Views
from fourstage.exported.runtime import is_exported
from fourstage.files import real_path
from fourstage.recipe import EMBEDDED, Recipe
from fourstage.registry import find
from fourstage.resources import sentences
from fourstage.run.described import images_of
from fourstage.run.folder import RunFolder, installed
from fourstage.run.load import begin, load_task
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import AnyProtocol, AnyTask, protocol_of
from fourstage.user_files import import_files
from fourstage.weights import catalog, saved
from fourstage.weights.description import describe_network
from fourstage.weights.reading.safe import read_checkpoint

IMAGES = 5  # on which a file is proved
PACKAGES = ("fourstage", "torch", "onnx", "onnxscript", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Options:
    """How a network is exported; see `export_network`."""

    format: Format = "onnx"
    dynamic: tuple[str, ...] = ()
    half: bool = False
    output: Output = "logits"
    size: tuple[int, int] | None = None

    @property
    def has_dynamic_sides(self) -> bool:
        return bool({"height", "width"} & set(self.dynamic))


@dataclass(frozen=True)
class _Network:
    """A network that is exported.

    Attributes:
        protocol: of its recipe; None: a dense backbone.
        size: (H, W) of its images where nothing else is asked for.
    """

    graph: Graph
    network: torch.nn.Module
    describe: Callable[[Input, tuple[int, int]], Description]
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    protocol: AnyProtocol | None = None


@sentences("name a smaller network")
def export_network(
    source: str | Path,
    out: str | Path | None = None,
    *,
    format: Format = "onnx",
    dynamic: Collection[str] = (),
    half: bool = False,
    output: Output = "logits",
    size: tuple[int, int] | None = None,
    data: str | None = None,
    weights: str | Path | None = None,
    which: str = "model",
    dense: bool = False,
    force: bool = False,
    imports: Iterable[str | Path] = (),
    show: bool = True,
) -> Written:
    """Write a trained network as a file for other runtimes, and prove the file by running it.

    Args:
        source: a run folder, a checkpoint, a model or a recipe, as for `fourstage.load`.
        out: the file; None: the name of the source in the working directory.
        format: "onnx", "torch" (`torch.export`) or "openvino".
        dynamic: axes of the images that are not fixed: "batch", "height", "width".
        half: store large weights in float16; the file computes in float32.
        output: of a segmentor: "logits", or "labels" for a label map.
        size: (H, W) of the images in pixels; None: those of the recipe.
        data: the data set whose validation images the proof reads; None: that of the recipe if it is there, else noise.
        weights: the checkpoint for a model or a recipe.
        which: "model" or "ema".
        dense: export a model as the dense backbone, which returns feature maps.
        force: replace a file that is there.
        imports: Python files of your own that the network is built from.

    Returns:
        The file, with its proof. If `proof.failure` is not empty, no file was written.

    Raises:
        ValueError, OSError: there is no such network or export; one sentence.
    """
    axes = (dynamic,) if isinstance(dynamic, str) else tuple(dict.fromkeys(dynamic))
    options = Options(format, axes, half, output, None if size is None else _as_size(size))
    path = Path(out or default_out(str(source), format, dense=dense))
    _check(source, path, options, data, force=force)
    network = _loaded(str(source), options, weights, which, imports, dense=dense)
    size = options.size or network.size
    samples = _samples(network, data, size, options, show=show)

    def describe(traced: Traced) -> Description:
        description = network.describe(_input(network, traced, size, options), size)
        if show and (text := filling(traced.smallest, size, options)):
            print(f"fourstage: {path} {text}", file=sys.stderr)
        return description

    return write(
        network.graph,
        network.network,
        path,
        format,
        describe,
        lambda traced: _proof_images(
            [_filled_up(one, traced.smallest, options) for one in samples],
            noise_sizes(size, options, network.graph.multiple, traced.smallest),
        ),
        size=size,
        axes=options.dynamic,
        half=half,
        also={"source": str(source), "dynamic": list(options.dynamic), "half": half, "versions": _versions()},
    )


def default_out(source: str, format: str, *, dense: bool = False) -> str:
    """Return the name of the file for a source."""
    name = real_path(source).name if Path(source).is_dir() else Path(source.replace(":", "_")).stem
    return f"{name}{'_dense' if dense else ''}{SUFFIXES.get(format, '')}"


def _as_size(size: Any) -> tuple[int, int]:
    """Return (H, W) as integers. Raises ValueError for anything else."""
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(_is_integer(side) for side in size):
        raise ValueError(f"size is (height, width) in pixels, such as (224, 224); got {size!r:.80}")
    return int(size[0]), int(size[1])


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check(source: str | Path, path: Path, options: Options, data: str | None, *, force: bool) -> None:
    """Raise ValueError or OSError for wrong arguments, before a network is built."""
    if is_exported(source) and Path(source).exists():
        raise ValueError(f"{source} is already an exported file; name the run or checkpoint that it was made from")
    check_axes(options.dynamic)
    if options.output not in ("logits", "labels"):
        raise ValueError(f"there is no output {options.output!r}; choose logits or labels")
    check_format(options.format)
    check_out(path, options.format, force=force)
    if options.size is not None and min(options.size) < 32:
        raise ValueError(f"--size {options.size[0]}x{options.size[1]} is too small; the smallest is 32x32")
    if data is not None and not (data in EMBEDDED or is_pattern(data) or Path(data).exists()):
        raise FileNotFoundError(f"there is no data {data}; check the path, or leave --data out to prove on noise")


def _loaded(
    source: str,
    options: Options,
    weights: str | Path | None,
    which: str,
    imports: Iterable[str | Path],
    *,
    dense: bool,
) -> _Network:
    if dense:
        import_files(imports)
        return _dense(source, options, weights)
    if weights is None and (hint := _of_checkpoint(source, "dense")):
        raise ValueError(f"{source} holds a dense backbone, which predicts nothing; {hint}")
    name, _ = begin(source, weights, which, "cpu", imports)
    protocol, task = load_task(name, weights, which)
    task.eval()
    recipe: Any = protocol.recipe
    if recipe.task == "classification" and options.size is not None and len({*options.size}) > 1:
        height, width = options.size
        raise ValueError(
            f"--size {height}x{width} is not a square, and a classifier reads the middle square of an image; give "
            f"--size {max(height, width)}"
        )
    graph = graph_of(task.network, options.output)
    describe = partial(_described, protocol, task, graph, _licence(name, weights))
    return _Network(graph, task.network, describe, _size(recipe), recipe.mean, recipe.std, protocol)


def _dense(source: str, options: Options, weights: str | Path | None) -> _Network:
    """Return a model as a dense backbone."""
    model, tag = catalog.split(source)
    if model not in list_models():
        hint = _of_checkpoint(source) or "`fourstage models` lists them"
        raise ValueError(f"--dense exports a model by its name, and {source} is none; {hint}")
    if weights is None:
        catalog.find(find(model).name, tag)  # raises where none is published
    backbone: Any = create_backbone(source, weights is None, checkpoint_path=weights).eval()
    config = images_of(backbone, model)
    graph = backbone_graph(backbone, options.output)

    def describe(input: Input, size: tuple[int, int]) -> Description:
        return Description(
            task="backbone",
            kind=graph.kind,
            outputs=graph.outputs,
            classes=(),
            input=input,
            network=model,
            strides=tuple(level.stride for level in backbone.levels),
            licence=_licence(source, weights),
            versions=_versions(),
        )

    _, height, width = config["input_size"]
    return _Network(graph, backbone, describe, (height, width), config["mean"], config["std"])


def _of_checkpoint(source: str, form: str | None = None) -> str:
    """Return what to type to export the network of a checkpoint as a dense backbone; empty: it is not known.

    Args:
        form: give that for a file of this form alone, as its metadata names it.
    """
    path = Path(source)
    path = path / saved.WEIGHTS if saved.is_folder(path) else RunFolder(path).best if path.is_dir() else path
    if not path.is_file() or path.suffix not in CHECKPOINT_ENDINGS:
        return ""
    file = read_checkpoint(path)
    described = describe_network(file)
    if described is None or described.backbone not in list_models() or form not in (None, file.metadata.get("form")):
        return ""
    return f"type fourstage export {described.backbone} --dense --weights {shlex.quote(str(path))}"


def _size(recipe: Any) -> tuple[int, int]:
    """Return the (H, W) of the images of a recipe's evaluation, or of its training where that has no limit."""
    if recipe.task == "classification":
        return recipe.image_size, recipe.image_size
    if recipe.task == "detection":
        short, long = sorted(recipe.evaluation.scale)
        return -(-short // 32) * 32, -(-long // 32) * 32
    e = recipe.evaluation
    return tuple(e.window or (None if e.scale is None else (min(e.scale), max(e.scale))) or recipe.augmentation.crop)


def _described(
    protocol: AnyProtocol, task: AnyTask, graph: Graph, licence: str | None, input: Input, size: tuple[int, int]
) -> Description:
    recipe: Any = protocol.recipe
    module: Any = task
    values = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    e = recipe.evaluation
    resize: Any
    if recipe.task == "classification":
        _check_side(size[0], input)
        resize = MiddleCrop(size[0], e.crop_pct, e.crop_mode, recipe.interpolation)
    elif recipe.task == "detection":
        resize = KeepRatio(tuple(e.scale))
    else:
        resize = Views(e.scale, e.window, e.stride, e.divisor, tuple(e.ratios), e.ratios_of)
    network = recipe.network_name if recipe.task == "classification" else f"{recipe.method} over {recipe.backbone}"
    return Description(
        task=recipe.task,
        kind=graph.kind,
        outputs=graph.outputs,
        classes=task.classes,
        input=input,
        network=network,
        resize=resize,
        suppression=graph.suppression,
        method=None if recipe.task == "classification" else recipe.method,
        align_corners=bool(getattr(task.network, "align_corners", False)),
        category_ids=getattr(module, "category_ids", None),
        palette=getattr(module, "palette", None),
        limits=tuple(e.limits) if recipe.task == "detection" else (1, 10, 100),
        boundary=bool(getattr(module, "boundaries", False)),
        licence=licence,
        recipe=recipe.name,
        recipe_hash=hashlib.sha256(values.encode()).hexdigest(),
        versions=_versions(),
    )


def _check_side(side: int, input: Input) -> None:
    """Raise ValueError where a classifier's images are smaller than its graph reads: filling up changes its logits."""
    if side < input.smallest:
        raise ValueError(
            f"this classifier reads images of {side} pixels, and with dynamic sides PyTorch records it from "
            f"{input.smallest} on; leave height and width out of --dynamic, or give --size {input.smallest}"
        )


def _input(network: _Network, traced: Traced, size: tuple[int, int], options: Options) -> Input:
    height, width = (None if axis in options.dynamic else side for axis, side in zip(AXES[1:], size, strict=True))
    return Input(
        "images",
        batch=None if "batch" in options.dynamic else 1,
        height=height,
        width=width,
        mean=network.mean,
        std=network.std,
        divisor=network.graph.multiple,
        smallest=traced.smallest,
        sizes="sizes" if network.graph.reads_sizes else None,
    )


def _licence(source: str, weights: str | Path | None) -> str | None:
    """Return the licence of published weights, as their source states it; None: unknown, as that of a run's data."""
    model, tag = catalog.split(source)
    if weights is None and not Path(source).exists() and model in list_models():
        return catalog.find(find(model).name, tag).licence
    path = Path(weights or source)
    return read_checkpoint(path).metadata.get("licence") if path.is_file() else None


def _versions() -> dict[str, str]:
    return {name: known for name in PACKAGES if (known := installed(name))}


def noise_sizes(
    size: tuple[int, int], options: Options, multiple: int = 1, smallest: int = 1
) -> list[tuple[int, int, int]]:
    """Return the (B, H, W) of noise: five sizes where a side is dynamic, else three times its own."""
    batches = (1, 2) if "batch" in options.dynamic else (1, 1)
    if not options.has_dynamic_sides:
        return [(batch, *size) for batch in (*batches, 1)]
    most = min(max(size), max(2 * smallest, 512))
    sides = [(smallest, smallest), (most, most), (most - 7, smallest + 45), (smallest + 33, most), (smallest + 90, 0)]
    sizes = [(high, wide or high + 31) for high, wide in sides]
    fixed = [None if axis in options.dynamic else side for axis, side in zip(AXES[1:], size, strict=True)]
    out = []
    for i, pair in enumerate(sizes):
        high, wide = (
            max(smallest, side) // multiple * multiple if keep is None else keep
            for side, keep in zip(pair, fixed, strict=True)
        )
        out.append((batches[i % 2], high, wide))
    return out


def filling(smallest: int, size: tuple[int, int], options: Options) -> str:
    """Return in words that images of this size are filled up to the smallest dynamic sides; empty: they are not."""
    sides = [side for axis, side in zip(AXES[1:], size, strict=True) if axis in options.dynamic]
    if min(sides, default=smallest) >= smallest:
        return ""
    return (
        f"reads dynamic sides of {smallest} pixels and more, since PyTorch records this network from there on: smaller "
        f"images, such as {size[0]} x {size[1]}, are filled up; leave height and width out of --dynamic for them"
    )


def _filled_up(one: Images, smallest: int, options: Options) -> Images:
    """Return an image filled up to the smallest dynamic sides, as a prediction fills it up."""
    missing = [
        max(0, smallest - side) if axis in options.dynamic else 0
        for axis, side in zip(AXES[1:], one.images_BCHW.shape[2:], strict=True)
    ]
    return replace(one, images_BCHW=F.pad(one.images_BCHW, (0, missing[1], 0, missing[0])))


def _proof_images(samples: Sequence[Images], sizes: Sequence[tuple[int, int, int]]) -> list[Images]:
    """Return the images of a proof: noise of these (B, H, W), or samples, also resized to the sizes that they lack."""
    if not samples:
        return noise_images(sizes)
    shapes, out = {(len(one.images_BCHW), *one.images_BCHW.shape[2:]) for one in samples}, [*samples]
    for n, (batch, height, width) in enumerate(sizes):
        if (batch, height, width) not in shapes:
            chosen = [samples[(n + i) % len(samples)] for i in range(batch)]
            images_BCHW = torch.cat([_resized(one, height, width) for one in chosen])
            out.append(Images("resized", images_BCHW, (height, width)))
    return out


def _resized(one: Images, height: int, width: int) -> torch.Tensor:
    """Return (1, 3, height, width): an image without its padding, resized."""
    image_1CHW = one.images_BCHW[:1, :, : one.size[0], : one.size[1]]
    return F.interpolate(image_1CHW, (height, width), mode="bilinear", antialias=True)


def _samples(
    network: _Network, data: str | None, size: tuple[int, int], options: Options, *, show: bool
) -> list[Images]:
    """Return prepared validation images; none where there is no data, so that noise takes their place."""
    protocol = network.protocol
    recipe: Recipe | None = None if protocol is None else protocol.recipe
    where = data or (None if recipe is None else recipe.data)
    if protocol is None or recipe is None or where is None:
        if data is not None:
            raise ValueError("--data has images of a task, and a backbone has none; leave it out")
        return []
    if data is None and where not in EMBEDDED and not Path(where).exists():
        return []
    side = {"image_size": size[0]} if recipe.task == "classification" else {}
    opened = protocol_of(recipe.model_copy(update={"data": where, **side}))
    dataset = open_split(opened, "val", show=show)
    return [*islice(_prepared(opened, dataset, network, size, options), IMAGES)]


def _prepared(
    protocol: AnyProtocol, dataset: Any, network: _Network, size: tuple[int, int], options: Options
) -> Iterator[Images]:
    """Yield images of the data set as the graph reads them; those that cannot be read are left out."""
    transform, normalise = protocol.evaluation_transform(), Normalise.of(network.mean, network.std)
    task: Any = protocol.recipe
    for index in range(len(dataset)):
        try:
            sample: Sample = dataset.sample(index)
        except BadImage:
            continue
        plain = Sample(sample.id, sample.image, sample.original_size)
        image: Any = transform(plain).image
        if image.dtype == torch.uint8:  # of a segmentor, which reads views of several sizes
            pixels_HW3 = image.movedim(0, -1).contiguous().numpy()
            if task.evaluation.scale is not None and options.has_dynamic_sides:
                from fourstage.data.transforms.resizing import keep_ratio

                pixels_HW3 = resize_image(pixels_HW3, keep_ratio(pixels_HW3.shape[:2], task.evaluation.scale))
            image = normalise(pixels_HW3)
        yield _fitted(sample.id, image[None].float(), network.graph.multiple, size, options)


def _fitted(id: str, image_1CHW: torch.Tensor, multiple: int, size: tuple[int, int], options: Options) -> Images:
    """Return an image of a size that the graph reads: resized to fixed sides, or filled up to multiples."""
    wanted = [
        old if axis in options.dynamic else new
        for axis, old, new in zip(AXES[1:], image_1CHW.shape[2:], size, strict=True)
    ]
    if [*image_1CHW.shape[2:]] != wanted:
        image_1CHW = F.interpolate(image_1CHW, tuple(wanted), mode="bilinear")
    height, width = image_1CHW.shape[2:]
    filled = F.pad(image_1CHW, (0, -width % multiple, 0, -height % multiple))
    return Images(id, filled, (height, width))
