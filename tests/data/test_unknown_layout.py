"""The message for a folder in no known layout, in the width of a terminal."""

from pathlib import Path

import pytest
from data.hostile import sound

from fourstage.data.formats import FORMATS, find_format
from fourstage.data.sample import Truth


def message(root: Path, truth: Truth | None) -> tuple[str, list[str]]:
    with pytest.raises(ValueError, match=r"supported layouts:|folder of one class") as error:
        find_format(root, truth)
    return str(error.value), list(getattr(error.value, "__notes__", []))


@pytest.mark.parametrize("truth", [None, "label", "objects", "label_map_HW"])
def test_each_layout_is_one_line_of_80_columns_and_of_the_task(truth: Truth | None, tmp_path: Path) -> None:
    (tmp_path / "things").mkdir()
    said, lines = message(tmp_path, truth)
    assert said.endswith("is not recognised (it has the folder things); supported layouts:")
    assert max(map(len, lines)) <= 80
    expected = [one.name for one in FORMATS if truth in (None, "label", one.truth)]
    assert [line.strip().partition(":")[0] for line in lines] == expected


def test_images_alone_are_answered_for_the_task(tmp_path: Path) -> None:
    sound.write(tmp_path / "cats" / "a.png", sound.png())
    assert "if it is the folder of one class, give the folder above it" in message(tmp_path / "cats", "label")[0]
    said, lines = message(tmp_path / "cats", "objects")
    assert said == f"{tmp_path / 'cats'} has images and no boxes; supported layouts:"
    assert len(lines) == 4
    assert message(tmp_path / "cats", "label_map_HW")[0].endswith("has images and no label maps; supported layouts:")
