"""`fourstage bench --floor`: the time of a network's matrix products alone, and their share of the network's time.

The products are those of linear layers, of 1x1 convolutions and of attention. Each shape is computed by the product
that is the quickest for it on this machine, in training each of the three passes. What is left is the time of other
convolutions, norms, activations, copies and everything else: the most that faster implementations could save.

B matrices or images, N rows, C channels in, D channels out.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fourstage.bench import timing
from fourstage.bench.networks import is_task_network
from fourstage.bench.options import Options
from fourstage.bench.results import WORDS
from fourstage.bench.run import BATCH, environment, load_model, select_models, set_up
from fourstage.bench.timing import Spread, Step, Watch
from fourstage.bench.workloads import Setting
from fourstage.exported.runtime import is_exported
from fourstage.freed_memory import keep_all_freed_memory
from fourstage.ops import matmul, products
from fourstage.progress import Bar
from fourstage.user_files import import_files

TURNS = 5  # in which the products of one shape take turns; the shortest time of each counts
aten = torch.ops.aten


@dataclass(frozen=True)
class Shape:
    """The sizes of a product: `matrices` times (N, C) by (C, D). Only one matrix can be that of a layer."""

    matrices: int
    rows: int
    channels_in: int
    channels_out: int
    layer: bool

    def __str__(self) -> str:
        product = f"{self.rows:,} x {self.channels_in:,} x {self.channels_out:,}"
        return product if self.layer else f"{self.matrices:,} of {product}"


@dataclass(frozen=True)
class FloorRow:
    """All products of one shape in a network.

    Attributes:
        count: how many times a step computes it.
        best: the name of the quickest product for each pass.
        seconds: of one of them, all passes together.
    """

    shape: Shape
    count: int
    best: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Floor:
    """The time of a network and of its products in one mode; times are seconds a step."""

    model: str
    mode: str
    batch: int
    rows: tuple[FloorRow, ...]
    network: Spread
    products: Spread
    share: Spread  # of the products' time in the network's, round by round


def floors(models: Sequence[str], options: Options, *, show: bool = True) -> list[Floor]:
    """Measure the networks one after the other; a network and its products take turns in rounds.

    Raises:
        ValueError: a name is unknown or no classifier's, or the options are not float32 on a CPU without a compiler.
    """
    import_files(options.imports)
    names, _ = select_models(models, None)
    if other := next((name for name in names if is_exported(name) or is_task_network(name)), None):
        raise ValueError(f"--floor is for classifiers and backbones, and {other} is none; leave --floor or {other} out")
    setting = set_up(options)
    if setting.device.type != "cpu" or options.dtype != "float32" or options.compile:
        raise ValueError("--floor is for float32 on a CPU; add --device cpu, leave out --dtype and --compile")
    out = []
    with environment(options), Bar("floor", total=len(names) * len(options.modes()), show=show) as bar:
        for name in names:
            for mode in options.modes():
                bar.update(len(out), f"{name}, {WORDS[mode]}")
                out.append(floor_of(name, mode, setting))
    return out


def floor_of(name: str, mode: str, setting: Setting) -> Floor:
    """Measure one network in one mode, "infer" or "train"."""
    keep_all_freed_memory()  # as runs on a CPU do; else the time of a large product is mostly that of new pages
    loaded, batch = load_model(name, setting), setting.options.batch_size or BATCH["cpu"]
    model = loaded.model.train(mode == "train")
    counts, watch, seconds = products_of(model, (batch, *loaded.image_CHW)), setting.watch(), setting.options.seconds
    with torch.no_grad():
        quickest = [best_products(shape, mode, watch) for shape in counts]

    def all_products() -> None:
        with torch.no_grad():
            for (steps, _, _), count in zip(quickest, counts.values(), strict=True):
                for _ in range(count):
                    for step in steps:
                        step()

    steps = setting.step(mode, model, batch, loaded.image_CHW), all_products
    for step in steps:
        step()
    paces = [timing.pace(step, watch) for step in steps]
    rounds = timing.rounds_for(paces, seconds)
    turns = [timing.throughput_turn(step, pace, seconds / 2, rounds) for step, pace in zip(steps, paces, strict=True)]
    network, alone = ([value for (value,) in one] for one in timing.run_rounds(turns, rounds, watch, lambda: None))
    rows = [FloorRow(shape, counts[shape], best, time) for shape, (_, best, time) in zip(counts, quickest, strict=True)]
    rows.sort(key=lambda row: -row.count * row.seconds)
    return Floor(
        name, mode, batch, tuple(rows), timing.spread(network), timing.spread(alone), timing.ratio(alone, network)
    )


# ---------------------------------------------------------------------------------------------------- which products


class _ShapeMode(TorchDispatchMode):
    """Count the shapes of products."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Shape] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (aten.mm, aten.addmm):
            (rows, channels_in), channels_out = args[-2].shape, args[-1].shape[1]
            self.counts[Shape(1, rows, channels_in, channels_out, layer=True)] += 1
        elif func.overloadpacket in (aten.bmm, aten.baddbmm):
            (matrices, rows, channels_in), channels_out = args[-2].shape, args[-1].shape[2]
            if args[-1].stride(0) == 0:  # one weight for all: a linear layer on memory that is not contiguous
                self.counts[Shape(1, matrices * rows, channels_in, channels_out, layer=True)] += 1
            else:
                self.counts[Shape(matrices, rows, channels_in, channels_out, layer=False)] += 1
        elif func.overloadpacket is aten.convolution and _is_product(*args):
            rows, (channels_out, channels_in) = out.numel() // out.shape[1], args[1].shape[:2]
            self.counts[Shape(1, rows, channels_in, channels_out, layer=True)] += 1
        return out


def _is_product(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, *others: Any) -> bool:
    """Return whether a convolution is one of 1x1 that reads each cell once."""
    groups = others[-1]
    return set(weight.shape[2:]) == {1} and set(stride) == {1} and set(padding) == {0} and groups == 1


def products_of(model: nn.Module, image_BCHW: tuple[int, ...]) -> Counter[Shape]:
    """Return how often a pass over a batch computes a product of each shape. Nothing is computed or allocated."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), _ShapeMode() as mode:
            torch.func.functional_call(model, shapes, (torch.empty(image_BCHW, device="meta"),))
    finally:
        for module, training in modes.items():
            module.training = training
    return mode.counts


# --------------------------------------------------------------------------------------------------- which are quickest


def best_products(shape: Shape, mode: str, watch: Watch) -> tuple[list[Step], tuple[str, ...], float]:
    """Return the quickest step for each pass, the names of its products, and the seconds of all passes together."""
    passes = layer_passes(shape) if shape.layer else attention_passes(shape)
    steps, names, total = [], [], 0.0
    for forms in passes if mode == "train" else passes[:1]:
        times = dict.fromkeys(forms, float("inf"))
        for _ in range(TURNS):
            for name, step in forms.items():
                times[name] = min(times[name], timing.pace(step, watch))
        best = min(times, key=lambda name: times[name])
        steps.append(forms[best])
        names.append(best)
        total += times[best]
    return steps, tuple(names), total


def layer_passes(shape: Shape) -> list[Mapping[str, Step]]:
    """Return the products that can compute the output, the gradient of the input and that of the weight of a layer."""
    x, grad = torch.randn(shape.rows, shape.channels_in), torch.randn(shape.rows, shape.channels_out)
    weight, bias = torch.randn(shape.channels_out, shape.channels_in), torch.randn(shape.channels_out)
    names = [name for name in matmul.PASS_PRODUCTS if name in products.for_linear()]
    runs: tuple[Callable[[str], Tensor], ...] = (
        lambda name: matmul.output_pass(name, x, weight, bias),
        lambda name: matmul.input_pass(name, grad, weight),
        lambda name: matmul.weight_pass(name, grad, x),
    )
    output, *gradients = ({name: _step(partial(run, name)) for name in names} for run in runs)
    return [output | {"convolution": _step(lambda: matmul.by_convolution(x, weight, bias, False))}, *gradients]


def attention_passes(shape: Shape) -> list[Mapping[str, Step]]:
    """Return the same for the product of two inputs, which has gradients of both."""
    x = torch.randn(shape.matrices, shape.rows, shape.channels_in)
    other = torch.randn(shape.matrices, shape.channels_in, shape.channels_out)
    grad = torch.randn(shape.matrices, shape.rows, shape.channels_out)
    runs = (
        lambda: x @ other,
        lambda: grad @ other.transpose(1, 2),
        lambda: x.transpose(1, 2) @ grad,
    )
    return [{"bmm": _step(run)} for run in runs]


def _step(run: Callable[[], Tensor]) -> Step:
    def step() -> None:
        run()

    return step


# ------------------------------------------------------------------------------------------------------ on the screen


def table(found: Sequence[Floor]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table of all networks."""
    head = ["model", "mode", "batch", "network ms", "products ms", "share", "quartiles"]
    rows = []
    for one in found:
        times = [f"{1e3 * spread.median:.1f}" for spread in (one.network, one.products)]
        share = [f"{one.share.median:.2f}", f"{one.share.low:.2f} to {one.share.high:.2f}"]
        rows.append([one.model, WORDS[one.mode], str(one.batch), *times, *share])
    return head, rows


def shape_table(floor: Floor) -> tuple[list[str], list[list[str]]]:
    """Return the head and the rows of a table of one network's shapes, the longest first."""
    head = [f"{floor.model}, {WORDS[floor.mode]}: rows x in x out", "count", "quickest", "ms each", "GFLOP/s"]
    rows = []
    for row in floor.rows:
        shape, names = row.shape, dict.fromkeys(row.best)
        flops = 2 * len(row.best) * shape.matrices * shape.rows * shape.channels_in * shape.channels_out
        best = "/".join(names if len(names) == 1 else row.best)
        rows.append([str(shape), str(row.count), best, f"{1e3 * row.seconds:.2f}", f"{flops / row.seconds / 1e9:.0f}"])
    return head, rows
