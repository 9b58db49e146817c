import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import transforms_factory
from torch import Tensor

from fourstage.data.sample import Objects, Sample
from fourstage.data.transforms import Transform, eval_transform, train_transform

create_transform: Any = transforms_factory.create_transform
COLOURS: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SEEDS = st.integers(0, 2**31)


def photo(height: int, width: int) -> np.ndarray:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - the generator that timm's policies draw from
    torch.manual_seed(value)


def run(transform: Transform, pixels: np.ndarray) -> Tensor:
    out = transform(Sample("a", pixels, pixels.shape[:2], label=3))
    assert isinstance(out.image, Tensor)
    assert (out.id, out.label, out.original_size) == ("a", 3, pixels.shape[:2])
    return out.image


OPTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel", "re_count": 1}),
    ({"auto_augment": None, "reprob": 0.0, "interpolation": "random"}, {"interpolation": "random"}),
    (
        {
            "auto_augment": "augmix-m5-w4-d2",
            "reprob": 1.0,
            "remode": "const",
            "recount": 3,
            "scale": (0.5, 0.9),
            "ratio": (0.5, 3.0),
            "hflip": 0,
        },
        {
            "auto_augment": "augmix-m5-w4-d2",
            "re_prob": 1.0,
            "re_count": 3,
            "scale": (0.5, 0.9),
            "ratio": (0.5, 3.0),
            "hflip": 0,
        },
    ),
]


@pytest.mark.parametrize(("ours", "theirs"), OPTIONS)
@pytest.mark.parametrize("shape", [(75, 90), (120, 64), (32, 32)])
def test_training_is_timms_to_the_last_bit(
    ours: dict[str, Any], theirs: dict[str, Any], shape: tuple[int, int]
) -> None:
    pixels = photo(*shape)
    transform = train_transform(64, **COLOURS, **ours)
    reference = create_transform(64, is_training=True, **({"interpolation": "bicubic"} | COLOURS | theirs))
    for value in range(15):
        seed(value)
        image = run(transform, pixels)
        seed(value)
        assert torch.equal(image, reference(Image.fromarray(pixels)))


@pytest.mark.parametrize("shape", [(75, 90), (333, 41), (16, 20), (64, 64)])
@pytest.mark.parametrize("pct", [0.875, 1.0, 0.9])
def test_evaluation_is_timms_to_the_last_bit(shape: tuple[int, int], pct: float) -> None:
    pixels = photo(*shape)
    reference = create_transform(64, interpolation="bicubic", crop_pct=pct, **COLOURS)
    assert torch.equal(run(eval_transform(64, **COLOURS, crop_pct=pct), pixels), reference(Image.fromarray(pixels)))


def test_squash_is_a_direct_resize() -> None:
    pixels = photo(75, 90)
    straight = np.asarray(Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)) / np.float32(255)
    expected = (torch.from_numpy(straight).movedim(-1, 0) - 0.5) / 0.25
    half: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    torch.testing.assert_close(run(eval_transform(48, **half, crop_mode="squash"), pixels), expected)


@given(value=SEEDS, height=st.integers(8, 90), width=st.integers(8, 90))
@settings(max_examples=25, deadline=None)
def test_a_draw_is_a_function_of_the_generators(value: int, height: int, width: int) -> None:
    pixels = photo(height, width)
    before = pixels.copy()
    seed(value)
    first = run(TRAIN, pixels)
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.float32
    assert first.is_contiguous()
    assert first.isfinite().all()
    seed(value)
    assert torch.equal(first, run(pickle.loads(pickle.dumps(TRAIN)), pixels))
    assert np.array_equal(pixels, before)


TRAIN = train_transform(32, **COLOURS)


def test_pixels_that_must_not_be_written_to_are_read() -> None:
    pixels = photo(40, 50)
    pixels.flags.writeable = False
    assert run(TRAIN, pixels).shape == run(eval_transform(32, **COLOURS), pixels).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("make", "arguments", "sentence"),
    [
        (train_transform, {"auto_augment": "randd-m9"}, "'randd-m9' is no policy that timm reads"),
        (train_transform, {"auto_augment": "rand-q9"}, "'rand-q9' is no policy that timm reads"),
        (train_transform, {"remode": "noise"}, "remode 'noise' is unknown; it is one of pixel, rand, const"),
        (train_transform, {"interpolation": "cubic"}, "interpolation 'cubic' is unknown; it is one of bicubic"),
        (eval_transform, {"interpolation": "random"}, "'random' is for training"),
        (eval_transform, {"crop_mode": "middle"}, "crop_mode 'middle' is unknown; it is center or squash"),
        (eval_transform, {"crop_pct": 87.5}, r"crop_pct 87\.5 must be above 0 and at most 1"),
        (eval_transform, {"std": (0, 1, 1)}, "three numbers each, and no std zero"),
    ],
)
def test_wrong_values_are_said_in_one_sentence(make: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(32, **(COLOURS | arguments))


def test_boxes_are_not_left_behind_silently() -> None:
    objects = Objects(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="the sample s carries boxes or a label map"):
        TRAIN(Sample("s", photo(40, 40), (40, 40), objects=objects))
