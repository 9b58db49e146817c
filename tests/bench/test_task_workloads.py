"""Detectors and segmentors in the bench: their names, their work, their memory; no test looks at how fast they are."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fourstage.api import create_detector, create_segmentor
from fourstage.bench import memory, networks, side_by_side
from fourstage.bench.side_by_side import PairedResult
from fourstage.bench.task_workloads import TaskWorkload, label_maps, noise, scene
from fourstage.cli import main
from fourstage.tasks.detection.detector import Detector

SMALL: dict[str, dict[str, Any]] = {
    "dino": {"channels": 8, "queries": 20, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "hidden": 16},
    "mask_rcnn": {"channels": 8, "fc_channels": 16, "mask_channels": 8, "regions": 32},
    "cascade_mask_rcnn": {"channels": 8, "fc_channels": 16, "mask_channels": 8, "regions": 32},
    "retinanet": {"channels": 8, "convs": 1},
    "atss": {"channels": 64, "convs": 1},
    "sparse_rcnn": {"proposals": 100, "stages": 2, "channels": 16, "hidden": 32, "filter_channels": 8},
}


def small(method: str) -> Detector:
    torch.manual_seed(0)
    network = create_detector(method, "visformer_digits", 5, **SMALL[method])
    assert isinstance(network, Detector)
    return network


def test_names_of_detectors_and_segmentors() -> None:
    assert networks.expand(["mask_rcnn:swin_tiny"]) == ["mask_rcnn:swin_tiny"]
    assert networks.expand(["upernet:swin_t*"]) == ["upernet:swin_tiny"]
    assert networks.expand(["retinanet:timm/resnet18"]) == ["retinanet:timm/resnet18"]
    recipe = "mask_rcnn_swin_tiny_coco_1x"
    assert networks.expand([recipe]) == [recipe]
    assert not networks.is_task_network("swin_tiny")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mask_rnn:swin_tiny", "did you mean mask_rcnn?"),
        ("zzz:swin_tiny", "the methods are"),
        ("mask_rcnn:swin_tni", "did you mean swin_tiny?"),
        ("mask_rcnn:torchvision/swin_t", "one of ours, or timm/NAME"),
    ],
)
def test_bad_names_are_one_sentence(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", name]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_a_detector_has_no_dense_form() -> None:
    with pytest.raises(ValueError, match="complete detector or segmentor; leave out --dense"):
        networks.build("mask_rcnn:visformer_digits", None, dense=True)


@pytest.mark.parametrize("method", SMALL)
def test_noise_is_full_of_objects(method: str) -> None:
    network = small(method)
    images_BCHW = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    [boxes_N4] = TaskWorkload(network, (128, 128)).eval()(images_BCHW)
    assert len(boxes_N4) == 100  # as many as are kept of an image


@pytest.mark.parametrize("method", SMALL)
def test_a_detector_trains_on_made_up_objects(method: str) -> None:
    work = TaskWorkload(small(method), (64, 96)).train()
    loss = work(torch.randn(2, 3, 64, 96))
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.any() for p in work.network.backbone.parameters())


def test_objects_lie_in_their_image_and_fill_their_boxes() -> None:
    batch = scene(torch.zeros(2, 3, 64, 96))
    assert batch.objects is not None
    for one in batch.objects:
        assert one.masks_NHW is not None
        assert (one.boxes_N4 >= 0).all()
        assert (one.boxes_N4 <= torch.tensor([96, 64, 96, 64])).all()
        sides_N2 = one.boxes_N4[:, 2:] - one.boxes_N4[:, :2]
        area_N, pixels_N = sides_N2.prod(dim=1), one.masks_NHW.sum(dim=(1, 2))
        assert ((pixels_N - area_N).abs() <= sides_N2.sum(dim=1) + 1).all()


def test_a_segmentor_gives_logits_and_a_loss() -> None:
    network = create_segmentor("semantic_fpn", "visformer_digits", 7, neck_channels=8, channels=8)
    work = TaskWorkload(network, (64, 64))
    assert work.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 7, 64, 64)
    assert work.train()(torch.randn(2, 3, 64, 64)).ndim == 0
    assert label_maps(torch.zeros(2, 3, 4, 64), 7).unique().tolist() == list(range(7))


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def peaks(name: str, options: object, modes: Any, batch: int) -> dict[str, int | None]:
        asked.append((name, tuple(modes), batch))
        return dict.fromkeys(modes, 2**20)

    monkeypatch.setattr(memory, "peaks_on_cpu", peaks)
    name = "semantic_fpn:visformer_digits"
    words = ["--img-size", "64x96", "--seconds", "0.02", "--threads", "1", "--device", "cpu", "--train"]
    assert main(["bench", name, *words, "--csv", str(tmp_path / "b.csv"), "--jsonl", str(tmp_path / "b.jsonl")]) == 0
    assert name in capsys.readouterr().out
    assert asked == [(name, ("infer",), 1), (name, ("train",), 2)]
    with (tmp_path / "b.csv").open() as file:
        [row] = csv.DictReader(file)
    assert (row["infer_batch_size"], row["train_batch_size"], row["infer_img_size"]) == ("1", "2", "64x96")
    counts = json.loads((tmp_path / "b.jsonl").read_text())["counts"]
    assert counts["macs"] > 0
    assert counts["element_macs"] > 0


def test_the_class_layer_alone_is_changed() -> None:
    network = small("mask_rcnn").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.spread_scores(noise(torch.randn(1, 3, 64, 64)))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"box_head.classify.weight", "box_head.classify.bias"}


# ------------------------------------------------------------------------------------------------- side by side


def test_two_take_turns_and_are_compared_round_by_round() -> None:
    log: list[str] = []

    def make(side: str, mode: str) -> side_by_side.Step:
        assert mode == "infer"
        return lambda: log.append(side)

    result = side_by_side.measure_pair(make, "infer", 0.0, {"ours": 50, "peer": 100})
    assert log == ["ours", "peer", *["ours", "peer"], *["peer", "ours"], *["ours", "peer"]]  # the first warm up
    assert result.memory == 0.5
    known = PairedResult(
        {"wall": {"ours": (1, 2, 4), "peer": (2, 4, 8)}, "cpu": {"ours": (1,), "peer": (3,)}}, {"ours": None}
    )
    assert known.times_as_fast("wall").median == 2
    assert known.memory is None
    line = side_by_side.line("a", "b", "infer", known)
    assert line["times_as_fast"]["cpu"]["median"] == 3
    assert line["peak_over_peer"] is None
    assert side_by_side.cells("a", "infer", known)[:4] == ["a", "infer", "1.000", "3.000"]


def test_a_script_that_fails_says_why(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("raise ValueError('no such network')")
    with pytest.raises(ValueError, match="memory of ours failed: ValueError: no such network"):
        side_by_side.peaks(script, "infer", [])


def test_memory_of_a_step(tmp_path: Path) -> None:
    script = tmp_path / "steps.py"
    script.write_text(
        "import sys, torch\nfrom fourstage.bench import side_by_side\n"
        "held = []\n"
        "def make(side, mode):\n"
        "    return lambda: held.append(torch.ones(2**20 * (4 if side == 'ours' else 16)))\n"
        "side_by_side.print_peak(make, *sys.argv[-2:])\n"
    )
    peaks = side_by_side.peaks(script, "infer", [])
    assert peaks["ours"] is not None
    assert peaks["peer"] is not None
    assert 2 * 16e6 < peaks["ours"] < 2 * 16e6 + 40e6
    assert peaks["peer"] > 3 * peaks["ours"] / 2
