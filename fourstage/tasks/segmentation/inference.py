"""Label maps of images by a protocol: complete images or windows, several sizes, mirrored; in bounded memory.

The logits of a window are kept at the stride of the network's output. The final scores of all classes exist for a strip
of rows at a time: windows are enlarged, averaged and resized for these rows alone. B images, C classes, H x W pixels of
an image, R x K pixels of a strip.
"""

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fourstage.data.sample import Batch, Progress
from fourstage.data.transforms.resizing import Normalise, resize_image
from fourstage.data.transforms.segmentation import normalised
from fourstage.ops.first_maximum import first_maximum
from fourstage.ops.resized_crop import Size, Span, crop_of_resized, input_span
from fourstage.tasks.segmentation.protocol import SMALLEST, Protocol
from fourstage.tasks.segmentation.segmentor import Segmentor

AT_ONCE = 2**19  # pixels of windows that pass the network together on a CPU
AT_ONCE_GPU = 2**22
STRIP = 2**23  # scores of a strip, all classes together: 32 MiB in float32, a few times that while it is computed
STRIP_GPU = 2**26
CACHED = 2**21  # scores of a strip that are computed at a time on a CPU, whose caches hold them
KEPT = 2**29  # bytes of coarse logits of windows that are kept; an image that needs more is processed in columns


@dataclass(eq=False)
class View:
    """An image at one size, mirrored or not.

    Attributes:
        pixels_3HW: uint8, or normalised floats; not mirrored.
        size: (H, W) without the padding that the network reads.
        extent: (H, W) of each window.
        corners: top and left of each window; in a mirrored view, after mirroring.
        aligned: whether logits are resized with aligned corners.
        coarse: the logits of windows that the network has computed, (C, h, w) by their number.
    """

    pixels_3HW: Tensor
    size: Size
    mirrored: bool
    extent: Size
    corners: list[tuple[int, int]]
    aligned: bool = False
    coarse: dict[int, Tensor] = field(default_factory=dict)

    def window(self, number: int) -> Tensor:
        """Return (3, *extent), of the type of the pixels, or less where the window reaches beyond the image."""
        top, left = self.corners[number]
        height, width = self.extent
        if not self.mirrored:
            return self.pixels_3HW[:, top : top + height, left : left + width]
        right = self.pixels_3HW.shape[2] - left
        return self.pixels_3HW[:, top : top + height, max(0, right - width) : right].flip(-1)

    def touching(self, rows: Span, columns: Span) -> list[int]:
        """Return the numbers of the windows that cover some of these pixels, counted as `corners` are."""
        height, width = self.extent
        return [
            i
            for i, (top, left) in enumerate(self.corners)
            if top < rows[1] and top + height > rows[0] and left < columns[1] and left + width > columns[0]
        ]

    def mirrored_columns(self, columns: Span) -> Span:
        """Return the columns, counted from the other side if the view is mirrored."""
        return (self.size[1] - columns[1], self.size[1] - columns[0]) if self.mirrored else columns

    def read_for(self, out: Size, rows: Span, columns: Span) -> tuple[Span, Span]:
        """Return the pixels of the view, not mirrored, that a crop of the result is computed from."""
        return input_span(self.size[0], out[0], rows, self.aligned), input_span(
            self.size[1], out[1], columns, self.aligned
        )

    def crop(self, out: Size, rows: Span, columns: Span) -> Tensor:
        """Return a crop (C, R, K) of the logits of this view resized to `out`."""
        down, across = self.read_for(out, rows, columns)
        logits_CRK = self._averaged(down, self.mirrored_columns(across))
        logits_CRK = logits_CRK.flip(-1) if self.mirrored else logits_CRK
        return crop_of_resized(logits_CRK, self.size, out, rows, columns, (down[0], across[0]), self.aligned)

    def _averaged(self, rows: Span, columns: Span) -> Tensor:
        """Return the mean over all windows, on pixels of the view."""
        numbers = self.touching(rows, columns)
        if len(self.corners) == 1:
            return self._enlarged(0, rows, columns)
        first = self.coarse[numbers[0]]
        total_CRK = first.new_zeros(first.shape[0], rows[1] - rows[0], columns[1] - columns[0])
        count_RK = first.new_zeros(total_CRK.shape[1:])
        for i in numbers:
            (y, r), (x, k) = (
                _overlap(corner, side, span)
                for corner, side, span in zip(self.corners[i], self.extent, (rows, columns), strict=True)
            )
            total_CRK[:, y[0] : y[1], x[0] : x[1]] += self._enlarged(i, r, k)
            count_RK[y[0] : y[1], x[0] : x[1]] += 1
        return total_CRK.div_(count_RK)

    def _enlarged(self, number: int, rows: Span, columns: Span) -> Tensor:
        """Return a crop of a window's logits, on its pixels."""
        coarse_CHW = self.coarse[number]
        return crop_of_resized(coarse_CHW, _size(coarse_CHW), self.extent, rows, columns, aligned=self.aligned)


def _overlap(corner: int, side: int, span: Span) -> tuple[Span, Span]:
    """Return where a window and a span meet, counted from the first pixel of the span and of the window."""
    first, last = max(corner, span[0]), min(corner + side, span[1])
    return (first - span[0], last - span[0]), (first - corner, last - corner)


def _size(x_CHW: Tensor) -> Size:
    return int(x_CHW.shape[1]), int(x_CHW.shape[2])


@dataclass(eq=False)
class _Picture:
    """The views of one image of a batch, and the size of its label map."""

    views: list[View]
    out: Size


class Inference:
    """The predictions of a segmentor.

    Args:
        network: in evaluation mode, on any device.
        normalise: mean and standard deviation for images that come as bytes.
        at_once: pixels of windows that pass the network together, at least one window.
        strip: scores, of all classes together, that are finished at a time.
        kept: bytes of coarse logits that are kept at a time.
        progress: is called with the pixels of an image that are done and all of them.
    """

    def __init__(
        self,
        network: Segmentor,
        normalise: Normalise,
        *,
        at_once: int | None = None,
        strip: int | None = None,
        kept: int = KEPT,
        progress: Progress | None = None,
    ) -> None:
        self.network, self.normalise, self.kept, self.progress = network, normalise, kept, progress
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        small = self.device.type == "cpu"
        self.at_once = at_once or (AT_ONCE if small else AT_ONCE_GPU)
        self.strip = strip or (STRIP if small else STRIP_GPU)

    @torch.inference_mode()
    def label_maps(self, batch: Batch, protocol: Protocol) -> list[Tensor]:
        """Return each image's most likely class of every pixel: (H, W) uint8, on the CPU, of its original size."""
        return [self._label_map(picture) for picture in self._pictures(batch, protocol)]

    @torch.inference_mode()
    def scores(self, batch: Batch, protocol: Protocol) -> list[Tensor]:
        """Return each image's (C, H, W) logits of one view, or mean probabilities of several; needs much memory."""
        scores = []
        for picture in self._pictures(batch, protocol):
            strips = list(self._strips(picture))
            _, _, first = strips[0]
            scores_CHW = first.new_empty(first.shape[0], *picture.out)
            for rows, columns, values_CRK in strips:
                scores_CHW[:, rows[0] : rows[1], columns[0] : columns[1]] = values_CRK
            scores.append(scores_CHW)
        return scores

    def _label_map(self, picture: _Picture) -> Tensor:
        labels_HW, done = torch.empty(picture.out, dtype=torch.uint8), 0
        for rows, columns, values_CRK in self._strips(picture):
            labels_HW[rows[0] : rows[1], columns[0] : columns[1]] = first_maximum(values_CRK).to("cpu", torch.uint8)
            done += (rows[1] - rows[0]) * (columns[1] - columns[0])
            if self.progress is not None:
                self.progress(done, labels_HW.numel())
        return labels_HW

    def _pictures(self, batch: Batch, protocol: Protocol) -> Generator[_Picture]:
        """Yield images with their views; the network has processed those of small images together."""
        if batch.images_BCHW.dtype != torch.uint8 or max(map(math.prod, batch.sizes)) <= self.at_once:
            pictures = [self._picture(batch, i, protocol) for i in range(len(batch))]
            everything = [(view, i) for p in pictures for view in p.views for i in range(len(view.corners))]
            if sum(self._bytes(view.extent) for view, _ in everything) <= self.kept:
                self._run(everything)
            for picture in pictures:
                yield picture
                picture.views.clear()
            return
        for i in range(len(batch)):
            yield self._picture(batch, i, protocol)

    def _picture(self, batch: Batch, i: int, protocol: Protocol) -> _Picture:
        image_3HW, (height, width) = batch.images_BCHW[i], batch.sizes[i]
        if image_3HW.dtype == torch.uint8:
            image_3HW = image_3HW[:, :height, :width].cpu()
            sizes = protocol.sizes((height, width))
            scaled = [_bytes_resized(image_3HW, size) for size in sizes]
            return _Picture(self._views(scaled, sizes, protocol), (height, width))
        if protocol.views == 1:  # the network reads the padding too
            return _Picture(self._views([image_3HW], [(height, width)], protocol), batch.original_sizes[i])
        image_3HW = image_3HW[:, :height, :width]
        sizes = [(int(height * ratio + 0.5), int(width * ratio + 0.5)) for ratio in protocol.ratios]
        scaled = [_floats_resized(image_3HW, size) for size in sizes]
        return _Picture(self._views(scaled, sizes, protocol), batch.original_sizes[i])

    def _views(self, scaled: Sequence[Tensor], sizes: Sequence[Size], protocol: Protocol) -> list[View]:
        """Return plain views, each followed by its mirror image if the protocol flips."""
        views, aligned = [], self.network.align_corners
        for pixels_3HW, size in zip(scaled, sizes, strict=True):
            height, width = (math.ceil(side / protocol.divisor) * protocol.divisor for side in _size(pixels_3HW))
            window = (height, width) if protocol.window is None else protocol.window
            extent = max(SMALLEST, min(window[0], height)), max(SMALLEST, min(window[1], width))
            corners = protocol.windows((height, width))
            plain = View(pixels_3HW, size, False, extent, corners, aligned)
            views += [plain, replace(plain, mirrored=True, coarse={})] if protocol.flip else [plain]
        return views

    def _strips(self, picture: _Picture) -> Generator[tuple[Span, Span, Tensor]]:
        """Yield scores in strips, top to bottom; an image with too many windows is processed in several columns."""
        height, width = picture.out
        band = self._band(picture)
        for left in range(0, width, band):
            columns = left, min(left + band, width)
            step = self._rows_at_once(picture, columns[1] - columns[0])
            for top in range(0, height, step):
                rows = top, min(top + step, height)
                self._provide(picture, rows, columns)
                for some in self._cut(picture, rows, columns):
                    yield some, columns, self._scores(picture, some, columns)
            for view in picture.views:
                if len(view.corners) > 1 and band < width:
                    view.coarse.clear()

    def _cut(self, picture: _Picture, rows: Span, columns: Span) -> list[Span]:
        """Return the rows of a strip in pieces that caches hold.

        Where a view reads all rows of a window, the strip stays as it is: windows that are enlarged at once and in
        pieces differ in the last bits.
        """
        reads = [view.read_for(picture.out, rows, columns)[0] for view in picture.views]
        complete = any(y1 - y0 >= view.extent[0] for view, (y0, y1) in zip(picture.views, reads, strict=True))
        if complete or self.device.type != "cpu":
            return [rows]
        step = max(1, min(self.strip, CACHED) // (self.network.num_classes * (columns[1] - columns[0])))
        return [(top, min(top + step, rows[1])) for top in range(*rows, step)]

    def _scores(self, picture: _Picture, rows: Span, columns: Span) -> Tensor:
        if len(picture.views) == 1:
            return picture.views[0].crop(picture.out, rows, columns)
        total_CRK = None
        for view in picture.views:
            probabilities_CRK = view.crop(picture.out, rows, columns).softmax(dim=0)
            total_CRK = probabilities_CRK if total_CRK is None else total_CRK.add_(probabilities_CRK)
        assert total_CRK is not None
        return total_CRK.div_(len(picture.views))

    def _provide(self, picture: _Picture, rows: Span, columns: Span) -> None:
        """Compute the missing windows that these pixels need, and drop those that end above."""
        missing = []
        for view in picture.views:
            down, across = view.read_for(picture.out, rows, columns)
            needed = view.touching(down, view.mirrored_columns(across))
            missing += [(view, i) for i in needed if i not in view.coarse]
            if down[0] > 0:
                view.coarse = {
                    i: coarse for i, coarse in view.coarse.items() if view.corners[i][0] + view.extent[0] > down[0]
                }
        self._run(missing)

    def _run(self, windows: Iterable[tuple[View, int]]) -> None:
        """Compute the logits of windows, those of one size together."""
        by_extent: dict[Size, list[tuple[View, int]]] = {}
        for view, i in windows:
            by_extent.setdefault(view.extent, []).append((view, i))
        for extent, of_size in by_extent.items():
            count = max(1, self.at_once // math.prod(extent))
            for start in range(0, len(of_size), count):
                some = of_size[start : start + count]
                logits_BCHW = self._coarse([view.window(i) for view, i in some], extent)
                for (view, i), logits_CHW in zip(some, logits_BCHW, strict=True):
                    view.coarse[i] = logits_CHW.clone()  # a view would keep the larger tensor alive

    def _coarse(self, windows: Sequence[Tensor], extent: Size) -> Tensor:
        images_BCHW = torch.stack([self._ready(window, extent) for window in windows])
        logits_BCHW = self.network.coarse(images_BCHW)
        return logits_BCHW if logits_BCHW.dtype == torch.float64 else logits_BCHW.float()

    def _ready(self, window_3HW: Tensor, extent: Size) -> Tensor:
        """Return a window normalised, on the device, padded where the image is smaller than any network takes."""
        window_3HW = window_3HW.to(self.device)
        window_3HW = normalised(window_3HW, self.normalise) if window_3HW.dtype == torch.uint8 else window_3HW
        height, width = window_3HW.shape[1:]
        return F.pad(window_3HW, (0, extent[1] - width, 0, extent[0] - height)).to(self.dtype)

    def _bytes(self, extent: Size) -> int:
        """Return the bytes of the logits of a window."""
        return 4 * self.network.num_classes * math.prod(math.ceil(side / self.network.stride) for side in extent)

    def _band(self, picture: _Picture) -> int:
        """Return the largest width of columns for which the windows of a strip can be kept."""
        width = picture.out[1]
        band = width
        while band > 256 and sum(self._alive(view, band / width) for view in picture.views) > self.kept:
            band = math.ceil(band / 2)
        return band

    def _alive(self, view: View, share: float) -> int:
        """Return the bytes of the windows that meet a strip of few rows and this share of the columns."""
        if len(view.corners) == 1:
            return self._bytes(view.extent)
        lefts = sorted({left for _, left in view.corners})
        tops = sorted({top for top, _ in view.corners})
        across = max(1, math.ceil(len(lefts) * share)) + (1 if share < 1 else 0)
        down = max(sum(top < at + 1 <= top + view.extent[0] for top in tops) for at in tops)
        return min(across, len(lefts)) * min(down, len(tops)) * self._bytes(view.extent)

    def _rows_at_once(self, picture: _Picture, columns: int) -> int:
        """Return the rows of a strip: as many as `strip` allows for the result, and for a larger view that it needs."""
        larger = max(1.0, *(math.prod(v.size) / math.prod(picture.out) for v in picture.views))
        return max(1, int(self.strip / (self.network.num_classes * columns * larger)))


def _bytes_resized(image_3HW: Tensor, size: Size) -> Tensor:
    image_HW3 = np.ascontiguousarray(image_3HW.movedim(0, -1).numpy())
    return torch.from_numpy(resize_image(image_HW3, size)).movedim(-1, 0)


def _floats_resized(image_3HW: Tensor, size: Size) -> Tensor:
    if tuple(image_3HW.shape[1:]) == size:
        return image_3HW
    return F.interpolate(image_3HW[None], size=size, mode="bilinear", align_corners=False)[0]
