"""Arguments of a network are kept as they were given, so that it can be saved, whatever the caller does with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn

import fourstage
from fourstage.run import predict
from fourstage.weights.description import description_of

THREE: Any = np.int64(3)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: fourstage.create_model("visformer_digits", num_classes=THREE, drop_path_rate=np.float32(0.1)),
    "grey": lambda: fourstage.create_model("visformer_digits", num_classes=3, in_chans=np.int32(1)),
    "sized": lambda: fourstage.create_model("visformer_digits", num_classes=3, img_size=(np.int64(64), np.int64(32))),
    "dense": lambda: fourstage.create_backbone("visformer_digits", out_indices=[THREE - 3, THREE - 2]),
    "detector": lambda: fourstage.create_detector(
        "retinanet", "visformer_digits", THREE, channels=np.int64(16), convs=1, backbone_args={"in_chans": THREE}
    ),
    "segmentor": lambda: fourstage.create_segmentor(
        "upernet", "visformer_digits", THREE, channels=16, auxiliary_channels=8
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_of_numpy_can_be_saved(name: str, tmp_path: Path) -> None:
    again = fourstage.from_checkpoint(fourstage.save_pretrained(NETWORKS[name](), tmp_path / "saved"))
    assert len(getattr(again, "class_names", ())) == (0 if name == "dense" else 3)


def test_a_list_that_changes_afterwards_changes_no_network(tmp_path: Path) -> None:
    indices, size, nested = [0, 1], [64, 64], {"img_size": [64, 64]}
    dense: Any = fourstage.create_backbone("visformer_digits", out_indices=indices)
    classifier: Any = fourstage.create_model("visformer_digits", num_classes=3, img_size=size)
    detector: Any = fourstage.create_detector(
        "retinanet", "visformer_digits", 3, channels=16, convs=1, backbone_args=nested
    )
    indices.append(2)
    size[0] = nested["img_size"][0] = 32
    again: Any = fourstage.from_checkpoint(fourstage.save_pretrained(dense, tmp_path / "dense"))
    assert again.levels == dense.levels
    for network in (classifier, detector):
        described = description_of(network)
        assert described is not None
        assert described.backbone_args["img_size"] == [64, 64]


@pytest.mark.parametrize("names", [np.array(["a", "b", "c"]), iter(["a", "b", "c"])], ids=["array", "iterator"])
def test_class_names_come_in_any_ordered_form(names: Any, tmp_path: Path) -> None:
    network = fourstage.create_model("visformer_digits", num_classes=3)
    again: Any = fourstage.from_checkpoint(fourstage.save_pretrained(network, tmp_path / "saved", class_names=names))
    assert again.class_names == ("a", "b", "c")
    assert {type(name) for name in again.class_names} == {str}


@pytest.mark.parametrize("names", [{"a", "b", "c"}, 3], ids=["set", "number"])
def test_class_names_without_an_order_are_refused(names: Any, tmp_path: Path) -> None:
    network = fourstage.create_model("visformer_digits", num_classes=3)
    with pytest.raises(ValueError, match="a list of names in the order of the labels"):
        fourstage.save_pretrained(network, tmp_path / "saved", class_names=names)


def test_what_is_no_network_is_one_sentence(tmp_path: Path) -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match="got None"):
        fourstage.save_pretrained(nothing, tmp_path / "saved")


def test_a_predictor_is_saved_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = fourstage.create_model("visformer_digits", num_classes=3)
    fourstage.save_pretrained(network, "saved", licence="mit")
    predictor = fourstage.load("saved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = predictor.save_pretrained(tmp_path / "again")
    assert "license: mit" in (folder / "README.md").read_text()


def test_predictions_without_images_or_a_folder_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    network = fourstage.create_model("visformer_digits", num_classes=3)
    fourstage.save_pretrained(network, "saved")
    with pytest.raises(ValueError, match="no image was given"):
        predict("saved", [], show=False)
    Image.new("RGB", (40, 40)).save("photo.png")
    with pytest.raises(ValueError, match="--out is empty"):
        predict("saved", "photo.png", out="", show=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo.png", "saved"]


@pytest.mark.parametrize("size", [224, (64,), (64, 64, 3), (64.0, 64.0), "64", (True, 64)])
def test_the_size_of_an_export_is_two_integers(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"size is \(height, width\) in pixels"):
        fourstage.export_network("visformer_digits", tmp_path / "x.onnx", size=size, show=False)


def test_the_size_of_an_export_may_be_of_numpy(tmp_path: Path) -> None:
    network = fourstage.create_model("visformer_digits", num_classes=3)
    fourstage.save_pretrained(network, tmp_path / "saved")
    side: Any = np.int64(32)
    written = fourstage.export_network(
        tmp_path / "saved", tmp_path / "x.pt2", format="torch", size=(side, side), show=False
    )
    assert not written.proof.failure
