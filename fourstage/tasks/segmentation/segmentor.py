"""A backbone with a decoder: image in, logits of each pixel out. B images, C classes, H x W pixels, h x w cells."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fourstage.data.sample import IGNORE
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

    Attributes:
        levels: of the backbone.

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
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        self.backbone, self.neck, self.decoder, self.auxiliary = backbone, neck, decoder, auxiliary
        self.num_classes, self.auxiliary_weight = num_classes, auxiliary_weight
        self.levels = getattr(backbone, "levels")  # noqa: B009 - nn.Module's own attributes are typed

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) normalised images to (B, num_classes, H, W) logits."""
        return resized(self.coarse(image_BCHW), image_BCHW.shape[2:])

    def coarse(self, image_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to the logits on the cells of the finest map, (B, num_classes, h, w)."""
        return self._decoded(self.backbone(image_BCHW))

    def losses(self, image_BCHW: Tensor, labels_BHW: Tensor, *, over_valid: bool = False) -> dict[str, Tensor]:
        """`loss_seg` and, where there is an auxiliary decoder, `loss_aux`; see `pixel_cross_entropy`."""
        maps = self.backbone(image_BCHW)
        losses = {"loss_seg": pixel_cross_entropy(_exact(self._decoded(maps)), labels_BHW, over_valid=over_valid)}
        if self.auxiliary is not None:
            loss = pixel_cross_entropy(_exact(self.auxiliary(maps)), labels_BHW, over_valid=over_valid)
            losses["loss_aux"] = self.auxiliary_weight * loss
        return losses

    def _decoded(self, maps: Sequence[Tensor]) -> Tensor:
        return self.decoder(maps if self.neck is None else self.neck(maps))


def _exact(logits: Tensor) -> Tensor:
    """In float32 or better, whatever autocast made of them."""
    return logits if logits.dtype == torch.float64 else logits.float()


def classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """The last layer of a decoder. Raises ValueError for a number of classes that label maps cannot hold."""
    check_classes(num_classes)
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def check_classes(num_classes: int) -> None:
    """Raise ValueError unless label maps can hold so many classes."""
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or not 2 <= num_classes <= IGNORE:
        raise ValueError(f"num_classes is a count from 2 to {IGNORE}, as label maps hold bytes; got {num_classes!r}")
