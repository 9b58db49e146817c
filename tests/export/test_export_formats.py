"""Networks of every method in every format give the numbers of the network that they came from."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.written import NETWORKS, built, export
from tiny_networks import NETWORKS as FAMILIES
from tiny_networks import tiny, tiny_dense

from fourstage.backbones import swin
from fourstage.documents import read_json
from fourstage.export.proof import noise_images
from fourstage.exported.runtime import open_runtime

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
SLOW = pytest.mark.torture
SLOW_METHODS = ("atss_dyhead", "retinanet_anchors", "upernet", "faster_rcnn", "cascade", "cascade_4conv")


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW if n in SLOW_METHODS else ()) for n in NETWORKS])
def test_every_method_is_written_to_onnx(name: str, tmp_path: Path) -> None:
    network, size = built(name), NETWORKS[name][1]
    written = export(network, tmp_path / "x.onnx", size=size)
    assert not written.proof.failure
    if written.proof.rows[0].detections is not None:
        assert written.proof.rows[0].detections >= 20
    description = open_runtime(written.path).description
    assert (description.input.height, description.input.width) == size
    assert (description.licence, description.recipe, description.recipe_hash) == ("MIT", "small_recipe", "0" * 64)
    assert len(description.classes) == getattr(network, "num_classes")  # noqa: B009
    kept: Any = read_json(written.proof_path)
    assert kept["passed"]
    assert kept["worst"] == written.proof.worst
    assert kept["rows"][0]["shape"] == [1, 3, *size]


def test_a_single_window_is_written_to_onnx(tmp_path: Path) -> None:
    """Its attention is viewed, not copied, in the order of axes that PyTorch's kernel has."""
    design = swin.Design(width=32, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8), window=7)
    network = swin.classifier(design, img_size=224, num_classes=10)
    assert not export(network, tmp_path / "x.onnx", size=(224, 224)).proof.failure


@pytest.mark.parametrize("format", ["torch", "openvino"])
@pytest.mark.parametrize(
    "name",
    ["classifier", *(pytest.param(name, marks=SLOW) for name in NETWORKS if name != "classifier")],
)  # fmt: skip
def test_every_method_is_written_to_other_formats(name: str, format: str, tmp_path: Path) -> None:
    written = export(built(name), tmp_path / f"x{SUFFIXES[format]}", format, size=NETWORKS[name][1])
    assert not written.proof.failure
    assert open_runtime(written.path).description.network == "small"
    assert {path.name for path in tmp_path.iterdir()} == {
        written.path.name,
        written.proof_path.name,
        *(["x.bin"] if format == "openvino" else []),
    }


def test_a_file_of_torch_opens_where_torchvision_was_not_imported(tmp_path: Path) -> None:
    path = export(built("mask_rcnn"), tmp_path / "x.pt2", "torch", size=NETWORKS["mask_rcnn"][1]).path
    code = (
        "import sys; from fourstage.exported.runtime import open_runtime; "
        f"print(open_runtime({str(path)!r}).name, 'torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("torch False\n", "")


def test_a_label_map_has_the_labels_of_the_logits(tmp_path: Path) -> None:
    network = built("semantic_fpn")
    written = export(network, tmp_path / "x.onnx", output="labels", size=(64, 96))
    [images] = noise_images([(1, 64, 96)])
    found = open_runtime(written.path).run(images.images_BCHW.numpy())["label_map"]
    with torch.no_grad():
        wanted = network(images.images_BCHW).argmax(1).numpy()
    assert found.dtype == np.uint8
    assert (found == wanted).mean() > 0.999
    assert len(np.unique(wanted)) > 1


@pytest.mark.parametrize("format", ["onnx", *(pytest.param(name, marks=SLOW) for name in ("torch", "openvino"))])
def test_half_of_the_bytes_are_within_the_wider_tolerance(format: str, tmp_path: Path) -> None:
    network = tiny("unified_convnext", num_classes=200)
    sizes = {}
    for half in (False, True):
        written = export(network, tmp_path / f"{half}{SUFFIXES[format]}", format, half=half)
        assert not written.proof.failure
        sizes[half] = written.size
    assert written.proof.worst["values"] > 1e-5
    assert sizes[False] - sizes[True] > 100_000  # of about 120,000: the rest is the text of the graph


def test_one_file_serves_sizes_and_batches_that_were_never_traced(tmp_path: Path) -> None:
    network = tiny_dense("unified_convnext")
    shapes = [(1, 64, 64), (3, 97, 64), (2, 65, 129), (1, 333, 517)]
    written = export(
        network, tmp_path / "x.onnx", axes=("batch", "height", "width"), images=lambda traced: noise_images(shapes)
    )
    assert not written.proof.failure
    assert [row.shape for row in written.proof.rows] == [(b, 3, h, w) for b, h, w in shapes]
    description = open_runtime(written.path).description
    assert (description.input.batch, description.input.height, description.input.width) == (None, None, None)


@SLOW
@pytest.mark.parametrize("format", ["onnx", "torch", "openvino"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_serves_every_size(family: str, dense: bool, format: str, tmp_path: Path) -> None:
    network = (tiny_dense if dense else tiny)(family).eval()

    def images(traced: Any) -> Any:
        s = traced.smallest
        return noise_images([(1, s, s), (2, 224, 224), (1, 333, 517), (3, s + 1, s + 40), (1, 256, s)])

    axes = ("batch", "height", "width")
    written = export(network, tmp_path / f"x{SUFFIXES[format]}", format, axes=axes, images=images)
    assert not written.proof.failure


@SLOW
def test_dyhead_of_any_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot record this network for every batch and height and width"):
        export(built("atss_dyhead"), tmp_path / "x.onnx", "onnx", axes=("batch", "height", "width"), images=None)


@SLOW
@pytest.mark.parametrize("format", ["onnx", "torch", "openvino"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("classifier", "atss_dyhead")])
def test_every_method_serves_every_size(name: str, format: str, tmp_path: Path) -> None:
    network = built(name)
    multiple = getattr(network, "pad_to", 1)

    def images(traced: Any) -> Any:
        s = traced.smallest
        some = [(1, s, s), (2, s + 33, s + 70), (1, 333, 517), (3, s + 1, s + 40), (1, 256, s)]
        return noise_images([(b, *(-(-side // multiple) * multiple for side in pair)) for b, *pair in some])

    axes = ("batch", "height", "width")
    written = export(network, tmp_path / f"x{SUFFIXES[format]}", format, axes=axes, images=images)
    assert not written.proof.failure
