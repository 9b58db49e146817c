"""Where a library of an extra is not installed, each command names it, and blames neither data nor recipe."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourstage import extras
from fourstage.extras import install


def without(library: str, words: Sequence[str], folder: Path) -> tuple[int, str]:
    """The exit code and the output of a command in a Python that lacks a library."""
    code = f"import sys; sys.modules[{library!r}] = None; from fourstage.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("library", "words", "sentence"),
    [
        ("sklearn", ["train", "digits_visformer", "--dry-run"], "digits come with scikit-learn, which is missing"),
        (
            "sklearn",
            ["train", "digit_scenes_retinanet", "--dry-run"],
            "digits come with scikit-learn, which is missing",
        ),
        ("timm", ["train", "smt_tiny_in1k", "--data", "digits", "--dry-run"], "are those of timm, which is missing"),
        ("scipy", ["compare", "digits_visformer", "--vary", "lr=1e-3,2e-3"], "needs scipy, which is missing; type: "),
    ],
)
def test_a_command_names_the_library_that_it_lacks(
    library: str, words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, printed = without(library, words, tmp_path)
    assert code == 2, printed
    last = printed.strip().splitlines()[-1]
    assert last.startswith("fourstage: ")
    assert sentence in last
    assert " install " in last


@pytest.mark.parametrize(
    "words",
    [["data", "check", "."], ["train", "digit_scenes_mask_rcnn", "--data", ".", "num_classes=null", "batch_size=1"]],
)
def test_masks_are_not_broken_where_their_library_is_missing(words: list[str], tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / split / "a.png")
        objects = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 40, 40], "area": 1600, "iscrowd": 0}
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
            "annotations": [{**objects, "segmentation": [[4, 4, 44, 4, 44, 44, 4, 44]]}],
            "categories": [{"id": 1, "name": "one"}],
        }
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    code, printed = without("faster_coco_eval", words, tmp_path)
    assert code == 2, printed
    assert printed.count("masks need faster-coco-eval, which is missing: ") == 1
    assert "skip_bad_images" not in printed
    assert "broken mask" not in printed


def test_an_installation_without_its_place_names_the_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that came by `--find-links` has no recorded place, and its folder is no project for pip."""

    class Installed:
        def read_text(self, name: str) -> str | None:
            return None

    needs = ["numpy>=2.0", "scipy>=1.14; extra == 'train'", 'timm>=1.0.20; extra == "train"', "onnx; extra == 'export'"]
    monkeypatch.setattr(extras, "distribution", lambda name: Installed())
    monkeypatch.setattr(extras, "requires", lambda name: needs)
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages" / "fourstage" / "extras.py"))
    assert install("train").endswith(' install "scipy>=1.14" "timm>=1.0.20"')
    assert install("train", "export").endswith(' install "scipy>=1.14" "timm>=1.0.20" "onnx"')
    assert install().endswith(' install "numpy>=2.0"')
