"""What `api.py` needs to build a network and to fill it: names with tags, weights to fetch, arguments to check."""

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from fourstage import registry
from fourstage.files import RAISE, limit
from fourstage.methods import METHODS
from fourstage.user_files import where_raised
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight
from fourstage.weights.complete_checkpoints import load_dense_state
from fourstage.weights.load import Report, load_state
from fourstage.weights.no_values import without_memory
from fourstage.weights.reading import metadata
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from fourstage.weights.reading.download import Progress

MOST_MODULES = 20_000  # of a network that a file describes; the largest here has 2,000
SPARE_NUMBERS = 2**26  # beyond four times those in the file: buffers that are no part of it


Device = str | int | torch.device


@dataclass(frozen=True)
class StartingPoint:
    """What a network is built from: its registry entry, and the published weight or the file that it starts from."""

    entry: registry.Entry
    weight: Weight | None  # the row that the name's tag or `pretrained` means
    file: Checkpoint | None  # given by hand
    pretrained: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that the weight or the file needs."""
        own = metadata.arguments_of(self.file.metadata, self.entry.name, self.file.path) if self.file else {}
        return {**(self.weight.network if self.weight else {}), **own}

    def all_arguments(self, builder: Callable[..., nn.Module], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the weights need and what the user gives, for one form of the network; None is the default."""
        known = inspect.signature(builder).parameters
        needed = {
            key: value for key, value in self.arguments.items() if key in known
        }  # a dense backbone has no classes
        return {**needed, **{key: value for key, value in given.items() if value is not None}}

    def read(self, call: str) -> Checkpoint | None:
        """Return the file, fetched where `pretrained` asks for it.

        Args:
            call: the function that the user called, for messages.
        """
        if self.file is not None or not self.pretrained:
            return self.file
        assert self.weight is not None
        return read_checkpoint(fetched(self.weight, call))


def fetched(weight: Weight, call: str) -> Path:
    """Return the file of a published weight, from torch's cache or fetched with a bar.

    Args:
        call: the function or command that the user called, for messages.
    """
    from fourstage.weights.reading.download import fetch

    with _progress(weight) as progress:
        return fetch(weight, call, progress)


def starting_point(name: str, pretrained: bool, checkpoint_path: str | Path | None, call: str) -> StartingPoint:
    """Return what a name with or without a tag means.

    Raises:
        ValueError: an unknown name or tag, or weights that this form cannot have.
    """
    bare, tag = catalog.split(name) if isinstance(name, str) else (name, None)
    entry = registry.find(bare)
    weight = catalog.find(entry.name, tag) if tag is not None or pretrained else None
    if weight is not None and weight.method is not None and call == "create_model":
        raise ValueError(
            f"{weight.name} is a {weight.method}; create_backbone({weight.name!r}, pretrained=True) takes its backbone"
        )
    file = None if checkpoint_path is None else read_checkpoint(checkpoint_path)
    return StartingPoint(entry, weight, file, pretrained)


def fetch_into_cache(name: str, call: str) -> None:
    """Fetch the published weights of a classifier by its name before it is built.

    Args:
        call: the command that the user typed, so that an error says what this command takes instead.

    Raises:
        ValueError, OSError: as `starting_point` and `fetch`.
    """
    weight = starting_point(name, True, None, "create_model").weight
    assert weight is not None, "pretrained=True raises where there is none"
    fetched(weight, call)


def build_network(start: StartingPoint, builder: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    """Build one form of a network with what its weights need and what the user gives; None means the default.

    Raises:
        ValueError: a file describes a network that cannot be built, or an argument is unknown or wrong.
    """
    everything = start.all_arguments(builder, arguments)
    if start.file is not None and metadata.arguments_of(start.file.metadata, start.entry.name, start.file.path):
        try:
            try_on_meta(lambda: registry.call(builder, start.entry.name, everything), start.file)
        except RuntimeError as error:  # sizes beyond any integer
            raise ValueError(f"{start.file.path} describes a network that cannot be built here ({error})") from error
    try:
        model = registry.call(builder, start.entry.name, everything)
    except (RuntimeError, ArithmeticError) as error:  # of layers, for values that no check covers
        ours = getattr(builder, "func", builder).__module__.startswith("fourstage.backbones.")
        if not (ours and everything):  # a user's own network, or no value that could be wrong
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        shown = ", ".join(f"{name}={value!r:.40}" for name, value in everything.items())
        raise ValueError(f"{start.entry.name} cannot be built with {shown} ({reason}); correct them") from error
    if isinstance(cfg := getattr(model, "default_cfg", None), dict):
        cfg["architecture"] = start.entry.name
        if start.weight is not None:
            cfg |= {"tag": start.weight.tag, "license": start.weight.licence, "origin_url": start.weight.origin}
    return model


def built_method(
    method: str, builder: Callable[..., nn.Module], maps_network: nn.Module, num_classes: int, given: Mapping[str, Any]
) -> nn.Module:
    """Call the builder of a method, ours or a user's own.

    Raises:
        ValueError: it fails for these arguments; of a user's own builder, whatever goes wrong.
    """
    own = method not in METHODS
    try:
        return builder(maps_network, num_classes, **given)
    except (TypeError, RuntimeError, ZeroDivisionError) as error:  # of layers, for values that no check above covers
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        shown = ", ".join(f"{name}={value!r:.40}" for name, value in given.items()) or "no arguments"
        where = f", at {where_raised(error)}" if own else ""
        raise ValueError(f"{method} cannot be built with {shown} ({reason}{where}); correct them") from error
    except Exception as error:
        if isinstance(error, ValueError | OSError) or not own:  # these have a sentence of their own
            raise
        raise ValueError(
            f"{method} failed while it was built ({type(error).__name__}: {error}, at "
            f"{where_raised(error)}); correct it"
        ) from error


@contextmanager
def placed(
    device: Device | None, dtype: torch.dtype | None, *, filled: bool
) -> Iterator[Callable[[nn.Module], nn.Module]]:
    """Give a function that puts a network in its place; networks for the meta device are built there.

    Others are built in float32 on the CPU first, so that a seed means the same numbers everywhere.

    Args:
        filled: whether weights are read, which the meta device cannot hold.

    Raises:
        ValueError: there is no such device, it cannot hold the weights, or the type is not one of real numbers.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype is a type of real numbers, such as torch.bfloat16; got {dtype!r:.80}")
    try:
        where = None if device is None else torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is a name such as 'cpu', 'cuda:0' or 'meta'; got {device!r:.80}") from error
    if filled and where is not None and where.type == "meta":
        raise ValueError(
            "a network on the meta device has no memory for weights; leave out pretrained and checkpoint_path, or fill "
            "the network later with to_empty(device='cpu') and load_checkpoint"
        )

    def place(network: nn.Module) -> nn.Module:
        try:
            return network if where is None and dtype is None else network.to(device=where, dtype=dtype)
        except (AssertionError, RuntimeError) as error:  # a PyTorch without CUDA asserts
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            asked = " and ".join(f"{key}={value}" for key, value in (("device", where), ("dtype", dtype)) if value)
            raise ValueError(f"the network cannot have {asked} ({reason:.200}); choose another") from error

    with ExitStack() as stack:
        if where is not None and where.type == "meta":
            stack.enter_context(where)
        yield place


def fill(model: nn.Module, file: Checkpoint, which: str = "model", *, fresh_head: bool) -> Report:
    """Fill a classifier, a dense backbone, a detector or a segmentor from a file.

    Args:
        which: "model" or "ema".
        fresh_head: see `fourstage.load_checkpoint`.
    """
    state, source = file.weights(which), file.path.name
    method = getattr(model, "method", None)
    if isinstance(method, str):  # a detector or segmentor
        return load_dense_state(model, state, method=method, source=source, fresh_head=fresh_head)
    return load_state(model, state, source=source, fresh_head=fresh_head)


@contextmanager
def no_larger_than(file: Checkpoint) -> Iterator[None]:
    """Stop the construction of a network that has far more modules or numbers than the file that describes it.

    A file of a few bytes may describe a network of terabytes. Build it on the meta device first, which has no memory.

    Raises:
        ValueError: as soon as a module or a parameter too many is added.
    """
    held = sum(tensor.numel() for tensor in file.weights().values())
    left = {"numbers": 4 * held + limit(SPARE_NUMBERS), "modules": limit(MOST_MODULES)}

    def count(_owner: nn.Module, _name: str, added: object) -> None:
        if isinstance(added, nn.Module):
            left["modules"] -= 1
        elif isinstance(added, Tensor):
            left["numbers"] -= added.numel()
        if min(left.values()) < 0:
            what = min(left, key=left.__getitem__)
            raise ValueError(
                f"the network that {file.path} describes has far more {what} than its weights fill; {RAISE}"
            )

    with ExitStack() as stack:
        for register in (
            register_module_parameter_registration_hook,
            register_module_buffer_registration_hook,
            register_module_module_registration_hook,
        ):
            stack.callback(register(count).remove)
        yield


def own_values(value: Any) -> Any:
    """Return lists and mappings as copies, and numpy's scalars as Python's.

    A network keeps its arguments to be saved with them, and the caller may change a list afterwards.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {own_values(key): own_values(one) for key, one in value.items()}
    return type(value)(map(own_values, value)) if type(value) in (list, tuple) else value


def try_on_meta(build: Callable[[], object], file: Checkpoint) -> None:
    """Build what a file describes without memory, and drop it; see `no_larger_than`.

    Networks that cannot be built on the meta device, such as a user's own that look at their weights, are left to the
    real construction.
    """
    with no_larger_than(file), without_memory(), suppress(NotImplementedError):
        build()  # torch raises NotImplementedError for an operation that needs values


def check_levels(model: nn.Module, name: str) -> nn.Module:
    """Return `model`, which can serve as a backbone.

    Raises:
        ValueError: it has no valid attribute `levels`.
    """
    levels = getattr(model, "levels", None)
    if not levels or not all(hasattr(level, "channels") and hasattr(level, "stride") for level in levels):
        raise ValueError(
            f"{name} has no attribute `levels` that describes its maps; set levels = (Level(channels=..., stride=...), "
            "...), in order of increasing stride, with Level from fourstage"
        )
    return model


@contextmanager
def _progress(weight: Weight) -> Iterator["Progress"]:
    """Show a bar in megabytes from the first of them on; of several processes the first one shows it."""
    from fourstage.progress import Bar

    bar = None
    with ExitStack() as stack:

        def progress(done: int, total: int) -> None:
            nonlocal bar
            now, end = (math.ceil(size / 2**20) for size in (done, total))
            if bar is None:
                show = os.environ.get("RANK", "0") == "0"
                bar = stack.enter_context(Bar(f"{weight.file}, MB", end, now, show=show))
                bar.print_line(f"fetching {weight.address}  (licence: {weight.licence})")
            bar.resize(end)
            bar.update(now)

        yield progress
