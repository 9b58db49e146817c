"""A backbone with a decoder, from images to the logits of each pixel.

B images, C classes, H x W pixels, h x w cells.
"""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import IGNORE
from fourstage.ops.measure import choose_products
from fourstage.ops.memory_format import prefer_channels_last
from fourstage.ops.resize import resize
from fourstage.plurals import plural
from fourstage.tasks.parts.freeze_unused import freeze_unused
from fourstage.tasks.parts.levels import feature_maps, levels_of
from fourstage.tasks.segmentation.losses import pixel_cross_entropy


class Segmentor(nn.Module):
    """A semantic segmentor, as `upernet` and `semantic_fpn` build it.

    Args:
        backbone: (B, 3, H, W) to a list of feature maps.
        decoder: the list of feature maps to (B, num_classes, h, w).
        num_classes: 2 to 255; pixels of the label 255 are ignored.
        neck: the backbone's maps to as many others, before the decoder.
        auxiliary: a second decoder on the backbone's own maps, which takes part in training alone.
        auxiliary_weight: factor on its loss.
        align_corners: how logits are resized, here and in `Inference`; the decoders have their own.
        reads: numbers of the backbone's maps that go into neck and decoder; None: all.
        method: the name of the method, by which the names in foreign checkpoints are known.

    Attributes:
        levels: of the backbone.
        stride: pixels from one cell of the logits to the next.
        find_unused_parameters: whether some parameters may get no gradient from any loss; see `freeze_unused`.

    Raises:
        ValueError: a number of classes that label maps cannot hold.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module,
        num_classes: int,
        *,
        neck: nn.Module | None = None,
        auxiliary: nn.Module | None = None,
        auxiliary_weight: float = 0.4,
        align_corners: bool = False,
        reads: Sequence[int] | None = None,
        method: str | None = None,
    ) -> None:
        super().__init__()
        choose_products()
        self.method = method
        check_classes(num_classes)
        self.backbone, self.neck, self.decoder, self.auxiliary = backbone, neck, decoder, auxiliary
        self.num_classes, self.auxiliary_weight, self.align_corners = num_classes, auxiliary_weight, align_corners
        self.levels = levels_of(backbone)
        self.reads = tuple(range(len(self.levels)) if reads is None else reads)
        self.stride = self.levels[self.reads[0]].stride
        also = () if auxiliary is None else range(len(self.levels))  # a user's auxiliary decoder may read any map
        if isinstance(level := getattr(auxiliary, "level", None), int):
            also = (level,)
        self.find_unused_parameters = freeze_unused(backbone, {*self.reads, *also})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        choose_products()  # in a process that unpickles a network and builds none

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes, H, W) logits."""
        return resize(self.coarse(image_BCHW), image_BCHW.shape[2:], self.align_corners)

    def coarse(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to the logits at the stride of the first map that is read, (B, num_classes, h, w)."""
        return self._decode(feature_maps(self.backbone, prefer_channels_last(image_BCHW)))

    def losses(
        self, image_BCHW: Tensor, labels_BHW: Tensor, *, over_valid: bool = False, ignore: int = IGNORE
    ) -> dict[str, Tensor]:
        """`loss_seg` and, where there is an auxiliary decoder, `loss_aux`; see `pixel_cross_entropy`."""

        def loss(logits_BChw: Tensor) -> Tensor:
            return pixel_cross_entropy(
                _in_float32(logits_BChw),
                labels_BHW,
                over_valid=over_valid,
                ignore=ignore,
                align_corners=self.align_corners,
            )

        maps = feature_maps(self.backbone, prefer_channels_last(image_BCHW))
        losses = {"loss_seg": loss(self._decode(maps))}
        if self.auxiliary is not None:
            losses["loss_aux"] = self.auxiliary_weight * loss(self.auxiliary(maps))
        return losses

    def _decode(self, maps: Sequence[Tensor]) -> Tensor:
        used = [maps[i] for i in self.reads]
        logits_BChw = self.decoder(used if self.neck is None else self.neck(used))
        if not isinstance(logits_BChw, Tensor) or logits_BChw.ndim != 4 or logits_BChw.shape[1] != self.num_classes:
            shape = getattr(logits_BChw, "shape", None)
            came = f"a {type(logits_BChw).__name__}" if shape is None else f"a tensor of shape {tuple(shape)}"
            raise ValueError(
                f"{type(self.decoder).__name__} returned {came}; a decoder of {self.num_classes} classes returns "
                f"logits of shape (B, {self.num_classes}, h, w)"
            )
        return logits_BChw


def _in_float32(logits: Tensor) -> Tensor:
    """Return logits in float32 or better, whatever type autocast gave them."""
    return logits if logits.dtype == torch.float64 else logits.float()


def map_numbers(levels: Sequence[Level], maps: Sequence[int] | None) -> tuple[int, ...]:
    """Return the numbers of the maps that a decoder reads, ascending; negative ones count from the end.

    Raises:
        ValueError: no number, a number twice, one that the backbone lacks, or numbers that do not ascend.
    """
    given = range(len(levels)) if maps is None else maps
    numbers = tuple(i + len(levels) if i < 0 else i for i in given)
    if not numbers or list(numbers) != sorted({i for i in numbers if 0 <= i < len(levels)}):
        raise ValueError(
            f"maps are numbers of the backbone's {plural(len(levels), 'map')}, ascending from 0; got {list(given)}"
        )
    return numbers


def classifier(channels: int, num_classes: int, prior: Sequence[float] | None = None) -> nn.Conv2d:
    """Return the last layer of a decoder.

    Args:
        prior: the approximate share of pixels of each class; the untrained layer predicts these probabilities. Where
            one class covers nearly everything, a decoder that starts with equal probabilities first learns to suppress
            all its features wherever that class is absent, and the other classes stay alike for long. None: equal. In a
            recipe also "auto": the shares in some label maps of the training data.

    Raises:
        ValueError: a number of classes that label maps cannot hold, a wrong prior.
    """
    check_classes(num_classes)
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    if prior is None:
        nn.init.zeros_(layer.bias)
        return layer
    if isinstance(prior, str):
        raise ValueError(f"prior is a list of {num_classes} numbers or None, or in a recipe auto; got {prior!r}")
    if len(prior) != num_classes or not all(0 < share < inf for share in prior):
        raise ValueError(
            f"prior is the share of pixels of each of {num_classes} classes, above 0; got {list(prior)}; give "
            f"{num_classes} numbers, or type method_args.prior=auto in a recipe, prior=None in Python"
        )
    layer.bias.data = torch.tensor(prior, dtype=layer.bias.dtype).log()
    return layer


def check_classes(num_classes: int) -> None:
    """Raise ValueError unless label maps can hold this number of classes."""
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or not 2 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes must be from 2 to {IGNORE}, because label maps are 8-bit; got {num_classes!r}")
