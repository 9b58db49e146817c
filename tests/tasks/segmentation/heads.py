"""Segmentors as the golden files have them: their weights by MMSegmentation's names, and the feature maps they saw."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from golden.fill import fill_head, read_manifest
from torch import Tensor, nn

from fourstage.backbones.layers import Level
from fourstage.data.sample import IGNORE
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn
from fourstage.tasks.segmentation.upernet import upernet

FOLDER = Path(__file__).parents[2] / "golden"
WIDTHS, STRIDES = (64, 128, 256, 512), (4, 8, 16, 32)
METHODS: dict[str, Callable[..., Segmentor]] = {"upernet": upernet, "semantic_fpn": semantic_fpn}


class FixedMaps(nn.Module):
    """A backbone that gives the golden files' feature maps, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = tuple(Level(c, s) for c, s in zip(WIDTHS, STRIDES, strict=True))

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        shapes = [(2, c, 256 // s, 320 // s) for c, s in zip(WIDTHS, STRIDES, strict=True)]
        maps = [np.random.default_rng(100 + i).standard_normal(shape) for i, shape in enumerate(shapes)]
        return [torch.from_numpy(x.astype(np.float32))[: len(image_BCHW)] for x in maps]


class Patches(nn.Module):
    """The small backbone of the golden files for inference."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.levels = tuple(Level(c, s) for c, s in zip(widths, STRIDES, strict=True))
        steps = zip((3, *widths[:-1]), widths, (4, 2, 2, 2), strict=True)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, step, step) for a, b, step in steps)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        maps, x_BCHW = [], image_BCHW
        for conv in self.convs:
            x_BCHW = nn.functional.gelu(conv(x_BCHW))
            maps.append(x_BCHW)
        return maps


def state_of(manifest: dict) -> dict[str, Tensor]:
    """The state dict of the original, by its names."""
    rows = manifest["params"].items()
    return {
        key: torch.from_numpy(np.asarray(fill_head(key, tuple(shape), kind, manifest["kind_scale"])))
        for key, (shape, _, kind) in rows
    }


def golden(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return read_manifest(FOLDER / f"{name}.json.gz"), dict(arrays)


def assert_sampled(actual: Tensor, arrays: dict[str, np.ndarray], name: str) -> None:
    """A tensor against the values that the file keeps of it."""
    shape, stats, at, expected = (arrays[f"{name}/{what}"] for what in ("shape", "stats", "idx", "val"))
    assert actual.shape == tuple(shape)
    values = actual.detach().reshape(-1)[torch.from_numpy(at).long()]
    tolerance = 1e-4 * float(stats[1])
    torch.testing.assert_close(
        values, torch.from_numpy(expected), rtol=1e-4, atol=tolerance, msg=lambda m: f"{name}: {m}"
    )
    np.testing.assert_allclose(actual.detach().double().std(correction=0), stats[1], rtol=1e-4)


def labels_of(arrays: dict[str, np.ndarray], ignored: Sequence[tuple[int | slice, ...]]) -> Tensor:
    """(2, H, W) label maps of the losses: blocks of 16 x 16 pixels, and what nobody counts."""
    labels_BHW = torch.from_numpy(arrays["gt_seg_blocks16"][:, 0].repeat(16, axis=1).repeat(16, axis=2))
    for region in ignored:
        labels_BHW[region] = IGNORE
    return labels_BHW
