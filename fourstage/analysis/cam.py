"""Class activation maps: where a network sees evidence for a class, an object or a region.

B images, C channels, h x w cells, H x W pixels, K classes.

With A the activation of a layer, y a scalar and G = dy/dA, the maps are those of `METHODS`. Maps of several layers are
averaged. The conventions are those of the package grad-cam (https://github.com/jacobgil/pytorch-grad-cam): a map is cut
at zero, scaled to [0, 1), enlarged bilinearly to the image, averaged over layers, and scaled again.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.analysis.cam_methods import METHODS, SCORE_CAM, joining
from fourstage.analysis.taps import (
    as_float32,
    as_map,
    find_module,
    first_tensor,
    frozen,
    outputs_of,
    stage_number,
    taken_by,
)
from fourstage.analysis.unsuitable import UnknownStages, UnsuitableNetwork

EPS_SCALE = 1e-7
EPS_MASK = 1e-8
BACKBONE_MAP = re.compile(r"backbone map \d+")
ALMOST_ZERO = 1e-5  # of a map against the sum of its terms
Target = Callable[[Any], Tensor]  # from what the network returns to a scalar


@dataclass(frozen=True)
class Cam:
    """Class activation maps of one batch by one method.

    Attributes:
        map_BHW: in [0, 1), at the size of the images; all zeros where no evidence is positive.
        raw: of each layer the map before it is cut and scaled, (B, h, w).
        taps: the layers.
        notes: what a reader must know of these maps.
    """

    map_BHW: Tensor
    raw: tuple[Tensor, ...]
    taps: tuple[str, ...]
    method: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Activations:
    """Activations and gradients of some layers for one batch and one target, from which every method is computed."""

    taps: tuple[str, ...]
    values: tuple[Tensor, ...]  # (B, C, h, w)
    gradients: tuple[Tensor, ...]
    scores_B: Tensor
    size: tuple[int, int]


def activations(
    network: nn.Module,
    image_BCHW: Tensor,
    target: Target,
    taps: Sequence[str] = (),
    *,
    run: Callable[[Tensor], Any] | None = None,
) -> Activations:
    """Run a network forward and backward once, in the type of its parameters.

    Args:
        target: from the network's output to (B,) scalars, one for each image.
        taps: layers by name, `stage1`, ..., or `last`; of a detector or segmentor also `backbone map 1`, ...; none: of
            a classifier the layer of `choose_tap`, of a detector or segmentor the map of its backbone through which
            most of the score's gradient goes.
        run: runs the network on the images where a plain call does not; detectors need it.

    Raises:
        ValueError: a layer is not there, returns no map, has no gradient, or has values that are not finite.
    """
    dense = all(BACKBONE_MAP.fullmatch(tap) for tap in taps) and isinstance(
        getattr(network, "backbone", None), nn.Module
    )
    names = ["backbone"] if dense else [layer_name(network, tap) for tap in taps]
    image_BCHW = taken_by(network, image_BCHW)
    names = names or [choose_tap(network, image_BCHW, run)]
    image_BCHW = image_BCHW.detach().clone().requires_grad_(True)
    with frozen(network), torch.enable_grad(), outputs_of(network, names) as kept:
        scores_B = target((run or network)(image_BCHW))
        outputs = [tensor for name in names for tensor in _tensors(kept[name], name, every=dense)]
        if dense:
            names = [f"backbone map {i + 1}" for i in range(len(outputs))]
        found = torch.autograd.grad(scores_B.sum(), outputs, allow_unused=True)
    pairs = [(n, x.detach(), g) for n, x, g in zip(names, outputs, found, strict=True) if g is not None]
    if dense and pairs:
        pairs = _of_backbone(pairs, taps)
    elif len(pairs) < len(names):
        unread = next(name for name, gradient in zip(names, found, strict=True) if gradient is None)
        raise ValueError(f"the score does not depend on the layer {unread}; take one before the head")
    taps, values, gradients = zip(*pairs, strict=True)
    height, width = image_BCHW.shape[-2:]
    maps = [tuple(as_float32(as_map(x, image_BCHW)) for x in tensors) for tensors in (values, gradients)]
    _check_finite(network, taps, *maps)
    return Activations(taps, maps[0], maps[1], as_float32(scores_B.detach()), (height, width))


Layer = tuple[str, Tensor, Tensor]  # its name, values and gradients


def _of_backbone(maps: Sequence[Layer], taps: Sequence[str]) -> list[Layer]:
    """Return the maps of these names; without names the one through which most of the score's gradient goes."""
    if not taps:
        return [largest_share(maps)]
    by_name = {one[0]: one for one in maps}
    if missing := [tap for tap in taps if tap not in by_name]:
        raise ValueError(f"the score depends on {', '.join(by_name)}, and not on {missing[0]}; name one of these")
    return [by_name[tap] for tap in taps]


def largest_share(maps: Sequence[Layer]) -> Layer:
    """Return the map through which most of the score's gradient goes."""
    return max(maps, key=lambda one: float((one[1] * one[2]).abs().sum()))


def _check_finite(
    network: nn.Module, taps: Sequence[str], values: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    for tap, a_BChw, g_BChw in zip(taps, values, gradients, strict=True):
        if not bool(a_BChw.isfinite().all() & g_BChw.isfinite().all()):
            what = f"has values or gradients in its layer {tap} that are not finite"
            raise UnsuitableNetwork(network, what, "check its weights")


def class_activation_map(from_: Activations, method: str, *, eigen_smooth: bool = False) -> Cam:
    """Return the maps of a method.

    Args:
        eigen_smooth: project the weighed channels on their first principal component in place of adding them up.

    Raises:
        ValueError: there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; choose from {', '.join(METHODS)}")
    join = joining(method, eigen_smooth)
    raw, notes, scaled = [], [], []
    for tap, a_BChw, g_BChw in zip(from_.taps, from_.values, from_.gradients, strict=True):
        weighed_BChw = METHODS[method](a_BChw, g_BChw)
        map_Bhw, sum_Bhw = join(weighed_BChw), weighed_BChw.sum(dim=1)
        vanishes = _vanishes(method, sum_Bhw, a_BChw, g_BChw)  # then a component has no sign either
        if vanishes or not eigen_smooth:
            notes += _notes(method, tap, sum_Bhw, a_BChw, g_BChw)
        evidence_Bhw = torch.zeros_like(map_Bhw) if vanishes else map_Bhw.relu()
        raw.append(map_Bhw)
        scaled.append(enlarge(scale(evidence_Bhw), from_.size))
    return Cam(scale(torch.stack(scaled).mean(dim=0).relu()), tuple(raw), from_.taps, method, tuple(notes))


def _vanishes(method: str, sum_Bhw: Tensor, a_BChw: Tensor, g_BChw: Tensor) -> bool:
    """Return whether a map is rounding noise: before a LayerNorm the terms of HiResCAM cancel at each position."""
    terms = (g_BChw * a_BChw).abs().sum(dim=1).max()
    return method == "hirescam" and bool(sum_Bhw.abs().max() < ALMOST_ZERO * terms)


def score_cam(
    network: nn.Module,
    image_BCHW: Tensor,
    from_: Activations,
    target: Target,
    *,
    at_once: int = 32,
    eigen_smooth: bool = False,
) -> Cam:
    """Return maps whose channels are weighed by the score of the image below each channel (Score-CAM).

    Args:
        from_: of the same images.
        target: of a class that does not depend on the output, such as `class_target(281)`.
        at_once: images that the network is given.
        eigen_smooth: as in `class_activation_map`.

    Source: https://arxiv.org/abs/1910.01279, in the form of grad-cam: each channel is enlarged with aligned corners and
    scaled to [0, 1], and the weights are the softmax of the scores over channels.
    """
    image_BCHW = taken_by(network, image_BCHW)
    with frozen(network), torch.no_grad():
        weighted = [_weighed_by_scores(network, image_BCHW, a_BChw, target, at_once) for a_BChw in from_.values]
        raw = tuple(map(joining(SCORE_CAM, eigen_smooth), weighted))
    scaled = [enlarge(scale(map_Bhw.relu()), from_.size) for map_Bhw in raw]
    return Cam(scale(torch.stack(scaled).mean(dim=0).relu()), raw, from_.taps, SCORE_CAM)


def _weighed_by_scores(network: nn.Module, image_BCHW: Tensor, a_BChw: Tensor, target: Target, at_once: int) -> Tensor:
    """Return the channels of a layer, each times its weight: (B, C, h, w)."""
    size = (image_BCHW.shape[-2], image_BCHW.shape[-1])
    masks_BCHW = F.interpolate(a_BChw, size=size, mode="bilinear", align_corners=True)
    low, high = masks_BCHW.amin(dim=(2, 3), keepdim=True), masks_BCHW.amax(dim=(2, 3), keepdim=True)
    masks_BCHW = (masks_BCHW - low) / (high - low + EPS_MASK)
    rows = []
    for image_CHW, masks_CHW in zip(image_BCHW, masks_BCHW, strict=True):
        masked = (image_CHW * chunk_CHW[:, None].to(image_CHW) for chunk_CHW in masks_CHW.split(at_once))
        scores = torch.cat([target(network(chunk_BCHW)) for chunk_BCHW in masked])
        rows.append(as_float32(scores).softmax(dim=0))
    return torch.stack(rows)[..., None, None] * a_BChw


def _notes(method: str, tap: str, sum_Bhw: Tensor, a_BChw: Tensor, g_BChw: Tensor) -> list[str]:
    """Return what a LayerNorm behind the layer did to the sum of the weighed channels."""
    if _vanishes(method, sum_Bhw, a_BChw, g_BChw):
        return [
            f"HiResCAM of {tap} is zero everywhere: the layer goes straight into a LayerNorm, whose gradient is "
            "orthogonal to its input; tap the norm's output"
        ]
    if method == "gradcam":
        total, size = sum_Bhw.sum(dim=(1, 2)).abs(), sum_Bhw.abs().sum(dim=(1, 2))
        if bool((size > 0).all()) and bool((total < 1e-4 * size).all()):
            return [
                f"Grad-CAM of {tap} sums to zero over the image: a LayerNorm behind global pooling makes half of any "
                "map negative"
            ]
    return []


def scale(map_BHW: Tensor) -> Tensor:
    """Return (m - min) / (1e-7 + max of that) for each image."""
    low = map_BHW.amin(dim=(1, 2), keepdim=True)
    moved = map_BHW - low
    return moved / (EPS_SCALE + moved.amax(dim=(1, 2), keepdim=True))


def enlarge(map_Bhw: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps resized bilinearly with half-pixel centres and without antialiasing, as OpenCV does."""
    return F.interpolate(map_Bhw[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def choose_tap(network: nn.Module, image_BCHW: Tensor, run: Callable[[Tensor], Any] | None = None) -> str:
    """Return the layer whose map the head reads: of a classifier the last map before the global pooling.

    For networks that norm before they pool this is the output of the norm, for others the last stage.

    Raises:
        ValueError: no layer returns a map.
    """
    order: list[str] = []
    names = {module: name for name, module in network.named_modules() if name}

    def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and _is_map(output, image_BCHW):
            order.append(names[module])

    with frozen(network), torch.no_grad(), ExitStack() as stack:
        for module in names:
            stack.callback(module.register_forward_hook(hook).remove)
        (run or network)(image_BCHW)
    if not order:
        raise UnsuitableNetwork(
            network,
            "has no layer that returns a feature map",
            "class activation maps need one, such as that of a convolution",
        )
    return order[-1]


def _is_map(x: Tensor, image_BCHW: Tensor) -> bool:
    try:
        x_BCHW = as_map(x, image_BCHW)
    except ValueError:
        return False
    return x_BCHW.shape[-1] * x_BCHW.shape[-2] > 1


def layer_name(network: nn.Module, tap: str) -> str:
    """Return the name of the module whose output is a stage's map; a layer's own name as it is.

    Raises:
        ValueError: the network does not describe its stages, or has fewer.
    """
    number = stage_number(tap)
    if number is None:
        find_module(network, tap)
        return tap
    backbone = getattr(network, "backbone", None)
    prefix, inner = ("backbone.", backbone) if isinstance(backbone, nn.Module) else ("", network)
    known = dict(inner.named_modules())
    if hasattr(inner, "model") and not hasattr(inner, "feature_info"):  # timm's network in a wrapper
        prefix, inner = f"{prefix}model.", inner.model
    info: Any = getattr(inner, "feature_info", None)
    if info is None:
        raise UnknownStages(network)
    rows = [row for row in (info.info if hasattr(info, "info") else info) if row["reduction"] >= 4]
    if number == 0 or number > len(rows):
        raise ValueError(f"there is no {tap}; the network has the stages stage1 to stage{len(rows)}, and last")
    name = prefix + rows[number - 1 if number > 0 else -1]["module"]
    flat = name.replace("stages.", "stages_").replace("layers.", "layers_")
    return name if name.removeprefix("backbone.") in known or name in dict(network.named_modules()) else flat


def _tensors(calls: Sequence[Any], name: str, *, every: bool) -> list[Tensor]:
    """Return what a layer returned in its last call: one tensor, or with `every` each map of a list."""
    if not calls:
        raise ValueError(f"the layer {name!r} was not called; name one that takes part in a forward pass")
    if every and isinstance(calls[-1], list | tuple):
        return list(calls[-1])
    return [first_tensor(calls[-1], name)]
