"""Values that no transform can have are refused where it is built, and images of one column go through all of them."""

from typing import Any

import numpy as np
import pytest
import torch

from fourstage.data.sample import Objects, Sample
from fourstage.data.transforms import classification, detection, segmentation

COLOURS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
MAKERS: dict[str, Any] = {
    "classification": lambda **k: classification.train_transform(k.pop("image_size", 32), **k),
    "evaluation": lambda **k: classification.eval_transform(k.pop("image_size", 32), **k),
    "detection": lambda **k: detection.train_transform(k.pop("policy", "resize"), **{"scale": (96, 64), **k}),
    "segmentation": lambda **k: segmentation.train_transform((32, 48), **{"scale": (96, 64), **k}),
}
WRONG: list[tuple[str, dict[str, Any]]] = [
    *((name, {"hflip": value}) for name in ("classification", "detection", "segmentation") for value in (-1, 2)),
    ("classification", {"hflip": float("nan")}),
    ("classification", {"reprob": 1.5}),
    ("classification", {"scale": (0.0, 1.0)}),
    ("classification", {"ratio": (2.0, 1.0)}),
    ("classification", {"color_jitter": -1.0, "auto_augment": None}),
    ("classification", {"recount": 0}),
    *((name, {"image_size": side}) for name in ("classification", "evaluation") for side in (0, -3, 32.5, "32")),
    *((name, {"mean": (0.5, 0.5, float("nan"))}) for name in MAKERS),
    *((name, {"std": (0.5, 0.5, float("inf"))}) for name in MAKERS),
    ("detection", {"crop_prob": 2}),
    ("detection", {"scale": (float("nan"), 64)}),
    ("segmentation", {"scale": (0, 0)}),
    ("segmentation", {"most_of_one": 2}),
]


@pytest.mark.parametrize(("name", "wrong"), WRONG, ids=str)
def test_impossible_values_are_refused_where_a_transform_is_built(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*got|must be three numbers") as error:
        MAKERS[name](**{**COLOURS, **wrong})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1), (40, 1)])
def test_mirrored_images_of_one_column_or_row(size: tuple[int, int]) -> None:
    pixels_HW3 = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    objects = Objects(
        torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0]), torch.tensor([False]), torch.ones(1, *size, dtype=torch.bool)
    )
    for policy in detection.POLICIES:
        transform = MAKERS["detection"](policy=policy, hflip=1.0, **COLOURS)
        assert isinstance(transform(Sample("a", pixels_HW3, size, objects=objects)).image, torch.Tensor)
    for photometric in (True, False):
        transform = MAKERS["segmentation"](hflip=1.0, ratio=(0.1, 1), photometric=photometric, **COLOURS)
        sample = transform(Sample("a", pixels_HW3, size, label_map_HW=torch.zeros(size, dtype=torch.uint8)))
        assert sample.image.shape == (3, 32, 48)
        assert sample.label_map_HW.shape == (32, 48)
