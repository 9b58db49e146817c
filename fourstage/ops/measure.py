"""Measuring which products are the fastest on this machine, once for each machine.

Networks ask for the choice when the first one is built in a process, so that no forward pass measures: not under a
tracer or a transform, and not in a loop that somebody times. The choice is kept in the user's cache, see
`kept_choice.py`; only where there is none, a measurement takes about two seconds.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter, thread_time

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fourstage.freed_memory import keep_freed_memory
from fourstage.ops import attention, kept_choice, matmul, products
from fourstage.ops.eager import is_compiling, is_recorded, is_transformed, switched_on
from fourstage.ops.products import CLASSES, Products, Ways

SHAPES = {
    "fewest": (49, 192, 768),
    "few": (392, 192, 768),
    "some": (1568, 128, 384),
    "many": (4704, 96, 384),
    "most": (16384, 96, 384),
}
"""Rows, narrow and wide channels that stand for a class: about those of a pyramid's maps for some images."""

SAME = {"most-wide-wide": "many-wide-wide"}  # too long to measure, and no network has many of them
MARGIN = 0.95  # a product replaces the plain one only if it takes at most this share of its time
FEWEST, MOST = 4, 16  # turns; the first ones choose kernels
AGAIN = 1.1  # times are the same up to this factor
MET = 3  # turns that must meet the shortest time
WON = 0.8  # share of the turns that a form wins against the plain one: by chance one form in a hundred does


class UnsureError(Exception):
    """Other work on the machine disturbs a measurement so much that times do not repeat."""


def choose_products() -> Products:
    """Return the products that this process uses: as set before, as kept on this machine, else as measured now.

    Nothing is measured where no fast path runs (`FOURSTAGE_OPS=plain`), nor while operators are recorded or
    transformed. The next network measures then.

    Raises:
        ValueError: the environment's `FOURSTAGE_PRODUCTS` names products that this machine lacks.
    """
    if is_compiling() or not switched_on():
        return products.current()
    chosen = products.chosen()
    if is_recorded() or is_transformed():
        return chosen or products.current()
    keep_freed_memory()
    return chosen or products.use(kept_choice.read() or _measured_and_kept())


def _measured_and_kept() -> Products:
    choice = measured()
    kept_choice.write(choice)
    return choice


def measured() -> Products:
    """Return the products that a measurement finds to be the fastest, on real tensors whatever mode is active.

    On a busy machine one thread measures alone: it has a clock of its own, which stops where the thread waits.
    """
    with on_real_tensors():
        try:
            return _measured()
        except UnsureError:
            with one_thread():
                return _measured()


def _measured() -> Products:
    """Return the choice, or raise UnsureError where several threads measure on a busy machine."""
    linear = {name: _ways_of(name) for name in CLASSES if name not in SAME} if products.has_onednn() else {}
    linear |= {name: linear.get(SAME.get(name, ""), Ways()) for name in CLASSES if name not in linear}
    q, k, v = _filled(3, 512, 3, 49, 32).unbind(0)  # eight images in windows
    mask = _filled(3, 49, 49)
    forms = {name: partial(form, q, k, v, [mask], None) for name, form in attention.PRODUCTS.items()}
    return Products(linear, quickest(forms))


def _ways_of(name: str) -> Ways:
    """Return the quickest product of each pass, for the shape that stands for a class."""
    size, *widths = name.split("-")
    rows, narrow, wide = SHAPES[size]
    channels_in, channels_out = (narrow if width == "narrow" else wide for width in widths)
    x, grad = _filled(rows, channels_in), _filled(rows, channels_out)
    weight, bias = _filled(channels_out, channels_in), _filled(channels_out)
    passes: tuple[Callable[[str], Tensor], ...] = (
        lambda way: matmul.output_pass(way, x, weight, bias),
        lambda way: matmul.input_pass(way, grad, weight),
        lambda way: matmul.weight_pass(way, grad, x),
    )
    output, *gradients = (quickest({way: partial(run, way) for way in matmul.PASS_PRODUCTS}) for run in passes)
    return Ways((output, *gradients), output)


@contextmanager
def one_thread() -> Generator[None]:
    """Compute what follows with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def on_real_tensors() -> Generator[None]:
    """Compute what follows without gradients and outside of every mode that records or changes operators."""
    with (
        _disable_current_modes(),
        torch._C.DisableTorchFunction(),
        torch.inference_mode(False),
        torch.autocast("cpu", enabled=False),
        torch.no_grad(),
    ):
        yield


def quickest(forms: Mapping[str, Callable[[], object]]) -> str:
    """Return the name of the quickest function. The first one is the plain form, which keeps a margin.

    The functions take turns, so that other work on the machine slows down all of them alike. Such work only ever adds
    time, so the shortest times are compared, once those of all functions were met several times. Where they are not
    met, one thread, whose clock is its own, compares the times turn by turn: see `_winner_of_turns`.

    Raises:
        UnsureError: they were not met again, with several threads.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(1, MOST + 1):
        for name, run in forms.items():
            times[name].append(_seconds(run))
        shortest = {name: sorted(each)[:MET] for name, each in times.items()}
        if turn >= FEWEST and all(each[-1] < AGAIN * each[0] for each in shortest.values()):
            return min(forms, key=lambda name: shortest[name][0] * (1.0 if name == next(iter(forms)) else 1 / MARGIN))
    if torch.get_num_threads() > 1:
        raise UnsureError
    return _winner_of_turns(times)


def _winner_of_turns(times: Mapping[str, list[float]]) -> str:
    """Return the form with the lowest median among those that beat the plain form in most turns; else the plain form.

    On a busy machine single times are off by half, and yet a form that takes half of the time wins nearly every turn.
    Where the clock is too coarse for one call, times are 0 and nothing wins.
    """
    plain, *others = times
    won = [
        name for name in others
        if sum(b < MARGIN * a for a, b in zip(times[plain], times[name], strict=True)) >= WON * len(times[plain])
    ]  # fmt: skip
    return min(won, key=lambda name: median(times[name]), default=plain)


def _filled(*shape: int) -> Tensor:
    """Return numbers that leave the random generators alone."""
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count, dtype=torch.float32, device="cpu").view(shape)


def _seconds(run: Callable[[], object]) -> float:
    clock = thread_time if torch.get_num_threads() == 1 else perf_counter  # only one thread has a clock of its own
    start = clock()
    run()
    return clock() - start
