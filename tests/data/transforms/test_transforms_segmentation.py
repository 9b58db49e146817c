"""Images and label maps before a segmentor sees them: equal to the recorded ones bit for bit, and lawful elsewhere."""

import json
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data
from torch import Tensor

from fourstage.data.loader import seed_everything
from fourstage.data.sample import IGNORE, Sample, collate
from fourstage.data.transforms import segmentation as seg_transforms
from fourstage.data.transforms.resizing import Normalise, keep_ratio, resize_image, resize_nearest
from fourstage.data.transforms.segmentation import (
    distort,
    evaluation_transform,
    normalised,
    random_crop,
    random_size,
    train_transform,
)

FOLDER = Path(__file__).parents[2] / "golden" / "pipelines"
GOLDEN: dict[str, Any] = json.loads((FOLDER / "seg.json").read_text())
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALE, CROP = (2048, 512), (512, 512)


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "seg.npz") as golden:
        return dict(golden)


def photograph(name: str) -> np.ndarray:
    image = getattr(data, name.removesuffix("_T"))()
    return np.ascontiguousarray(image.transpose(1, 0, 2)) if name.endswith("_T") else image


def label_map(kind: str, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    if kind == "a":
        return np.where((x + 2 * y) % 97 < 4, IGNORE, ((x // 37) * 3 + (y // 29) * 5) % 11).astype(np.uint8)
    classes = np.where((x > 3 * width // 5) & (y > 3 * height // 5), 1 + (x // 40 + y // 40) % 3, 0)
    return np.where(x + y < 60, IGNORE, classes).astype(np.uint8)


def crc(array: np.ndarray) -> str:
    return f"{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"


def bgr(image_HW3: np.ndarray) -> np.ndarray:
    return image_HW3[..., ::-1]


def at_ratio(name: str, ratio: float, kind: str = "a") -> tuple[np.ndarray, np.ndarray]:
    image = photograph(name)
    size = keep_ratio(image.shape[:2], (int(SCALE[0] * ratio), int(SCALE[1] * ratio)))
    return resize_image(image, size), resize_nearest(label_map(kind, *image.shape[:2]), size)


@pytest.mark.parametrize("name", GOLDEN["images"])
def test_the_photographs_are_the_recorded_ones(name: str) -> None:
    assert crc(photograph(name)) == GOLDEN["images"][name]["rgb_crc32"]


@pytest.mark.parametrize("case", GOLDEN["test_resize"], ids=lambda case: case["key"])
def test_resizing_for_evaluation(case: dict, arrays: dict[str, np.ndarray]) -> None:
    image = photograph(case["key"].removeprefix("test_").removesuffix("_2048x512"))
    size = keep_ratio(image.shape[:2], SCALE)
    assert size == tuple(case["out_wh"][::-1])
    assert_pixels(resize_image(image, size), case["bgr_u8_crc32"], arrays, case["key"])


def assert_pixels(image: np.ndarray, crc32: str, arrays: dict[str, np.ndarray], key: str) -> None:
    """All of them by the checksum, some of them one by one."""
    y, x, c = arrays[f"{key}/yxc"].T
    np.testing.assert_array_equal(bgr(image)[y, x, c], arrays[f"{key}/bgr_u8"])
    assert crc(bgr(image)) == crc32


@pytest.mark.parametrize("case", GOLDEN["random_resize"], ids=lambda case: case["key"])
def test_resizing_for_training(case: dict, arrays: dict[str, np.ndarray]) -> None:
    image, labels = at_ratio(case["image"], case["ratio"])
    assert image.shape[1::-1] == tuple(case["out_wh"])
    assert_pixels(image, case["img_crc32"], arrays, case["key"])
    assert crc(labels) == case["label_crc32"]
    y, x = arrays[f"{case['key']}/lab_yx"].T
    np.testing.assert_array_equal(labels[y, x], arrays[f"{case['key']}/lab_u8"])


def test_the_size_is_drawn_as_recorded() -> None:
    for draw in GOLDEN["random_resize_draws"]["draws"]:
        np.random.seed(draw["seed"])  # noqa: NPY002
        size = random_size(photograph("coffee").shape[:2], SCALE, (0.5, 2.0))
        assert size == tuple(draw["out_wh"][::-1])


@pytest.mark.parametrize("number", range(len(GOLDEN["random_crop"]["cases"])))
def test_crops(number: int) -> None:
    case = GOLDEN["random_crop"]["cases"][number]
    image, labels = at_ratio(case["image"], case["ratio"], case["label"])
    np.random.seed(case["seed"])  # noqa: NPY002
    rows, columns = random_crop(labels, CROP, 0.75)
    assert [rows.start, rows.stop, columns.start, columns.stop] == case["crop_y1y2x1x2"]
    assert crc(bgr(image[rows, columns])) == case["img_crc32"]
    assert crc(labels[rows, columns]) == case["label_crc32"]


@pytest.mark.parametrize("case", GOLDEN["photometric"], ids=lambda case: case["key"])
def test_colours(case: dict, arrays: dict[str, np.ndarray]) -> None:
    np.random.seed(case["seed"])  # noqa: NPY002
    assert_pixels(distort(photograph(case["image"])), case["out_crc32"], arrays, case["key"])


def test_a_training_batch(arrays: dict[str, np.ndarray]) -> None:
    golden, samples = GOLDEN["preprocessor_train"], []
    for case, expected in zip(golden["inputs"], golden["samples"], strict=True):
        image, labels = at_ratio(case["image"], case["ratio"], case["label"])
        np.random.seed(case["crop_seed"])  # noqa: NPY002
        box = random_crop(labels, CROP, 0.75)
        padded = seg_transforms._padded(torch.from_numpy(labels[box]), CROP, IGNORE)
        assert crc(padded.numpy()) == expected["label_crc32_uint8"]
        pixels_3HW = torch.from_numpy(image[box]).movedim(-1, 0)
        samples.append(seg_transforms._padded(normalised(pixels_3HW, Normalise.of(MEAN, STD)), CROP, 0))
    batch = torch.stack(samples)
    actual = batch[tuple(torch.from_numpy(arrays["pp_train/nchw"]).long().T)]
    torch.testing.assert_close(actual, torch.from_numpy(arrays["pp_train/f32"]), rtol=0, atol=1e-6)
    assert batch.double().abs().sum().item() == pytest.approx(golden["abs_sum"], rel=1e-6)


def sample(height: int = 60, width: int = 80, seed: int = 0) -> Sample:
    """Labels that are a function of the colour, so that the two can be seen to move together."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (height // 4 + 1, width // 4 + 1), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    labels = labels[:height, :width]
    image = np.repeat(50 * labels[..., None], 3, axis=2)
    return Sample("a", image, (height, width), label_map_HW=torch.from_numpy(labels.copy()))


def seen(transformed: Sample) -> tuple[Tensor, Tensor]:
    assert isinstance(transformed.image, Tensor)
    assert transformed.label_map_HW is not None
    return transformed.image, transformed.label_map_HW


@given(height=st.integers(32, 90), width=st.integers(32, 90), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_image_and_labels_stay_together(height: int, width: int, seed: int) -> None:
    transform = train_transform((48, 64), mean=MEAN, std=STD, scale=None, ratio=(1, 1), photometric=False)
    seed_everything(seed)
    image, labels = seen(transform(sample(height, width, seed)))
    assert image.shape == (3, 48, 64)
    assert labels.shape == (48, 64)
    bytes_HW = (image[0] * STD[0] + MEAN[0]) * 255
    counted = labels != IGNORE
    torch.testing.assert_close(bytes_HW[counted], 50.0 * labels[counted], rtol=0, atol=1e-3)
    assert (image[:, ~counted] == 0).all()
    assert int(counted.sum()) == min(height, 48) * min(width, 64)


@given(height=st.integers(32, 300), width=st.integers(32, 300), long=st.integers(64, 600), short=st.integers(32, 300))
@settings(max_examples=200, deadline=None)
def test_the_shape_is_kept_within_the_limits(height: int, width: int, long: int, short: int) -> None:
    h, w = keep_ratio((height, width), (long, short))
    assert max(h, w) <= max(long, short)
    assert min(h, w) <= min(long, short)
    assert abs(h / height - w / width) <= 1 / min(height, width)
    assert keep_ratio((width, height), (short, long)) == (w, h)


@given(height=st.integers(1, 40), width=st.integers(1, 40), factor=st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_labels_enlarged_by_a_whole_factor_are_repeated(height: int, width: int, factor: int) -> None:
    labels = np.random.default_rng(0).integers(0, 9, (height, width), dtype=np.uint8)
    large = resize_nearest(labels, (factor * height, factor * width))
    np.testing.assert_array_equal(large, labels.repeat(factor, 0).repeat(factor, 1))


@pytest.mark.parametrize(("old", "new"), [(12, 682), (18, 591), (20, 562), (427, 854), (640, 1199), (375, 800)])
def test_labels_are_resized_as_opencv_does_it(old: int, new: int) -> None:
    """In the first three, old / new and 1 / (new / old) differ in the last bit, and that moves a row."""
    cv2, rows = pytest.importorskip("cv2"), np.arange(old, dtype=np.int32)
    for labels, size in ((rows[:, None].repeat(3, 1), (new, 5)), (rows[None].repeat(3, 0), (5, new))):
        expected = cv2.resize(labels.astype(np.float32), size[::-1], interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(resize_nearest(labels, size), expected.astype(np.int32))


@given(height=st.integers(1, 300), width=st.integers(1, 300), new=st.tuples(st.integers(1, 300), st.integers(1, 300)))
@settings(max_examples=200, deadline=None)
def test_labels_of_any_size_are_resized_as_opencv_does_it(height: int, width: int, new: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    labels = np.random.default_rng(height).integers(0, 256, (height, width), dtype=np.uint8)
    expected = cv2.resize(labels, new[::-1], interpolation=cv2.INTER_NEAREST)
    np.testing.assert_array_equal(resize_nearest(labels, new), expected)


def test_the_same_key_draws_the_same_and_another_one_another() -> None:
    transform = pickle.loads(pickle.dumps(train_transform((64, 64), mean=MEAN, std=STD, scale=(160, 80))))

    def run(key: int) -> Tensor:
        seed_everything(key)
        return seen(transform(sample()))[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.parametrize("hflip", [0.0, 1.0])
def test_mirroring(hflip: float) -> None:
    transform = train_transform(
        (60, 80), mean=MEAN, std=STD, scale=None, ratio=(1, 1), hflip=hflip, photometric=False, most_of_one=1
    )
    source = sample()
    assert source.label_map_HW is not None
    expected = source.label_map_HW.flip(-1) if hflip else source.label_map_HW
    assert torch.equal(seen(transform(source))[1], expected)


def test_a_crop_of_one_class_is_drawn_anew_and_at_last_taken() -> None:
    labels = np.zeros((100, 100), dtype=np.uint8)
    labels[:, 50:] = 1
    for seed in range(50):
        np.random.seed(seed)  # noqa: NPY002
        box = random_crop(labels, (40, 40), 0.75)
        share = (labels[box] == 1).mean()
        assert 0.25 < share < 0.75
    assert random_crop(labels[:, :50], (40, 40), 0.75)[0].stop <= 100  # no crop has two


def boxes_drawn(labels: np.ndarray) -> int:
    """How many crops are drawn before one is taken."""
    np.random.seed(0)  # noqa: NPY002
    random_crop(labels, (8, 8), 0.75)
    after = np.random.randint(10**9)  # noqa: NPY002
    for count in range(1, 12):
        np.random.seed(0)  # noqa: NPY002
        for _ in range(count):
            np.random.randint(0, 57)  # noqa: NPY002
            np.random.randint(0, 57)  # noqa: NPY002
        if np.random.randint(10**9) == after:  # noqa: NPY002
            return count
    raise AssertionError("no number of draws ends there")


def test_what_is_ignored_is_no_class_of_a_crop() -> None:
    y, x = np.mgrid[:64, :64]
    striped = np.where(y % 8, IGNORE, x % 2).astype(np.uint8)  # 7 of 8 pixels are ignored, the others of two classes
    assert boxes_drawn(striped) == 1
    assert boxes_drawn(np.where(y % 2, IGNORE, 3).astype(np.uint8)) == 11
    assert boxes_drawn(np.full((64, 64), IGNORE, np.uint8)) == 11


def test_for_evaluation_images_stay_as_they_are() -> None:
    image, labels = seen(evaluation_transform()(sample()))
    assert image.dtype == torch.uint8
    assert torch.equal(image.movedim(0, -1), torch.from_numpy(np.asarray(sample().image)))
    assert torch.equal(labels, seen(replace_image(sample()))[1])
    batch = collate([evaluation_transform()(sample(40, 50)), evaluation_transform()(sample(60, 40))])
    assert batch.images_BCHW.shape == (2, 3, 60, 50)
    assert batch.label_maps_BHW is not None
    assert (batch.label_maps_BHW[0, 40:] == IGNORE).all()


def replace_image(source: Sample) -> Sample:
    return Sample(source.id, torch.zeros(1), source.original_size, label_map_HW=source.label_map_HW)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="32 x 32"):
        train_transform((16, 64), mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="smallest, largest"):
        train_transform((64, 64), mean=MEAN, std=STD, ratio=(2, 0.5))
    with pytest.raises(ValueError, match="no std zero"):
        train_transform((64, 64), mean=MEAN, std=(0, 1, 1))
    bare = Sample("a", np.zeros((64, 64, 3), np.uint8), (64, 64), label=1)
    with pytest.raises(ValueError, match="has no label map"):
        train_transform((64, 64), mean=MEAN, std=STD)(bare)
