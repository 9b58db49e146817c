"""The sizes at which MMSegmentation 0.x and 1.x see an image several times."""

import json
from pathlib import Path
from typing import Any

import pytest

from fourstage.tasks.segmentation.protocol import Protocol

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[2] / "golden" / "pipelines" / "seg.json").read_text())[
    "tta"
]


@pytest.mark.parametrize("case", GOLDEN["images"], ids=lambda case: case["image"])
def test_sizes_of_several_scales(case: dict[str, Any]) -> None:
    ratios = tuple(GOLDEN["ratios"])
    width, height = case["in_wh"]
    own = Protocol(ratios=ratios, ratios_of="image", flip=True).sizes((height, width))
    assert [[w, h] for h, w in own] == [view["out_wh"] for view in case["v1_views"][::2]]
    for key, short in (("v0_sizes_wh", 512), ("v0_sizes_wh_640", 640)):
        limited = Protocol(scale=(short * 4, short), ratios=ratios).sizes((height, width))
        assert [[w, h] for h, w in limited] == case[key]
