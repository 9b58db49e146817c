"""One exported graph of a network with a task's neck and head serves every image size and batch."""

from collections.abc import Callable

import pytest
import torch
import torch.fx.experimental._config as tracing
from tiny_networks import tiny_dense
from torch import Tensor, nn
from torch.export import Dim

from fourstage.tasks.detection.padding import padded
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn
from fourstage.tasks.segmentation.upernet import upernet


class RetinaMaps(nn.Module):
    """A RetinaNet without the choice of detections."""

    def __init__(self) -> None:
        super().__init__()
        self.detector = RetinaNet(tiny_dense("smt"), 3, channels=32, convs=1)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        maps = self.detector.neck(self.detector.backbone(padded(image_BCHW)))
        logits, deltas = self.detector.dense_head(maps)
        return torch.cat([x_BCHW.flatten(2).sum(2) for x_BCHW in (*logits, *deltas)], dim=1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "upernet": lambda: upernet(tiny_dense("smt"), 20, channels=8, pool_scales=(1, 2), auxiliary_channels=8),
    "semantic_fpn": lambda: semantic_fpn(tiny_dense("smt"), 20, neck_channels=32, channels=16),
    "retinanet": RetinaMaps,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_one_graph_serves_every_size(name: str) -> None:
    """Detectors pad to a multiple of 32, so their graph is for such sizes, with two cells a side at stride 128."""
    torch.manual_seed(0)
    network, cells = NETWORKS[name]().eval(), 32 if name == "retinanet" else 1
    low, high = 128 // cells + 1, 1024 // cells
    axes = {
        0: Dim("batch", min=2, max=16),
        2: cells * Dim("h", min=low, max=high),
        3: cells * Dim("w", min=low, max=high),
    }
    with tracing.patch(backed_size_oblivious=True), torch.no_grad():  # pyright: ignore[reportAttributeAccessIssue]
        program = torch.export.export(
            network,
            (torch.randn(3, 3, 214 // cells * cells, 166 // cells * cells),),
            dynamic_shapes={"image_BCHW": axes},
        )
        for batch, height, width in ((2, 203, 140), (5, 129, 233)):
            image_BCHW = torch.randn(batch, 3, -(-height // cells) * cells, -(-width // cells) * cells)
            torch.testing.assert_close(program.module()(image_BCHW), network(image_BCHW), rtol=1e-4, atol=1e-4)
