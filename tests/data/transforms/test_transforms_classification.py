import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import transforms_factory
from torch import Tensor

from fourstage.data.images import read_image
from fourstage.data.loader import BatchTransform
from fourstage.data.sample import Objects, Sample
from fourstage.data.transforms.classification import Transform, eval_transform, posterize, train_transform

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


SIDES = st.integers(24, 500) | st.sampled_from([64 * n for n in range(1, 8)] + [37 * n for n in range(1, 14)])


@given(
    height=SIDES,
    width=SIDES,
    sizes=st.sampled_from([(64, 0.875), (112, 0.875), (56, 0.875), (32, 0.5), (64, 1.0)]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "lanczos", "nearest"]),
)
@example(height=192, width=96, sizes=(56, 0.875), interpolation="bilinear")  # columns first, if they were cut
@example(height=375, width=500, sizes=(112, 0.875), interpolation="bicubic")
@settings(max_examples=80, deadline=None)
def test_what_is_not_computed_changes_no_bit(
    height: int, width: int, sizes: tuple[int, float], interpolation: str
) -> None:
    """Lines and columns that the crop would cut off are left out where PIL then samples the same places."""
    side, pct = sizes
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    reference = create_transform(side, interpolation=interpolation, crop_pct=pct, **COLOURS)
    transform = eval_transform(side, interpolation=interpolation, crop_pct=pct, **COLOURS)
    assert torch.equal(run(transform, pixels), reference(Image.fromarray(pixels)))


def test_the_usual_crop_leaves_columns_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def watched(image: Image.Image, size: tuple[int, int], *args: Any, **options: Any) -> Image.Image:
        made.append(size)
        return resize(image, size, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    run(eval_transform(224, **COLOURS), np.zeros((375, 500, 3), np.uint8))
    assert made == [(341, 339), (224, 224)]  # of 375 lines those that the middle needs, then the middle's columns


def test_a_file_gives_what_its_pixels_give(tmp_path: Path) -> None:
    """A file's memory is PIL's own and is not copied; an array that somebody made is."""
    path = tmp_path / "photo.png"
    Image.fromarray(photo(70, 90)).save(path)
    for transform in (TRAIN, eval_transform(32, **COLOURS)):
        seed(3)
        from_file = run(transform, read_image(path))
        seed(3)
        assert torch.equal(from_file, run(transform, photo(70, 90)))
        seed(3)
        assert torch.equal(from_file, run(transform, np.ascontiguousarray(read_image(path))))


@pytest.mark.parametrize("transform", ["TRAIN", "evaluation"])
def test_an_image_can_be_written_to_its_place_in_a_batch(transform: str) -> None:
    chosen: Any = TRAIN if transform == "TRAIN" else eval_transform(32, **COLOURS)
    assert isinstance(chosen, BatchTransform)
    sample, room_BCHW = Sample("a", photo(40, 50), (40, 50), label=3), torch.full((2, 3, 32, 32), torch.nan)
    seed(5)
    placed = chosen.into(sample, room_BCHW[1])
    assert isinstance(placed.image, Tensor)
    assert placed.image.data_ptr() == room_BCHW[1].data_ptr()
    seed(5)
    assert torch.equal(room_BCHW[1], run(chosen, photo(40, 50)))
    assert room_BCHW[0].isnan().all()


@pytest.mark.parametrize("bits", range(9))
def test_posterize_keeps_the_highest_bits(bits: int) -> None:
    pixels = photo(20, 30)
    found = np.asarray(posterize(Image.fromarray(pixels), bits))
    assert np.array_equal(found, pixels & (256 - 2 ** (8 - bits)))


@pytest.mark.parametrize("policy", ["rand-m10-p1-n15-inc1", "v0r", "original", "originalr", "augmix-m10-mstd0"])
def test_no_policy_asks_pillow_for_no_bits(policy: str) -> None:
    """At full strength timm's do, and Pillow 13 refuses: a training would stop at some random image."""
    transform = train_transform(16, **COLOURS, auto_augment=policy)
    for value in range(60):
        seed(value)
        run(transform, photo(20, 20))


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
        (train_transform, {"auto_augment": "randd-m9"}, "'randd-m9' is not a policy that timm reads"),
        (train_transform, {"auto_augment": "rand-q9"}, "'rand-q9' is not a policy that timm reads"),
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
    with pytest.raises(
        ValueError, match="the sample s has boxes or a label map, which these transforms would not update"
    ):
        TRAIN(Sample("s", photo(40, 40), (40, 40), objects=objects))
