"""Networks of tasks under PyTorch's tools: exports, traces, transforms, wrapped and parametrised layers."""

import pickle
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fourstage.backbones.layers import Level
from fourstage.bench.task_workloads import noise
from fourstage.methods import Method, all_methods
from fourstage.tasks.detection.mask_rcnn import MaskRCNN
from fourstage.tasks.detection.retinanet import RetinaNet
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn
from fourstage.tasks.segmentation.upernet import upernet

IMAGES = (2, 3, 384, 384)  # cells enough for every fast path


class Patches(nn.Module):
    """A backbone of four maps, made of patches."""

    levels = tuple(Level(4 << i, 4 << i) for i in range(4))

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Conv2d(3, level.channels, level.stride, level.stride) for level in self.levels)

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [conv(image_BCHW) for conv in self.maps]


class RawOutputs(nn.Module):
    """A detector's backbone, neck and, for RetinaNet, head."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image_BCHW: Tensor) -> Any:
        maps = self.detector.maps(noise(image_BCHW))
        return self.detector.dense_head(maps) if isinstance(self.detector, RetinaNet) else maps


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "upernet": lambda: upernet(Patches(), 20, channels=8, pool_scales=(1, 2), auxiliary_channels=8),
    "semantic_fpn": lambda: semantic_fpn(Patches(), 20, neck_channels=32, channels=16),
    "retinanet": lambda: RawOutputs(RetinaNet(Patches(), 3, channels=32, convs=1)),
    "mask_rcnn": lambda: RawOutputs(MaskRCNN(Patches(), 3, channels=32, fc_channels=8, mask_channels=8)),
}
SEGMENTORS = ["upernet", "semantic_fpn"]


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_export_holds_the_plain_form(name: str, gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        with nullcontext() if gradients else torch.no_grad():
            program = torch.export.export(built(name), (torch.randn(IMAGES),))
        counts.append(Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function"))
    assert counts[0] == counts[1]
    assert not {"aten.einsum.default", "aten.matmul.default", "aten.clone.default", "aten.contiguous.default"} & set(
        counts[1]
    )


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", SEGMENTORS)
def test_traces(name: str, gradients: bool) -> None:
    network, image_BCHW = built(name), torch.randn(IMAGES)
    with torch.set_grad_enabled(gradients):
        traced: Any = torch.jit.trace(network, image_BCHW)
        found, wanted = traced(image_BCHW), network(image_BCHW)
    assert found.requires_grad == gradients
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("name", SEGMENTORS)
def test_gradients_of_each_image(name: str) -> None:
    network, images_BCHW = built(name), torch.randn(2, 3, 64, 64)
    state = {key: x.detach() for key, x in network.state_dict().items()}

    def loss(weight: Tensor, image_CHW: Tensor) -> Tensor:
        given = {**state, "decoder.classify.weight": weight}
        return torch.func.functional_call(network, given, (image_CHW[None],)).square().mean()

    weight = state["decoder.classify.weight"]
    found = torch.vmap(torch.func.grad(loss), (None, 0))(weight, images_BCHW)
    wanted = torch.stack([torch.func.grad(loss)(weight, image_CHW) for image_CHW in images_BCHW])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", SEGMENTORS)
def test_empty_batches(name: str) -> None:
    assert built(name)(torch.empty(0, 3, 64, 64)).shape == (0, 20, 64, 64)


class Adapted(nn.Module):
    """A convolution with an adapter beside it, as LoRA has it."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv, self.calls = conv, 0

    def forward(self, x_BCHW: Tensor) -> Tensor:
        self.calls += 1
        return 2 * self.conv(x_BCHW)


def convolutions(network: nn.Module) -> list[tuple[nn.Module, str, nn.Conv2d]]:
    """Every convolution behind the backbone with its parent and its name there."""
    return [
        (parent, name, child)
        for path, parent in network.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d) and "backbone" not in path and "auxiliary" not in path
    ]


def tensors(outputs: Any) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else [x for output in outputs for x in tensors(output)]


@pytest.mark.parametrize("name", ["upernet", "semantic_fpn", "retinanet"])
def test_adapters_are_called_and_equal_merged_weights(name: str) -> None:
    adapted, merged, image_BCHW = built(name), built(name), torch.randn(IMAGES)
    adapters = []
    for parent, child, conv in convolutions(adapted):
        adapters.append(Adapted(conv))
        parent._modules[child] = adapters[-1]
    for _, _, conv in convolutions(merged):
        conv.weight.data *= 2
        if conv.bias is not None:
            conv.bias.data *= 2
    with torch.no_grad():
        found, wanted = tensors(adapted(image_BCHW)), tensors(merged(image_BCHW))
    assert adapters
    assert all(adapter.calls for adapter in adapters)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("name", ["upernet", "semantic_fpn", "retinanet"])
def test_parametrised_weights_are_computed(name: str) -> None:
    plain, parametrised, image_BCHW = built(name), built(name), torch.randn(IMAGES)
    for _, _, conv in convolutions(parametrised):
        parametrizations.weight_norm(conv)
    with torch.no_grad():
        pairs = zip(tensors(parametrised(image_BCHW)), tensors(plain(image_BCHW)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


SMALL_ARGUMENTS: dict[str, dict[str, Any]] = {
    "upernet": {"channels": 8, "auxiliary_channels": 8},
    "semantic_fpn": {"neck_channels": 32, "channels": 16},
    "dino": {"channels": 32, "hidden": 32, "stable": True},
}


@pytest.mark.parametrize("copied", [deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.name)
def test_networks_are_copied_and_pickled(method: Method, copied: Callable[[nn.Module], nn.Module]) -> None:
    arguments = SMALL_ARGUMENTS.get(method.name, {"channels": 64})
    network = method.builder(Patches(), 3, **arguments).eval()
    same = copied(network).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in network.state_dict().items())
