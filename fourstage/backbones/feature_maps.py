"""A classifier that returns its maps, as timm has it. B images, C channels, H x W cells."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fourstage.backbones.base import Classifier
from fourstage.backbones.chosen_maps import ChosenMaps, chosen_levels


class FeatureInfo(list[dict[str, Any]]):
    """A list of maps' properties with the methods of timm's `feature_info`."""

    def channels(self) -> list[int]:
        return [row["num_chs"] for row in self]

    def reduction(self) -> list[int]:
        return [row["reduction"] for row in self]

    def module_name(self) -> list[str]:
        return [row["module"] for row in self]


class FeatureMaps(ChosenMaps, nn.Module):
    """A classifier that returns its list of maps, (B, C, H, W) each: timm's `features_only=True`.

    It takes over the classifier, and removes the head and the stages that no chosen map needs.
    """

    def __init__(self, classifier: Classifier, out_indices: Sequence[int] | None = None) -> None:
        super().__init__()
        self.out_indices = chosen_levels(out_indices, len(classifier.levels))
        self.feature_info = FeatureInfo(classifier.feature_info[i] for i in self.out_indices)
        self.levels = tuple(classifier.levels[i] for i in self.out_indices)
        self.default_cfg = classifier.default_cfg
        self.model = classifier
        classifier.stages = classifier.stages[: self.out_indices[-1] + 1]
        classifier.final = nn.Identity()
        classifier.pre_logits = nn.Identity()
        classifier.reset_classifier(0)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Return one (B, C_i, H_i, W_i) per chosen level of (B, in_chans, H, W)."""
        maps = self.model.forward_maps(image_BCHW)
        return [maps[i] for i in self.out_indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)
