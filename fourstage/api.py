"""The functions that most users need: networks by name, with weights from a file.

B images, C channels, H x W cells.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Classifier, FeatureMaps, chosen_levels
from fourstage.backbones.layers import Level
from fourstage.registry import list_models, register
from fourstage.weights import catalog
from fourstage.weights.load import Report, load_state
from fourstage.weights.safe import read_checkpoint

__all__ = ["create_backbone", "create_model", "list_models", "load_checkpoint", "register"]


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
        model_name: one of `list_models()`.
        pretrained: start from the published weights.
        checkpoint_path: start from this file, ours or the original code's. A head for another number of classes is left
            out if `num_classes` is given, and an error if it is not.
        features_only: the list of maps instead of logits, as timm gives it: `.feature_info.channels()`, `.reduction()`.
        out_indices: with `features_only`, which maps come out.
        **arguments: of the model: num_classes, in_chans, img_size, drop_rate, drop_path_rate and what its family adds.
            None means the default.

    Returns:
        A network from (B, in_chans, H, W) to (B, num_classes), or to a list of maps; H and W at least 32.

    Raises:
        ValueError: an unknown name or argument, a checkpoint that does not fit, no weights to download.
    """
    if out_indices is not None and not features_only:
        raise ValueError(f"out_indices chooses maps; create_model({model_name!r}, features_only=True) gives maps")
    model = _build(model_name, registry.find(model_name).classifier, arguments)
    path = _weights_file(model_name, pretrained, checkpoint_path)
    if path is not None:
        _load(model, path, fresh_head=arguments.get("num_classes") is not None)
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
        pretrained: start from the published weights.
        checkpoint_path: start from this file: a classifier's or a detector's, ours or the original code's.
        out_indices: which maps come out, finest first; None: all.
        **arguments: of the model: in_chans, img_size, drop_path_rate and what its family adds. None means the default.

    Returns:
        A network from (B, in_chans, H, W) to one (B, level.channels, H_i, W_i) per entry of its `levels`.

    Raises:
        ValueError: an unknown name or argument, a checkpoint that does not fit, a module without `levels`.
    """
    if isinstance(backbone, nn.Module):
        if pretrained or checkpoint_path is not None or out_indices is not None or arguments:
            raise ValueError("the backbone is built already; give its arguments and weights where it is built")
        return with_levels(backbone, type(backbone).__name__)
    if backbone.startswith("timm/"):
        if checkpoint_path is not None:
            arguments["checkpoint_path"] = str(checkpoint_path)
        return TimmBackbone(backbone.removeprefix("timm/"), pretrained, out_indices, arguments)
    if out_indices is not None:
        arguments["out_indices"] = out_indices
    model = with_levels(_build(backbone, registry.find(backbone).dense, arguments), backbone)
    path = _weights_file(backbone, pretrained, checkpoint_path)
    if path is not None:
        _load(model, path, fresh_head=False)
    return model


def load_checkpoint(model: nn.Module, path: str | Path, which: str = "model", *, fresh_head: bool = False) -> Report:
    """Fill a network from a file that this package, the original code or a detector's training wrote.

    Keys are renamed, position tables resized to the network's size. Nothing is left out silently: the report names it.

    Args:
        model: from `create_model` or `create_backbone`.
        path: .pth, .pt or .safetensors; nothing in it is executed.
        which: `"model"`, or `"ema"` for the averaged weights if the file has them.
        fresh_head: where the file's head is for another number of classes, or missing, leave ours as it was built;
            without this, that is an error.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or holds another network (the sentence names the one it fits), or another
            number of classes.
    """
    return _load(model, path, which, fresh_head=fresh_head)


def _load(model: nn.Module, path: str | Path, which: str = "model", *, fresh_head: bool) -> Report:
    return load_state(model, read_checkpoint(path).weights(which), source=Path(path).name, fresh_head=fresh_head)


def _build(name: str, build: Any, arguments: dict[str, Any]) -> nn.Module:
    model = registry.call(build, name, arguments)
    if isinstance(cfg := getattr(model, "default_cfg", None), dict):
        cfg["architecture"] = registry.find(name).name
    return model


def _weights_file(name: str, pretrained: bool, checkpoint_path: str | Path | None) -> Path | None:
    if checkpoint_path is not None:
        return Path(checkpoint_path)
    if pretrained:
        raise ValueError(catalog.by_hand(name, registry.find(name).name))
    return None


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
        self.model: nn.Module = timm.create_model(name, pretrained=pretrained, features_only=True, **arguments)
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
