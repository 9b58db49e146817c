"""The two forms of every backbone, over one stem and a list of stages.

The classifier norms the last map, pools it and predicts. The dense backbone norms every map and returns all of them. A
family builds stem and stages and describes its differences in a `Family`. The methods that timm defines are here.
B images, C channels, H x W cells.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Proxy

from fourstage.backbones.chosen_maps import ChosenMaps, chosen_levels, chosen_stages
from fourstage.backbones.layers import Level, sides
from fourstage.ops.chunks import by_images
from fourstage.ops.measure import choose_products

STEM_STRIDE = 2  # of the first convolution of a stem, if not more
SMALLEST = 32  # pixels a side: one cell of the coarsest map
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB values in [0, 1]


@dataclass(frozen=True)
class Family:
    """Properties that all networks of a family share. Patterns match the beginning of a state dict's keys."""

    name: str
    init: Callable[[nn.Module], None]  # initialises one module, without its children
    cells: Callable[[int, int], int]  # from pixels along a side and a stride to cells along that side
    no_decay: tuple[str, ...] = ()  # last components of the names of parameters without weight decay
    classifier_only: tuple[str, ...] = (r"final\.", r"pre_logits\.", r"head\.")  # keys that the dense form lacks
    dense_only: tuple[str, ...] = (r"norms\.",)  # keys that the classifier lacks
    squash_from: int | None = None  # pixels a side from which the source's evaluation resizes straight to the square


class Stage(Protocol):
    """A module from one (B, C, H, W) map to the next."""

    recompute: bool  # activation checkpointing

    def __call__(self, x_BCHW: Tensor) -> Tensor: ...


@runtime_checkable
class HasNonPersistentBuffers(Protocol):
    """A module with buffers that no state dict holds, such as index tables."""

    def init_non_persistent_buffers(self) -> None:
        """Fill these buffers, on the device of the module's parameters."""


class Backbone(nn.Module):
    """A stem and stages, without an output.

    Attributes:
        levels: channels and stride of each map.
        family: the properties of the family.
        default_cfg: the preparation of images, by timm's names.
        output_fmt: timm's name of the layout of maps.

    Raises:
        ValueError: `in_chans` is below 1.
    """

    output_fmt = "NCHW"

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
        self.strides = tuple(level.stride for level in levels)  # of every stage, also where `levels` loses some
        self.in_chans = in_chans
        self.num_features = levels[-1].channels
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        choose_products()
        self.register_load_state_dict_post_hook(_init_buffers_after_load)
        self.default_cfg: dict[str, Any] = {
            **self._at_size(img_size),
            "min_input_size": (in_chans, SMALLEST, SMALLEST),
            "fixed_input_size": False,
            "mean": MEAN,
            "std": STD,
            "interpolation": "bicubic",
            "first_conv": next(name for name, m in self.named_modules() if isinstance(m, nn.Conv2d)),
            "classifier": "head",
        }

    def _at_size(self, img_size: tuple[int, int]) -> dict[str, Any]:
        """Return the entries of `default_cfg` that depend on the size of images."""
        squash = self.family.squash_from is not None and min(img_size) >= self.family.squash_from
        return {
            "input_size": (self.in_chans, *img_size),
            "pool_size": tuple(self.family.cells(side, self.strides[-1]) for side in img_size),
            "crop_pct": 1.0 if squash else 0.875,
            "crop_mode": "squash" if squash else "center",
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        choose_products()  # in a process that unpickles a network and builds none

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The same as `default_cfg`, under timm's other name."""
        return self.default_cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        self.default_cfg = cfg

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of each map, by timm's names."""
        rows = enumerate(self.levels)
        return [{"num_chs": x.channels, "reduction": x.stride, "module": f"stages.{i}"} for i, x in rows]

    def forward_maps(self, image_BCHW: Tensor, count: int | None = None) -> list[Tensor]:
        """Return the map after each stage, before any output norm.

        Args:
            image_BCHW: (B, in_chans, H, W), H and W at least 32.
            count: the number of stages to run; None: all.

        Returns:
            One (B, level.channels, H_i, W_i) per level.

        Raises:
            ValueError: the image has another number of axes or channels, or is too small.
        """
        symbolic = isinstance(image_BCHW, Proxy)
        if not symbolic:
            check_image(image_BCHW, self.in_chans)
        pixels = 0 if symbolic else image_BCHW.shape[-2] * image_BCHW.shape[-1]
        stages = (self.stem, *self.stages[:count])
        strides = (STEM_STRIDE, *self.strides)[: len(stages)]  # the last stages may have been removed
        x_BCHW, maps = image_BCHW, []
        for stage, stride in zip(stages, strides, strict=True):
            x_BCHW = as_one_node(stage, x_BCHW) if symbolic else by_images(stage, x_BCHW, pixels // stride**2)
            maps.append(x_BCHW)
        return maps[1:]

    def init_non_persistent_buffers(self) -> None:
        """Fill every buffer that no state dict holds, such as index tables.

        Needed after `to_empty` where no state dict is loaded: `load_state_dict` fills these buffers itself.
        """
        for module in self.modules():
            if module is not self and isinstance(module, HasNonPersistentBuffers):
                module.init_non_persistent_buffers()

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Give all parameters and buffers new values, as timm's networks do: after `to_empty`, or to start again.

        Args:
            mode: "", the family's own initialisation.
            needs_reset: first reset each layer as torch does; False: only what the family changes after that.

        Raises:
            ValueError: another mode.
        """
        if mode:
            raise ValueError(f"init_weights has one mode, '', the initialisation of {self.family.name}; got {mode!r}")
        for module in self.modules() if needs_reset else ():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        self.apply(self.family.init)
        self.init_non_persistent_buffers()

    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Record another size of images in `default_cfg`. No parameter changes: networks take images of any size.

        Args:
            img_size: pixels, a side or (H, W); None: no change.
            patch_size, window_size: timm's other arguments; None.

        Raises:
            ValueError: a side below 32 pixels, or another size of patches or windows.
        """
        if patch_size is not None or window_size is not None:
            raise ValueError("patches and windows keep the size that they were built with; give img_size alone")
        if img_size is not None:
            self.default_cfg = {**self.default_cfg, **self._at_size(sides(img_size))}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the input of each block for the backward pass, which computes the rest again.

        This saves memory, takes more time, and changes no number.
        """
        for stage in self.stages:
            cast(Stage, stage).recompute = enable

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, beside those that have one axis."""
        return {name for name, _ in self.named_parameters() if name.rpartition(".")[2] in self.family.no_decay}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that assign each parameter to a layer, for learning rates that decay with depth."""
        last = (r"^(?:final|pre_logits|norms)\.", (99999,))
        fine = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)", (0,)), last]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}


def _init_buffers_after_load(module: nn.Module, _incompatible_keys: object) -> None:
    """Fill the buffers of a network that was built on `meta`. As a function it can be copied and pickled."""
    assert isinstance(module, Backbone)
    module.init_non_persistent_buffers()


class Classifier(Backbone):
    """A network from an image to one logit per class.

    Attributes:
        final: the module between the last map and the pooling, a norm in most families.
        pre_logits: the module between the pooled features and the head, an identity in most families.
        num_features: channels of the map that `forward_features` returns.
        head_hidden_size: features that the head takes.
        num_classes: 0: the network returns the pooled features.
        global_pool: "avg", or "" for a network that returns the map without pooling.

    Raises:
        ValueError: `drop_rate` is not in [0, 1), or `in_chans` is below 1.
    """

    def __init__(
        self,
        family: Family,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        levels: Sequence[Level],
        final: nn.Module,
        *,
        num_classes: int,
        in_chans: int,
        img_size: tuple[int, int],
        drop_rate: float,
        global_pool: str,
        num_features: int | None = None,
        pre_logits: nn.Module | None = None,
        head_hidden_size: int | None = None,
    ) -> None:
        super().__init__(family, stem, stages, levels, in_chans=in_chans, img_size=img_size)
        if not 0 <= drop_rate < 1:
            raise ValueError(f"drop_rate is the share of pooled features to drop, from 0 to below 1; got {drop_rate}")
        self.drop_rate = drop_rate
        self.final = final
        self.num_features = num_features or levels[-1].channels
        self.pre_logits = nn.Identity() if pre_logits is None else pre_logits
        self.head_hidden_size = head_hidden_size or self.num_features
        self.reset_classifier(num_classes, global_pool)
        self.apply(family.init)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return (B, num_classes) logits of (B, in_chans, H, W), or (B, head_hidden_size) where num_classes is 0."""
        return self.forward_head(self.forward_features(image_BCHW))

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        """Return the last map after `final`, (B, num_features, h, w), of (B, in_chans, H, W)."""
        return self.final(self.forward_maps(image_BCHW)[-1])

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a map from `forward_features`, or with `pre_logits` the input of the head."""
        if not self.global_pool:
            return x_BCHW
        hidden_BC = self.pre_logits(F.dropout(x_BCHW.mean(dim=(2, 3)), self.drop_rate, self.training))
        return hidden_BC if pre_logits else self.head(hidden_BC)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the result of `forward_features` and the maps of stages, as timm's networks do.

        Args:
            x: (B, in_chans, H, W).
            indices: the stages whose maps are returned; an int: that many of the last stages; None: all stages.
            norm: apply the last norm to the map of the last stage.
            stop_early: do not run the stages after the last index, where only maps are returned.
            output_fmt: "NCHW".
            intermediates_only: return the maps alone.

        Raises:
            ValueError: another format, or an index without a stage.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is 'NCHW': every map is (B, C, H, W); got {output_fmt!r}")
        count = len(self.stages)
        kept = chosen_stages(indices, count)
        maps = self.forward_maps(x, count=kept[-1] + 1 if stop_early and intermediates_only else None)
        chosen = [self.final(maps[i]) if norm and i == count - 1 else maps[i] for i in kept]
        return chosen if intermediates_only else (self.final(maps[-1]), chosen)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of these stages do not need, as timm's networks do; return the stages counted from 0.

        Args:
            indices: stages; an int: that many of the last ones.
            prune_norm: remove the last norm.
            prune_head: remove the pooling and the head.

        Raises:
            ValueError: an index without a stage.
        """
        count = len(self.stages)
        kept = chosen_stages(indices, count)
        self.stages = self.stages[: kept[-1] + 1]
        if prune_norm:
            self.final = nn.Identity()
        if prune_head:
            self.pre_logits = nn.Identity()
            self.reset_classifier(0, "")
        return list(kept)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one.

        Args:
            num_classes: classes of the new head; 0: no head.
            global_pool: "avg", or "" to return the map without pooling, which needs num_classes 0; None: no change.

        Raises:
            ValueError: a negative number of classes, an unknown pooling, or classes without pooling.
        """
        global_pool = self.global_pool if global_pool is None else global_pool
        if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 0:
            raise ValueError(
                f"num_classes must be an integer of at least 0, where 0 gives pooled features; got {num_classes!r}"
            )
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool is 'avg', or '' for the map without pooling; got {global_pool!r}")
        if num_classes and not global_pool:
            raise ValueError(f"a head for {num_classes} classes needs pooled features; use global_pool='avg'")
        like = next(self.parameters())
        head = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()
        head.apply(self.family.init)
        self.head = head.to(like.device, like.dtype)
        self.global_pool = global_pool
        self.num_classes = self.default_cfg["num_classes"] = num_classes


class Dense(ChosenMaps, Backbone):
    """A network from an image to a list of maps: the backbone of detectors and segmentors.

    Each map has a norm of its own, unless the family norms its main path.

    Attributes:
        out_indices: the stages whose maps are returned, in their order.
    """

    def __init__(
        self,
        family: Family,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        levels: Sequence[Level],
        norm: Callable[[int], nn.Module] | None,
        *,
        out_indices: Sequence[int] | None,
        in_chans: int,
        img_size: tuple[int, int],
    ) -> None:
        kept = chosen_levels(out_indices, len(levels))
        stages = stages[: kept[-1] + 1]  # a stage after the last map would get no gradient
        super().__init__(family, stem, stages, levels[: len(stages)], in_chans=in_chans, img_size=img_size)
        self.out_indices = kept
        self.norms = nn.ModuleDict({str(i): norm(levels[i].channels) for i in kept} if norm else {})
        self.levels = tuple(levels[i] for i in kept)
        self.apply(family.init)

    def freeze_unused(self, read: Collection[int]) -> None:
        """Freeze norms and stages that feed only unused maps.

        Args:
            read: positions, in the list of maps, of those that are used.
        """
        stages = {self.out_indices[i] for i in read}
        for i, norm in self.norms.items():
            if int(i) not in stages:
                norm.requires_grad_(False)
        for stage in list(self.stages)[max(stages) + 1 :]:
            stage.requires_grad_(False)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        rows = zip(self.out_indices, self.levels, strict=True)
        where = "norms" if self.norms else "stages"
        return [{"num_chs": x.channels, "reduction": x.stride, "module": f"{where}.{i}"} for i, x in rows]

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return one (B, level.channels, H_i, W_i) per level of (B, in_chans, H, W)."""
        maps = self.forward_maps(image_BCHW)
        if not self.norms:
            return [maps[i] for i in self.out_indices]
        return [norm(maps[int(i)]) for i, norm in self.norms.items()]


def as_one_node(module: nn.Module, x: Any) -> Any:
    """Record `module(x)` as one node of a symbolic trace, which cannot follow decisions on image sizes.

    Args:
        x: a `torch.fx.Proxy`.
    """
    tracer = x.tracer

    def node(x: Proxy) -> Proxy:
        return tracer.create_proxy("call_module", tracer.path_of_module(module), (x,), {})

    return tracer.call_module(module, node, (x,), {})  # not `node(x)`: torchvision's tracer learns names here


def crop_mode_of(cfg: Mapping[str, Any]) -> Literal["center", "squash"]:
    """Return the crop mode of a `default_cfg`: "center" also for those modes of timm that are not known here."""
    return "squash" if cfg.get("crop_mode") == "squash" else "center"


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
