"""Write an exported file: trace the network, write the file, prove it, and only then give it its name."""

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

from torch import nn

from fourstage.export import onnx_file, other_files
from fourstage.export.graphs.base import Graph
from fourstage.export.half import halve_onnx, halve_parameters
from fourstage.export.proof import FLOAT32, HALF, Images, Proof, Tolerance, as_json, prove
from fourstage.export.trace import Traced, trace
from fourstage.exported.description import Description
from fourstage.exported.runtime import PROOF, RUNTIMES, open_runtime, sums
from fourstage.extras import install
from fourstage.files import atomic_path, write_text

Format = Literal["onnx", "torch", "openvino"]
SUFFIXES: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
PACKAGES: dict[str, tuple[str, ...]] = {  # that each format needs beside torch
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch": (),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


@dataclass(frozen=True)
class Written:
    """A file that was written, or would have been if its proof had not failed.

    Attributes:
        size: bytes of the file, with those of OpenVINO's weights.
    """

    path: Path
    proof: Proof
    size: int

    @property
    def proof_path(self) -> Path:
        return proof_path(self.path)


def proof_path(path: Path) -> Path:
    """Return where the proof of a file is."""
    return path.with_name(path.name + PROOF)


def check_format(format: str) -> None:
    """Raise ValueError for an unknown format, or one whose packages are missing."""
    if format not in SUFFIXES:
        raise ValueError(f"there is no format {format!r}; choose {', '.join(SUFFIXES)}")
    for package in PACKAGES[format]:
        try:
            import_module(package)
        except ImportError as error:
            raise ValueError(
                f"--format {format} needs {package}, which is missing ({error}); type: {install('export')}"
            ) from error


def check_out(path: Path, format: str, *, force: bool = True) -> None:
    """Raise ValueError or OSError unless a file of this format can have this name.

    Args:
        force: files of this name may be replaced.
    """
    suffix = SUFFIXES[format]
    if path.is_dir():
        raise IsADirectoryError(f"--out {path} is a folder; name a file in it that ends in {suffix}")
    if path.suffix != suffix:
        raise ValueError(f"--out {path} must end in {suffix}, by which files of --format {format} are known")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} for {path.name}; make it, or name another --out")
    for one in _files_of(path, format):
        if one.exists() and not force:
            raise ValueError(f"{one} exists: add --force to replace it, or name another --out")
    try:
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise type(error)(f"no file can be made in {path.parent} ({error.strerror}); name another --out") from error


def write(
    graph: Graph,
    network: nn.Module,
    path: Path,
    format: Format,
    describe: Callable[[Traced], Description],
    images: Callable[[Traced], Sequence[Images]],
    *,
    size: tuple[int, int],
    axes: Collection[str] = (),
    half: bool = False,
    also: dict[str, object] | None = None,
) -> Written:
    """Write a network in a format and prove the file. A file whose proof fails is removed again, see `Proof.failure`.

    Args:
        graph: of the network, in evaluation mode on the CPU.
        network: as it predicts, for the proof.
        path: with the suffix of the format.
        describe: what the file says about itself.
        images: on which it is proved.
        size: (H, W) of the images, for the sides that are not dynamic.
        axes: dynamic ones.
        half: store large weights in half precision; all is computed in float32.
        also: what the proof says beside the deviations.

    Raises:
        ValueError, OSError: there is no such export, or the file cannot be written.
    """
    assert not graph.training, "a network is exported as it predicts"
    recorded = graph
    if half and format == "torch":
        recorded = deepcopy(graph)
        halve_parameters(recorded)
    traced = trace(recorded, size, axes)
    description = describe(traced)
    try:
        with _new_files(path, format) as new:
            _write_format(traced, new, format, description, half=half)
            proof = _proved(new, path, graph, network, images(traced), HALF if half else FLOAT32)
            written = Written(path, proof, sum(one.stat().st_size for one in _files_of(new, format)))
            if proof.failure:
                raise _FailedError(written)
            sha256 = sums(new)
            written.proof_path.unlink(missing_ok=True)  # of the file that is replaced
    except _FailedError as failed:
        return failed.written
    about = {"file": path.name, "file_format": format, "bytes": written.size, "sha256": sha256, **(also or {})}
    write_text(written.proof_path, json.dumps(as_json(proof, **about), indent=2) + "\n")
    return written


def _proved(
    new: Path, path: Path, graph: Graph, network: nn.Module, images: Sequence[Images], tolerance: Tolerance
) -> Proof:
    """Return the proof of a new file under the name that it will get."""
    try:
        runtime = open_runtime(new)
    except ValueError as error:
        return Proof(RUNTIMES[path.suffix][1], tolerance, (), stopped=str(error).replace(str(new), str(path)))
    runtime.path = path
    return prove(runtime, graph, network, images, tolerance)


class _FailedError(Exception):
    """Ends the writing of a file, which is removed."""

    def __init__(self, written: Written) -> None:
        super().__init__(written.proof.failure)
        self.written = written


@contextmanager
def _new_files(path: Path, format: str) -> Iterator[Path]:
    """Yield the path of a new file, which takes its name at the end, after the file of its weights."""
    new: Path | None = None
    try:
        with atomic_path(path) as new:
            yield new
            if format == "openvino":
                new.with_suffix(".bin").replace(path.with_suffix(".bin"))
    finally:
        if new is not None and format == "openvino":
            new.with_suffix(".bin").unlink(missing_ok=True)


def _files_of(path: Path, format: str) -> list[Path]:
    return [path, path.with_suffix(".bin")] if format == "openvino" else [path]


def _write_format(traced: Traced, path: Path, format: str, description: Description, *, half: bool) -> None:
    if format == "torch":
        other_files.write_torch(traced.program, path, description)
        return
    model = onnx_file.onnx_model(traced.program, description.input.names, description.outputs)
    if format == "onnx":
        if half:
            halve_onnx(model)
        onnx_file.write_onnx(model, path, description)
        return
    other_files.write_openvino(model, path, description, half=half)
