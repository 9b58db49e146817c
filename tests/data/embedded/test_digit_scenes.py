import json
import sys
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourstage.data.embedded import digit_scenes
from fourstage.data.embedded.digit_scenes import (
    PHOTOGRAPHS,
    VISIBLE,
    SceneGenerator,
    cached_digit_scenes,
    write_digit_scenes,
)
from fourstage.data.objects.coco import Coco

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@cache
def maker(split: Split, size: int = 128, seed: int = 0) -> SceneGenerator:
    return SceneGenerator(split, size, seed)


@given(split=st.sampled_from(SPLITS), index=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_boxes_are_tight_and_masks_apart(split: Split, index: int) -> None:
    scene = maker(split).scene(index)
    assert 1 <= len(scene.labels_N) <= 6
    assert scene.masks_NHW.sum(axis=0).max() == 1  # a pixel belongs to one digit
    for mask_HW, (x1, y1, x2, y2) in zip(scene.masks_NHW, scene.boxes(), strict=True):
        inside_hw = mask_HW[y1:y2, x1:x2]
        assert inside_hw.sum() == mask_HW.sum() > 0
        assert inside_hw[0].any() and inside_hw[-1].any() and inside_hw[:, 0].any() and inside_hw[:, -1].any()  # noqa: PT018
        assert 10 <= y2 - y1 <= 72


@given(split=st.sampled_from(SPLITS), index=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_label_map_is_the_masks(split: Split, index: int) -> None:
    scene = maker(split).scene(index)
    map_HW = scene.label_map()
    assert np.array_equal(map_HW == 0, ~scene.masks_NHW.any(axis=0))
    for mask_HW, label in zip(scene.masks_NHW, scene.labels_N, strict=True):
        assert (map_HW[mask_HW] == label + 1).all()


@given(index=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_every_digit_stands_out_and_can_be_seen(index: int) -> None:
    scene = maker("val").scene(index)
    grey_HW = scene.image_HW3 @ np.array([0.299, 0.587, 0.114])
    for mask_HW in scene.masks_NHW:
        assert np.std(grey_HW[mask_HW]) < 60  # one ink, soft only at its edge
    boxes_N4 = scene.boxes()
    heights = boxes_N4[:, 3] - boxes_N4[:, 1]
    assert (scene.masks_NHW.sum(axis=(1, 2)) > VISIBLE * heights).all()


def test_a_later_digit_covers_an_earlier_one() -> None:
    low, high = np.zeros((2, 4, 6), dtype=bool)
    low[1:3, 0:5], high[1:3, 4:6] = True, True
    visible = digit_scenes._visible([low, high])
    assert visible.sum(axis=(1, 2)).tolist() == [8, 4]
    assert digit_scenes._leaves_visible([low, high])
    high[1:3, 3] = True
    assert not digit_scenes._leaves_visible([low, high])


def test_a_scene_is_a_function_of_split_seed_size_and_index() -> None:
    first = maker("train").scene(7)
    for other in (SceneGenerator("train").scene(7), maker("train").scene(7)):
        assert np.array_equal(first.image_HW3, other.image_HW3)
        assert np.array_equal(first.masks_NHW, other.masks_NHW)
    for other in (maker("train").scene(8), maker("train", 128, 1).scene(7), maker("val").scene(7)):
        assert not np.array_equal(first.image_HW3, other.image_HW3)
    assert maker("train", 96).scene(7).image_HW3.shape == (96, 96, 3)


def test_photographs_of_training_and_validation_are_apart() -> None:
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["val"])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp("data") / "scenes", train=6, val=3, size=96, seed=3)


def test_the_folder_reads_back_as_what_was_made(written: Path) -> None:
    for split, count in (("train", 6), ("val", 3)):
        dataset = Coco(written, "train" if split == "train" else "val")
        assert len(dataset) == count
        assert dataset.classes == tuple("0123456789")
        for index in range(count):
            scene, sample = maker("train" if split == "train" else "val", 96, 3).scene(index), dataset.sample(index)
            assert sample.objects is not None
            assert sample.objects.masks_NHW is not None
            assert np.array_equal(sample.objects.masks_NHW.numpy(), scene.masks_NHW)
            assert np.array_equal(sample.objects.boxes_N4.numpy(), scene.boxes())
            assert sample.objects.labels_N.tolist() == scene.labels_N.tolist()
            assert not sample.objects.crowd_N.any()
            assert np.abs(np.asarray(sample.image).astype(int) - scene.image_HW3).mean() < 4  # JPEG


def test_label_maps_have_a_palette_and_names(written: Path) -> None:
    with Image.open(written / "masks/val/000002.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), maker("val", 96, 3).scene(2).label_map())
        colours = np.array(image.getpalette()).reshape(-1, 3)
    assert len({tuple(colour) for colour in colours[:11].tolist()}) == 11
    assert (written / "masks/classes.txt").read_text().split() == ["background", *"0123456789"]


def test_the_json_is_cocos(written: Path) -> None:
    content = json.loads((written / "annotations/instances_train.json").read_text())
    assert [c["id"] for c in content["categories"]] == list(range(1, 11))
    ids = [a["id"] for a in content["annotations"]]
    assert len(set(ids)) == len(ids) > 6
    for annotation in content["annotations"]:
        assert annotation["iscrowd"] == 0
        assert isinstance(annotation["segmentation"]["counts"], str)
        assert 0 < annotation["area"] <= annotation["bbox"][2] * annotation["bbox"][3]


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_digit_scenes(tmp_path / "scenes", train=2, val=2, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is there already: name another folder"):
        write_digit_scenes(tmp_path / "file")
    with pytest.raises(
        ValueError, match=r"cannot be written to .*file/scenes \(.*\); free space, or name another folder$"
    ):
        write_digit_scenes(tmp_path / "file" / "scenes", train=1, val=1)
    with pytest.raises(ValueError, match="at least one scene each"):
        write_digit_scenes(tmp_path / "scenes", train=0)


def test_the_cache_is_filled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(digit_scenes, "CACHED", {"train": 2, "val": 1, "size": 64, "seed": 0})
    steps: list[tuple[int, int]] = []
    folder = cached_digit_scenes(lambda done, total: steps.append((done, total)))
    assert folder.parent == tmp_path / "fourstage"
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert cached_digit_scenes() == folder
    assert len(Coco(folder, "train")) == 2


def test_a_process_that_comes_second_takes_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(digit_scenes, "CACHED", {"train": 1, "val": 1, "size": 64, "seed": 0})

    def other_process(done: int, total: int) -> None:
        if done == 1:
            cached_digit_scenes()

    folder = cached_digit_scenes(other_process)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_without_scikit_image_a_sentence_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ValueError, match=r'pip install .*\[demo\]"'):
        SceneGenerator("train")
