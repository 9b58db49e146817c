"""Predictions from an ONNX file where torch and most other libraries are not installed, in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported.files import of_size, write_onnx
from exported.networks import graph_of
from PIL import Image
from predict.networks import predictor

ROOT = Path(__file__).parents[2]
MISSING = (  # of the packages that fourstage names, all but those of docs/predicting.md
    *("torch", "torchvision", "timm", "scipy", "pydantic", "safetensors", "huggingface_hub", "onnx", "onnxscript"),
    *("openvino", "matplotlib", "sympy", "tensorboard", "faster_coco_eval", "sklearn", "skimage", "supervision"),
)
BLOCK = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without_torch")
    graph, description = (
        graph_of("classification", predictor("classification").network),
        of_size("classification", (32, 32)),
    )
    write_onnx(folder / "x.onnx", graph, description, (32, 32))
    for name in ("x.xml", "x.pt2"):
        (folder / name).write_bytes(b"")  # their runtimes are missing, before anything is read
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


def test_load_and_predict(place: Path) -> None:
    code = """
import json
import fourstage
network = fourstage.load("x.onnx")
result = network("photo.png")
result.save("out.png")
print(json.dumps([result.to_dict(), repr(network), sorted(name for name in sys.modules if "." not in name)]))
"""
    done = run(code, place)
    assert done.returncode == 0, done.stderr
    got, text, modules = json.loads(done.stdout)
    want: Any = predictor("classification")(str(place / "photo.png"))
    names = [[row["class"] for row in one["top"]] for one in (got, want.to_dict())]
    scores, wanted = ([row["probability"] for row in one["top"]] for one in (got, want.to_dict()))
    assert names[0] == names[1]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert "onnxruntime" in text
    assert not set(MISSING) & set(modules)
    with Image.open(place / "out.png") as picture:
        assert picture.width > 40


def test_the_command_line(place: Path) -> None:
    code = (
        'from fourstage.cli import main\nsys.exit(main(["predict", "x.onnx", "photo.png", "--out", "found", "--json"]))'
    )
    done = run(code, place)
    assert done.returncode == 0, done.stderr
    [one] = json.loads(done.stdout)
    assert one["top"][0]["class"] in ("cat", "dog", "owl")
    assert (place / "found" / "results.csv").is_file()
    assert (place / "found" / "photo.png").is_file()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (
            ["predict", "runs/mine", "photo.png"],
            "torch is missing, and only predictions from .onnx and .xml files work without it; type: ",
        ),
        (["evaluate", "x.onnx", "--data", "y"], "torch is missing"),
        (["predict", "x.xml", "photo.png"], "is run by openvino, which is missing"),
        (["predict", "x.pt2", "photo.png"], "is run by torch, which is missing"),
        (["predict", "y.onnx", "photo.png"], "there is no file y.onnx"),
        (["predict", "x.onnx", "photo.png", "--precision", "float16"], "leave precision out"),
        (["predict", "x.onnx", "photo.png", "--threshold", "0.5"], "does not detect objects"),
        (["predict", "x.onnx", "photo.png", "--tile", "640"], "a classifier reads the complete image"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_sentence(words: list[str], part: str, place: Path) -> None:
    done = run(f"from fourstage.cli import main\nsys.exit(main({words!r}))", place)
    assert done.returncode == 2
    assert part in done.stderr
    assert done.stderr.count("\n") == 1
