"""Masks in shades of grey, such as 0 and 128, and sets of classes whose rare ones do not occur."""

from pathlib import Path

import numpy as np
import pytest
from data.hostile import sound
from data.hostile.verdicts import refusal_of_training, refusals_of_check
from PIL import Image

from fourstage.data.label_maps.folders import LabelMaps
from fourstage.data.label_maps.grey_codes import is_grey_codes
from fourstage.data.label_maps.layouts import CITYSCAPES, VOC

GREY = [
    [0, 128], [0, 127], [0, 128, 255], [0, 85, 170, 255], [0, 85, 170], [50, 100, 150], [0, 64, 128, 192], [100, 200],
    [0, 29, 76, 150],  # blue, red and green as grey
    [round(i * 255 / 15) for i in range(16)], [round(i * 255 / 9) for i in range(10)],
]  # fmt: skip
NUMBERS = [
    [0, 1], [0, 1, 255], [0, 2], [0, 255], [0, 15], [0, VOC.index("tvmonitor")], [0, 1, 90], [0, 1, 2, 40], [3, 4, 149],
    [0, 10, 20, 30], [2, 17, 60, 63, 149], sorted(number for _, number, _ in CITYSCAPES), [*range(20), 149], [7], [],
]  # fmt: skip


def write(root: Path, values: list[int]) -> None:
    for split in ("train", "val"):
        for i in range(3):
            sound.write(root / "images" / split / f"{i}.png", sound.png(10 * i + (split == "val")))
            values_HW = np.random.default_rng(i).choice(np.array(values, np.uint8), (sound.SIDE, sound.SIDE))
            (root / "masks" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values_HW).save(root / "masks" / split / f"{i}.png")


@pytest.mark.parametrize("values", GREY, ids=str)
def test_shades_of_grey(values: list[int]) -> None:
    assert is_grey_codes(values)


@pytest.mark.parametrize("values", NUMBERS, ids=str)
def test_numbers_of_classes_of_which_rare_ones_may_be_missing(values: list[int]) -> None:
    assert not is_grey_codes(values)


@pytest.mark.parametrize("values", [[0, 128], [0, 85, 170, 255], [50, 100, 150]], ids=str)
def test_grey_masks_are_refused_by_both_with_one_sentence_and_train_with_its_lines(
    values: list[int], tmp_path: Path
) -> None:
    write(tmp_path, values)
    sentence = refusal_of_training(tmp_path, "label_map_HW")
    assert f"hold only {', '.join(map(str, values))}, as shades of grey" in sentence
    assert refusals_of_check(tmp_path, "label_map_HW") == [f"{tmp_path} (train) cannot be used: {sentence}"]
    said = [line for line in sentence.split("`")[1::2] if ":" in line]
    names = [line.replace("NAME", f"kind {i}") for i, line in enumerate(said)]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert refusal_of_training(tmp_path, "label_map_HW") == ""
    assert refusals_of_check(tmp_path, "label_map_HW") == []
    dataset = LabelMaps(tmp_path, "train")
    assert dataset.stored_values == tuple(values)
    labels = dataset.sample(0).label_map_HW
    assert labels is not None
    assert labels.unique().tolist() == list(range(len(values)))


def test_numbers_that_mostly_do_not_occur_train_with_all_names(tmp_path: Path) -> None:
    write(tmp_path, [0, 62])
    assert "the names of all 63 classes in their order" in refusal_of_training(tmp_path, "label_map_HW")
    (tmp_path / "classes.txt").write_text("\n".join(f"kind {i}" for i in range(63)))
    assert refusal_of_training(tmp_path, "label_map_HW") == ""
    assert refusals_of_check(tmp_path, "label_map_HW") == []


def test_names_without_values_are_answered_with_how_values_are_written(tmp_path: Path) -> None:
    write(tmp_path, [0, 128])
    (tmp_path / "classes.txt").write_text("background\nroad\n")
    sentence = refusal_of_training(tmp_path, "label_map_HW")
    assert "it holds 128, and the 2 classes are stored as 0 to 1" in sentence
    assert sentence.endswith("as `128: road`")
    assert any(sentence.partition("reason: ")[2] in refusal for refusal in refusals_of_check(tmp_path, "label_map_HW"))
    (tmp_path / "classes.txt").write_text("0: background\n128: road\n")
    assert refusal_of_training(tmp_path, "label_map_HW") == ""
