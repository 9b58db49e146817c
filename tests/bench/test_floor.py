"""The floor: which products a network computes, and their share of its time."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fourstage.backbones import swin
from fourstage.bench import floor
from fourstage.bench.count import count_module
from fourstage.bench.floor import Shape
from fourstage.bench.options import Options
from fourstage.cli.entry import main


def test_shapes_of_layers_and_attention() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.point = nn.Conv2d(3, 6, 1)
            self.others = nn.ModuleList([nn.Conv2d(6, 6, 1, groups=2), nn.Conv2d(6, 6, 1, stride=2)])
            self.layers = nn.ModuleList([nn.Linear(6, 10), nn.Linear(10, 6, bias=False)])

        def forward(self, image_BCHW: torch.Tensor) -> torch.Tensor:
            x_BCHW = self.others[0](self.point(image_BCHW))
            x_BNC = x_BCHW.flatten(2).transpose(1, 2)
            x_BNC = self.layers[1](self.layers[0](x_BNC))
            return nn.functional.scaled_dot_product_attention(x_BNC, x_BNC, x_BNC) + self.others[1](x_BCHW).sum()

    assert floor.products_of(Network(), (2, 3, 4, 4)) == {
        Shape(1, 32, 3, 6, layer=True): 1,
        Shape(1, 32, 6, 10, layer=True): 1,
        Shape(1, 32, 10, 6, layer=True): 1,
        Shape(2, 16, 6, 16, layer=False): 1,
        Shape(2, 16, 16, 6, layer=False): 1,
    }


def test_all_products_of_a_network_are_there() -> None:
    design = swin.Design(width=16, depths=(1, 2), heads=(1, 2), window=4)
    model = swin.classifier(design, num_classes=10, img_size=64).train()
    found = floor.products_of(model, (2, 3, 64, 64))
    macs = sum(
        count * shape.matrices * shape.rows * shape.channels_in * shape.channels_out for shape, count in found.items()
    )
    stem = 16 * 16 * 3 * 4 * 4 * 16  # the only convolution, which is not one of 1x1
    assert macs == 2 * (count_module(model, (3, 64, 64)).macs - stem)
    assert all(module.training for module in model.modules())


def test_training_has_three_passes() -> None:
    for shape in (Shape(1, 8, 4, 6, layer=True), Shape(3, 8, 4, 6, layer=False)):
        steps, names, seconds = floor.best_products(shape, "train", watch=iter(range(1000)).__next__)
        assert (len(steps), len(names)) == (3, 3)
        assert seconds == 3
        assert len(floor.best_products(shape, "infer", watch=iter(range(1000)).__next__)[0]) == 1


def test_the_command_prints_shapes_and_share(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["visformer_digits", "--floor", "--train", "--seconds", "0.1", "--batch-size", "2", "--device", "cpu"]
    assert main(["bench", *words]) == 0
    out = capsys.readouterr().out
    last = [line.split() for line in out.strip().splitlines()[-2:]]
    assert [line[:3] for line in last] == [["visformer_digits", mode, "2"] for mode in ("inference", "training")]
    assert all(0 < float(line[5]) < 1 for line in last)
    assert "visformer_digits, training: rows x in x out" in out


def test_the_share_is_that_of_the_products_time() -> None:
    found = floor.floors(["visformer_digits"], Options(seconds=0.1, batch_size=2, device="cpu"), show=False)[0]
    once = sum(row.count * row.seconds for row in found.rows)
    assert found.products.median / found.network.median == pytest.approx(found.share.median, rel=0.5)
    assert once < found.network.median
    assert found.share.low <= found.share.median <= found.share.high


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--dtype", "bfloat16"], "--floor is for float32 on a CPU"),
        (["--against", "swin_tiny"], "--floor prints tables of its own"),
        (["--csv", "out.csv"], "--floor prints tables of its own"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    more: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "visformer_digits", "--floor", *more]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("name", ["retinanet:visformer_digits", "digits.onnx"])
def test_networks_without_a_floor_are_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", name, "--floor", "--device", "cpu"]) == 2
    assert f"and {name} is none" in capsys.readouterr().err


def test_memory_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["visformer_digits", "--floor", "--device", "cpu", "--batch-size", str(2**20), "--img-size", "224"]
    assert main(["bench", *words]) == 2
    assert "the memory of this machine ran out" in capsys.readouterr().err
