"""Any network of timm as a dense backbone. B images, C channels, H x W cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fourstage.backbones.base import chosen_levels
from fourstage.backbones.layers import Level

FINEST_STRIDE = 4  # of the maps that come out; timm's networks may give finer ones


class TimmBackbone(nn.Module):
    """A network of timm as a dense backbone: its maps at stride 4 and coarser, always (B, C, H, W).

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
        self.model: nn.Module = _network_of_timm(name, pretrained, arguments)
        info: Any = self.model.feature_info
        rows = [(i, Level(c, s)) for i, (c, s) in enumerate(zip(info.channels(), info.reduction(), strict=True))]
        rows = [row for row in rows if row[1].stride >= FINEST_STRIDE]
        kept = chosen_levels(out_indices, len(rows))
        self.levels = tuple(rows[i][1] for i in kept)
        self.positions = tuple(rows[i][0] for i in kept)
        self.channels_last = getattr(self.model, "output_fmt", None) == "NHWC"

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to one (B, level.channels, H_i, W_i) per level."""
        maps = self.model(image_BCHW)
        chosen = [maps[i] for i in self.positions]
        return [x.movedim(-1, 1) for x in chosen] if self.channels_last else chosen


def _network_of_timm(name: str, pretrained: bool, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ValueError(f'timm/{name} needs timm; type: pip install "fourstage[train]"') from error
    if not timm.is_model(name):
        raise ValueError(f"timm has no model called {name!r}; timm.list_models('*{name[:8]}*') lists similar ones")
    try:
        return timm.create_model(name, pretrained=pretrained, features_only=True, **arguments)
    except (TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
        raise ValueError(f"timm/{name} cannot be built with {given} ({reason}); correct or leave them out") from error
