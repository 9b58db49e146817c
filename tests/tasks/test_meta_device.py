"""Detectors and segmentors that were built on `meta` are filled by a state dict; RetinaNet's outputs are traced."""

from typing import Any

import pytest
import torch
from tiny_networks import tiny_dense
from torch import Tensor, nn

import fourstage
from fourstage.bench.task_workloads import scene
from fourstage.methods import list_methods
from fourstage.tasks.detection.detector import Detector

SMALL = {"channels": 8}
OWN: dict[str, dict[str, Any]] = {"atss": {"channels": 64, "dyhead": 1}, "sparse_rcnn": {"channels": 16, "stages": 1}}


def build(task: str, method: str) -> nn.Module:
    create: Any = fourstage.create_detector if task == "detection" else fourstage.create_segmentor
    return create(method, tiny_dense("swin"), 3, **OWN.get(method, SMALL)).eval()


def values(network: nn.Module, images_BCHW: Tensor) -> list[Tensor]:
    """Return what depends on every tensor of a network: the losses of a detector, the logits of a segmentor."""
    with torch.no_grad():
        if isinstance(network, Detector):
            return [*network.losses(scene(images_BCHW), seed=0).values()]
        return [network(images_BCHW)]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("task", "method"), [(t, m) for t in ("detection", "segmentation") for m in list_methods(t)])
def test_a_network_on_meta_is_filled_by_a_state_dict(task: str, method: str, assign: bool) -> None:
    torch.manual_seed(0)
    source, images_BCHW = build(task, method), torch.randn(1, 3, 64, 96)
    with torch.device("meta"):
        network = build(task, method)
    if not assign:
        network.to_empty(device="cpu")
        for buffer in network.buffers():
            buffer.fill_(2**40)
    network.load_state_dict(source.state_dict(), assign=assign)
    for a, b in zip(values(source, images_BCHW), values(network, images_BCHW), strict=True):
        assert torch.equal(a, b)


class RawRetinaNet(nn.Module):
    """The logits and deltas of a RetinaNet, before boxes are decoded."""

    def __init__(self) -> None:
        super().__init__()
        self.detector: Any = build("detection", "retinanet")

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        logits, deltas = self.detector.dense_head(self.detector.neck(self.detector.backbone(image_BCHW)))
        return [*logits, *deltas]


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.*deprecated")
def test_a_jit_trace_of_retinanet_serves_any_batch(gradients: bool) -> None:
    network = RawRetinaNet().eval()
    with torch.set_grad_enabled(gradients):
        traced: Any = torch.jit.trace(network, torch.randn(1, 3, 64, 96))
        image_BCHW = torch.randn(3, 3, 64, 96)
        ours, theirs = network(image_BCHW), traced(image_BCHW)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
