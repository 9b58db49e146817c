"""The masks of the objects of one image. N objects, P pieces, H x W pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fourstage.data.objects.rle import decode_mask, merge_masks
from fourstage.tasks.detection.masks import SmallMasks


@dataclass(frozen=True, eq=False)
class ObjectMasks:
    """Masks of objects, each the union of one or more pieces: an object that tiles cut has one in each of them.

    Attributes:
        pieces: P small masks, in pixels of the complete image, on the CPU.
        members: for each of N objects the numbers of its pieces.
    """

    pieces: SmallMasks
    members: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(masks: SmallMasks, kept: Sequence[int]) -> "ObjectMasks":
        """Return the masks of the objects with these numbers, one piece each."""
        chosen = torch.as_tensor(kept, dtype=torch.int64, device=masks.boxes_N4.device)
        probabilities_NMM, boxes_N4 = masks.probabilities_NMM[chosen].cpu(), masks.boxes_N4[chosen].cpu()
        pieces = replace(masks, probabilities_NMM=probabilities_NMM, boxes_N4=boxes_N4)
        return ObjectMasks(pieces, tuple((i,) for i in range(len(kept))))

    def run_lengths(self) -> list[str]:
        """Return the N masks in COCO's compressed run lengths."""
        counts = self.pieces.run_lengths()
        return [
            counts[own[0]] if len(own) == 1 else merge_masks([counts[i] for i in own], self.pieces.size)
            for own in self.members
        ]

    def full_size(self) -> np.ndarray:
        """Return (N, H, W) bool."""
        if all(own == (i,) for i, own in enumerate(self.members)):
            return self.pieces.full_size().numpy()
        out_NHW = np.zeros((len(self.members), *self.pieces.size), dtype=bool)
        for mask_HW, counts in zip(out_NHW, self.run_lengths(), strict=True):
            decoded_HW = decode_mask({"size": list(self.pieces.size), "counts": counts}, self.pieces.size)
            assert decoded_HW is not None, "run lengths of ours are valid"
            mask_HW[:] = decoded_HW
        return out_NHW
