"""Messages on a trained network, or on one of a user's own: what they offer can be typed, and works."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import fourstage
from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes

OWN = """
import fourstage
from torch import nn


class Plain(nn.Module):
    def __init__(self, {name}: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.{name} = {name}
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.{name}(x)).mean((2, 3)))


@fourstage.register
def plain_{name}(num_classes=10):
    return Plain(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, {stride})), num_classes)
"""
SMALL = ["--data", "digits", "--size", "32"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def own(folder: Path, name: str, stride: int = 2) -> list[str]:
    """Write the file of a classifier without `levels`; return the option that runs it."""
    file = folder / f"with_{name}.py"
    file.write_text(OWN.format(name=name, stride=stride))
    return ["--imports", str(file)]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    [sentence] = capsys.readouterr().err.strip().splitlines()
    return sentence


def test_analyses_of_a_users_own_classifier_offer_options_that_they_have(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem, blocks = own(folder, "stem"), own(folder, "blocks")
    erf = ["analyze", "erf", "plain_stem", *SMALL, "--images", "1", "--out", "erf", *stem]
    sentence = refused(erf, capsys)
    assert "plain_stem has no `levels`" in sentence
    assert main([*erf, *re.findall(r"(--map) (\w+)", sentence)[0]]) == 0
    cam = ["analyze", "cam", "plain_stem", *SMALL, "--images", "1", "--out", "cam", *stem]
    sentence = refused([*cam, "--map", "stage1"], capsys)
    assert main([*cam, *re.findall(r"(--map) (\w+)", sentence)[0]]) == 0
    cka = [*SMALL, "--images", "4", "--out", "cka"]
    sentence = refused(["analyze", "cka", "plain_stem", *cka, *stem], capsys)
    assert "plain_stem has no `levels`" in sentence
    assert "--" not in sentence
    assert "name a layer" not in sentence
    assert "add --by block" in refused(["analyze", "cka", "plain_blocks", *cka, *blocks], capsys)
    assert main(["analyze", "cka", "plain_blocks", *cka, *blocks, "--by", "block"]) == 0
    assert "plain_stem has no modules" in refused(
        ["analyze", "cka", "plain_stem", *cka, *stem, "--by", "block"], capsys
    )
    sentence = refused(["analyze", "maps", "plain_stem", *SMALL, "--out", "maps", *stem], capsys)
    assert "plain_stem has none of this package's mixers" in sentence
    assert "Plain" not in sentence


def test_bench_says_what_to_type_for_a_trained_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fourstage.save_pretrained(fourstage.create_model("visformer_digits", num_classes=10), folder / "saved")
    write_digit_scenes(folder / "scenes", train=2, val=1, size=64)
    changes = "optimisation.length=1it workers=0 optimisation.batch_size=2 optimisation.warmup=0it"
    train = f"train digit_scenes_semantic_fpn --data scenes --out run augmentation.crop=[64,64] {changes}"
    assert main(train.split()) == 0
    short = ["--seconds", "0.01", "--batch-size", "1", "--img-size", "64"]
    for trained in ("run", "run/checkpoints/best.pt"):
        typed = shlex.split(refused(["bench", trained, *short], capsys).partition("type fourstage ")[2])
        assert typed == ["bench", "run/recipe.yaml"]
    assert main([*typed, *short]) == 0
    for saved in ("saved", str(folder / "saved" / "model.safetensors")):
        assert f"{saved} is a folder or a file of weights; name its network" in refused(["bench", saved], capsys)
    assert "none.pt is not there" in refused(["bench", str(folder / "none.pt")], capsys)
    assert "or an exported file" in refused(["bench", "/none/of/these"], capsys)


def test_bench_of_a_users_own_network_takes_any_size_and_too_small_batches_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stem = own(folder, "stem", stride=8)
    bench = ["bench", "plain_stem", "--img-size", "32", "--batch-size", "1", "--seconds", "0.01", *stem]
    assert main(bench) == 0  # it has no argument img_size
    assert "more than one value per channel" in refused([*bench, "--train"], capsys)
    recipe = folder / "mine.yaml"
    recipe.write_text("base: digits_visformer\nmodel: plain_stem\nimports: with_stem.py\n")
    assert main(["bench", str(recipe), "--batch-size", "1", "--seconds", "0.01"]) == 0


def test_export_of_a_dense_file_says_how_and_it_works(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = fourstage.create_backbone("visformer_digits", out_indices=(1, 2))
    fourstage.save_pretrained(backbone, folder / "a b")
    for source in ("a b", "a b/model.safetensors"):
        for more in ([], ["--dense"]):
            sentence = refused(["export", source, *more, "--out", "dense.onnx"], capsys)
            typed = shlex.split(sentence.partition("type fourstage ")[2])
            assert typed == ["export", "visformer_digits", "--dense", "--weights", "a b/model.safetensors"]
    assert main([*typed, "--out", "dense.onnx"]) == 0


def test_convert_offers_no_option_that_it_lacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = fourstage.save_pretrained(fourstage.create_model("visformer_digits"), folder / "saved")
    source = str(Path(file) / "model.safetensors")
    sentence = refused(["convert", source, "--model", "plain_stem", "--out", "out.safetensors"], capsys)
    assert "networks of your own are not converted" in sentence
    assert "--imports" not in sentence


def test_predict_says_which_addresses_are_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fourstage.save_pretrained(fourstage.create_model("visformer_digits", num_classes=10), folder / "saved")
    predict = fourstage.load("saved", show=False)
    for address in ("ftp://host/photo.jpg", "file:///photo.jpg", "s3://bucket/*.jpg"):
        for given in (address, [address]):
            with pytest.raises(ValueError, match="is an address that is not read; give one of http:// or https://"):
                predict(given)
        assert f"{address} is an address, and files are needed" in refused(["predict", "saved", address], capsys)
    with pytest.raises(FileNotFoundError, match="no image or video nothing; check the path"):
        predict("nothing")


def test_cka_of_less_data_than_it_needs_offers_no_smaller_number(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digit_scenes(folder / "few", train=4, val=3, size=64)
    cka = ["analyze", "cka", "visformer_digits", "--data", "few", "--size", "64", "--out", "cka"]
    for images in ([], ["--images", "4"], ["--images", "9"]):
        assert refused([*cka, *images], capsys).endswith("few has 3 images and 4 are needed; give more data")
    write_digit_scenes(folder / "enough", train=4, val=4, size=64)
    cka = [*cka[:4], "enough", *cka[5:]]
    sentence = refused([*cka, "--images", "9"], capsys)
    assert main([*cka, *re.findall(r"(--images) (\d+)", sentence)[0]]) == 0


def test_stages_are_asked_for_by_the_name_of_the_argument() -> None:
    network: Any = fourstage.create_model("visformer_digits", num_classes=2).eval()
    images = torch.zeros(1, 3, 32, 32)
    for wrong in (4, 0, -1):
        with pytest.raises(ValueError, match=f"indices={wrong} asks .* give a number from 1 to 3"):
            network.forward_intermediates(images, indices=wrong)
        with pytest.raises(ValueError, match=f"indices={wrong} asks .* give a number from 1 to 3"):
            network.prune_intermediate_layers(indices=wrong)
    with pytest.raises(ValueError, match=r"^indices \(0, 3\) must name .*; indices=\[0, 1, 2\] are all"):
        network.forward_intermediates(images, indices=(0, 3))
    assert len(network.forward_intermediates(images, indices=3, intermediates_only=True)) == 3
