"""The embedded data: 1,797 real scans of handwritten digits that come with scikit-learn. N scans."""

from typing import Literal

import numpy as np

from fourstage.data.order import hash_order
from fourstage.data.sample import Sample
from fourstage.extras import install

CLASSES = tuple(str(digit) for digit in range(10))
VAL_PER_CLASS = 36
SIZE = 32  # pixels; four times the scan, so that strokes are smooth and a stride of 32 leaves one cell


class Digits:
    """Digit scans as an image-classification data set.

    36 scans of each digit, chosen by a hash of the scan's number, are the validation split (360 scans); the other 1,437
    train. The split never changes. A scan has 8 x 8 pixels and 17 grey levels; a sample shows it white on black,
    enlarged smoothly to 32 x 32. Ids are `train/0003`: the split, and the scan's number in scikit-learn.

    Source: E. Alpaydin, C. Kaynak, https://archive.ics.uci.edu/dataset/80
    """

    classes = CLASSES
    truths = ("label",)
    note = ""

    def __init__(self, split: Literal["train", "val"]) -> None:
        from PIL import Image

        self.split = split
        scans_N88, self.labels_N, self.numbers_N = scans(split)
        self._images_NHW = np.stack(
            [np.asarray(Image.fromarray(scan).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for scan in scans_N88]
        )

    def __len__(self) -> int:
        return len(self.labels_N)

    def id(self, index: int) -> str:
        return f"{self.split}/{self.numbers_N[index]:04d}"

    def where(self, index: int) -> str:
        return f"digits/{self.id(index)}"

    def raw(self, index: int) -> np.ndarray:
        """(32, 32, 3) uint8: there is no file for one image."""
        return np.repeat(self._images_NHW[index][:, :, None], 3, axis=2)

    def sample(self, index: int) -> Sample:
        return Sample(self.id(index), self.raw(index), (SIZE, SIZE), label=int(self.labels_N[index]))


def scans(split: Literal["train", "val"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The raw scans of one split, in scikit-learn's order.

    Returns:
        (N, 8, 8) uint8 with white ink (255) on black, (N,) labels, (N,) numbers of the scans in scikit-learn.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError(f"digits come with scikit-learn, which is missing: {install('demo')}") from error
    values, labels_N = load_digits(return_X_y=True)
    held_out = np.zeros(len(labels_N), dtype=bool)
    for digit in range(10):
        of_class = np.flatnonzero(labels_N == digit)
        order = hash_order([f"{number:04d}" for number in of_class])
        held_out[of_class[order[:VAL_PER_CLASS]]] = True
    numbers_N = np.flatnonzero(held_out if split == "val" else ~held_out)
    images_N88 = np.rint(values[numbers_N].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return images_N88, labels_N[numbers_N].astype(np.int64), numbers_N
