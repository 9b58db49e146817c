"""An exported file behind the interface of a network, so that it is measured as a network is: the graph alone.

B images, H x W pixels.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fourstage.bench.count import Count
from fourstage.bench.options import Options
from fourstage.exported.description import KeepRatio, MiddleCrop, Views
from fourstage.exported.preparing import padded_size
from fourstage.exported.runtime import Runtime, open_runtime

SIDE = 224  # pixels, of a backbone that takes any size


class ExportedNetwork(nn.Module):
    """A graph that its own runtime runs.

    Args:
        img_size: (H, W) of the images; None: those that the file reads most.

    Attributes:
        default_cfg: with the size of the images, as networks have it.

    Raises:
        ValueError: the file reads images of another size alone.
    """

    def __init__(self, runtime: Runtime, img_size: tuple[int, int] | None) -> None:
        super().__init__()
        self.runtime, input = runtime, runtime.description.input
        size = padded_size(img_size or usual_size(runtime), input)
        if img_size is not None and size != img_size:
            raise ValueError(
                f"{runtime.path} reads images of {size[0]} x {size[1]} pixels, not {img_size[0]} x {img_size[1]}; "
                f"leave --img-size out"
            )
        self.default_cfg = {"input_size": (3, *size)}

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        values = images_BCHW.numpy().astype(self.runtime.description.input.dtype, copy=False)
        return [torch.from_numpy(one) for one in self.runtime.run(values).values()]

    def count(self) -> Count:
        """Return the cost as far as it is known: the size of an image."""
        _, height, width = self.default_cfg["input_size"]
        return Count(0, 0, 0, 0, 0, (height, width))


def usual_size(runtime: Runtime) -> tuple[int, int]:
    """Return the (H, W) of an image by the file's own rule."""
    match runtime.description.resize:
        case MiddleCrop(size=side):
            return side, side
        case KeepRatio(scale=scale):
            return min(scale), max(scale)
        case Views(window=window) if window is not None:
            return window
        case Views(scale=scale) if scale is not None:
            return min(scale), min(scale)
        case _:
            return SIDE, SIDE


def build_exported(name: str, img_size: tuple[int, int] | None) -> ExportedNetwork:
    """Open an exported file for a measurement."""
    return ExportedNetwork(open_runtime(Path(name)), img_size)


def beside_networks(files: list[str], options: Options) -> Options:
    """Return the options by which networks are measured at the size and the batch of the files beside them.

    A detector or segmentor has a size and a batch of its own otherwise, and different work would be compared.
    """
    opened = [open_runtime(Path(file)) for file in files]
    sizes = {padded_size(usual_size(runtime), runtime.description.input) for runtime in opened}
    size = sizes.pop() if len(sizes) == 1 else None
    dense = any(runtime.description.task != "classification" for runtime in opened)
    batch = options.batch_size or (1 if dense else None)
    return replace(options, img_size=options.img_size or size, batch_size=batch)


def check_options(names: list[str], options: Options) -> None:
    """Raise ValueError for options that exported files do not have."""
    refused = {
        "--train": options.train,
        "--dense": options.dense,
        "--compile": options.compile,
        "--channels-last": options.channels_last,
        "--dtype": options.dtype != "float32",
        "--device cuda": options.device == "cuda",
    }
    for option, is_given in refused.items():
        if is_given:
            raise ValueError(f"{names[0]} is an exported file, whose graph is fixed; leave {option} out")
