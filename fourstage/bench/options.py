"""The options of a measurement, checked before torch is imported."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fourstage.resources import size_text

Dtype = Literal["float32", "bfloat16", "float16"]
Clock = Literal["wall", "cpu"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
LARGEST = 2**14  # pixels a side
SMALLEST = 32  # pixels a side
MOST_PIXELS = 2**40  # of a batch: 13 TB as numbers of the network


@dataclass(frozen=True)
class Options:
    """How models are measured.

    Attributes:
        device: "auto" takes a GPU where there is one.
        dtype: any other than float32 means autocast; parameters stay in float32.
        channels_last: memory format of parameters and images.
        compile: apply torch.compile, once for each batch size.
        img_size: (H, W) in pixels; None: each model's own.
        batch_size: images of a step; None: 8 on the CPU, 128 on a GPU.
        seconds: for each model in inference, and the same again in training.
        threads: of the CPU; None: torch's default.
        dense: measure the network of `create_backbone` instead of the classifier.
        train: measure a training step too.
        clock: "cpu" counts the processor time of this process (all threads together) instead of wall time.
        imports: Python files that register networks, which the process that measures memory runs too.

    Raises:
        ValueError: a value out of its range, or processor time on a GPU.
    """

    device: str = "auto"
    dtype: Dtype = "float32"
    channels_last: bool = False
    compile: bool = False
    img_size: tuple[int, int] | None = None
    batch_size: int | None = None
    seconds: float = 10.0
    threads: int | None = None
    dense: bool = False
    train: bool = False
    clock: Clock = "wall"
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"there is no device {self.device!r}; choose {', '.join(DEVICES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"there is no dtype {self.dtype!r}; choose {', '.join(DTYPES)}")
        for name, value, most in (("batch size", self.batch_size, 2**20), ("number of threads", self.threads, 2**12)):
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"the {name} must be at least 1 and at most {most:,}; got {value:,}")
        if not 0 < self.seconds <= 3600:
            raise ValueError(f"seconds is the time for each model, above 0 and at most 3600; got {self.seconds:g}")
        if self.img_size is not None and min(self.img_size) < SMALLEST:
            height, width = self.img_size
            raise ValueError(f"images of {height} x {width} pixels are too small; the smallest are 32 x 32")
        if self.img_size is not None and max(self.img_size) > LARGEST:
            height, width = self.img_size
            raise ValueError(
                f"images of {height} x {width} pixels are too large; the largest are {LARGEST} x {LARGEST}"
            )
        self._check_batch()
        if self.clock == "cpu" and self.device == "cuda":
            raise ValueError("processor time does not include a GPU's work; add --device cpu, or leave out --cpu-time")

    def _check_batch(self) -> None:
        """Raise ValueError for a batch that no machine holds, before it is halved many times."""
        if self.img_size is None or self.batch_size is None:
            return
        height, width = self.img_size
        if (pixels := self.batch_size * height * width) > MOST_PIXELS:
            raise ValueError(
                f"{self.batch_size:,} images of {height} x {width} pixels have {size_text(12 * pixels)} of numbers, "
                f"more than any memory; give a smaller --batch-size, or a smaller --img-size"
            )

    def modes(self) -> tuple[str, ...]:
        """Return the modes that are measured: "infer", and "train" where `train` is set."""
        return ("infer", "train") if self.train else ("infer",)


def parse_size(text: str) -> tuple[int, int]:
    """Return (H, W) of `224` or `800x1280` (height, then width).

    Raises:
        ValueError: the text has neither form.
    """
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise ValueError(f"an image size is a side in pixels, such as 224, or HEIGHTxWIDTH; got {text!r}")
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def check_output(path: str | Path) -> Path:
    """Return `path` if a file can be written there.

    Raises:
        ValueError: the path is a folder, its folder does not exist, or it is not writable.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} for {path.name}; create it, or choose another place")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"you have no permission to write {path}; choose another place")
    return path


def check_compiler() -> None:
    """Raise ValueError where torch.compile has no C++ compiler for the CPU."""
    asked = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([asked] if asked else ["g++", "clang++", "c++"])):
        raise ValueError("--compile on the CPU needs a C++ compiler, and there is none; install g++, or leave it out")
