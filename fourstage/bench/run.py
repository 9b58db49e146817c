"""Measure models in groups that take turns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn

from fourstage.bench import memory, results, timing
from fourstage.bench.count import Count, count_module, side
from fourstage.bench.count_tasks import count_network
from fourstage.bench.memory import Fit
from fourstage.bench.networks import build, expand, image_for
from fourstage.bench.options import Options, check_compiler
from fourstage.bench.results import Comparison, Result, Speed
from fourstage.bench.task_workloads import DenseWork
from fourstage.bench.timing import Step
from fourstage.bench.workloads import OutOfMemoryError, Setting, free_memory, memory_errors
from fourstage.engine.devices import choose_device
from fourstage.progress import Bar

BATCH = {"cpu": 8, "cuda": 128}
GROUP = 8  # models that are in memory together and take turns
LATENCY_SHARE = 0.25  # of the seconds, on top of them


@dataclass(frozen=True)
class Contestant:
    """A model that is ready to be measured.

    Attributes:
        weight: bytes that it takes on a GPU, without any work.
        fits: batch and peak memory by mode.
        notes: what did not go as asked.
    """

    name: str
    model: nn.Module
    image_CHW: tuple[int, int, int]
    count: Count
    weight: int
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

    Models are measured in groups that take turns, so that a machine that is busy for a while is so for all of them.

    Args:
        models: names and wildcards: ours, `timm/NAME`, `torchvision/NAME`.
        against: a model that takes turns with each group; the others are compared with it, round by round.
        done: is called with what each group gave.
        show: tell on the screen how far it is.

    Returns:
        One result per model, the yardstick among them (measured with the first group), and the comparisons.

    Raises:
        ValueError: an unknown name, an impossible option, too little memory for a single image.
    """
    options = options or Options()
    names, yardstick = chosen(models, against)
    setting = set_up(options)
    out: list[Result] = []
    comparisons: list[Comparison] = []
    with environment(options), Bar("bench", total=1, show=show) as bar:
        parts = list(groups(names, yardstick))
        progress = Progress(bar, sum(map(len, parts)), len(options.modes()))
        for group in parts:
            found = measure(group, setting, progress)
            free_memory(setting.device)
            compared = {r.model: results.compare(r, found[0]) for r in found[1:]} if yardstick else {}
            fresh = found[1:] if yardstick and out else found
            out += fresh
            comparisons += compared.values()
            if done is not None:
                done(fresh, compared)
    return out, comparisons


def chosen(models: Sequence[str], against: str | None) -> tuple[list[str], str | None]:
    """The names that are asked for, and the yardstick, which is not among them.

    Raises:
        ValueError: an unknown name; a yardstick that is several models; nothing left to compare.
    """
    names = expand(models)
    if against is None:
        return names, None
    yardsticks = expand([against])
    if len(yardsticks) > 1:
        raise ValueError(f"{against!r} is {len(yardsticks)} models, and a comparison needs one; name it")
    names = [name for name in names if name != yardsticks[0]]
    if not names:
        raise ValueError(f"there is nothing but {against} to compare {against} with; name another model")
    return names, yardsticks[0]


def groups(names: Sequence[str], yardstick: str | None) -> Iterator[list[str]]:
    """Parts of the names, the yardstick first in each."""
    first = [] if yardstick is None else [yardstick]
    step = GROUP - len(first)
    for start in range(0, len(names), step):
        yield [*first, *names[start : start + step]]


def set_up(options: Options) -> Setting:
    """The device that the options mean.

    Raises:
        ValueError: no such device here, or no compiler for it.
    """
    setting = Setting(options, choose_device(options.device))
    if options.clock == "cpu" and setting.device.type != "cpu":
        raise ValueError("processor time says nothing of a GPU's work; add --device cpu, or leave out --cpu-time")
    if options.compile and setting.device.type == "cpu":
        check_compiler()
    return setting


@contextmanager
def environment(options: Options) -> Iterator[None]:
    """Threads, seed and choice of kernels as a measurement needs them; afterwards as they were."""
    threads, state, benchmark = torch.get_num_threads(), torch.get_rng_state(), torch.backends.cudnn.benchmark
    torch.set_num_threads(options.threads or threads)
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
    """Let torch.compile keep a graph for each model and batch; by its usual limit the ninth would run uncompiled."""
    from torch._dynamo import config

    return config.patch(recompile_limit=1000, accumulated_recompile_limit=10000)  # type: ignore[attr-defined]


class Progress:
    """How far a measurement is, for a person: a part for the memory of each model, and parts for each of its races."""

    PARTS = 10  # of a race

    def __init__(self, bar: Bar, models: int, modes: int) -> None:
        self.bar, self.done = bar, 0
        races = modes + 1  # single images too
        bar.resize(models * (1 + races * self.PARTS))

    def say(self, text: str) -> None:
        """A line above the bar."""
        self.bar.say(text)

    def note(self, text: str) -> None:
        self.bar.update(self.done, text)

    def model(self) -> None:
        """One more model is ready."""
        self.done += 1

    def race(self, what: str, models: int, rounds: int) -> Callable[[], None]:
        """What to call after each round of a race."""
        start, seen = self.done, 0

        def tick() -> None:
            nonlocal seen
            seen += 1
            self.done = start + models * self.PARTS * seen // rounds
            self.bar.update(self.done, f"{what}, round {seen} of {rounds}")

        return tick


def measure(names: Sequence[str], setting: Setting, progress: Progress) -> list[Result]:
    """All modes of one group.

    Raises:
        ValueError: too little memory, or a model that does not take images of this size.
    """
    try:
        with memory_errors():
            contestants = [enter(name, setting) for name in names]
            for contestant in contestants:
                progress.note(f"{contestant.name}: memory")
                weigh(contestant, setting, progress.say)
                progress.model()
            rates = {mode: throughput(contestants, mode, setting, progress) for mode in setting.options.modes()}
            latencies = latency(contestants, setting, progress)
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
        for i, one in enumerate(contestants)
    ]


def enter(name: str, setting: Setting) -> Contestant:
    """Build a model and count what it costs.

    Raises:
        ValueError: it cannot be built for images of this size.
    """
    options = setting.options
    before = allocated(setting.device)
    try:
        model = build(name, options.img_size, dense=options.dense)
        image_CHW = image_for(model, options.img_size)
        cost = cost_of(model, image_CHW)
    except (RuntimeError, AssertionError, TypeError) as error:  # of networks that are not ours
        size = "its own size" if options.img_size is None else f"{side(options.img_size)} pixels"
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{name} cannot be measured at {size}: {reason or type(error).__name__}") from error
    model = setting.place(model)
    return Contestant(name, model, image_CHW, cost, allocated(setting.device) - before)


def cost_of(model: nn.Module, image_CHW: tuple[int, int, int]) -> Count:
    """Of one image; of a detector or segmentor as published tables count it."""
    if isinstance(model, DenseWork):
        return count_network(model.network, image_CHW[1:])
    return count_module(model, image_CHW)


def weigh(contestant: Contestant, setting: Setting, say: Callable[[str], None]) -> None:
    """Find the batches that fit, and what memory they take."""
    options, name = setting.options, contestant.name

    def told(text: str) -> None:
        contestant.notes.append(text)
        say(f"{name}: {text}")

    def on_cuda(modes: Sequence[str], batch: int) -> Mapping[str, int | None]:
        free_memory(setting.device)
        base = allocated(setting.device) - contestant.weight

        def run(mode: str, batch: int) -> Step:
            return setting.step(mode, contestant.model.train(mode == "train"), batch, contestant.image_CHW)

        return memory.peaks_on_cuda(run, base, modes, batch)

    def on_cpu(modes: Sequence[str], batch: int) -> Mapping[str, int | None]:
        if options.compile:  # the compiler's own memory would hide the network's
            return dict.fromkeys(modes)
        try:
            return memory.peaks_on_cpu(name, options, modes, batch)
        except ValueError as error:
            told(f"peak memory is not known: {error}")
            return dict.fromkeys(modes)

    probe = on_cuda if setting.device.type == "cuda" else on_cpu
    usual = dict.fromkeys(options.modes(), BATCH[setting.device.type])
    if isinstance(contestant.model, DenseWork):
        usual |= contestant.model.batches
    for batch in dict.fromkeys(usual[mode] for mode in options.modes()):
        modes = [mode for mode in options.modes() if usual[mode] == batch]
        contestant.fits.update(memory.fit(probe, modes, options.batch_size or batch, told))


def throughput(
    contestants: Sequence[Contestant], mode: str, setting: Setting, progress: Progress
) -> list[tuple[float, ...]]:
    """Images per second of each model in each round."""
    seconds, watch = setting.options.seconds, setting.watch()
    steps = [
        setting.step(mode, one.model.train(mode == "train"), one.fits[mode].batch, one.image_CHW) for one in contestants
    ]
    paces = [warmed_pace(one, step, watch, progress) for one, step in zip(contestants, steps, strict=True)]
    rounds = timing.rounds_for(paces, seconds)
    turns = [timing.throughput_turn(step, pace, seconds, rounds) for step, pace in zip(steps, paces, strict=True)]
    taken = timing.race(turns, rounds, watch, progress.race(results.WORDS[mode], len(contestants), rounds))
    return [
        tuple(one.fits[mode].batch / seconds for (seconds,) in samples)
        for one, samples in zip(contestants, taken, strict=True)
    ]


def latency(contestants: Sequence[Contestant], setting: Setting, progress: Progress) -> list[tuple[float, ...]]:
    """Seconds of single images of each model."""
    seconds, watch = setting.options.seconds * LATENCY_SHARE, setting.watch()
    steps = [setting.step("infer", one.model.eval(), 1, one.image_CHW) for one in contestants]
    paces = [warmed_pace(one, step, watch, progress) for one, step in zip(contestants, steps, strict=True)]
    rounds = timing.FEWEST
    turns = [timing.latency_turn(step, pace, seconds, rounds) for step, pace in zip(steps, paces, strict=True)]
    taken = timing.race(turns, rounds, watch, progress.race("single images", len(contestants), rounds))
    return [tuple(value for samples in one for value in samples) for one in taken]


def warmed_pace(contestant: Contestant, step: Step, watch: timing.Watch, progress: Progress) -> float:
    """Seconds of a step, once kernels are chosen and graphs compiled."""
    progress.note(f"{contestant.name}: warming up")
    step()
    return timing.pace(step, watch)


def allocated(device: torch.device) -> int:
    """Bytes that are in use on a GPU; 0 on the CPU, where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
