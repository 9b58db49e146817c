"""An evaluation that enlarges small images says so, and what to type."""

from types import SimpleNamespace
from typing import Any

import pytest

from fourstage.data.sample import BadImage
from fourstage.recipe import resolve
from fourstage.run.tasks.segmentation import _single_scale, hint_on_enlarging


def dataset(*size: int) -> Any:
    def sample(index: int) -> SimpleNamespace:
        if not size:
            raise BadImage("a.png", "it is empty")
        return SimpleNamespace(original_size=size)

    return SimpleNamespace(sample=sample, id=lambda index: "a.png")


@pytest.mark.parametrize(
    ("size", "changes", "expected"),
    [
        ((128, 96), [], "(128 x 96 pixels) are enlarged to 683 x 512 by the protocol and take about 28 times as long"),
        ((400, 500), [], ""),  # to 512 x 640
        ((128, 96), ["evaluation.scale=null"], ""),
        ((), [], ""),  # the broken image is reported with all others
    ],
)
def test_the_hint(size: tuple[int, ...], changes: list[str], expected: str) -> None:
    recipe: Any = resolve("upernet_swin_tiny_ade20k_160k", changes).recipe
    hint = hint_on_enlarging(dataset(*size), _single_scale(recipe))
    assert expected in hint
    assert bool(hint) == bool(expected)
    assert ("evaluation.scale=null" in hint) == bool(expected)
