"""What a predictor promises of its images and its numbers: nothing is shared with the caller, nothing is ignored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predict.networks import predictor

from fourstage.predict.base import Tiling
from fourstage.predict.images import from_array
from fourstage.predict.results import LabelMapResult, ObjectResult

PHOTO = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_iterator_may_give_all_images_in_the_same_memory(batch_size: int) -> None:
    def frames() -> Iterator[np.ndarray]:
        memory_HW3 = np.zeros_like(PHOTO)
        for shift in range(4):
            memory_HW3[:] = np.roll(PHOTO, 10 * shift, axis=1)
            yield memory_HW3

    network: Any = predictor("classification", batch_size=batch_size)
    alone = [network(np.roll(PHOTO, 10 * shift, axis=1)) for shift in range(4)]
    together = list(network(frames()))
    for a, b in zip(alone, together, strict=True):
        assert np.array_equal(a.image, b.image)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4)
    assert len({float(one.scores[0]) for one in alone}) == 4


@pytest.mark.parametrize("form", ["array", "tensor"])
def test_a_result_keeps_its_image(form: str) -> None:
    given_HW3 = PHOTO.copy()
    result: Any = predictor("classification")(
        given_HW3 if form == "array" else torch.from_numpy(given_HW3).permute(2, 0, 1)
    )
    given_HW3[:] = 0
    assert np.array_equal(result.image, PHOTO)
    result.image[:] = 7
    assert not given_HW3.any()


def test_the_images_of_a_folder_are_read_from_another_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.fromarray(PHOTO).save(tmp_path / "photos" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    network = predictor("classification")
    results: Any = network("photos")
    later = network.stream("photos")
    monkeypatch.chdir("/")
    assert [result.name for result in results] == ["photos/a.png", "photos/b.png"]
    assert all(np.array_equal(result.image, PHOTO) for result in (*results, *later))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(3, 40, 40, device="meta"), "give one with values"),
        (torch.zeros(3, 40, 40, dtype=torch.uint8).to_sparse(), "to_dense"),
        (Image.new("RGB", (0, 0)), "0 x 0 pixels hold"),
    ],
)
def test_images_without_pixels_are_refused(given: Any, message: str) -> None:
    network = predictor("classification")
    for form in (given, [given]):
        with pytest.raises(ValueError, match=message):
            network(form)


def test_numbers_of_numpy_are_numbers() -> None:
    numbers: Any = {"batch_size": np.int64(2), "threshold": np.float32(0.5)}
    network: Any = predictor("detection", **numbers)
    assert (network.batch_size, network.task.threshold) == (2, 0.5)
    tiling: Any = Tiling(*[np.int64(64), np.float32(0.25)])
    assert (tiling.side, tiling.overlap) == (64, 0.25)
    for wrong in (True, np.float64(2)):
        with pytest.raises(ValueError, match="batch_size"):
            predictor("classification", batch_size=wrong)


def test_ids_that_are_given_are_used() -> None:
    source, classes = from_array(PHOTO, 1), ("cat", "dog")
    rows = np.array([1, 0])
    objects = ObjectResult(source, (40, 50), classes, rows, np.array([0.9, 0.8]), np.ones((2, 4)), training_ids=(7, 8))
    areas = LabelMapResult(source, (40, 50), classes, rows, PHOTO[..., 0] % 2, np.array([0.6, 0.4]))
    for result in (objects, areas):
        given: Any = np.array([30, 40])
        ids = [row["category_id"] for row in result.to_coco(category_ids=given)]
        assert ids == [40, 30]
        assert {type(id) for id in ids} == {int}
        with pytest.raises(ValueError, match="got 0 category ids for 2 classes"):
            result.to_coco(category_ids=())


def test_a_label_map_below_a_file_gets_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result: Any = predictor("segmentation")(PHOTO)
    with pytest.raises(OSError, match=r"cannot be created .*; choose another folder"):
        result.save_label_map(tmp_path / "file" / "labels.png")
