"""Time detection and segmentation steps beside torchvision's on one device, over the same backbone of ours.

    benchmarks/gpu_tasks.py --device cuda [--seconds 2] [--out FILE]

The networks of a group take turns. A group that fails costs its lines and no other ones. In inference, untrained
networks are set to detect as much as they keep of an image.

| group | what is the same | what differs |
| --- | --- | --- |
| Mask R-CNN | backbone, pyramid, proposals, regions, eight objects an image | theirs pastes masks in inference |
| RetinaNet | backbone from stride 8 on, towers, anchors, eight objects | theirs has a score threshold of 0 |
| segmentation | backbone, images, label maps | the decoder: torchvision has only an FCN, on the map at stride 32 |
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from detection import theirs
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from fourstage.api import create_backbone, create_detector, create_segmentor
from fourstage.bench.machine import machine
from fourstage.bench.networks import without_dropout
from fourstage.bench.results import append_jsonl
from fourstage.bench.task_workloads import label_maps, noise, scene
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.parts.levels import levels_of
from fourstage.tasks.segmentation.losses import pixel_cross_entropy
from fourstage.tasks.segmentation.segmentor import Segmentor

RESULTS = Path(__file__).parent / "results" / "gpu_tasks.jsonl"
MODES, DTYPES = ("train", "infer"), (torch.bfloat16, torch.float32)
BOXES, PIXELS = 80, 150  # classes of detectors and of segmentors
ROUNDS = 30
Step = Callable[[], object]


@dataclass(frozen=True)
class Scale:
    """The backbone and the images of the measurements."""

    backbone: str
    batch: int
    detection: tuple[int, int]
    segmentation: tuple[int, int]


FULL = Scale("swin_tiny", 4, (800, 1280), (512, 512))
TINY = Scale("unified_convnext_micro", 2, (64, 64), (64, 64))


class RetinaPyramid(nn.Module):
    """Maps at stride 8 to 128, as torchvision's RetinaNet takes them."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.body, self.out_channels = backbone, 256
        channels = [level.channels for level in levels_of(backbone) if level.stride >= 8]
        self.first = len(levels_of(backbone)) - len(channels)
        self.fpn = FeaturePyramidNetwork(channels, 256, LastLevelP6P7(256, 256))

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        return self.fpn({str(i): x_BCHW for i, x_BCHW in enumerate(self.body(images_BCHW)[self.first :])})


def torchvision_retinanet(backbone: nn.Module, size: tuple[int, int]) -> RetinaNet:
    """Return torchvision's network; its resizing leaves images of this size as they are."""
    pyramid = RetinaPyramid(backbone)
    maps = len(levels_of(backbone)) - pyramid.first + 2
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512)[:maps])
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * maps)
    return RetinaNet(
        pyramid, BOXES, min_size=min(size), max_size=max(size), image_mean=[0.0] * 3, image_std=[1.0] * 3,
        anchor_generator=anchors, score_thresh=0.0, detections_per_img=100, topk_candidates=1000,
    )  # fmt: skip


class TorchvisionFCN(nn.Module):
    """torchvision's FCN head on the last map."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = FCNHead(levels_of(backbone)[-1].channels, PIXELS)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logits_BChw = self.head(self.backbone(images_BCHW)[-1])
        return F.interpolate(logits_BChw, images_BCHW.shape[-2:], mode="bilinear", align_corners=False)


# ------------------------------------------------------------------------------------------------------ the groups


def detectors(method: str, scale: Scale) -> dict[str, nn.Module]:
    """Return our detector and torchvision's, by name."""
    backbone, size = create_backbone(scale.backbone), scale.detection
    if method == "mask_rcnn":
        network: Any = theirs(backbone, min(size))
        network.transform.max_size = max(size)
        network.roi_heads.score_thresh = 0.0
        return {"mask_rcnn": create_detector(method, scale.backbone, BOXES), "torchvision MaskRCNN": network}
    network = torchvision_retinanet(backbone, size)
    return {"retinanet": create_detector(method, scale.backbone, BOXES), "torchvision RetinaNet": network}


def segmentors(scale: Scale) -> dict[str, nn.Module]:
    """Return our segmentors and torchvision's FCN, by name."""
    ours = {name: create_segmentor(name, scale.backbone, PIXELS) for name in ("semantic_fpn", "upernet")}
    return ours | {"torchvision FCN": TorchvisionFCN(create_backbone(scale.backbone))}


GROUPS: Mapping[str, Callable[[Scale], dict[str, nn.Module]]] = {
    "Mask R-CNN": lambda scale: detectors("mask_rcnn", scale),
    "RetinaNet": lambda scale: detectors("retinanet", scale),
    "segmentation": segmentors,
}


def work_of(network: nn.Module, images_BCHW: Tensor) -> tuple[Callable[[], Tensor], Step]:
    """Return the loss and the inference of a network."""
    batch, images = scene(images_BCHW), list(images_BCHW)
    if isinstance(network, Detector):
        network.eval().spread_scores(noise(images_BCHW[:1]))
        return lambda: total(network.losses(batch)), lambda: network.detect(noise(images_BCHW))
    if isinstance(network, Segmentor | TorchvisionFCN):
        labels_BHW = label_maps(images_BCHW, PIXELS)
        if isinstance(network, Segmentor):
            return lambda: total(network.losses(images_BCHW, labels_BHW)), lambda: network(images_BCHW)
        return lambda: pixel_cross_entropy(network(images_BCHW), labels_BHW), lambda: network(images_BCHW)
    background = 0 if isinstance(network, RetinaNet) else 1
    truths = [
        {"boxes": one.boxes_N4, "labels": one.labels_N + background, "masks": one.masks_NHW.to(torch.uint8)}
        for one in batch.objects or ()
        if one.masks_NHW is not None
    ]
    return lambda: total(network(images, truths)), lambda: network(images)


def total(losses: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*losses.values()]).sum()


def step_of(network: nn.Module, mode: str, dtype: torch.dtype, images_BCHW: Tensor) -> Step:
    """Return a training step (at learning rate 0, so that the weights stay) or a pass of inference."""
    loss, infer = work_of(without_dropout(network), images_BCHW)
    network.train(mode == "train")
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.0)
    device = images_BCHW.device.type

    def train() -> None:
        with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def run() -> None:
        with torch.inference_mode(), torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
            infer()

    return train if mode == "train" else run


# ------------------------------------------------------------------------------------------------- measurements


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(steps: Mapping[str, Step], device: torch.device, seconds: float) -> dict[str, dict[str, float | None]]:
    """Return by name the median seconds of a step, and the MiB that it allocates on a GPU beside what is there."""
    peaks: dict[str, float | None] = {}
    for name, step in steps.items():
        step()  # kernels are chosen, memory is set up
        wait(device)
        if device.type != "cuda":
            continue
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        step()
        wait(device)
        peaks[name] = (torch.cuda.max_memory_allocated(device) - held) / 2**20
    taken: dict[str, list[float]] = {name: [] for name in steps}
    end = time.perf_counter() + seconds * len(steps)
    for number in range(ROUNDS):
        if number and time.perf_counter() > end:
            break
        for name in steps if number % 2 == 0 else reversed(list(steps)):
            start = time.perf_counter()
            steps[name]()
            wait(device)
            taken[name].append(time.perf_counter() - start)
    return {name: {"seconds": median(values), "step_mib": peaks.get(name)} for name, values in taken.items()}


def lines(group: str, mode: str, dtype: torch.dtype, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure a group and yield a line for each of its networks."""
    device, scale = torch.device(args.device), TINY if args.tiny else FULL
    height, width = scale.segmentation if group == "segmentation" else scale.detection
    torch.manual_seed(0)
    images_BCHW = torch.rand(scale.batch, 3, height, width, device=device)
    networks = {name: network.to(device) for name, network in GROUPS[group](scale).items()}
    steps = {name: step_of(network, mode, dtype, images_BCHW) for name, network in networks.items()}
    for name, values in measure(steps, device, args.seconds).items():
        assert values["seconds"] is not None
        yield {"network": name, "images_per_second": scale.batch / values["seconds"], "batch": scale.batch, **values}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    top.add_argument("--tiny", action="store_true", help="small networks and images, for a test of the script")
    top.add_argument("--seconds", type=float, default=2.0, metavar="S", help="for each network; default: 2")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name} in results")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_tasks.py: torch sees no GPU; type --device cpu --tiny to try the script", file=sys.stderr)
        return 2
    args.out.parent.mkdir(parents=True, exist_ok=True)
    about, failed = machine(torch.device(args.device)), False
    for dtype in DTYPES[: 1 if args.tiny else None]:
        for mode in MODES:
            for group in GROUPS:
                where = {"group": group, "mode": mode, "dtype": str(dtype).removeprefix("torch."), "machine": about}
                try:
                    found = list(lines(group, mode, dtype, args))
                except Exception as error:  # of any kind: the other groups still have time
                    found, failed = [{"error": (str(error).strip() or repr(error)).splitlines()[0]}], True
                append_jsonl(args.out, [{**where, **line} for line in found])
                print(where["dtype"], mode, group, found, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
