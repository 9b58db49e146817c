"""Tables of robustness: top-5, CE and mCE, and timm's columns, against numbers that are computed here."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision import transforms

from fourstage.analysis import robustness
from fourstage.analysis.paired_answers import mcnemar
from fourstage.analysis.robustness import ALEXNET
from fourstage.cli import main
from fourstage.data.labels.imagenet_variants import wnids
from fourstage.run.analyze.robustness import RobustnessSetting, analyze_robustness

NETWORK = "timm/resnet10t"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that prefers a few classes, so that some of its predictions are right."""
    torch.manual_seed(0)
    state = timm.create_model("resnet10t").state_dict()
    state["fc.weight"] = 30 * torch.randn(state["fc.weight"].shape)
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save(state, path)
    return path


def write_corrupted(root: Path, source: Path) -> None:
    """Write ImageNet-C's folders, each with the images of `source`."""
    for name in ALEXNET:
        for severity in "12345":
            shutil.copytree(source, root / name / severity)


def write_images(root: Path, classes: int) -> list[Path]:
    out = []
    for i, wnid in enumerate(wnids()[:classes]):
        (root / wnid).mkdir(parents=True)
        pixels = np.random.default_rng(i).integers(0, 256, (2, 2, 3)).astype(np.uint8)
        path = root / wnid / f"ILSVRC2012_val_{i + 1:08d}.JPEG"
        Image.fromarray(pixels).resize((48, 40), Image.Resampling.NEAREST).save(path, quality=95)
        out.append(path)
    return out


def ranks(weights: Path, paths: list[Path], classes: int | None) -> torch.Tensor:
    network: Any = timm.create_model("resnet10t").eval()
    network.load_state_dict(torch.load(weights))
    cfg = network.default_cfg
    steps = [transforms.Resize(int(32 / cfg["crop_pct"]), transforms.InterpolationMode(cfg["interpolation"]))]
    view: Any = transforms.Compose(
        [*steps, transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(cfg["mean"], cfg["std"])]
    )
    with torch.no_grad():
        logits = network(torch.stack([view(Image.open(path).convert("RGB")) for path in paths]))
    return logits[:, :classes].argsort(dim=1, descending=True)[:, :5]


def rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def analyse(weights: Path, data: Path, out: Path, *words: str) -> None:
    command = ["analyze", "robustness", f"{NETWORK}={weights}", "--data", str(data), "--out", str(out), *words]
    assert main(command) == 0


def test_a_test_set_of_some_classes_has_timms_columns(weights: Path, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "imagenet-a", 12)
    analyse(weights, tmp_path / "imagenet-a", tmp_path / "out", "--size", "32")
    best = ranks(weights, paths, 12)
    hits = best == torch.arange(12)[:, None]
    top1, top5 = 100 * float(hits[:, 0].float().mean()), 100 * float(hits.any(dim=1).float().mean())
    assert 0 < top5 < 100
    [row] = rows(tmp_path / "out" / "timm.csv")
    assert (row["model"], row["img_size"]) == ("resnet10t", "32")
    cfg: Any = timm.create_model("resnet10t").default_cfg
    assert (float(row["crop_pct"]), row["interpolation"]) == (cfg["crop_pct"], cfg["interpolation"])
    for key, value in (("top1", top1), ("top1_err", 100 - top1), ("top5", top5), ("top5_err", 100 - top5)):
        assert float(row[key]) == pytest.approx(value, abs=1e-4)
    count = sum(parameter.numel() for parameter in timm.create_model("resnet10t").parameters())
    assert float(row["param_count"]) == round(count / 1e6, 2)
    [own] = rows(tmp_path / "out" / "robustness.csv")
    assert float(own["top5"]) == pytest.approx(top5)
    assert not (tmp_path / "out" / "timm-real.csv").exists()


def test_real_labels_have_a_table_of_their_own(weights: Path, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "val", 1000)
    valid = [[] if i % 3 == 0 else [i, (7 * i) % 1000, 5] for i in range(1000)]
    (tmp_path / "real.json").write_text(json.dumps(valid))
    analyse(weights, tmp_path / "val", tmp_path / "out", "--size", "32", "--images", "40")
    [row] = rows(tmp_path / "out" / "timm-real.csv")
    with np.load(tmp_path / "out" / "robustness.npz") as kept:
        count = len(next(kept[key] for key in kept.files if "ReaL" in key))
    chosen = [i * 1000 // 40 for i in range(40)]
    labelled = [i for i in chosen if valid[i]]
    assert count == len(labelled)
    best = ranks(weights, [paths[i] for i in labelled], None)
    hits = torch.tensor([[int(one) in valid[i] for one in line] for line, i in zip(best, labelled, strict=True)])
    assert float(row["top1"]) == pytest.approx(100 * float(hits[:, 0].float().mean()), abs=1e-4)
    assert float(row["top5"]) == pytest.approx(100 * float(hits.any(dim=1).float().mean()), abs=1e-4)


def test_images_without_a_real_label_are_no_test_set(weights: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "val", 1000)
    (tmp_path / "real.json").write_text(json.dumps([[]] * 1000))
    analyse(weights, tmp_path / "val", tmp_path / "out", "--size", "32", "--images", "4")
    assert len(rows(tmp_path / "out" / "robustness.csv")) == 1
    assert not (tmp_path / "out" / "timm-real.csv").exists()


def test_the_table_of_imagenet_c_has_each_ce_and_the_mce(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def best_five(_: object, images_BCHW: torch.Tensor, *__: object) -> np.ndarray:
        return np.tile([2, 7, 0, 8, 5], (len(images_BCHW), 1))

    monkeypatch.setattr(robustness, "best_five", best_five)
    first = tmp_path / "c" / "fog" / "1"
    paths = write_images(first, 4)
    for path in paths:
        Image.open(path).resize((224, 224)).save(path)
    for name in ALEXNET:
        for severity in "12345":
            if (folder := tmp_path / "c" / name / severity) != first:
                shutil.copytree(first, folder)
    analyse(weights, tmp_path / "c", tmp_path / "out", "--images", "2")
    table = rows(tmp_path / "out" / "robustness.csv")
    assert len(table) == 15 * 5 + 1
    assert {(row["top1"], row["top5"]) for row in table[:-1]} == {("50", "100")}  # of the first and the third image
    ces = {}
    for name, alexnet in ALEXNET.items():
        own = [row for row in table if row["corruption"] == name]
        ces[name] = 100 * sum(1 - float(row["top1"]) / 100 for row in own) / sum(alexnet)
        assert [float(row["ce"]) for row in own] == pytest.approx([ces[name]] * 5)
    assert table[-1]["corruption"] == "mean of all"
    assert float(table[-1]["low"]) <= float(table[-1]["top1"]) == 50 <= float(table[-1]["high"])
    assert float(table[-1]["ce"]) == pytest.approx(np.mean(list(ces.values())))
    assert {row["relative_ce"] for row in table} == {""}


def test_unchanged_images_give_the_relative_mce(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every corruption makes one of two images wrong; the unchanged ones are both right."""

    def best_five(_: object, images_BCHW: torch.Tensor, *__: object) -> np.ndarray:
        assert images_BCHW.shape[2:] == (224, 224)
        dark = images_BCHW.mean(dim=(1, 2, 3)) < -1
        return np.array([[1, 2, 3, 4, 5], [0, 2, 3, 4, 5]])[dark.int()]

    monkeypatch.setattr(robustness, "best_five", best_five)
    clean = write_images(tmp_path / "val", 2)
    for i, path in enumerate(clean):
        Image.new("RGB", (300, 270), (0, 0, 0) if i == 0 else (255, 255, 255)).save(path)
    for name in ALEXNET:
        for severity in "12345":
            shutil.copytree(tmp_path / "val", tmp_path / "c" / name / severity)
            wrong = tmp_path / "c" / name / severity / clean[0].relative_to(tmp_path / "val")
            Image.new("RGB", (224, 224), (255, 255, 255)).save(wrong)
    analyse(weights, tmp_path / "c", tmp_path / "out", "--clean", str(tmp_path / "val"))
    table = rows(tmp_path / "out" / "robustness.csv")
    assert (table[0]["corruption"], float(table[0]["top1"])) == ("", 100)
    expected = [100 * 5 * 0.5 / (sum(errors) - 5 * 0.435) for errors in ALEXNET.values()]
    assert [float(row["relative_ce"]) for row in table[1:-1:5]] == pytest.approx(expected)
    assert float(table[-1]["relative_ce"]) == pytest.approx(np.mean(expected))
    assert f"The relative mCE of {NETWORK}={weights.name} is {np.mean(expected):.1f}." in capsys.readouterr().out
    page = (tmp_path / "out" / "robustness.html").read_text()
    assert f"<td>{float(table[-1]['ce']):.2f}</td><td>{np.mean(expected):.2f}</td>" in page
    assert "to the first network</th>" not in page
    assert "relative mCE %</th>" in page


CLEAN = {
    "val": "has no folders CORRUPTION/SEVERITY; remove --clean",
    "missing": "is a folder of ImageNet's validation images by classes; ",
    "empty": "with the same classes as ",
    "more": "more has 3 folders and ",
    "digits": "digits has no folders CORRUPTION/SEVERITY; remove --clean",
}


@pytest.mark.parametrize("clean", CLEAN)
def test_unchanged_images_of_other_data_are_refused(
    weights: Path, tmp_path: Path, clean: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is measured, and whether or not the package for corruptions is installed."""
    monkeypatch.setattr(robustness, "best_five", lambda *_: pytest.fail("measured"))
    write_images(tmp_path / "val", 2)
    write_images(tmp_path / "c" / "fog" / "1", 2)
    write_images(tmp_path / "more", 3)
    (tmp_path / "empty").mkdir()
    data = {"val": str(tmp_path / "val"), "digits": "digits"}.get(clean, str(tmp_path / "c"))
    words = ["--data", data, "--clean", str(tmp_path / clean)]
    assert main(["analyze", "robustness", f"{NETWORK}={weights}", *words, "--out", str(tmp_path / "out")]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "--clean is " in printed
    assert CLEAN[clean] in printed
    assert not (tmp_path / "out").exists()


def test_unchanged_images_that_cannot_be_read_are_named(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder may be that of ImageNet, whose images are in its val/."""
    monkeypatch.setattr(robustness, "best_five", lambda _, images, *__: np.tile(np.arange(5), (len(images), 1)))
    paths = write_images(tmp_path / "imagenet" / "val", 3)
    shutil.copytree(tmp_path / "imagenet" / "val", tmp_path / "c" / "fog" / "1")
    shutil.copytree(tmp_path / "imagenet" / "val", tmp_path / "imagenet" / "train")
    paths[1].write_bytes(b"no image")
    analyse(weights, tmp_path / "c", tmp_path / "out", "--clean", str(tmp_path / "imagenet"))
    printed = capsys.readouterr().out
    assert f"1 image cannot be read and is left out: {paths[1].name}" in printed
    assert f"Unchanged images are those of {tmp_path / 'imagenet' / 'val'}, resized to 256 pixels" in printed
    assert "Predictions among the 3 classes of the data." in printed
    assert rows(tmp_path / "out" / "robustness.csv")[0]["images"] == "2"


def test_corruptions_with_other_images_have_a_difference_without_an_interval(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second network is right on every image, the first one on none."""
    classes = [[7] * 5, [0, 1, 2, 3, 4]]

    def best_five(network: Any, images_BCHW: torch.Tensor, *_: object) -> np.ndarray:
        return np.tile(classes[int(network.fc.weight.abs().max() == 0)], (len(images_BCHW), 1))

    monkeypatch.setattr(robustness, "best_five", best_five)
    other, state = tmp_path / "other.pth", torch.load(weights)
    torch.save(state | {"fc.weight": 0 * state["fc.weight"]}, other)
    [path] = write_images(tmp_path / "source", 1)
    path.with_name("ILSVRC2012_val_00000009.JPEG").write_bytes(path.read_bytes())
    write_corrupted(tmp_path / "c", tmp_path / "source")
    for images in (2, 1):
        outcome = analyze_robustness(
            [f"{NETWORK}={file}" for file in (weights, other)], tmp_path / "c", tmp_path / "out"
        )
        row = dict(zip(outcome.head, outcome.rows[1], strict=True))
        assert (row["to the first"], row["p"]) == ("+100.0 [+100.0, +100.0]" if images == 2 else "+100.0", "-")
        (tmp_path / "c" / "fog" / "3" / path.parent.name / path.name).unlink(missing_ok=True)
    mean = rows(tmp_path / "out" / "robustness.csv")[-1]
    assert (mean["difference"], mean["difference_low"], mean["p"]) == ("100", "", "")
    assert ">+100.00<" in (tmp_path / "out" / "robustness.html").read_text()


def test_unchanged_images_are_the_middle_224_of_256_pixels(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A white border of 1/16 of each side is cut off."""
    seen = []

    def best_five(_: object, images_BCHW: torch.Tensor, *__: object) -> np.ndarray:
        seen.append(images_BCHW)
        return np.zeros((len(images_BCHW), 5), int)

    monkeypatch.setattr(robustness, "best_five", best_five)
    [path] = write_images(tmp_path / "val", 1)
    shutil.copytree(tmp_path / "val", tmp_path / "c" / "fog" / "1")
    pixels = np.full((512, 512, 3), 255, np.uint8)
    pixels[32:-32, 32:-32] = 0
    Image.fromarray(pixels).save(path, quality=100)
    analyse(weights, tmp_path / "c", tmp_path / "out", "--clean", str(tmp_path / "val"))
    unchanged_BCHW = seen[-1]
    inside, edge = unchanged_BCHW[..., 4:-4, 4:-4], unchanged_BCHW[..., 0, :]
    black = float(inside.mean(dim=(2, 3))[0, 0])
    assert unchanged_BCHW.shape == (1, 3, 224, 224)
    assert float(inside[0, 0].std()) < 0.01
    assert float(edge[0, 0].mean()) - black < 2  # white is 4.4 above black


def test_networks_are_compared_with_the_first_one_image_by_image(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = write_images(tmp_path / "imagenet-a", 12)
    other = tmp_path / "other.pth"
    state = torch.load(weights)
    state["fc.weight"] = state["fc.weight"].roll(3, 0)
    torch.save(state, other)
    words = [f"{NETWORK}={weights}", f"{NETWORK}={other}", "--data", str(tmp_path / "imagenet-a"), "--size", "32"]
    assert main(["analyze", "robustness", *words, "--out", str(tmp_path / "out")]) == 0
    right, right_other = (ranks(file, paths, 12)[:, 0] == torch.arange(12) for file in (weights, other))
    only, only_other = int((right & ~right_other).sum()), int((right_other & ~right).sum())
    assert only != only_other
    first, second = rows(tmp_path / "out" / "robustness.csv")
    assert first["difference"] == first["p"] == ""
    assert float(second["difference"]) == pytest.approx(100 * (only_other - only) / 12)
    assert float(second["p"]) == pytest.approx(mcnemar(only_other, only))
    assert float(second["difference_low"]) < float(second["difference"]) < float(second["difference_high"])
    printed = capsys.readouterr().out
    assert re.search(r"network +test set +images +top-1 % +interval +to the first +p", printed)
    page = (tmp_path / "out" / "robustness.html").read_text()
    p, difference = float(second["p"]), float(second["difference"])
    assert [line.split()[-1] for line in printed.splitlines()[1:4] if line.startswith("timm")] == ["-", f"{p:.2g}"]
    assert f"  {difference:+.1f} [" in printed
    assert "to the first network</th>" in page
    assert f"<td>{p:.2g}</td>" in page
    assert f"<td>{difference:+.2f} (".replace("-", "\N{MINUS SIGN}") in page
    assert "mCE %</th>" not in page


@pytest.mark.parametrize("size", [0, -5, 31, 4097])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=rf"--size is the side of the images in pixels, 32 to 4096; got {size}"):
        RobustnessSetting(size=size)
