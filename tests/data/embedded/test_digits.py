import sys

import numpy as np
import pytest

from fourstage.data.embedded.digits import Digits, scans


def test_the_split_is_stratified_and_whole() -> None:
    train, val = Digits("train"), Digits("val")
    assert (len(train), len(val)) == (1437, 360)
    assert np.bincount(val.labels_N).tolist() == [36] * 10
    assert sorted([*train.numbers_N, *val.numbers_N]) == list(range(1797))


def test_the_split_never_changes() -> None:
    assert scans("val")[2][:8].tolist() == [0, 1, 3, 5, 8, 11, 19, 22]
    assert Digits("train").id(3) == "train/0007"


def test_a_sample_is_a_white_digit_on_black() -> None:
    dataset = Digits("val")
    sample = dataset.sample(5)
    assert isinstance(sample.image, np.ndarray)
    assert sample.image.shape == (32, 32, 3)
    assert sample.image.dtype == np.uint8
    assert sample.original_size == (32, 32)
    assert sample.label == dataset.labels_N[5]
    assert sample.id == dataset.id(5)
    assert sample.image[:2, :2].mean() < 30
    assert sample.image[8:24, 8:24].max() > 200


def test_no_scan_is_in_both_splits() -> None:
    train, val = ({scan.tobytes() for scan in scans(split)[0]} for split in ("train", "val"))
    assert not train & val


def test_without_scikit_learn_a_sentence_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r'pip install .*\[demo\]"'):
        Digits("train")
