"""Any network of timm as a dense backbone. B images, C channels, H x W cells."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.chosen_maps import ChosenMaps, chosen_levels
from fourstage.backbones.classifier_names import name_in
from fourstage.backbones.layers import Level
from fourstage.backbones.wrapped import WrappedBackbone
from fourstage.extras import install

FINEST_STRIDE = 4  # of the maps that come out; timm's networks may give finer ones
# arguments that let networks of a fixed image size take any: those of ViTs, of Swin, of both in one class
FLEXIBLE: tuple[Mapping[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False})


class TimmBackbone(ChosenMaps, WrappedBackbone):
    """A network of timm as a dense backbone: its maps at stride 4 and coarser, always (B, C, H, W).

    A network of a fixed image size is built for any size where it can be. Its images are filled up with zeros at the
    right and the bottom to a multiple of its largest stride, and its maps are cut to ceil(H / stride) cells a side.

    Args:
        name: as timm has it, without the `timm/` in front.
        pretrained: start from timm's own weights.
        out_indices: which of these maps come out; None: all.
        arguments: of `timm.create_model`.

    Raises:
        ValueError: timm is not installed, has no such network, or cannot build it with these arguments.
    """

    def __init__(
        self, name: str, pretrained: bool, out_indices: Sequence[int] | None, arguments: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.name = name
        self.arguments = dict(arguments)
        self.model: nn.Module = _network_of_timm(name, pretrained, arguments)
        info: Any = self.model.feature_info
        rows = [(i, Level(c, s)) for i, (c, s) in enumerate(zip(info.channels(), info.reduction(), strict=True))]
        rows = [row for row in rows if row[1].stride >= FINEST_STRIDE]
        self.out_indices = kept = chosen_levels(out_indices, len(rows))
        self.levels = tuple(rows[i][1] for i in kept)
        self.positions = tuple(rows[i][0] for i in kept)
        self.channels_last = getattr(self.model, "output_fmt", None) == "NHWC"
        self.multiple = max(info.reduction()) if _has_fixed_size(name) else 1

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to one (B, level.channels, H_i, W_i) per level.

        Raises:
            ValueError: a network of a fixed image size that cannot take this one.
        """
        if self.multiple == 1:
            return self._maps(image_BCHW)
        height, width = image_BCHW.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        try:
            maps = self._maps(F.pad(image_BCHW, (0, right, 0, below)) if below or right else image_BCHW)
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            if "alloc" in str(error) or "out of memory" in str(error):  # whose own advice is better
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"timm/{self.name} cannot take images of {height} x {width} pixels ({reason:.200}); give its own size "
                "as img_size where it has this argument and train at it, or choose a backbone that takes any size"
            ) from error
        cells = [[-(-side // level.stride) for side in (height, width)] for level in self.levels]
        return [x_BCHW[..., :h, :w] for x_BCHW, (h, w) in zip(maps, cells, strict=True)]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, as timm's network does.

        Raises:
            ValueError: timm's network cannot.
        """
        inner: Any = self.model if hasattr(self.model, "set_grad_checkpointing") else self.model.get_submodule("model")
        try:
            inner.set_grad_checkpointing(enable)
        except (AssertionError, AttributeError) as error:
            raise ValueError(
                f"timm/{self.name} cannot recompute activations in the backward pass; leave grad_checkpointing out"
            ) from error

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int]]:
        """Return the function from a parameter's name to its layer, that of timm's classifier.

        Raises:
            ValueError: timm's classifier does not name its layers.
        """
        from timm.models import group_parameters

        classifier: Any = self._classifier()
        if not hasattr(classifier, "group_matcher"):
            raise ValueError(
                f"timm/{self.name} does not name its layers; leave layer_decay and frozen_stages out of the recipe"
            )
        groups: Any = group_parameters(classifier, classifier.group_matcher(coarse=coarse), reverse=True)
        return lambda name: (groups[name_in(groups, name)],)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, those of timm's classifier."""
        listed = set(getattr(self._classifier(), "no_weight_decay", set)())
        return {name for name, _ in self.named_parameters() if name_in(listed, name) is not None}

    def classifier_names(self) -> frozenset[str]:
        """Return the names of all parameters and buffers of timm's classifier."""
        return frozenset(self._classifier().state_dict())

    def _classifier(self) -> nn.Module:
        """Return timm's classifier, without memory."""
        import timm

        with torch.device("meta"):
            headed = {**self.arguments, "num_classes": 2}  # some networks of timm have no head unless it is asked for
            return timm.create_model(self.name, **headed)

    def stem_names(self) -> tuple[str, ...]:
        """Return the names of the weights in timm's classifier that read the image."""
        cfg = _cfg(self.name)
        first = () if cfg is None or cfg.first_conv is None else cfg.first_conv
        return tuple(f"{name}.weight" for name in ([first] if isinstance(first, str) else first))

    def resized(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a classifier's state dict as timm's own loader changes it for this network's image size."""
        import timm

        with torch.device("meta"):
            network = timm.create_model(self.name, **self.arguments)
        change = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        if change is None:
            return {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of torch, about the speed of timm's interpolation
                return change(dict(state), network)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return {}  # a file of another network, whose shapes are reported

    def _maps(self, image_BCHW: Tensor) -> list[Tensor]:
        maps = self.model(image_BCHW)
        chosen = [maps[i] for i in self.positions]
        return [x.movedim(-1, 1) for x in chosen] if self.channels_last else chosen


def _cfg(name: str) -> Any:
    """Return timm's description of a network; None where it has none."""
    import timm

    return timm.get_pretrained_cfg(name, allow_unregistered=True)


def _has_fixed_size(name: str) -> bool:
    cfg = _cfg(name)
    return bool(cfg is not None and cfg.fixed_input_size)


def _network_of_timm(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"timm/{name} needs timm; type: {install('train')}") from error
    if not timm.is_model(name):
        raise ValueError(f"timm has no model called {name!r}; timm.list_models('*{name[:8]}*') lists similar ones")
    decided = any(key in arguments for way in FLEXIBLE for key in way)
    for flexible in (*(FLEXIBLE if _has_fixed_size(name) and not decided else ()), {}):
        try:
            return timm.create_model(name, pretrained=pretrained, features_only=True, **arguments, **flexible)
        except (TypeError, RuntimeError) as error:
            if any(f"'{key}'" in str(error) for key in flexible):
                continue  # this network has no such argument
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
            raise ValueError(
                f"timm/{name} cannot be built with {given} ({reason}); correct or leave them out"
            ) from error
    raise AssertionError("the last way has no argument of ours")
