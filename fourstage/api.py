"""The functions that most users need: networks by name, with weights from a file.

B images, C channels, H x W cells.
"""

import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Classifier, FeatureMaps, chosen_levels
from fourstage.backbones.layers import Level
from fourstage.registry import list_models, register, register_mixer
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight
from fourstage.weights.load import Report, load_state
from fourstage.weights.reading import metadata
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

if TYPE_CHECKING:
    from fourstage.weights.reading.download import Progress

__all__ = ["create_backbone", "create_model", "list_models", "load_checkpoint", "register", "register_mixer"]


def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build an image classifier.

    Args:
        model_name: one of `list_models()`. With the tag of a published weight behind it, `smt_large.in22k`, the network
            is the one that this file is for: its image size, number of classes and what else it needs, where you do not
            say otherwise.
        pretrained: start from the published weights, which are fetched once; docs/checkpoints.md says which a name
            without a tag means.
        checkpoint_path: start from this file, ours or the original code's. A head for another number of classes is left
            out if `num_classes` is given, and an error if it is not. What `fourstage convert` wrote brings its own
            arguments, where you do not say otherwise.
        features_only: the list of maps instead of logits, as timm gives it: `.feature_info.channels()`, `.reduction()`.
        out_indices: with `features_only`, which maps come out.
        **arguments: of the model: num_classes, in_chans, img_size, drop_rate, drop_path_rate and what its family adds.
            None means the default.

    Returns:
        A network from (B, in_chans, H, W) to (B, num_classes), or to a list of maps; H and W at least 32.

    Raises:
        ValueError: an unknown name or argument, a checkpoint that does not fit, no weights to download.
        OSError: no such file, or weights that could not be fetched; says how to give them by hand.
    """
    if out_indices is not None and not features_only:
        raise ValueError(f"out_indices chooses maps; create_model({model_name!r}, features_only=True) gives maps")
    start = _start(model_name, pretrained, checkpoint_path, "create_model")
    model = _build(start, start.entry.classifier, arguments)
    if (file := start.read("create_model")) is not None:
        _fill(model, file, fresh_head=arguments.get("num_classes") is not None)
    if not features_only:
        return model
    if not isinstance(model, Classifier):
        raise ValueError(f"features_only is for the networks of this package; {model_name} is your own")
    return FeatureMaps(model, out_indices)


def create_backbone(
    backbone: str | nn.Module,
    pretrained: bool = False,
    *,
    checkpoint_path: str | Path | None = None,
    out_indices: Sequence[int] | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build a dense network: image in, list of maps out, as the source's detection code has it.

    Args:
        backbone: one of `list_models()`, `"timm/<name>"` for a network of timm, or a module that has `levels` and
            returns its maps: that one comes back as it is.
        pretrained: start from the published weights, as in `create_model`. A detector's tag is for its backbone.
        checkpoint_path: start from this file: a classifier's or a detector's, ours or the original code's.
        out_indices: which maps come out, finest first; None: all.
        **arguments: of the model: in_chans, img_size, drop_path_rate and what its family adds. None means the default.

    Returns:
        A network from (B, in_chans, H, W) to one (B, level.channels, H_i, W_i) per entry of its `levels`.

    Raises:
        ValueError: an unknown name or argument, a checkpoint that does not fit, a module without `levels`.
        OSError: as `create_model`.
    """
    if isinstance(backbone, nn.Module):
        if pretrained or checkpoint_path is not None or out_indices is not None or arguments:
            raise ValueError("the backbone is built already; give its arguments and weights where it is built")
        return with_levels(backbone, type(backbone).__name__)
    if isinstance(backbone, str) and backbone.startswith("timm/"):
        if checkpoint_path is not None:
            arguments["checkpoint_path"] = str(checkpoint_path)
        return TimmBackbone(backbone.removeprefix("timm/"), pretrained, out_indices, arguments)
    if out_indices is not None:
        arguments["out_indices"] = out_indices
    start = _start(backbone, pretrained, checkpoint_path, "create_backbone")
    model = with_levels(_build(start, start.entry.dense, arguments), backbone)
    if (file := start.read("create_backbone")) is not None:
        _fill(model, file, fresh_head=False)
    return model


def load_checkpoint(model: nn.Module, path: str | Path, which: str = "model", *, fresh_head: bool = False) -> Report:
    """Fill a network from a file that this package, the original code or a detector's training wrote.

    Keys are renamed, position tables resized to the network's size. Nothing is left out silently: the report names it.

    Args:
        model: from `create_model`, `create_backbone`, `create_detector` or `create_segmentor`.
        path: .pth, .pt or .safetensors; nothing in it is executed.
        which: `"model"`, or `"ema"` for the averaged weights if the file has them.
        fresh_head: where the file's head is for another number of classes, or missing, leave ours as it was built;
            without this, that is an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or holds another network (the sentence names the one it fits), or another
            number of classes.
    """
    return _fill(model, read_checkpoint(path), which, fresh_head=fresh_head)


@dataclass(frozen=True)
class Start:
    """What a network is built from: its entry, and the published weight or the file that it starts from."""

    entry: registry.Entry
    weight: Weight | None  # the row that the name's tag or `pretrained` means
    file: Checkpoint | None  # given by hand
    pretrained: bool

    @property
    def arguments(self) -> dict[str, Any]:
        """Those that the weight or the file needs."""
        own = metadata.arguments_of(self.file.metadata, self.entry.name, self.file.path) if self.file else {}
        return {**(self.weight.network if self.weight else {}), **own}

    def read(self, call: str) -> Checkpoint | None:
        """The file, fetched where that is wished."""
        if self.file is not None or not self.pretrained:
            return self.file
        assert self.weight is not None
        from fourstage.weights.reading.download import fetch

        with _progress(self.weight) as progress:
            return read_checkpoint(fetch(self.weight, call, progress))


def _start(name: str, pretrained: bool, checkpoint_path: str | Path | None, call: str) -> Start:
    """What a name with or without a tag means.

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
    return Start(entry, weight, file, pretrained)


def _build(start: Start, build: Callable[..., nn.Module], arguments: Mapping[str, Any]) -> nn.Module:
    known = inspect.signature(build).parameters
    needed = {key: value for key, value in start.arguments.items() if key in known}  # the dense form has no classes
    given = {key: value for key, value in arguments.items() if value is not None}
    model = registry.call(build, start.entry.name, {**needed, **given})
    if isinstance(cfg := getattr(model, "default_cfg", None), dict):
        cfg["architecture"] = start.entry.name
        if start.weight is not None:
            cfg |= {"tag": start.weight.tag, "license": start.weight.licence, "origin_url": start.weight.origin}
    return model


def _fill(model: nn.Module, file: Checkpoint, which: str = "model", *, fresh_head: bool) -> Report:
    method = getattr(model, "method", None)
    if isinstance(method, str):  # a detector or segmentor
        from fourstage.weights.complete_checkpoints import load_dense_state

        state = file.weights(which)
        return load_dense_state(model, state, method=method, source=file.path.name, fresh_head=fresh_head)
    return load_state(model, file.weights(which), source=file.path.name, fresh_head=fresh_head)


@contextmanager
def _progress(weight: Weight) -> Iterator["Progress"]:
    """A bar in megabytes that appears with the first of them; of several processes the first one shows it."""
    from fourstage.progress import Bar

    bar = None
    with ExitStack() as stack:

        def progress(done: int, total: int) -> None:
            nonlocal bar
            now, end = (math.ceil(size / 2**20) for size in (done, total))
            if bar is None:
                show = os.environ.get("RANK", "0") == "0"
                bar = stack.enter_context(Bar(f"{weight.file}, MB", end, now, show=show))
                bar.say(f"fetching {weight.address}  (licence: {weight.licence})")
            bar.resize(end)
            bar.update(now)

        yield progress


def with_levels(model: nn.Module, name: str) -> nn.Module:
    """`model`, if it can serve as a backbone.

    Raises:
        ValueError: it does not say what its maps are.
    """
    levels = getattr(model, "levels", None)
    if not levels or not all(hasattr(level, "channels") and hasattr(level, "stride") for level in levels):
        raise ValueError(
            f"{name} does not say which maps it gives: set levels = (Level(channels=..., stride=...), ...), "
            "finest first, with Level from fourstage"
        )
    return model


class TimmBackbone(nn.Module):
    """A network of timm as a dense network: its maps at stride 4 and coarser, always (B, C, H, W)."""

    def __init__(
        self, name: str, pretrained: bool, out_indices: Sequence[int] | None, arguments: dict[str, Any]
    ) -> None:
        super().__init__()
        try:
            import timm
        except ImportError as error:
            raise ValueError(f'timm/{name} needs timm; type: pip install "fourstage[train]"') from error
        if not timm.is_model(name):
            raise ValueError(f"timm has no model called {name!r}; timm.list_models('*{name[:8]}*') lists similar ones")
        try:
            self.model: nn.Module = timm.create_model(name, pretrained=pretrained, features_only=True, **arguments)
        except (TypeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
            raise ValueError(
                f"timm/{name} cannot be built with {given} ({reason}); correct or leave them out"
            ) from error
        info: Any = self.model.feature_info
        rows = [(i, Level(c, s)) for i, (c, s) in enumerate(zip(info.channels(), info.reduction(), strict=True))]
        rows = [row for row in rows if row[1].stride >= 4]
        kept = chosen_levels(out_indices, len(rows))
        self.levels = tuple(rows[i][1] for i in kept)
        self.positions = tuple(rows[i][0] for i in kept)
        self.channels_last = getattr(self.model, "output_fmt", None) == "NHWC"

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to one (B, level.channels, H_i, W_i) per level."""
        maps = self.model(image_BCHW)
        chosen = [maps[i] for i in self.positions]
        return [x.movedim(-1, 1) for x in chosen] if self.channels_last else chosen
