"""`fourstage export` from the words of a command to a file that predicts what its run predicts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fourstage
from fourstage.cli import main
from fourstage.exported.description import Input
from fourstage.exported.runtime import open_runtime
from fourstage.run import export as command
from fourstage.user_files import import_files


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a small classifier, in the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = fourstage.create_model("visformer_digits", num_classes=10)
    torch.save(network.state_dict(), "digits.pth")
    return tmp_path / "digits.pth"


def test_a_model_is_written_with_its_proof_and_predicts(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["export", "visformer_digits", "--weights", "digits.pth", "--dynamic", "batch"])
    shown = capsys.readouterr().out
    assert code == 0
    assert "noise" in shown
    assert "wrote visformer_digits.onnx (8.7 MB), proved by onnxruntime" in shown
    proof = json.loads(Path("visformer_digits.onnx.proof.json").read_text())
    assert proof["passed"]
    assert [row["shape"][0] for row in proof["rows"]] == [1, 2, 1]
    assert proof["versions"]["torch"] == torch.__version__.partition("+")[0]
    description = open_runtime("visformer_digits.onnx").description
    assert len(description.classes) == 10
    assert description.network == "visformer_digits"
    assert len(str(description.recipe_hash)) == 64
    pixels = (torch.rand(50, 40, 3) * 255).to(torch.uint8).numpy()
    wanted: Any = fourstage.load("visformer_digits", weights="digits.pth")(pixels)
    found: Any = fourstage.load("visformer_digits.onnx")(pixels)
    assert found.labels.tolist() == wanted.labels.tolist()
    assert found.scores == pytest.approx(wanted.scores, abs=1e-5)


def test_a_deviation_ends_the_command_with_1(
    weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fourstage.export import write

    monkeypatch.setattr(write, "FLOAT32", write.FLOAT32.__class__(values=1e-12))
    code = main(["export", "visformer_digits", "--weights", "digits.pth"])
    assert code == 1
    assert "visformer_digits.onnx deviates from its network" in capsys.readouterr().err
    assert sorted(path.name for path in weights.parent.iterdir()) == ["digits.pth"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dynamic", "batch,colour"], "there is no axis 'colour'"),
        (["--format", "tflite"], "there is no format 'tflite'"),
        (["--output", "mask"], "there is no output 'mask'"),
        (["--output", "labels"], "--output labels is for segmentors"),
        (["--out", "missing/x.onnx"], "there is no folder missing"),
        (["--out", "x.bin"], "must end in .onnx"),
        (["--out", "taken.onnx"], "taken.onnx exists: add --force"),
        (["--size", "16"], "too small"),
        (["--size", "64x96"], "--size 64x96 is not a square, and a classifier reads"),
        (["--data", "nowhere"], "there is no data nowhere"),
    ],
)
def test_mistakes_get_one_sentence(
    words: list[str], message: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken.onnx").touch()
    assert main(["export", "visformer_digits", "--weights", "digits.pth", *words]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_file_of_another_size_reads_images_of_this_size(weights: Path) -> None:
    words = ["--size", "64", "--dynamic", " batch ,", "--data", "digits"]
    assert main(["export", "visformer_digits", "--weights", "digits.pth", *words]) == 0
    runtime = open_runtime("visformer_digits.onnx")
    assert getattr(runtime.description.resize, "size", None) == 64
    shapes = [row["shape"] for row in json.loads(Path("visformer_digits.onnx.proof.json").read_text())["rows"]]
    assert shapes[:5] == [[1, 3, 64, 64]] * 5
    assert shapes[5:] == [[2, 3, 64, 64]]
    result: Any = fourstage.load("visformer_digits.onnx")(torch.rand(3, 50, 40))
    assert len(result.labels) == 5


def test_images_of_a_proof_are_filled_up_and_resized_for_dynamic_axes() -> None:
    options = command.Options(dynamic=("batch", "height", "width"))
    sample = command.Images("a", torch.ones(1, 3, 128, 192), (100, 192))
    filled = command._filled_up(sample, 160, options)
    assert (*filled.images_BCHW.shape[2:], *filled.size) == (160, 192, 100, 192)
    assert command._filled_up(sample, 160, command.Options(dynamic=("batch",))).images_BCHW.shape[2:] == (128, 192)
    some = command._proof_images([filled], [(1, 160, 192), (2, 160, 192), (1, 320, 192)])
    assert [tuple(one.images_BCHW.shape) for one in some] == [(1, 3, 160, 192), (2, 3, 160, 192), (1, 3, 320, 192)]
    assert bool((some[1].images_BCHW == 1).all())  # an image without its padding
    assert [one.name for one in command._proof_images([], [(1, 64, 64)])] == ["noise"]


def test_a_classifier_is_never_filled_up_to_the_smallest_size() -> None:
    with pytest.raises(ValueError, match=r"reads images of 32 pixels, .* from 64 on; .* or give --size 64"):
        command._check_side(32, Input("images", smallest=64))
    command._check_side(64, Input("images", smallest=64))


def test_sizes_below_the_smallest_one_are_reported() -> None:
    both, high = command.Options(dynamic=("height", "width")), command.Options(dynamic=("height", "batch"))
    text = command.filling(96, (64, 128), both)
    assert text.startswith("reads dynamic sides of 96 pixels and more")
    assert "such as 64 x 128, are filled up" in text
    assert not command.filling(64, (64, 128), both)
    assert command.filling(96, (64, 128), high)
    assert not command.filling(96, (128, 64), high)  # the width is fixed
    assert not command.filling(1, (64, 64), command.Options())


def test_sources_that_cannot_be_exported(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, message in (
        ("nothing", "there is no run folder, checkpoint, model or recipe 'nothing'"),
        ("x.onnx", "x.onnx is already an exported file"),
        ("visformer_digits", "no weights of visformer_digits are published"),
    ):
        Path("x.onnx").touch()
        assert main(["export", source, "--out", "y.onnx"]) == 2
        assert message in capsys.readouterr().err
    assert main(["export", "x.pth", "--dense", "--out", "y.onnx"]) == 2
    assert "--dense exports a model by its name" in capsys.readouterr().err


OWN = """
from torch import nn
import fourstage
from fourstage.backbones.layers import Level

class Two(nn.Module):
    levels = (Level(8, 8), Level(8, 16))

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 8, 2, 2)

    def forward(self, image_BCHW):
        x_BCHW = self.first(image_BCHW)
        return [x_BCHW, self.second(x_BCHW)]

@fourstage.register
def two_levels():
    network = Two()
    CONFIG
    return network
"""
CONFIG = 'network.default_cfg = {"input_size": (3, 64, 96), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 0.9}'


@pytest.mark.parametrize("says", [True, False])
def test_a_backbone_of_ones_own_is_exported_if_it_says_how_it_reads_images(
    says: bool, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.py").write_text(OWN.replace("CONFIG", CONFIG if says else ""))
    import_files("own.py")
    torch.save(fourstage.create_backbone("two_levels").state_dict(), "own.pth")
    code = main(["export", "two_levels", "--dense", "--weights", "own.pth", "--imports", "own.py"])
    if says:
        assert code == 0
        assert open_runtime("two_levels_dense.onnx").description.strides == (8, 16)
    else:
        assert code == 2
        assert "its default_cfg lacks input_size, mean, std, crop_pct; set" in capsys.readouterr().err


def test_imports_run_before_a_backbone_is_looked_for(weights: Path) -> None:
    Path("own.py").write_text(OWN.replace("CONFIG", "").replace("two_levels", "other_levels"))
    assert main(["export", "other_levels", "--dense", "--weights", "digits.pth", "--imports", "own.py"]) == 2
    assert "other_levels" in fourstage.list_models()


def test_one_axis_may_be_a_text(weights: Path) -> None:
    with pytest.raises(ValueError, match="there is no axis 'batch,height'"):
        fourstage.export_network("visformer_digits", dynamic="batch,height")
    with pytest.raises(ValueError, match="there is no format 'tflite'"):  # compared after the axes
        fourstage.export_network("visformer_digits", dynamic="batch", format="tflite")  # pyright: ignore[reportArgumentType]


def test_noise_has_five_sizes_where_a_side_is_dynamic() -> None:
    options = command.Options(dynamic=("batch", "height", "width"))
    sizes = command.noise_sizes((800, 1344), options, 32, 160)
    assert len(set(sizes)) == 5
    assert {batch for batch, *_ in sizes} == {1, 2}
    assert all(side % 32 == 0 and side >= 160 for _, *pair in sizes for side in pair)
    assert command.noise_sizes((64, 96), command.Options()) == [(1, 64, 96)] * 3
    assert {wide for _, _, wide in command.noise_sizes((64, 96), command.Options(dynamic=("height",)), 1, 64)} == {96}


def test_a_file_is_named_by_the_folder_also_where_a_path_ends_in_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "checkpoints").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine" / "checkpoints")
    assert [command.default_out(source, "onnx") for source in ("..", ".")] == ["mine.onnx", "checkpoints.onnx"]
