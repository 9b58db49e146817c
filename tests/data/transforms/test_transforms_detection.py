"""Images and objects before a detector sees them: equal to the recorded ones, and lawful elsewhere."""

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

from fourstage.data.loader import seed_everything
from fourstage.data.objects.rle import decode_mask
from fourstage.data.sample import Objects, Sample, collate
from fourstage.data.transforms import detection_steps
from fourstage.data.transforms.detection import POLICIES, CopyPaste, evaluation_transform, pasted, train_transform
from fourstage.data.transforms.detection_steps import (
    Crop,
    Either,
    Flip,
    Resize,
    Sequential,
    Step,
    cropped,
    flipped,
    pixels,
    resized,
    tight_boxes,
)
from fourstage.data.transforms.resizing import Normalise, keep_ratio, resize_image

FOLDER = Path(__file__).parents[2] / "golden" / "pipelines"
TEST: dict[str, Any] = json.loads((FOLDER / "det_test.json").read_text())
TRAIN: dict[str, Any] = json.loads((FOLDER / "det_train.json").read_text())
PACKED: dict[str, Any] = json.loads((FOLDER / "det_train_packed.json").read_text())
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CASES = [name for name in TRAIN if name != "input"]


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "det_test.npz") as test, np.load(FOLDER / "det_train.npz") as train:
        return {**test, **train}


def photograph(name: str) -> np.ndarray:
    image = getattr(data, name.removesuffix("_T"))()
    return np.ascontiguousarray(image.transpose(1, 0, 2)) if name.endswith("_T") else image


def near(image_HW3: np.ndarray, recorded: dict[str, Any], key: str, arrays: dict[str, np.ndarray]) -> None:
    """Equal to the recorded bytes; where another build of OpenCV rounds otherwise, its samples differ by 1 at most."""
    bgr_HW3 = np.ascontiguousarray(image_HW3[:, :, ::-1])
    if f"{zlib.crc32(bgr_HW3.tobytes()):08x}" == recorded.get("bgr_u8_crc32", recorded.get("img_crc32")):
        return
    y, x, c = arrays[f"{key}/yxc"].T
    difference = bgr_HW3[y, x, c].astype(int) - arrays[f"{key}/bgr_u8"]
    assert np.abs(difference).max() <= 1
    assert abs(bgr_HW3.mean() - recorded.get("mean", recorded.get("bgr_mean"))) < 0.01


def drawn_objects() -> Sample:
    """The nine recorded instances on their photograph."""
    image_HW3 = photograph("coffee")
    size = (image_HW3.shape[0], image_HW3.shape[1])
    listed = TRAIN["input"]["instances"]
    masks = [decode_mask(one["mask"], size) for one in listed]
    objects = Objects(
        torch.tensor([one["bbox"] for one in listed]),
        torch.tensor([one["bbox_label"] for one in listed]),
        torch.tensor([bool(one["ignore_flag"]) or mask is None for one, mask in zip(listed, masks, strict=True)]),
        torch.from_numpy(np.array([np.zeros(size, bool) if mask is None else mask for mask in masks])),
    )
    return Sample("coffee", image_HW3, size, objects=objects)


def step_of(recorded: dict[str, Any]) -> Step:
    """A recorded list of transforms in our words."""
    kind = recorded["type"]
    if kind == "Resize":
        return Resize((tuple(recorded["scale"]),))
    if kind == "RandomFlip":
        return Flip(recorded["prob"])
    if kind == "RandomChoiceResize":
        return Resize(tuple((a, b) for a, b in recorded["scales"]))
    if kind == "RandomChoice":
        return Either(tuple(Sequential(tuple(step_of(step) for step in branch)) for branch in recorded["transforms"]))
    assert kind == "RandomCrop"
    first, second = recorded["crop_size"]
    if recorded["crop_type"] == "absolute":
        return Crop((second, second), (first, first))
    return Crop((first, second), (first, second))


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_images_boxes_and_masks(name: str, arrays: dict[str, np.ndarray]) -> None:
    recorded = TRAIN[name]
    seed = int(name.rpartition("seed")[2]) if "seed" in name else 0
    np.random.seed(seed)  # noqa: NPY002 - what the loader sets for each sample
    sample = Sequential(tuple(step_of(step) for step in recorded["transforms"]))(drawn_objects())
    expected = recorded["bitmap_masks"]
    near(pixels(sample), expected, name, arrays)
    objects = sample.objects
    assert objects is not None
    assert objects.masks_NHW is not None
    assert list(pixels(sample).shape[:2]) == expected["img_shape_hw"] == expected["mask_hw"]
    assert objects.labels_N.tolist() == expected["labels"]
    assert objects.crowd_N.int().tolist() == expected["ignore_flags"]
    assert torch.equal(objects.boxes_N4, torch.tensor(expected["boxes_xyxy"]))
    assert objects.boxes_N4.dtype == torch.float32
    for mask_HW, rle in zip(objects.masks_NHW.numpy(), expected["masks_rle"], strict=True):
        decoded = decode_mask(rle, (rle["size"][0], rle["size"][1]))
        assert decoded is not None
        assert np.array_equal(mask_HW, decoded)


@pytest.mark.parametrize("name", [name for name in CASES if "policy" in name])
def test_the_multi_scale_policy_is_the_recorded_one(name: str) -> None:
    transform = train_transform("multi_scale", mean=MEAN, std=STD)
    np.random.seed(int(name.rpartition("seed")[2]))  # noqa: NPY002
    sample = transform(drawn_objects())
    expected = TRAIN[name]["bitmap_masks"]
    assert list(sample.image.shape) == [3, *expected["img_shape_hw"]]
    assert sample.objects is not None
    assert torch.equal(sample.objects.boxes_N4, torch.tensor(expected["boxes_xyxy"]))


@pytest.mark.parametrize("recorded", TEST["resize"], ids=lambda recorded: recorded["key"])
def test_test_images_are_resized_as_recorded(recorded: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    image_HW3 = photograph(recorded["image"])
    size = keep_ratio((image_HW3.shape[0], image_HW3.shape[1]), tuple(recorded["scale"]))
    assert list(size) == recorded["img_shape_hw"]
    near(resize_image(image_HW3, size), recorded, recorded["key"], arrays)


def test_all_recorded_sizes() -> None:
    columns = TEST["size_table"]["columns"]
    limits = [tuple(int(n) for n in column.removeprefix("w@").split("x")) for column in columns[2::2]]
    for width, height, *results in TEST["size_table"]["rows"]:
        new = [keep_ratio((height, width), (scale[0], scale[1])) for scale in limits]
        assert new == [(h, w) for w, h in zip(results[::2], results[1::2], strict=True)], (width, height)


@pytest.mark.parametrize("case", TEST["preprocessor"]["cases"], ids=lambda case: case["key"])
def test_batches_are_normalised_and_padded_as_recorded(case: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    transform = evaluation_transform(tuple(case["scale"]), mean=MEAN, std=STD)
    images = [photograph(name) for name in case["images"]]
    samples = [Sample(str(i), image, image.shape[:2]) for i, image in enumerate(images)]
    batch = collate([transform(sample) for sample in samples], divisor=32)
    assert list(batch.images_BCHW.shape) == case["batch_shape"]
    assert [list(size) for size in batch.sizes] == case["img_shape"]
    factors = [
        [w / w0, h / h0] for (h, w), (h0, w0) in zip(batch.sizes, batch.original_sizes, strict=True)
    ]  # exactly the recorded doubles
    assert factors == case["scale_factor"]
    n, c, h, w = arrays[f"{case['key']}/nchw"].T.astype(np.int64)
    difference = np.abs(batch.images_BCHW.numpy()[n, c, h, w] - arrays[f"{case['key']}/f32"])
    assert difference.max() <= 1.01 / (255 * min(STD))  # one level, where another build of OpenCV rounds otherwise
    assert np.mean(difference > 1e-6) < 0.02


def test_a_batch_of_objects_as_recorded() -> None:
    sizes = [tuple(one["img_shape"]) for one in PACKED["samples"]]
    finish = Normalise.of(MEAN, STD)
    samples = [resized(drawn_objects(), size) for size in sizes]
    batch = collate([Sample(s.id, finish(pixels(s)), s.original_size, objects=s.objects) for s in samples], divisor=32)
    assert list(batch.images_BCHW.shape) == PACKED["batch_shape"]
    assert batch.objects is not None
    for objects, expected in zip(batch.objects, PACKED["samples"], strict=True):
        counted = ~objects.crowd_N
        assert objects.masks_NHW is not None
        assert list(objects.masks_NHW[counted].shape) == expected["gt_masks_shape"]
        assert objects.masks_NHW[counted].sum(dim=(1, 2)).tolist() == expected["gt_mask_areas"]
        crc = zlib.crc32(objects.masks_NHW[counted].numpy().astype(np.uint8).tobytes())
        assert f"{crc:08x}" == expected["gt_masks_crc32"]
        assert torch.equal(objects.boxes_N4[counted], torch.tensor(expected["gt_boxes"]))
        assert torch.equal(objects.boxes_N4[~counted], torch.tensor(expected["ignored_boxes"]))
        assert objects.masks_NHW[~counted].sum(dim=(1, 2)).tolist() == expected["ignored_mask_areas"]


def made_up(height: int, width: int, count: int, seed: int, *, masks: bool = True) -> Sample:
    """Noise with ellipses, whose boxes are tight."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    masks_NHW = np.zeros((count, height, width), dtype=bool)
    for mask_HW in masks_NHW:
        cy, cx, ry, rx = rng.uniform(0, height), rng.uniform(0, width), *rng.uniform(2, 20, 2)
        mask_HW[:] = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1
        mask_HW[int(cy), int(cx)] = True
    masks_NT = torch.from_numpy(masks_NHW)
    labels_N, crowd_N = torch.from_numpy(rng.integers(0, 5, count)), torch.from_numpy(rng.random(count) < 0.2)
    objects = Objects(tight_boxes(masks_NT), labels_N, crowd_N, masks_NT if masks else None)
    image_HW3 = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample("made up", image_HW3, (height, width), objects=objects)


def factors_of_resizes(patch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Return a list to which each resize adds its factors of width and height."""
    factors: list[tuple[float, float]] = []

    def spy(sample: Sample, size: tuple[int, int]) -> Sample:
        height, width = pixels(sample).shape[:2]
        factors.append((size[1] / width, size[0] / height))
        return resized(sample, size)

    patch.setattr(detection_steps, "resized", spy)
    return factors


sides, counts, seeds = st.integers(32, 150), st.integers(0, 6), st.integers(0, 2**31)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("masks", [True, False])
@given(height=sides, width=sides, count=counts, seed=seeds)
@settings(max_examples=15, deadline=None)
def test_what_every_policy_keeps(policy: Any, masks: bool, height: int, width: int, count: int, seed: int) -> None:
    transform = train_transform(
        policy, mean=MEAN, std=STD, scale=(128, 96), short_sides=(48, 64), first_sides=(80,), crop=(32, 64)
    )
    before = made_up(height, width, count, seed, masks=masks)
    kept = pixels(before).copy()
    assert before.objects is not None
    boxes = before.objects.boxes_N4.clone()
    seed_everything(2, seed)
    with pytest.MonkeyPatch.context() as patch:
        factors = factors_of_resizes(patch)
        after = transform(before)
    assert np.array_equal(pixels(before), kept)  # the sample that was given is not written on
    assert torch.equal(before.objects.boxes_N4, boxes)
    assert isinstance(after.image, torch.Tensor)
    assert (after.image.dtype, after.image.ndim, after.image.is_contiguous()) == (torch.float32, 3, True)
    h, w = after.image.shape[1:]
    objects = after.objects
    assert objects is not None
    assert len(objects.boxes_N4) == len(objects.labels_N) == len(objects.crowd_N) <= count
    assert (objects.boxes_N4 >= 0).all()
    assert (objects.boxes_N4 <= torch.tensor([w, h, w, h])).all()
    assert (objects.boxes_N4[:, :2] <= objects.boxes_N4[:, 2:]).all()
    assert (objects.masks_NHW is not None) == masks
    if objects.masks_NHW is not None:
        assert objects.masks_NHW.shape == (len(objects.labels_N), h, w)
        assert objects.masks_NHW.dtype == torch.bool
        around = tight_boxes(objects.masks_NHW)
        seen = objects.masks_NHW.flatten(1).any(dim=1)
        beyond = (around - objects.boxes_N4) * torch.tensor([-1, -1, 1, 1])  # of a mask from its box
        most = torch.zeros(2)
        for factor in factors:  # each takes the nearest cell, and scales what the one before was beyond
            most = most * torch.tensor(factor) + 1
        assert (beyond[seen] <= most.repeat(2) + 1e-3).all()
    seed_everything(2, seed)
    again = transform(before)
    assert isinstance(again.image, torch.Tensor)
    assert torch.equal(after.image, again.image)


@given(height=sides, width=sides, count=counts, seed=seeds)
@settings(max_examples=25, deadline=None)
def test_two_mirrors_are_none(height: int, width: int, count: int, seed: int) -> None:
    sample = made_up(height, width, count, seed)
    once, twice = flipped(sample), flipped(flipped(sample))
    assert np.array_equal(pixels(twice), pixels(sample))
    assert once.objects is not None
    assert twice.objects is not None
    assert sample.objects is not None
    assert once.objects.masks_NHW is not None
    assert torch.equal(tight_boxes(once.objects.masks_NHW), once.objects.boxes_N4)
    assert torch.equal(twice.objects.boxes_N4, sample.objects.boxes_N4)
    assert twice.objects.masks_NHW is not None
    assert sample.objects.masks_NHW is not None
    assert torch.equal(twice.objects.masks_NHW, sample.objects.masks_NHW)


@given(height=sides, width=sides, count=counts, seed=seeds, share=st.floats(0.05, 1))
@settings(max_examples=25, deadline=None)
def test_a_tight_crop_cuts_boxes_as_masks(height: int, width: int, count: int, seed: int, share: float) -> None:
    sample = made_up(height, width, count, seed)
    size = (max(1, int(height * share)), max(1, int(width * share)))
    after = cropped(sample, ((height - size[0]) // 2, (width - size[1]) // 2), size, tight=True)
    assert after.objects is not None
    assert after.objects.masks_NHW is not None
    assert after.objects.masks_NHW.flatten(1).any(dim=1).all()
    assert torch.equal(tight_boxes(after.objects.masks_NHW), after.objects.boxes_N4)


class Made:
    """A data set of made-up samples."""

    classes, truths = tuple("abcde"), ("objects",)

    def __init__(self, length: int, count: int = 4) -> None:
        self.length, self.count = length, count

    def __len__(self) -> int:
        return self.length

    def id(self, index: int) -> str:
        return str(index)

    def sample(self, index: int) -> Sample:
        return made_up(60 + 7 * index, 90 - 5 * index, self.count, index)


def test_pasted_objects_lie_on_top() -> None:
    here, there = made_up(64, 80, 3, 1), made_up(50, 100, 3, 2)
    after = pasted(here, there, torch.tensor([2, 0]))
    assert (here.objects and there.objects and after.objects) is not None
    masks_NHW, partner_NHW = after.objects.masks_NHW, there.objects.masks_NHW  # pyright: ignore[reportOptionalMemberAccess]
    assert masks_NHW is not None
    assert partner_NHW is not None
    top_HW = masks_NHW[-2:].any(dim=0).numpy()
    assert top_HW[:50].sum() == partner_NHW[[2, 0], :, :80].any(dim=0).sum()
    assert np.array_equal(pixels(after)[:50][top_HW[:50]], pixels(there)[:, :80][top_HW[:50]])
    assert np.array_equal(pixels(after)[~top_HW], pixels(here)[~top_HW])
    assert not (masks_NHW[:-2].any(dim=0).numpy() & top_HW).any()
    assert after.objects.labels_N[-2:].tolist() == there.objects.labels_N[[2, 0]].tolist()  # pyright: ignore[reportOptionalMemberAccess]


def test_objects_that_are_covered_are_left_out() -> None:
    def with_mask(rows: slice, columns: slice) -> Sample:
        masks_NHW = torch.zeros(1, 64, 64, dtype=torch.bool)
        masks_NHW[0, rows, columns] = True
        objects = Objects(tight_boxes(masks_NHW), torch.tensor([0]), torch.zeros(1).bool(), masks_NHW)
        return Sample("x", np.zeros((64, 64, 3), np.uint8), (64, 64), objects=objects)

    below = with_mask(slice(10, 30), slice(10, 30))
    for columns, left in ((slice(0, 26), 1), (slice(0, 19), 2), (slice(0, 15), 2)):
        after = pasted(below, with_mask(slice(0, 64), columns), torch.tensor([0]))
        assert after.objects is not None
        assert len(after.objects.labels_N) == left, columns
    assert pasted(below, with_mask(slice(0, 64), slice(0, 9)), torch.zeros(0, dtype=torch.int64)) is below


def test_copy_paste_draws_its_partner_by_the_seed_of_the_sample() -> None:
    transform = train_transform("large_scale_jitter", mean=MEAN, std=STD, scale=(96, 96), paste_from=Made(6))
    samples: list[Sample] = []
    for _ in range(2):
        seed_everything(2, 0, 1, 3)
        samples.append(pickle.loads(pickle.dumps(transform))(Made(6).sample(3)))
    assert all(isinstance(sample.image, torch.Tensor) for sample in samples)
    assert torch.equal(torch.as_tensor(samples[0].image), torch.as_tensor(samples[1].image))
    counts = []
    for seed in range(20):
        seed_everything(2, 0, 1, seed)
        objects = transform(Made(6).sample(3)).objects
        assert objects is not None
        counts.append(len(objects.labels_N))
    assert max(counts) > 4  # more than the image had
    empty = CopyPaste(Made(2, count=0), Flip(0.5))(Made(1, count=0).sample(0))
    assert empty.objects is not None
    assert len(empty.objects.labels_N) == 0


def test_copy_paste_needs_masks() -> None:
    with pytest.raises(ValueError, match="have no masks, without which nothing can be pasted"):
        CopyPaste(Made(2), Flip(0.5))(made_up(64, 64, 2, 0, masks=False))


def test_evaluation_drops_objects() -> None:
    sample = made_up(64, 48, 2, 0)
    assert evaluation_transform((128, 96), mean=MEAN, std=STD)(sample).objects is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"policy": "3x"}, "the policy '3x' is unknown; it is one of resize, multi_scale"),
        ({"scale": (1333, 20)}, "scale is two limits in pixels"),
        ({"short_sides": ()}, "short_sides are pixels"),
        ({"crop": (600, 384)}, "crop is "),
        ({"jitter": (0, 2)}, "jitter is "),
        ({"std": (0, 1, 1)}, "no std zero"),
    ],
)
def test_impossible_values_are_told(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        train_transform(**{"policy": "resize", "mean": MEAN, "std": STD} | values)
