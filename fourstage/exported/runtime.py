"""One contract for all runtimes: an exported file is opened, and `run` maps images to named arrays. B images."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fourstage.cores import available_cores, number_by_user
from fourstage.documents import read_json
from fourstage.exported.description import Description
from fourstage.extras import install_package
from fourstage.files import open_regular

RUNTIMES = {  # by the ending of the file: the module below, and the package that it needs
    ".onnx": ("fourstage.exported.onnx_runtime", "onnxruntime"),
    ".xml": ("fourstage.exported.openvino_runtime", "openvino"),
    ".pt2": ("fourstage.exported.torch_runtime", "torch"),
}


PROOF = ".proof.json"  # is added to the name of a file for that of its proof
PROOF_BYTES, PROOF_VALUES = 2**20, 100_000


class Runtime(ABC):
    """An exported file that is ready to run.

    Args:
        path: of the file.
        description: that the file carries.
    """

    name: str  # of the library that runs it

    def __init__(self, path: Path, description: Description) -> None:
        self.path, self.description = path, description

    def run(self, images_B3HW: np.ndarray, size: tuple[int, int] | None = None) -> dict[str, np.ndarray]:
        """Return the outputs of the graph by their names, for prepared images; see `preparing.as_input`.

        A graph with a fixed number of images reads them in several batches, the last one filled up.

        Args:
            size: (H, W) of all images without their padding, which some networks leave out; None: there is no padding.

        Raises:
            ValueError: the graph cannot compute them.
        """
        input, size = self.description.input, size or images_B3HW.shape[2:]
        fixed, sides = input.batch, (input.height, input.width)
        if any(side not in (None, given) for side, given in zip(sides, images_B3HW.shape[2:], strict=False)):
            raise self.not_computed(images_B3HW, ValueError(f"its sides are {sides[0]} x {sides[1]}"))
        if fixed is None or len(images_B3HW) == fixed:
            return self._named(images_B3HW, size)
        batches = [_filled(images_B3HW[i : i + fixed], fixed) for i in range(0, len(images_B3HW), fixed)]
        parts = [self._named(batch_B3HW, size) for batch_B3HW in batches]
        return {name: np.concatenate([part[name] for part in parts])[: len(images_B3HW)] for name in parts[0]}

    def _named(self, images_B3HW: np.ndarray, size: tuple[int, ...]) -> dict[str, np.ndarray]:
        inputs = [np.ascontiguousarray(images_B3HW)]
        if self.description.input.sizes is not None:
            inputs.append(np.array([size] * len(images_B3HW), np.int64))
        values, names = self.compute(inputs), self.description.outputs
        if len(values) != len(names):
            raise ValueError(f"{self.path} returns {len(values)} outputs, and its description names {len(names)}")
        return dict(zip(names, values, strict=True))

    @abstractmethod
    def compute(self, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Return the outputs of the graph in their order, for the images and, where it reads them, their sizes."""

    def not_computed(self, images_B3HW: np.ndarray, error: Exception) -> ValueError:
        """Return the error for images on which the graph failed."""
        sides = " x ".join(str(side) for side in images_B3HW.shape)
        reason = " ".join(str(error).split())
        return ValueError(f"{self.path} cannot compute an input of {sides} ({reason:.300}); export it with other axes")


def _filled(images_B3HW: np.ndarray, count: int) -> np.ndarray:
    missing = count - len(images_B3HW)
    if not missing:
        return images_B3HW
    return np.concatenate([images_B3HW, np.zeros((missing, *images_B3HW.shape[1:]), images_B3HW.dtype)])


def is_exported(source: object) -> bool:
    """Return whether a name is that of an exported file, whether or not there is one."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in RUNTIMES


def open_runtime(path: str | Path) -> Runtime:
    """Open an exported file with its runtime.

    Raises:
        ValueError, OSError: there is no such file, it is damaged or unsafe, or its runtime is missing; one sentence.
    """
    path = Path(path)
    if not is_exported(path):
        raise ValueError(f"{path} is not an exported file; give one whose name ends in {', '.join(RUNTIMES)}")
    module, package = RUNTIMES[path.suffix.lower()]
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check the path, or export a network with fourstage export")
    check_sums(path)
    try:
        import_module(package)
    except ImportError as error:
        raise ValueError(
            f"{path} is run by {package}, which is missing ({error}); type: {install_package(package)}"
        ) from error
    return import_module(module).open_file(path)


def sums(path: Path) -> dict[str, str]:
    """Return the sha256 of an exported file, and of the .bin file of OpenVINO's, by the endings of their names."""
    files = [path, *([path.with_suffix(".bin")] if path.suffix.lower() == ".xml" else [])]
    out = {}
    for one in files:
        with open_regular(one) as opened:
            content: Any = opened  # a buffered reader, which IO[bytes] does not say
            out[one.suffix.lower()] = hashlib.file_digest(content, "sha256").hexdigest()
    return out


def check_sums(path: Path) -> None:
    """Raise ValueError or OSError unless an exported file is the one that was proved. Without a proof, any file is."""
    with open_regular(path):  # raises for what is no file
        pass
    proof = path.with_name(path.name + PROOF)
    if not proof.is_file():
        return
    values = read_json(proof, most_bytes=PROOF_BYTES, most_values=PROOF_VALUES)
    known = values.get("sha256") if isinstance(values, dict) else None
    if isinstance(known, dict) and known != sums(path):
        raise ValueError(
            f"{path} was changed or damaged after its proof; export the network again, or remove {proof.name} if the "
            f"change is meant"
        )


def threads() -> int:
    """Return how many threads a graph runs with: as many as the user set for OpenMP, else one for each core."""
    return number_by_user() or available_cores()
