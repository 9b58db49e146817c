"""What the original code computes: the numbers of `golden_numbers.json.gz`, and the weights that they belong to.

Published weights are not here, so the numbers are of test weights: each tensor's values follow from its name in the
original code, its shape and its kind. That they come out proves both the table that renames the original's names and
the arithmetic of the network. `tests/golden/pack.py` makes the file from the complete numbers of the tests.

B images, C channels, H x W pixels.
"""

import gzip
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fourstage.registry import FAMILIES
from fourstage.weights.load import load_state

FILE = "golden_numbers.json.gz"
KEPT = 32  # numbers of each output
RELATIVE, OF_STD = 1e-4, 1e-4  # allowed: of the number itself, and of the standard deviation of the output
FILLS: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], np.ndarray]] = {  # kind -> from normal numbers to values
    "weight": lambda z, shape: z / math.sqrt(math.prod(shape[1:])),
    "bias": lambda z, shape: 0.02 * z,
    "table": lambda z, shape: 0.02 * z,
    "norm_weight": lambda z, shape: 1 + 0.1 * z,
    "scale": lambda z, shape: 0.5 + 0.1 * z,
    "bn_mean": lambda z, shape: 0.1 * z,
    "bn_var": lambda z, shape: 2 + 0.2 * np.abs(z),
}


@dataclass(frozen=True)
class Golden:
    """The numbers of one network.

    Attributes:
        model, arguments, dense: what to build.
        source: the original repository.
        shape: of the image, B C H W.
        state: name in the original's state dict, shape, kind.
        outputs: of each output how many numbers were drawn, the first of them, and the output's standard deviation.
    """

    model: str
    arguments: Mapping[str, Any]
    dense: bool
    source: str
    shape: tuple[int, int, int, int]
    state: Sequence[tuple[str, tuple[int, ...], str]]
    outputs: Sequence[tuple[int, Sequence[float], float]]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the test weights under the names of the original code."""
        return {key: torch.from_numpy(filled(key, shape, kind)) for key, shape, kind in self.state}


@dataclass(frozen=True)
class Compared:
    """How far a network is from the original's numbers."""

    golden: Golden
    numbers: int
    largest: float  # deviation, in standard deviations of the output
    agrees: bool


def filled(key: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Return the test values of a tensor, float32."""
    normal = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    return np.asarray(FILLS[kind](normal, shape), np.float32)


@cache
def _content() -> dict[str, Any]:
    return json.loads(gzip.decompress((files("fourstage.weights") / FILE).read_bytes()))


def find(model: str, *, dense: bool, arguments: Mapping[str, Any] | None = None) -> Golden | None:
    """Return the numbers of a network, those for these arguments first; else of another of its family; else None."""
    rows = [row for row in _content()["networks"] if row["dense"] == dense]
    named = {key for row in rows for key in row["arguments"]}
    wanted = {key: value for key, value in (arguments or {}).items() if key in named}
    own = sorted((row for row in rows if row["model"] == model), key=lambda row: row["arguments"] != wanted)
    family = sorted((row for row in rows if _family(row["model"]) == _family(model)), key=_size)
    found = next(iter((*own, *family)), None)
    if found is None:
        return None
    state = tuple((key, tuple(shape), kind) for key, shape, kind in found["state"])
    outputs = tuple((drawn, tuple(numbers), std) for drawn, numbers, std in found["outputs"])
    return Golden(**{**found, "shape": tuple(found["shape"]), "state": state, "outputs": outputs})


def _size(row: Mapping[str, Any]) -> int:
    return sum(math.prod(shape) for _, shape, _ in row["state"])


def _family(model: str) -> str:
    """Return the longest prefix of a name that the registry knows, which also has the mixer of a unified network."""
    prefix = max((prefix for prefix in FAMILIES if model.startswith(prefix)), key=len, default=model)
    return model.rpartition("_")[0] if model.startswith("unified_") else prefix


def parameters(model: str, arguments: Mapping[str, Any], *, dense: bool) -> tuple[int, dict[str, Any]] | None:
    """Return the parameters of the original's network, and the arguments that build it here; None: they are not known.

    Args:
        arguments: of the network; the original's are among them.
    """
    for row in _content()["parameters"]:
        others = {key: value for key, value in row["arguments"].items() if key != "num_classes"}
        if (row["model"], row["dense"]) == (model, dense) and all(
            arguments.get(key) == value for key, value in others.items()
        ):
            return row["params"], row["arguments"]
    return None


@torch.inference_mode()
def compare(network: nn.Module, golden: Golden) -> Compared:
    """Fill a network with the test weights, through the original's names, and compare its outputs.

    Raises:
        ValueError: the names do not fit.
    """
    load_state(network, golden.tensors, source="the test weights")
    image_BCHW = np.random.default_rng(0).standard_normal(golden.shape).astype(np.float32)
    found = network.eval()(torch.from_numpy(image_BCHW))
    largest, agrees, numbers = 0.0, True, 0
    for output, (drawn, expected, std) in zip(
        [found] if isinstance(found, Tensor) else found, golden.outputs, strict=True
    ):
        flat = output.contiguous().reshape(-1).numpy()
        ours = flat[np.random.default_rng(1).integers(0, flat.size, drawn)][: len(expected)]
        deviation = np.abs(ours.astype(np.float64) - np.asarray(expected))
        agrees &= bool((deviation <= RELATIVE * np.abs(expected) + OF_STD * std).all())
        largest, numbers = max(largest, float(deviation.max() / std)), numbers + len(expected)
    return Compared(golden, numbers, largest, agrees)
