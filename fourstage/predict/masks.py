"""The masks of the objects of one image. N objects, P pieces, H x W pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from fourstage.data.objects.rle import decode_mask, merge_masks


class Pieces(Protocol):
    """Small masks, each stretched over its box: those of `tasks/detection`, or those of an exported file."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image that they are pasted into."""
        ...

    def chosen(self, kept: Sequence[int]) -> Self:
        """Return the masks with these numbers, on the CPU."""
        ...

    def moved(self, offset_4: np.ndarray) -> Self:
        """Return the masks with their boxes moved."""
        ...

    @staticmethod
    def joined(several: Any, size: tuple[int, int]) -> Any:
        """Return the masks of several as those of one image."""
        ...

    def run_lengths(self) -> list[str]:
        """Return the masks in COCO's compressed run lengths."""
        ...

    def full_size(self) -> Any:
        """Return (P, H, W) bool, as an array or a tensor."""
        ...


@dataclass(frozen=True, eq=False)
class ObjectMasks:
    """Masks of objects, each the union of one or more pieces: an object that tiles cut has one in each of them.

    Attributes:
        pieces: P small masks, in pixels of the complete image, on the CPU.
        members: for each of N objects the numbers of its pieces.
    """

    pieces: Pieces
    members: tuple[tuple[int, ...], ...]

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
            return np.asarray(self.pieces.full_size())
        out_NHW = np.zeros((len(self.members), *self.pieces.size), dtype=bool)
        for mask_HW, counts in zip(out_NHW, self.run_lengths(), strict=True):
            decoded_HW = decode_mask({"size": list(self.pieces.size), "counts": counts}, self.pieces.size)
            assert decoded_HW is not None, "run lengths of ours are valid"
            mask_HW[:] = decoded_HW
        return out_NHW
