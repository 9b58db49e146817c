"""`fourstage analyze`: each analysis from the command line, with its three files, and each mistake as one sentence."""

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fourstage
from fourstage.analysis import cam, cam_targets
from fourstage.analysis.networks import LoadedNetwork, load_network
from fourstage.cli import main
from fourstage.data.labels.imagenet_variants import wnids
from fourstage.data.sample import Batch, Sample
from fourstage.run.analyze.cam import CamSetting, analyze_cam, explain
from fourstage.run.analyze.cka import analyze_cka
from fourstage.run.analyze.erf import analyze_erf
from fourstage.run.analyze.inputs import open_images
from fourstage.run.analyze.invariance import analyze_invariance
from fourstage.run.analyze.labels import labelled_for
from fourstage.run.analyze.maps import MapsSetting, analyze_maps, maps_of

NETWORK = "visformer_digits"
CALLS = {
    "erf": ["--images", "2", "--size", "32", "--map", "stage2"],
    "invariance": ["--images", "3", "--family", "translation", "--family", "scale"],
    "cka": ["--images", "8", "--batch-size", "4"],
    "cam": [
        "--images",
        "2",
        "--scores",
        "--method",
        "gradcam",
        "--method",
        "scorecam",
        "--aug-smooth",
        "--eigen-smooth",
    ],
    "maps": ["--size", "64", "--point", "10,50"],
}
NETWORKS = {"maps": ["smt_tiny", "unified_dcn_v3_micro"]}
ROWS = {"erf": 3 * 4, "invariance": 17 + 15, "cka": 2 * 9, "cam": 2 * 2}


def run(*words: str | Path) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("what", sorted(CALLS))
def test_an_analysis_prints_a_table_and_writes_three_files(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    networks = NETWORKS.get(what, [NETWORK])
    assert run("analyze", what, *networks, "--data", "digits", "--out", tmp_path, *CALLS[what]) == 0
    printed = capsys.readouterr().out
    assert networks[0] in printed
    assert f"wrote {tmp_path / what}.html" in printed
    with np.load(tmp_path / f"{what}.npz") as arrays:
        assert len(arrays.files)
    with (tmp_path / f"{what}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == ROWS.get(what, len(rows)) > 0
    page = (tmp_path / f"{what}.html").read_text()
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)  # it needs no other file
    assert "nan" not in re.sub(r"data:[^\"]+", "", page).lower().replace("with nan", "")
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


class Numbered:
    """A labelled data set of given classes, one image of each."""

    truths: tuple[str, ...] = ("label",)

    def __init__(self, *classes: str) -> None:
        self.classes = classes
        self.labels_N = np.arange(len(classes))

    def __len__(self) -> int:
        return len(self.classes)

    def id(self, index: int) -> str:
        return str(index)

    def sample(self, index: int) -> Sample:
        return Sample(str(index), np.zeros((4, 4, 3), np.uint8), (4, 4), label=index)


def labels_for(dataset: Numbered, *classes: str) -> list[int | None] | str:
    """Return the labels of a data set in these classes, or the remark that there are none."""
    usable, note = labelled_for(dataset, LoadedNetwork("net", nn.Identity(), True, classes=classes), "data")
    return note if usable is None else [usable.sample(i).label for i in range(len(dataset))]


def test_labels_are_matched_by_name_or_by_position_where_a_network_has_no_names() -> None:
    pets = Numbered("cat", "dog", "eel")
    assert labels_for(pets, "cat", "dog", "eel") == [0, 1, 2]
    assert labels_for(pets, "eel", "cat", "owl", "dog") == [1, 3, 0]
    assert labels_for(pets, "class 0", "class 1", "class 2") == [0, 1, 2]
    assert "net has 2 classes and data has 3 others" in labels_for(pets, "class 0", "class 1")
    assert "3 others, so accuracy is not measured" in labels_for(pets, "cat", "dog", "owl")
    thousand = tuple(f"class {i}" for i in range(1000))
    assert labels_for(Numbered(wnids()[7], wnids()[3]), *thousand) == [7, 3]
    assert "so accuracy is not measured" in labels_for(Numbered("0", "1"), *thousand)
    pets.truths = ("objects",)
    assert "data has no label for each image" in labels_for(pets, "cat", "dog", "eel")


def test_a_folder_of_images_needs_no_labels_and_two_networks_of_one_name_are_told_apart(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    out = tmp_path / "out"
    call = ["analyze", "invariance", NETWORK, NETWORK, "--data", tmp_path, "--images", "3", "--family", "scale"]
    assert run(*call, "--out", out) == 0
    with (out / "invariance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["network"] for row in rows} == {f"{NETWORK} (1)", f"{NETWORK} (2)"}
    assert {row["top1"] for row in rows} == {""}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["erf", "swin_tinny", "--data", "digits"], "did you mean swin_tiny"),
        (["erf", NETWORK, "--data", "digits", "--images", "9999"], "9999 are needed; type --images"),
        (["erf", NETWORK, "--data", "digits", "--images", "0"], "at least one image"),
        (
            ["erf", NETWORK, "--data", "digits", "--images", "1", "--size", "32", "--map", "head"],
            "is not a feature map",
        ),
        (
            ["erf", NETWORK, "--data", "digits", "--images", "1", "--size", "32", "--map", "stage9"],
            "there is no stage9",
        ),
        (["erf", NETWORK, "--data", "digits", "--size", "8"], "--size is the side"),
        (["erf", NETWORK, "--data", "nowhere"], "nowhere does not exist"),
        (["erf", "runs/nothing/best.pt", "--data", "digits", "--images", "1"], "there is no checkpoint or run folder"),
        (["erf", f"{NETWORK}=none.pth", "--data", "digits", "--images", "1"], "there is no file none.pth"),
        (["invariance", NETWORK, "--data", "digits", "--family", "shear"], "there is no family 'shear'"),
        (["cka", NETWORK, "--data", "digits", "--images", "9999"], "has 360 images and 9999 are needed"),
        (["cka", NETWORK, "--data", "digits", "--images", "8", "--batch-size", "3"], "at least 4 images"),
        (["cka", NETWORK, "--data", "digits", "--images", "8", "--batch-size", "9"], "type --batch-size 8"),
        (["cka", NETWORK, "--data", "digits", "--images", "2"], "at least 4 images; got 2"),
        (["cam", NETWORK, "--data", "digits", "--images", "1", "--class", "cat"], "has no class 'cat'"),
        (["cam", NETWORK, "--data", "digits", "--images", "1", "--box", "1,2,3"], "--box is X1,Y1,X2,Y2"),
        (["cam", NETWORK, "--data", "digits", "--images", "1", "--box", "1,2,30,40"], "--box is for detectors"),
        (["erf", "runs/absent", "--data", "digits", "--images", "1"], "there is no run runs/absent"),
        (["maps", "timm/resnet18", "--data", "digits", "--images", "1"], "none of this package's mixers"),
        (["maps", "swin_tiny", "--data", "digits", "--point", "900,3", "--size", "64"], "outside of the image"),
        (["robustness", NETWORK, "--data", "digits", "--severity", "6"], "--severity is 1 to 5"),
        (["robustness", NETWORK, "--data", "digits", "--corruption", "rain"], "there is no corruption 'rain'"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("analyze", *words, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("fourstage: ")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert run("analyze", "robustness", NETWORK, "--data", "digits", "--out", tmp_path / "out") == 2
    assert '[corruptions]"' in (line := capsys.readouterr().err)
    assert "pip install" in line


def wnid_folders(root: Path, count: int) -> None:
    from PIL import Image

    from fourstage.data.labels.imagenet_variants import wnids

    for i, wnid in enumerate(wnids()[:count]):
        (root / wnid).mkdir(parents=True)
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / wnid / "a.jpg")


def test_a_test_set_of_some_imagenet_classes_is_predicted_among_these(tmp_path: Path) -> None:
    wnid_folders(tmp_path / "imagenet-a", 3)
    words = ["analyze", "robustness", "unified_convnext_micro", "--data", tmp_path / "imagenet-a", "--size", "32"]
    assert run(*words, "--out", tmp_path / "out") == 0
    with (tmp_path / "out" / "robustness.csv").open() as file:
        [row] = list(csv.DictReader(file))
    assert row["test_set"] == "imagenet-a"
    assert row["images"] == "3"
    assert float(row["top1"]) in (0.0, pytest.approx(100 / 3), pytest.approx(200 / 3), 100.0)


def test_imagenet_c_without_all_corruptions_has_no_mce(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for severity in "12345":
        wnid_folders(tmp_path / "c" / "weather" / "fog" / severity, 2)
    words = ["analyze", "robustness", "unified_convnext_micro", "--data", tmp_path / "c", "--out", tmp_path / "out"]
    assert run(*words) == 0
    printed = capsys.readouterr().out
    assert "There is no mCE: these corruptions are missing: gaussian_noise; shot_noise" in printed
    with (tmp_path / "out" / "robustness.csv").open() as file:
        assert [row["severity"] for row in csv.DictReader(file)] == list("12345")
    assert "CE %" in (tmp_path / "out" / "robustness.html").read_text()


def test_an_option_that_came_twice_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "analyze",
        "invariance",
        "visformer_digits",
        "--data",
        "digits",
        "--images",
        "1",
        "--size",
        "32",
        "--out",
        tmp_path,
    ]
    printed = []
    for families in (["scale"], ["scale", "scale"]):
        assert run(*words, *(f"--family={family}" for family in families)) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "[" not in printed[1].splitlines()[1]  # one image has no interval


def pictures(folder: Path, readable: int, damaged: int) -> Path:
    from PIL import Image

    folder.mkdir()
    for i in range(readable):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    for i in range(damaged):
        (folder / f"{i}_damaged.jpg").write_bytes(b"\xff\xd8\xff no image")
    return folder


FEW = {
    "erf": ["--size", "32"],
    "invariance": ["--family", "scale"],
    "cka": [],
    "cam": ["--method", "gradcam", "--eigen-smooth"],
    "maps": ["--size", "64"],
}


@pytest.mark.parametrize("what", sorted(FEW))
def test_images_that_cannot_be_read_are_named_and_left_out(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "photos", readable=5, damaged=2)
    network = "unified_swin_micro" if what == "maps" else NETWORK
    words = ["analyze", what, network, "--data", data, "--out", tmp_path / "out", *FEW[what]]
    count = ["--images", "7"] if what in ("cam", "maps") else []  # their default is below seven
    assert run(*words, *count) == 0
    printed = capsys.readouterr().out
    assert "2 images cannot be read and are left out: 0_damaged.jpg, 1_damaged.jpg (the first: " in printed
    if not count:
        assert f"{data} has 7 images, all of which are taken; the default is " in printed
    page = (tmp_path / "out" / f"{what}.html").read_text()
    assert "5 images" in page


def test_a_later_image_takes_the_place_of_one_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "photos", readable=3, damaged=1)
    (data / "9.png").write_bytes(b"no image either")
    words = ["analyze", "erf", NETWORK, "--data", data, "--images", "2", "--size", "32", "--out", tmp_path / "out"]
    assert run(*words) == 0
    with (tmp_path / "out" / "erf.csv").open() as file:
        assert {row["images"] for row in csv.DictReader(file)} == {"2"}
    assert "1 image cannot be read and is left out: 0_damaged.jpg" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "readable", "words"),
    [("erf", 0, "no image of {data} can be read: {data}/0_damaged"),
     ("cka", 3, "CKA needs at least 4 images; got 3; give more images")],
)  # fmt: skip
def test_too_few_images_that_can_be_read(
    what: str, readable: int, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pictures(tmp_path / "photos", readable=readable, damaged=2)
    assert run("analyze", what, NETWORK, "--data", data, "--out", tmp_path / "out") == 2
    assert words.format(data=data) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_of_a_test_set_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wnid_folders(tmp_path / "imagenet-a", 3)
    next((tmp_path / "imagenet-a").glob("*/a.jpg")).write_bytes(b"no image")
    words = ["analyze", "robustness", "unified_convnext_micro", "--data", tmp_path / "imagenet-a", "--size", "32"]
    assert run(*words, "--out", tmp_path / "out") == 0
    assert "1 image cannot be read and is left out: a.jpg" in capsys.readouterr().out
    with (tmp_path / "out" / "robustness.csv").open() as file:
        assert [row["images"] for row in csv.DictReader(file)] == ["2"]


def test_analyses_of_a_run_are_in_its_folder_and_in_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["length=1it", "warmup=0it", "batch_size=8", "workers=0", "ema=null", "device=cpu"]
    assert run("train", "digits_visformer", "--out", "runs/mine", *short) == 0
    report = tmp_path / "runs" / "mine" / "report.html"
    assert "analysis/erf" not in report.read_text()
    words = ["--data", "digits", "--images", "1", "--size", "32"]
    assert run("analyze", "erf", "runs/mine", NETWORK, *words) == 0
    assert (tmp_path / "runs" / "mine" / "analysis" / "erf" / "erf.npz").is_file()
    assert '<a href="analysis/erf/erf.html">' in report.read_text()
    assert run("analyze", "cam", "runs/mine", *words, "--method", "gradcam") == 0
    assert re.findall(r'href="(analysis/[^"]+)"', report.read_text()) == [
        "analysis/cam/cam.html", "analysis/erf/erf.html"
    ]  # fmt: skip
    before = report.read_text()
    assert run("analyze", "erf", NETWORK, "runs/mine", *words) == 0  # the first network is no run
    assert (tmp_path / "analysis" / "erf" / "erf.html").is_file()
    assert run("analyze", "erf", "runs/mine", *words, "--out", "elsewhere") == 0
    assert report.read_text() == before


def test_a_dash_of_a_receptive_field_has_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for map_name, dashed in (("stage3", True), ("stage1", False)):
        words = ["analyze", "erf", NETWORK, "--data", "digits", "--images", "1", "--size", "64", "--map", map_name]
        assert run(*words, "--out", tmp_path / map_name) == 0
        printed = capsys.readouterr().out
        rows = [line for line in printed.splitlines() if line.split()[-1:] and "power" in line]
        assert any(" -" in row for row in rows) is dashed
        assert ("-: no centred square inside of the image holds this share." in printed) is dashed


def test_each_network_has_pictures_that_answer_a_click(tmp_path: Path) -> None:
    networks, out = ("unified_pvt_micro", "unified_swin_micro"), tmp_path / "out"
    words = ["analyze", "maps", *networks, "--data", "digits", "--images", "3", "--size", "32", "--out", out]
    assert run(*words) == 0
    sections = (out / "maps.html").read_text().split("<section>")[1:7]
    assert [network in one for network, one in zip(np.repeat(networks, 3), sections, strict=True)] == [True] * 6
    assert ['class="tiles"' in one for one in sections] == [True, True, False] * 2


def test_a_point_is_in_the_image_also_for_a_detector_with_points_of_its_own() -> None:
    draw = np.random.default_rng(0)
    sample = Sample("a", draw.integers(0, 256, (64, 64, 3)).astype(np.uint8), (64, 64))
    dino = fourstage.create_detector("dino", backbone="visformer_digits", num_classes=3)
    loaded = load_network(dino)
    assert maps_of(loaded, sample, MapsSetting(size=64)).query_points is not None
    with pytest.raises(ValueError, match="the point 64,3 is outside of the image of 64 x 64 pixels"):
        maps_of(loaded, sample, MapsSetting(size=64, point=(64, 3)))


def test_embedded_data_wins_over_a_folder_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "digits" / "a.png")
    assert (len(open_images("digits")), len(open_images("./digits"))) == (360, 1)


def test_at_least_one_network_is_given(tmp_path: Path) -> None:
    for analyze in (analyze_cam, analyze_cka, analyze_erf, analyze_invariance, analyze_maps):
        with pytest.raises(ValueError, match="no network was given; name one"):
            analyze([], "digits", tmp_path, show=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["classifier", "segmentor"])
def test_smoothed_maps_of_a_mirror_image_are_mirrored(task: str) -> None:
    """The copies of both images are the same ones."""
    torch.manual_seed(0)
    network, box = fourstage.create_model("visformer_digits", num_classes=3), None
    if task == "segmentor":
        network, box = fourstage.create_segmentor("semantic_fpn", "visformer_digits", 3), (4.0, 8.0, 40.0, 60.0)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    setting = CamSetting(methods=("layercam", "eigencam"), label="1", box=box, size=64, aug_smooth=True)
    loaded = load_network(network.eval())
    loaded = replace(loaded, preparation=replace(loaded.preparation, crop_pct=1.0))  # an odd border has no mirror image
    own = explain(loaded, Sample("a", image, (64, 64)), setting)
    turned = replace(setting, box=None if box is None else (64 - box[2], box[1], 64 - box[0], box[3]))
    mirrored = explain(loaded, Sample("a", np.ascontiguousarray(image[:, ::-1]), (64, 64)), turned)
    plain = explain(loaded, Sample("a", image, (64, 64)), replace(setting, aug_smooth=False))
    for method, map_HW in own.maps.items():
        np.testing.assert_allclose(mirrored.maps[method][:, ::-1], map_HW, rtol=0, atol=1e-5)
        assert np.abs(plain.maps[method] - map_HW).max() > 0.01


def test_a_detected_object_has_smoothed_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The object of a mirrored copy is the mirror image of that of the image."""
    torch.manual_seed(0)
    network: Any = fourstage.create_detector("retinanet", "visformer_digits", 3).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    batch = Batch(("a",), torch.randn(1, 3, 64, 64), ((64, 64),), ((64, 64),))
    network.spread_scores(batch)
    boxes, original = [], cam_targets.box_target
    monkeypatch.setattr(cam_targets, "box_target", lambda box, label: boxes.append(box) or original(box, label))
    setting = CamSetting(methods=("layercam",), size=64, aug_smooth=True)
    explained = explain(load_network(network), Sample("a", image, (64, 64)), setting)
    assert explained.box is not None
    assert 0 < explained.maps["layercam"].max() <= 1
    x1, y1, x2, y2 = explained.box
    assert boxes == [explained.box, (64 - x2, y1, 64 - x1, y2)]


def test_each_option_of_smoothing_changes_the_maps_of_each_method(tmp_path: Path) -> None:
    maps = {}
    for option in ("", "--aug-smooth", "--eigen-smooth"):
        words = ["analyze", "cam", "visformer_digits", "--data", "digits", "--images", "1"]
        words += ["--method", "layercam", "--method", "scorecam", "--out", str(tmp_path / f"out{option}")]
        assert main([*words, *([option] if option else [])]) == 0
        with np.load(tmp_path / f"out{option}" / "cam.npz") as kept:
            for method in ("layercam", "scorecam"):
                maps[option, method] = next(kept[key] for key in kept.files if key.endswith(f"__{method}"))
    for (option, method), map_HW in maps.items():
        if option:
            assert np.abs(map_HW - maps["", method]).max() > 0.01, (option, method)


@pytest.mark.parametrize("chosen", [(), ("backbone map 1", "backbone map 2")])
def test_copies_of_an_image_are_explained_at_the_layer_of_the_image(
    chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of the gradient goes through another map of each copy."""
    torch.manual_seed(0)
    network = fourstage.create_segmentor("semantic_fpn", "visformer_digits", 3).eval()
    calls, original = [], cam.largest_share

    def largest_share(maps: list[Any]) -> Any:
        calls.append(maps)
        return maps[len(calls) % len(maps)]

    monkeypatch.setattr(cam, "largest_share", largest_share)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    setting = CamSetting(methods=("layercam",), taps=chosen, size=64, aug_smooth=True)
    explained = explain(load_network(network), Sample("a", image, (64, 64)), setting)
    assert explained.taps == (chosen or ("backbone map 2",))
    assert len(calls) == (0 if chosen else 1)
    monkeypatch.setattr(cam, "largest_share", original)
    named = explain(load_network(network), Sample("a", image, (64, 64)), replace(setting, taps=explained.taps))
    np.testing.assert_array_equal(named.maps["layercam"], explained.maps["layercam"])


def test_a_map_that_the_backbone_does_not_have_is_refused() -> None:
    network = fourstage.create_segmentor("semantic_fpn", "visformer_digits", 3).eval()
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(
        ValueError, match="on backbone map 1, backbone map 2, backbone map 3, and not on backbone map 9"
    ):
        explain(load_network(network), Sample("a", image, (64, 64)), CamSetting(taps=("backbone map 9",), size=64))


@pytest.mark.parametrize("eigen_smooth", [False, True])
def test_a_network_whose_values_are_not_finite_has_no_map(eigen_smooth: bool, tmp_path: Path) -> None:
    network = fourstage.create_model("visformer_digits", num_classes=10)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    setting = CamSetting(images=1, eigen_smooth=eigen_smooth)
    with pytest.raises(
        ValueError, match=r"has values or gradients in its layer \w+ that are not finite; check its weig"
    ):
        analyze_cam(network, "digits", tmp_path / "out", setting)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("aug_smooth", [False, True])
def test_a_segmentors_class_without_a_pixel_needs_a_box(aug_smooth: bool) -> None:
    network: Any = fourstage.create_segmentor("semantic_fpn", "visformer_digits", 3).eval()
    layers = [one for one in network.modules() if isinstance(one, nn.Conv2d) and one.out_channels == 3]
    assert layers[-1].bias is not None
    with torch.no_grad():
        layers[-1].bias[1] = -100
    sample = Sample("a", np.zeros((64, 64, 3), np.uint8), (64, 64))
    setting = CamSetting(label="1", size=64, aug_smooth=aug_smooth)
    with pytest.raises(
        ValueError, match="no pixel is predicted as class 1; choose another --class, or give a region by --box"
    ):
        explain(load_network(network), sample, setting)
    assert explain(load_network(network), sample, replace(setting, box=(0, 0, 9, 9))).explained == "class 1 in the box"


def test_a_map_needs_a_method() -> None:
    with pytest.raises(ValueError, match="needs at least one method; choose from gradcam"):
        CamSetting(methods=())
