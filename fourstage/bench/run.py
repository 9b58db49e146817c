"""Measure models in groups that take turns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from fourstage.bench import memory, results, timing
from fourstage.bench.count import Count, count_module
from fourstage.bench.count_tasks import count_network
from fourstage.bench.exported import ExportedNetwork, beside_networks, check_options
from fourstage.bench.memory import Fit
from fourstage.bench.model_table import side
from fourstage.bench.networks import build, expand, image_for
from fourstage.bench.options import Options, check_compiler
from fourstage.bench.results import Comparison, Result, Speed
from fourstage.bench.task_workloads import TaskWorkload
from fourstage.bench.timing import Step
from fourstage.bench.workloads import MORE_VALUES, OutOfMemoryError, Setting, free_memory, memory_errors
from fourstage.engine.batch_statistics import NEED
from fourstage.engine.devices import choose_device
from fourstage.exported.runtime import is_exported
from fourstage.freed_memory import keep_freed_memory
from fourstage.progress import Bar
from fourstage.user_files import import_files

BATCH = {"cpu": 8, "cuda": 128}
GROUP = 8  # models that are in memory together and take turns
LATENCY_SHARE = 0.25  # of the seconds, on top of them


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to be measured.

    Attributes:
        weight_bytes: bytes of its parameters and buffers on a GPU.
        fits: batch and peak memory by mode.
        notes: sentences on what was measured otherwise than requested.
    """

    name: str
    model: nn.Module
    image_CHW: tuple[int, int, int]
    count: Count
    weight_bytes: int
    fits: dict[str, Fit] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


Done = Callable[[Sequence[Result], Mapping[str, Comparison]], None]


def bench(
    models: Sequence[str],
    options: Options | None = None,
    *,
    against: str | None = None,
    done: Done | None = None,
    show: bool = True,
) -> tuple[list[Result], list[Comparison]]:
    """Measure images per second, latency, memory and cost.

    The models of a group take turns, so that other load on the machine slows down all of them alike.

    Args:
        models: names and wildcards: ours, `timm/NAME`, `torchvision/NAME`; exported files.
        against: the baseline: it takes turns with each group, and the others are compared with it, round by round.
        done: is called with the results and the comparisons of each group.
        show: print a progress bar.

    Returns:
        One result per model, including the baseline (measured with the first group), and the comparisons.

    Raises:
        ValueError: a name is unknown, an option is impossible, or memory is too small for a single image.
    """
    options = options or Options()
    import_files(options.imports)
    names, baseline = select_models(models, against)
    if files := [name for name in (*names, baseline) if is_exported(name)]:
        check_options([str(file) for file in files], options)
        if len(files) < len(names) + (baseline is not None):
            options = beside_networks([str(file) for file in files], options)
    setting = set_up(options)
    out: list[Result] = []
    comparisons: list[Comparison] = []
    with environment(options), Bar("bench", total=1, show=show) as bar:
        all_groups = list(groups(names, baseline))
        progress = Progress(bar, sum(map(len, all_groups)), len(options.modes()))
        for group in all_groups:
            measured = measure(group, setting, progress)
            free_memory(setting.device)
            compared = {r.model: results.compare(r, measured[0]) for r in measured[1:]} if baseline else {}
            fresh = measured[1:] if baseline and out else measured
            out += fresh
            comparisons += compared.values()
            if done is not None:
                done(fresh, compared)
    return out, comparisons


def select_models(models: Sequence[str], against: str | None) -> tuple[list[str], str | None]:
    """Return the requested names without the baseline, and the baseline.

    Raises:
        ValueError: a name is unknown, the baseline is several models, or nothing is left to compare.
    """
    names = expand(models)
    if against is None:
        return names, None
    baselines = expand([against])
    if len(baselines) > 1:
        raise ValueError(f"{against!r} is {len(baselines)} models, and a comparison needs one; name it")
    names = [name for name in names if name != baselines[0]]
    if not names:
        raise ValueError(f"there is nothing but {against} to compare with {against}; name another model")
    return names, baselines[0]


def groups(names: Sequence[str], baseline: str | None) -> Iterator[list[str]]:
    """Split the names into groups, each with the baseline first."""
    first = [] if baseline is None else [baseline]
    step = GROUP - len(first)
    for start in range(0, len(names), step):
        yield [*first, *names[start : start + step]]


def set_up(options: Options) -> Setting:
    """Return the setting for the options, with the device that they name.

    Raises:
        ValueError: this machine lacks the device, or a compiler for it.
    """
    setting = Setting(options, choose_device(options.device))
    if options.clock == "cpu" and setting.device.type != "cpu":
        raise ValueError("processor time does not include a GPU's work; add --device cpu, or leave out --cpu-time")
    if options.compile and setting.device.type == "cpu":
        check_compiler()
    return setting


@contextmanager
def environment(options: Options) -> Iterator[None]:
    """Set threads, seed and the choice of kernels for a measurement, and restore them afterwards."""
    threads, state, benchmark = torch.get_num_threads(), torch.get_rng_state(), torch.backends.cudnn.benchmark
    torch.set_num_threads(options.threads or threads)
    keep_freed_memory()  # for all networks alike; ours does so when it is built
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    try:
        with graphs_for_many_models() if options.compile else nullcontext():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        torch.backends.cudnn.benchmark = benchmark


def graphs_for_many_models() -> AbstractContextManager[None]:
    """Let torch.compile keep a graph for each model and batch; with its default limit, the ninth would run eagerly."""
    from torch._dynamo import config

    return config.patch(recompile_limit=1000, accumulated_recompile_limit=10000)  # type: ignore[attr-defined]


class Progress:
    """The progress bar of a measurement: one unit for the memory of each model, ten for each of its timed modes."""

    UNITS = 10  # of one model's rounds in one mode

    def __init__(self, bar: Bar, models: int, modes: int) -> None:
        self.bar, self.done = bar, 0
        timed = modes + 1  # the latency of single images is timed too
        bar.resize(models * (1 + timed * self.UNITS))

    def print_line(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.print_line(text)

    def note(self, text: str) -> None:
        """Replace the text beside the bar."""
        self.bar.update(self.done, text)

    def model(self) -> None:
        """Advance by one model whose memory is measured."""
        self.done += 1

    def rounds(self, what: str, models: int, rounds: int) -> Callable[[], None]:
        """Return the function to call after each round."""
        start, finished = self.done, 0

        def tick() -> None:
            nonlocal finished
            finished += 1
            self.done = start + models * self.UNITS * finished // rounds
            self.bar.update(self.done, f"{what}, round {finished} of {rounds}")

        return tick


def measure(names: Sequence[str], setting: Setting, progress: Progress) -> list[Result]:
    """Measure all modes of one group.

    Raises:
        ValueError: memory is too small, or a model does not take images of this size.
    """
    try:
        with memory_errors():
            models = [load_model(name, setting) for name in names]
            for loaded in models:
                progress.note(f"{loaded.name}: memory")
                find_batches(loaded, setting, progress.print_line)
                progress.model()
            rates = {mode: throughput(models, mode, setting, progress) for mode in setting.options.modes()}
            latencies = latency(models, setting, progress)
    except OutOfMemoryError:
        raise ValueError(
            f"memory is not enough for {', '.join(names)} together; name fewer models, or give a smaller --batch-size"
        ) from None
    return [
        Result(
            one.name,
            one.count,
            {mode: Speed(one.fits[mode].batch, rates[mode][i], one.fits[mode].peak) for mode in rates},
            latencies[i],
            tuple(one.notes),
        )
        for i, one in enumerate(models)
    ]


def load_model(name: str, setting: Setting) -> LoadedModel:
    """Build a model and count what it costs.

    Raises:
        ValueError: the model cannot be built for images of this size.
    """
    options = setting.options
    before = allocated(setting.device)
    try:
        model = build(name, options.img_size, dense=options.dense)
        image_CHW = image_for(model, options.img_size)
        cost = cost_of(model, image_CHW)
    except (RuntimeError, AssertionError, TypeError) as error:  # raised by networks of timm and torchvision
        size = "its own size" if options.img_size is None else f"{side(options.img_size)} pixels"
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} cannot be measured at {size}: {reason or type(error).__name__}") from error
    model = setting.place(model)
    return LoadedModel(name, model, image_CHW, cost, allocated(setting.device) - before)


def cost_of(model: nn.Module, image_CHW: tuple[int, int, int]) -> Count:
    """Return the cost of one image; detectors and segmentors are counted as published tables do."""
    if isinstance(model, ExportedNetwork):
        return model.count()
    if isinstance(model, TaskWorkload):
        return count_network(model.network, image_CHW[1:])
    return count_module(model, image_CHW)


def find_batches(loaded: LoadedModel, setting: Setting, print_line: Callable[[str], None]) -> None:
    """Find the batch of each mode that fits into memory, and its peak memory."""
    options, name = setting.options, loaded.name

    def report(text: str) -> None:
        loaded.notes.append(text)
        print_line(f"{name}: {text}")

    def on_cuda(modes: Sequence[str], batch: int) -> Mapping[str, int | None]:
        loaded.model.zero_grad(set_to_none=True)  # a step that ran out of memory left gradients
        free_memory(setting.device)
        base = allocated(setting.device) - loaded.weight_bytes

        def run(mode: str, batch: int) -> Step:
            return setting.step(mode, loaded.model.train(mode == "train"), batch, loaded.image_CHW)

        return memory.peaks_on_cuda(run, base, modes, batch)

    def on_cpu(modes: Sequence[str], batch: int) -> Mapping[str, int | None]:
        if options.compile:  # the compiler's own memory would hide the network's
            return dict.fromkeys(modes)
        try:
            return memory.peaks_on_cpu(name, options, modes, batch)
        except ValueError as error:
            if NEED in str(error):
                raise ValueError(f"{name}: {NEED}; {MORE_VALUES}") from error
            report(f"peak memory is not known: {error}")
            return dict.fromkeys(modes)

    probe = on_cuda if setting.device.type == "cuda" else on_cpu
    default = dict.fromkeys(options.modes(), BATCH[setting.device.type])
    if isinstance(loaded.model, TaskWorkload):
        default |= loaded.model.batches
    for batch in dict.fromkeys(default[mode] for mode in options.modes()):
        modes = [mode for mode in options.modes() if default[mode] == batch]
        loaded.fits.update(memory.fit(probe, modes, options.batch_size or batch, report))


def throughput(
    models: Sequence[LoadedModel], mode: str, setting: Setting, progress: Progress
) -> list[tuple[float, ...]]:
    """Return images per second of each model in each round."""
    seconds, watch = setting.options.seconds, setting.watch()
    steps = [
        setting.step(mode, one.model.train(mode == "train"), one.fits[mode].batch, one.image_CHW) for one in models
    ]
    paces = [warmed_pace(one, step, watch, progress) for one, step in zip(models, steps, strict=True)]
    rounds = timing.rounds_for(paces, seconds)
    turns = [timing.throughput_turn(step, pace, seconds, rounds) for step, pace in zip(steps, paces, strict=True)]
    samples = timing.run_rounds(turns, rounds, watch, progress.rounds(results.WORDS[mode], len(models), rounds))
    return [
        tuple(one.fits[mode].batch / seconds_per_step for (seconds_per_step,) in rounds_of_one)
        for one, rounds_of_one in zip(models, samples, strict=True)
    ]


def latency(models: Sequence[LoadedModel], setting: Setting, progress: Progress) -> list[tuple[float, ...]]:
    """Return seconds of single images of each model."""
    seconds, watch = setting.options.seconds * LATENCY_SHARE, setting.watch()
    steps = [setting.step("infer", one.model.eval(), 1, one.image_CHW) for one in models]
    paces = [warmed_pace(one, step, watch, progress) for one, step in zip(models, steps, strict=True)]
    rounds = timing.FEWEST
    turns = [timing.latency_turn(step, pace, seconds, rounds) for step, pace in zip(steps, paces, strict=True)]
    samples = timing.run_rounds(turns, rounds, watch, progress.rounds("single images", len(models), rounds))
    return [tuple(value for values in one for value in values) for one in samples]


def warmed_pace(loaded: LoadedModel, step: Step, watch: timing.Watch, progress: Progress) -> float:
    """Return the seconds of a step, after a first step that chooses kernels and compiles graphs."""
    progress.note(f"{loaded.name}: warming up")
    step()
    return timing.pace(step, watch)


def allocated(device: torch.device) -> int:
    """Return the bytes in use on a GPU; 0 on the CPU, where torch does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
