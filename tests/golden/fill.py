"""The weights, inputs and sample positions behind every golden file, reproducible from a manifest alone."""

import gzip
import json
import math
import zlib
from pathlib import Path

import numpy as np


def fill(key: str, shape: tuple[int, ...], kind: str) -> np.ndarray | None:
    """Value of one state-dict entry under its ORIGINAL name, float32; None where the constructor's own value stays.

    One stream per key: default_rng(crc32 of the utf-8 key), standard normal z in float64, scaled, rounded last.

        weight       z / sqrt(prod(shape[1:]))     convolution and linear kernels
        bias         0.02 z                        every other 1-D learned tensor
        norm_weight  1 + 0.1 z                     gain of a normalisation layer
        scale        0.5 + 0.1 z                   layer-scale gammas, any rank
        table        0.02 z                        relative-position tables, position embeddings
        bn_mean      0.1 z                         BatchNorm running_mean
        bn_var       2 + 0.2 |z|                   BatchNorm running_var (keeps deep BatchNorm residual nets bounded)
        keep         None                          index buffers, masks, num_batches_tracked
    """
    if kind == "keep":
        return None
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    value = {
        "weight": lambda: z / math.sqrt(math.prod(shape[1:])),
        "bias": lambda: 0.02 * z,
        "table": lambda: 0.02 * z,
        "norm_weight": lambda: 1 + 0.1 * z,
        "scale": lambda: 0.5 + 0.1 * z,
        "bn_mean": lambda: 0.1 * z,
        "bn_var": lambda: 2 + 0.2 * np.abs(z),
    }[kind]()
    return np.asarray(value, dtype=np.float32)


def read_manifest(path: str | Path) -> dict:
    """The .json.gz beside a golden .npz."""
    with gzip.open(path, "rt") as file:
        return json.load(file)


def original_state(manifest: dict) -> dict[str, np.ndarray]:
    """What the original repository's checkpoint would hold, minus the buffers that every constructor rebuilds."""
    state = {key: fill(key, tuple(shape), kind) for key, (shape, _, kind) in manifest["state"].items()}
    return {key: value for key, value in state.items() if value is not None}


def image(shape: tuple[int, ...]) -> np.ndarray:
    """The input of every golden: default_rng(0), standard normal, float32."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def sampled(values: np.ndarray, n: int) -> np.ndarray:
    """The n values a golden file keeps of a feature map, taken from the contiguous NCHW array."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat[np.random.default_rng(1).integers(0, flat.size, n)]


def fill_head(key: str, shape: tuple[int, ...], kind: str, kind_scale: dict[str, float]) -> np.ndarray:
    """The same idea for `heads/`, whose manifests name a kind per key and a factor per kind (`kind_scale`, absent = 1).

    Differs from `fill`: running_var is 1 + 0.1 |z|; final layers have kinds of their own (`cls_weight`, `reg_bias`...).
    """
    z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if kind == "counter":
        return np.zeros(tuple(shape), dtype=np.int64)
    if kind == "running_mean":
        value = 0.1 * z
    elif kind == "running_var":
        value = 1 + 0.1 * np.abs(z)
    elif kind in ("norm_weight", "scale"):
        value = 1 + 0.1 * z
    elif kind == "embedding":
        value = 0.5 * z
    elif kind == "box_embedding":
        value = np.concatenate([0.5 + 0.2 * z[:, :2], 0.25 * np.exp(0.5 * z[:, 2:])], axis=1)
    elif kind.endswith("bias"):
        value = 0.02 * z
    elif kind.endswith("weight"):
        value = z / math.sqrt(math.prod(shape[1:])) * kind_scale.get(kind, 1.0)
    else:
        raise ValueError(f"no rule for kind {kind!r} of {key!r}")
    return np.asarray(value, dtype=np.float32)
