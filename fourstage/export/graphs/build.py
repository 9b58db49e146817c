"""The graph that suits a network."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from fourstage.backbones.base import Dense
from fourstage.export.graphs.base import Graph
from fourstage.export.graphs.dino import DINOGraph
from fourstage.export.graphs.plain import BackboneGraph, LabelMapGraph, LogitsGraph
from fourstage.export.graphs.single_stage import SingleStageGraph
from fourstage.export.graphs.sparse_rcnn import SparseRCNNGraph
from fourstage.export.graphs.two_stage import TwoStageGraph
from fourstage.tasks.detection.atss import ATSS
from fourstage.tasks.detection.cascade_mask_rcnn import CascadeMaskRCNN
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.dino import DINO
from fourstage.tasks.detection.mask_rcnn import MaskRCNN
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.detection.sparse_rcnn import SparseRCNN
from fourstage.tasks.segmentation.segmentor import Segmentor

Output = Literal["logits", "labels"]


def graph_of(network: nn.Module, output: Output = "logits") -> Graph:
    """Return the graph of a classifier, a dense backbone, a segmentor or a detector.

    Args:
        output: of a segmentor: the "logits" of each pixel, or its label in a label map.

    Raises:
        ValueError: there is no export of such a detector, or `output` is for another network.
    """
    return _graph_of(network, output).train(network.training)


def _graph_of(network: nn.Module, output: Output) -> Graph:
    if isinstance(network, Segmentor):
        return LabelMapGraph(network) if output == "labels" else LogitsGraph(network)
    _check_output(network, output)
    for of, graph in DETECTORS.items():
        if isinstance(network, of):
            return graph(network)
    if isinstance(network, Detector):
        known = ", ".join(sorted({str(of.method) for of in DETECTORS}))
        raise ValueError(
            f"{network.method or type(network).__name__} has no export; export a detector of {known}, or predict with "
            f"the checkpoint itself"
        )
    return BackboneGraph(network) if isinstance(network, Dense) else LogitsGraph(network)


def backbone_graph(backbone: nn.Module, output: Output = "logits") -> Graph:
    """Return the graph of any network with `levels`, also of one's own; errors as those of `graph_of`."""
    _check_output(backbone, output)
    return BackboneGraph(backbone).train(backbone.training)


def _check_output(network: nn.Module, output: Output) -> None:
    if output != "logits":
        raise ValueError(f"--output {output} is for segmentors, and this is a {type(network).__name__}; leave it out")


DETECTORS: dict[type[Detector], Callable[..., Graph]] = {
    RetinaNet: SingleStageGraph,
    ATSS: SingleStageGraph,
    DINO: DINOGraph,
    SparseRCNN: SparseRCNNGraph,
    MaskRCNN: TwoStageGraph,
    CascadeMaskRCNN: TwoStageGraph,
}
