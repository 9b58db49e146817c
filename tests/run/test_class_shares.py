"""`prior=auto`: the last layer of a segmentor starts with the share of pixels that each class has in the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fourstage.api import fresh_network
from fourstage.cli import main
from fourstage.data.label_maps.folders import LabelMaps
from fourstage.data.sample import IGNORE
from fourstage.engine.state import load_state, save_state
from fourstage.recipe import resolve
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import protocol_of
from fourstage.run.tasks import class_shares
from fourstage.run.tasks.class_shares import SMALLEST
from fourstage.weights.description import describe_network
from fourstage.weights.reading.safe import read_checkpoint

SMALL = [
    "method_args.channels=16",
    "method_args.auxiliary_channels=16",
    "augmentation.crop=[32,32]",
    "workers=0",
    "seed=0",
]


def folder_of(root: Path, maps: list[np.ndarray]) -> Path:
    """Write images and label maps of four classes, the same for both splits."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i, map_HW in enumerate(maps):
            Image.fromarray(np.full((*map_HW.shape, 3), 40 * i, np.uint8)).save(root / "images" / split / f"{i}.png")
            Image.fromarray(map_HW).save(root / "masks" / split / f"{i}.png")
    (root / "classes.txt").write_text("road\nroof\ntree\nsnow\n")
    return root


def rows(*labels: int) -> np.ndarray:
    """A map with one row of 32 pixels for each label."""
    return np.repeat(np.array(labels, np.uint8)[:, None], 32, axis=1)


def test_shares_are_those_of_all_pixels_with_a_class(tmp_path: Path) -> None:
    root = folder_of(tmp_path, [rows(*[0] * 30, 1, 1), rows(*[0] * 20, *[1] * 8, *[IGNORE] * 4)])
    assert class_shares.class_shares(LabelMaps(root, "train")) == [0.8333, 0.1667, SMALLEST, SMALLEST]


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    root = folder_of(tmp_path, [rows(*[0] * 24, *[2] * 8), rows(*[3] * 32)])
    (root / "images" / "train" / "1.png").write_bytes(b"no image")
    assert class_shares.class_shares(LabelMaps(root, "train")) == [0.75, SMALLEST, 0.25, SMALLEST]
    (root / "masks" / "train" / "0.png").write_bytes(b"no map")
    assert class_shares.class_shares(LabelMaps(root, "train")) is None


def test_of_much_data_some_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path, [rows(*[i % 2] * 32) for i in range(7)])
    monkeypatch.setattr(class_shares, "IMAGES", 3)  # the first, the middle and the last one
    assert class_shares.class_shares(LabelMaps(root, "train")) == [0.6667, 0.3333, SMALLEST, SMALLEST]


@pytest.mark.parametrize("name", ["digit_scenes_upernet", "digit_scenes_semantic_fpn"])
def test_the_small_recipes_take_any_data(name: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "data", [rows(*[0] * 28, 1, 2, 3, 3)])
    protocol = protocol_of(resolve(name, [], {"data": str(root)}).recipe)
    data = open_split(protocol, "train", show=False)
    network: Any = protocol.build_task(data.classes, protocol.dataset_metadata(data)).network
    shares_C = torch.tensor([28, 1, 1, 2]) / 32
    torch.testing.assert_close(network.decoder.classify.bias.detach().exp(), shares_C, rtol=0, atol=1e-4)
    assert not protocol.build_task(data.classes).network.get_parameter("decoder.classify.bias").any()  # not known
    given = protocol_of(resolve(name, ["method_args.prior=null"], {"data": str(root)}).recipe)
    assert "prior" not in given.dataset_metadata(data)


def fresh_again(file: Path) -> nn.Module:
    """Build the network of a checkpoint with fresh weights."""
    description = describe_network(read_checkpoint(file))
    assert description is not None
    return fresh_network(description)


def test_a_run_and_its_checkpoint_keep_the_shares_of_their_own_data(tmp_path: Path) -> None:
    """The network is built again from the checkpoint alone, also from one without them."""
    root = folder_of(tmp_path / "data", [rows(*[0] * 24, *[1] * 8)] * 2)
    short = ["length=1it", "batch_size=2", "warmup=0it", *SMALL]
    assert main(["train", "digit_scenes_upernet", "--data", str(root), "--out", str(tmp_path / "run"), *short]) == 0
    file = tmp_path / "run" / "checkpoints" / "best.pt"
    content = load_state(file)
    assert content["about"]["prior"] == [0.75, 0.25, SMALLEST, SMALLEST]
    fresh = fresh_again(file)
    prior_C = torch.tensor(content["about"].pop("prior"))
    torch.testing.assert_close(fresh.get_parameter("decoder.classify.bias"), prior_C.log())
    save_state(tmp_path / "older.pt", content)
    assert not fresh_again(tmp_path / "older.pt").get_parameter("decoder.classify.bias").any()


def test_a_run_prints_the_shares_that_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder_of(tmp_path / "data", [rows(*[0] * 24, *[2] * 8)] * 4)
    command = ["train", "digit_scenes_upernet", f"--data={root}", f"--out={tmp_path / 'run'}", "--dry-run", *SMALL]
    assert main(command) == 0, capsys.readouterr().err
    line = "prior road 75 %, tree 25 %, roof 0.1 % and 1 class more: shares of pixels in label maps of the training"
    assert line in " ".join(capsys.readouterr().out.split())
    assert class_shares.shares_line(("a", "b"), None) == "prior equal: no label map can be read"


def test_a_run_prints_the_number_of_queries_that_it_fitted() -> None:
    fitted = protocol_of(resolve("digit_scenes_dino", ["method_args.queries=auto"]).recipe)
    line = "queries 17: fitted to the most objects in a training image"
    assert fitted.metadata_lines(("a",), {"masks": False, "queries": 17}) == (line,)
    assert not fitted.metadata_lines(("a",), {"masks": False})
