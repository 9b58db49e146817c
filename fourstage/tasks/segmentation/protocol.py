"""The views of an image that a segmentor predicts: sizes, mirror images, windows. H x W pixels."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from fourstage.data.transforms.resizing import Size, keep_ratio, times

SMALLEST = 32  # pixels; smaller views are padded
MOST_DIVISOR = 1024


@dataclass(frozen=True)
class Protocol:
    """The views that are averaged to one prediction.

    Attributes:
        scale: the two limits on an image's sides at ratio 1, pixels; None: its own sides.
        ratios: factors on the size, one view for each.
        ratios_of: the size that the ratios multiply: "scale", as in MMSegmentation 0.x, or that of the "image" itself,
            whatever `scale` is, as in 1.x.
        flip: whether there is a mirrored view for every view.
        window: (H, W) of windows; None: complete images.
        stride: (H, W) from one window to the next.
        divisor: the sides of every view are padded to multiples of it, in pixels, after it is mirrored.

    Raises:
        ValueError: impossible values.
    """

    scale: tuple[int, int] | None = (2048, 512)
    ratios: tuple[float, ...] = (1.0,)
    ratios_of: Literal["scale", "image"] = "scale"
    flip: bool = False
    window: Size | None = None
    stride: Size | None = None
    divisor: int = 1

    def __post_init__(self) -> None:
        if not self.ratios or not all(0 < ratio < inf for ratio in self.ratios):
            raise ValueError(f"ratios are factors on an image's sides, at least one, above 0; got {list(self.ratios)}")
        if self.scale is not None and min(self.scale) < SMALLEST:
            raise ValueError(f"scale limits an image's sides, each at least {SMALLEST} pixels; got {list(self.scale)}")
        if (self.window is None) != (self.stride is None):
            raise ValueError("window and stride belong together; give both, such as window=[512,512] stride=[341,341]")
        if self.window is not None and self.stride is not None:
            if min(self.window) < SMALLEST:
                raise ValueError(f"a window has sides of {SMALLEST} pixels or more; got {list(self.window)}")
            if any(not 0 < step <= side for step, side in zip(self.stride, self.window, strict=True)):
                raise ValueError(
                    f"stride {list(self.stride)} leaves gaps between windows of {list(self.window)}; "
                    "choose one from 1 to the window's sides"
                )
        if not 1 <= self.divisor <= min(self.window or (MOST_DIVISOR, MOST_DIVISOR)):
            most = f"{MOST_DIVISOR} and the sides of a window"
            raise ValueError(f"divisor is a number of pixels from 1, at most {most}; got {self.divisor}")

    def __str__(self) -> str:
        how = "complete images"
        if self.window is not None:
            how = f"windows of {_sides(self.window)}, stride {_sides(self.stride)}, in images"
        image = self.ratios_of == "image" or self.scale is None
        base = " at their original size" if image else f", at most {_sides(self.scale)}"
        ratios = "" if self.ratios == (1.0,) else f" x {', '.join(f'{ratio:g}' for ratio in self.ratios)}"
        filled = "" if self.divisor == 1 else f", filled up to multiples of {self.divisor}"
        return f"{how}{base}{ratios}{filled}{', each also mirrored' if self.flip else ''}"

    @property
    def views(self) -> int:
        """Return the number of views of an image."""
        return len(self.ratios) * (2 if self.flip else 1)

    def sizes(self, size: Size) -> list[Size]:
        """Return the size of the view for each ratio, of an image of `size`."""
        return [self._size(size, ratio) for ratio in self.ratios]

    def _size(self, size: Size, ratio: float) -> Size:
        if self.ratios_of == "image" or self.scale is None:
            return times(size, ratio)
        return keep_ratio(size, (max(1, int(self.scale[0] * ratio)), max(1, int(self.scale[1] * ratio))))

    def windows(self, size: Size) -> list[tuple[int, int]]:
        """Return the top left corners of the windows on a view of `size`, all of them inside."""
        if self.window is None or self.stride is None:
            return [(0, 0)]
        rows, columns = (
            [max(min(i * step + window, side) - window, 0) for i in range(max(side - window + step - 1, 0) // step + 1)]
            for side, window, step in zip(size, self.window, self.stride, strict=True)
        )
        return [(y, x) for y in rows for x in columns]


def _sides(sides: tuple[int, int] | None) -> str:
    assert sides is not None
    return f"{sides[0]} x {sides[1]}"
