"""A user's own file that is given alone, a network of it by its name, and own networks that cannot classify."""

from pathlib import Path

import pytest
from PIL import Image

from fourstage.recipe import resolve
from fourstage.run import predict, train

NETWORKS = """
import fourstage
from torch import nn


@fourstage.register
def learns_nothing(num_classes=10, img_size=32):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


@fourstage.register
def of_another_size(num_classes=10, img_size=32):
    return nn.Sequential(nn.Flatten(), nn.Linear(5, num_classes))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.py"
    path.write_text(NETWORKS)
    return path


@pytest.mark.parametrize("kind", [str, Path])
def test_one_file_may_be_given_without_a_list(kind: type, own: Path, tmp_path: Path) -> None:
    recipe = resolve("digits_visformer", ["model=learns_nothing", "model_args={}"], imports=kind(own)).recipe
    assert recipe.imports == (str(own),)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*weights\.pth"):
        predict("learns_nothing", tmp_path / "a.png", weights=tmp_path / "weights.pth", imports=kind(own))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("learns_nothing", r"needs logits of shape \(1, 10\) for one image, but learns_nothing gives a tensor"),
        ("of_another_size", r"of_another_size failed on an image of 32 x 32 pixels \(RuntimeError: .*; correct it"),
    ],
)
def test_a_network_that_cannot_classify_is_a_sentence(model: str, said: str, own: Path, tmp_path: Path) -> None:
    changes = [f"model={model}", "model_args={}"]
    with pytest.raises(ValueError, match=said):
        train("digits_visformer", out=tmp_path / "run", changes=changes, imports=[own], dry_run=True, show=False)
