"""What every backbone is: a stem, stages, and one of two forms over them.

The classifier norms the last map, pools it and predicts; the dense network norms every map and hands them out. A family
gives stem and stages and says what differs in a `Family`; the methods that timm's users know are here, once.
B images, C channels, H x W cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.backbones.layers import Level

SMALLEST = 32  # pixels a side: one cell of the coarsest map
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB values in [0, 1]


@dataclass(frozen=True)
class Family:
    """What the members of a family share beside their modules."""

    name: str
    init: Callable[[nn.Module], None]  # initialises one module, without its children
    no_decay: tuple[str, ...] = ()  # last parts of names of parameters that weight decay leaves alone


class Stage(Protocol):
    """A module from one (B, C, H, W) map to the next."""

    recompute: bool  # activation checkpointing

    def __call__(self, x_BCHW: Tensor) -> Tensor: ...


class Backbone(nn.Module):
    """Stem and stages.

    Attributes:
        levels: channels and stride of each map.
        family: which family this is.
        default_cfg: how images should be prepared, by timm's names.
    """

    def __init__(
        self,
        family: Family,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        levels: Sequence[Level],
        *,
        in_chans: int,
        img_size: tuple[int, int],
    ) -> None:
        super().__init__()
        if in_chans < 1:
            raise ValueError(f"in_chans counts the channels of an image, at least 1; got {in_chans}")
        self.family = family
        self.levels = tuple(levels)
        self.in_chans = in_chans
        self.num_features = levels[-1].channels
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.default_cfg: dict[str, Any] = {
            "input_size": (in_chans, *img_size),
            "min_input_size": (in_chans, SMALLEST, SMALLEST),
            "fixed_input_size": False,
            "mean": MEAN,
            "std": STD,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "first_conv": "stem.0",
            "classifier": "head",
        }

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The same as `default_cfg`, under timm's other name."""
        return self.default_cfg

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """What the maps are, by timm's names."""
        rows = enumerate(self.levels)
        return [{"num_chs": x.channels, "reduction": x.stride, "module": f"stages.{i}"} for i, x in rows]

    def forward_maps(self, image_BCHW: Tensor) -> list[Tensor]:
        """What the main path carries out of each stage, before any output norm.

        Args:
            image_BCHW: (B, in_chans, H, W), H and W at least 32.

        Returns:
            One (B, level.channels, H_i, W_i) per level.

        Raises:
            ValueError: another number of axes or channels, or an image that is too small.
        """
        check_image(image_BCHW, self.in_chans)
        x_BCHW, maps = self.stem(image_BCHW), []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            maps.append(x_BCHW)
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only blocks' inputs for the backward pass and compute the rest again: less memory, same numbers."""
        for stage in self.stages:
            cast(Stage, stage).recompute = enable

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay leaves alone, beside all that have one axis."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in self.family.no_decay}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns, as timm reads them, that give each parameter a layer: for learning rates that decay with depth."""
        fine = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)", (0,)), (r"^norms?\b", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}


class Classifier(Backbone):
    """Image in, one logit per class out.

    Attributes:
        num_classes: 0 means that the pooled features come out.
    """

    def __init__(
        self,
        family: Family,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        levels: Sequence[Level],
        norm: nn.Module,
        *,
        num_classes: int,
        in_chans: int,
        img_size: tuple[int, int],
        drop_rate: float,
    ) -> None:
        super().__init__(family, stem, stages, levels, in_chans=in_chans, img_size=img_size)
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate is the share of pooled features to drop, from 0 to below 1; got {drop_rate}")
        self.drop_rate = drop_rate
        self.norm = norm
        self.reset_classifier(num_classes)
        self.apply(family.init)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, in_chans, H, W) to (B, num_classes) logits, or to (B, num_features) where num_classes is 0."""
        return self.forward_head(self.forward_features(image_BCHW))

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        """(B, in_chans, H, W) to the last map, normed: (B, num_features, h, w)."""
        return self.norm(self.forward_maps(image_BCHW)[-1])

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave to logits; with `pre_logits` to the pooled features."""
        pooled_BC = F.dropout(x_BCHW.mean(dim=(2, 3)), self.drop_rate, self.training)
        return pooled_BC if pre_logits else self.head(pooled_BC)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A new head for another number of classes; 0 takes the head away.

        Raises:
            ValueError: a negative number.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes is a count, or 0 for pooled features; got {num_classes}")
        like = next(self.parameters())
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        head.apply(self.family.init)
        self.head = head.to(like.device, like.dtype)
        self.num_classes = self.default_cfg["num_classes"] = num_classes


class Dense(Backbone):
    """Image in, a list of normed maps out: what detectors and segmentors are built on.

    Attributes:
        out_indices: which stages' maps come out, finest first.
    """

    def __init__(
        self,
        family: Family,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        levels: Sequence[Level],
        norm: Callable[[int], nn.Module],
        *,
        out_indices: Sequence[int] | None,
        in_chans: int,
        img_size: tuple[int, int],
    ) -> None:
        kept = chosen_levels(out_indices, len(levels))
        stages = stages[: kept[-1] + 1]  # what nothing reads would only lack gradients
        super().__init__(family, stem, stages, levels[: len(stages)], in_chans=in_chans, img_size=img_size)
        self.out_indices = kept
        self.norms = nn.ModuleDict({str(i): norm(levels[i].channels) for i in kept})
        self.levels = tuple(levels[i] for i in kept)
        self.apply(family.init)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        rows = zip(self.out_indices, self.levels, strict=True)
        return [{"num_chs": x.channels, "reduction": x.stride, "module": f"norms.{i}"} for i, x in rows]

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to one (B, level.channels, H_i, W_i) per level, each normed; the main path is not."""
        maps = self.forward_maps(image_BCHW)
        return [norm(maps[int(i)]) for i, norm in self.norms.items()]


class FeatureInfo(list[dict[str, Any]]):
    """What the maps are, asked by method as of timm."""

    def channels(self) -> list[int]:
        return [row["num_chs"] for row in self]

    def reduction(self) -> list[int]:
        return [row["reduction"] for row in self]

    def module_name(self) -> list[str]:
        return [row["module"] for row in self]


class FeatureMaps(nn.Module):
    """A classifier as its list of maps, as timm's `features_only=True` gives it; always (B, C, H, W).

    It takes the classifier's stem and stages for its own; stages that no chosen map needs go.
    """

    def __init__(self, classifier: Classifier, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = chosen_levels(out_indices, len(classifier.levels))
        self.feature_info = FeatureInfo(classifier.feature_info[i] for i in self.out_indices)
        self.levels = tuple(classifier.levels[i] for i in self.out_indices)
        self.default_cfg = classifier.default_cfg
        self.model = classifier
        classifier.stages = classifier.stages[: self.out_indices[-1] + 1]
        classifier.norm = nn.Identity()
        classifier.reset_classifier(0)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) to one (B, C_i, H_i, W_i) per chosen level."""
        maps = self.model.forward_maps(image_BCHW)
        return [maps[i] for i in self.out_indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)


def chosen_levels(out_indices: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """`out_indices` as positions from 0, finest first; None means all, negative ones count from the end.

    Raises:
        ValueError: none, one twice, or one that there is not.
    """
    if out_indices is None:
        return tuple(range(count))
    if isinstance(out_indices, int):
        raise ValueError(f"out_indices lists maps, such as ({out_indices},); got {out_indices}")
    kept = sorted(i + count if i < 0 else i for i in out_indices)
    if not kept or len(set(kept)) < len(kept) or kept[0] < 0 or kept[-1] >= count:
        raise ValueError(
            f"out_indices {tuple(out_indices)} must name different maps out of 0 to {count - 1}, at least one"
        )
    return tuple(kept)


def check_image(image_BCHW: Tensor, in_chans: int) -> None:
    """Raise ValueError unless this is a batch of images that a backbone takes."""
    if image_BCHW.ndim != 4:
        raise ValueError(
            f"images come as (batch, channels, height, width), got shape {tuple(image_BCHW.shape)}; "
            "for one image use image.unsqueeze(0)"
        )
    channels, height, width = image_BCHW.shape[1:]
    if channels != in_chans:
        raise ValueError(
            f"the images have {channels} channels and the network takes {in_chans}; "
            f"build it with in_chans={channels} or convert the images"
        )
    if min(height, width) < SMALLEST:
        raise ValueError(
            f"images of {height} x {width} pixels are below the smallest size, {SMALLEST} x {SMALLEST}; "
            "resize them or pad them"
        )
