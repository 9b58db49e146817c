"""A backbone with a decoder: image in, logits of each pixel out. B images, C classes, H x W pixels, h x w cells."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import IGNORE
from fourstage.tasks.parts.freeze_unused import freeze_unused
from fourstage.tasks.parts.levels import feature_maps, levels_of
from fourstage.tasks.parts.memory_format import quick_on_cpu
from fourstage.tasks.segmentation.losses import pixel_cross_entropy, resized


class Segmentor(nn.Module):
    """What `upernet` and `semantic_fpn` put together.

    Args:
        backbone: (B, 3, H, W) to a list of maps.
        decoder: the list of maps to (B, num_classes, h, w).
        num_classes: 2 to 255; the label 255 means that nobody counts the pixel.
        neck: the backbone's maps to as many others, before the decoder.
        auxiliary: a second decoder on the backbone's own maps, which trains along and predicts nothing.
        auxiliary_weight: factor on its loss.
        align_corners: how logits are resized, here and in `Inference`; the decoders have their own.
        reads: which of the backbone's maps go into neck and decoder; None: all.
        method: the name by which it is built and by which the names in foreign checkpoints are known.

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
        self.method = method
        check_classes(num_classes)
        self.backbone, self.neck, self.decoder, self.auxiliary = backbone, neck, decoder, auxiliary
        self.num_classes, self.auxiliary_weight, self.align_corners = num_classes, auxiliary_weight, align_corners
        self.levels = levels_of(backbone)
        self.reads = tuple(range(len(self.levels)) if reads is None else reads)
        self.stride = self.levels[self.reads[0]].stride
        everything = range(len(self.levels))  # where an auxiliary decoder of another kind may read any
        helped = () if auxiliary is None else everything
        if isinstance(level := getattr(auxiliary, "level", None), int):
            helped = (level,)
        self.find_unused_parameters = freeze_unused(backbone, {*self.reads, *helped})

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes, H, W) logits."""
        return resized(self.coarse(image_BCHW), image_BCHW.shape[2:], self.align_corners)

    def coarse(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to the logits on the cells of the finest map, (B, num_classes, h, w)."""
        return self._decoded(feature_maps(self.backbone, quick_on_cpu(image_BCHW)))

    def losses(
        self, image_BCHW: Tensor, labels_BHW: Tensor, *, over_valid: bool = False, ignore: int = IGNORE
    ) -> dict[str, Tensor]:
        """`loss_seg` and, where there is an auxiliary decoder, `loss_aux`; see `pixel_cross_entropy`."""

        def loss(logits_BChw: Tensor) -> Tensor:
            return pixel_cross_entropy(
                _exact(logits_BChw), labels_BHW, over_valid=over_valid, ignore=ignore, align_corners=self.align_corners
            )

        maps = feature_maps(self.backbone, quick_on_cpu(image_BCHW))
        losses = {"loss_seg": loss(self._decoded(maps))}
        if self.auxiliary is not None:
            losses["loss_aux"] = self.auxiliary_weight * loss(self.auxiliary(maps))
        return losses

    def _decoded(self, maps: Sequence[Tensor]) -> Tensor:
        used = [maps[i] for i in self.reads]
        return self.decoder(used if self.neck is None else self.neck(used))


def _exact(logits: Tensor) -> Tensor:
    """In float32 or better, whatever autocast made of them."""
    return logits if logits.dtype == torch.float64 else logits.float()


def chosen(levels: Sequence[Level], maps: Sequence[int] | None) -> tuple[int, ...]:
    """The numbers of the maps that a decoder reads, finest first; negative ones count from the end.

    Raises:
        ValueError: none, twice the same, one that is not there, or not finest first.
    """
    given = range(len(levels)) if maps is None else maps
    found = tuple(i + len(levels) if i < 0 else i for i in given)
    if not found or list(found) != sorted({i for i in found if 0 <= i < len(levels)}):
        raise ValueError(
            f"maps are numbers of the backbone's {len(levels)} maps, finest first, from 0; got {list(given)}"
        )
    return found


def classifier(channels: int, num_classes: int, prior: Sequence[float] | None = None) -> nn.Conv2d:
    """The last layer of a decoder.

    Args:
        prior: about the share of pixels that each class has, which the layer gives as probabilities until it has
            learnt. Where one class covers nearly everything, a decoder that begins with equal ones learns at first to
            put out all its features wherever that class is not, and the others stay alike for long. None: equal.

    Raises:
        ValueError: a number of classes that label maps cannot hold, a prior that is none.
    """
    check_classes(num_classes)
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    if prior is None:
        nn.init.zeros_(layer.bias)
        return layer
    if len(prior) != num_classes or min(prior) <= 0:
        raise ValueError(
            f"prior is the share of pixels of each of {num_classes} classes, above 0, and {list(prior)} came; give "
            f"{num_classes} of them, or none: method_args.prior=null in a recipe, prior=None in Python"
        )
    layer.bias.data = torch.tensor(prior, dtype=layer.bias.dtype).log()
    return layer


def check_classes(num_classes: int) -> None:
    """Raise ValueError unless label maps can hold so many classes."""
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or not 2 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes is a count from 2 to {IGNORE}, as label maps hold bytes; got {num_classes!r}")
