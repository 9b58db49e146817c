"""Keep the tables of docs/export.md: deviations, sizes and latencies of exported files beside their networks.

    python benchmarks/export.py run NETWORK... [--formats onnx,openvino] [--dynamic batch,height,width] [--seconds 5]
    python benchmarks/export.py page

`run` exports networks without training (random weights; detectors with scores that are spread as those of a trained
one, and Sparse R-CNN with small changes of boxes), proves each file, times it beside the network in turns, and adds a
line to `results/export.jsonl`. `page` writes the newest line of each network, format and choice of axes into
docs/export.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fourstage
from fourstage.bench.task_workloads import noise
from fourstage.cores import available_cores
from fourstage.export.graphs.base import Graph
from fourstage.export.graphs.build import graph_of
from fourstage.export.proof import noise_images
from fourstage.export.trace import AXES, Traced
from fourstage.export.write import SUFFIXES, Written, write
from fourstage.exported.description import Description, Input, KeepRatio, MiddleCrop, Views
from fourstage.exported.runtime import Runtime, open_runtime
from fourstage.run.export import Options, noise_sizes
from fourstage.tasks.detection.detector import Detector
from fourstage.tasks.detection.sparse_rcnn import SparseRCNN

RESULTS = Path(__file__).parent / "results" / "export.jsonl"
PAGE = Path(__file__).parents[1] / "docs" / "export.md"
MARKS = ("<!-- table of benchmarks/export.py -->", "<!-- end of the table -->")
BACKBONE = "swin_tiny"  # of detectors and segmentors
TASKS = {"logits": "classification", "label_map": "segmentation", "detections": "detection", "maps": "backbone"}
WARM, ROUNDS = 2, 5

Build = Callable[[], nn.Module]
NETWORKS: dict[str, tuple[Build, tuple[int, int]]] = {
    **{
        name: (lambda name=name: fourstage.create_model(name), (224, 224))
        for name in (
            *("swin_tiny", "smt_tiny", "visformer_tiny", "scalable_vit_small"),
            *(f"unified_{mixer}_micro" for mixer in ("halo", "pvt", "swin", "convnext", "dcn_v3")),
        )
    },
    "swin_tiny_dense": (lambda: fourstage.create_backbone("swin_tiny"), (320, 480)),
    **{
        name: (lambda name=name: fourstage.create_detector(name, BACKBONE, 80), (320, 480))
        for name in ("retinanet", "atss", "dino", "mask_rcnn", "cascade_mask_rcnn", "sparse_rcnn")
    },
    **{
        name: (lambda name=name: fourstage.create_segmentor(name, BACKBONE, 150), (512, 512))
        for name in ("upernet", "semantic_fpn")
    },
}


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "page"))
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--formats", default="onnx,torch,openvino")
    parser.add_argument("--dynamic", default="")
    parser.add_argument("--seconds", type=float, default=0.0, help="for each latency; 0: none is measured")
    args = parser.parse_args()
    if args.command == "page":
        write_page()
        return
    axes = tuple(word for word in args.dynamic.split(",") if word)
    for name in args.networks:
        for format in args.formats.split(","):
            record = measured(name, format, axes, args.seconds)
            print(json.dumps(record), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")


def measured(name: str, format: Any, axes: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """Export a network, prove the file and time it."""
    torch.manual_seed(0)
    build, size = NETWORKS[name]
    network = build().eval()
    if isinstance(network, Detector):
        network.spread_scores(noise(noise_images([(1, *size)])[0].images_BCHW))
        calm_boxes(network)
    graph = graph_of(network)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        written = exported(graph, network, Path(folder) / f"x{SUFFIXES[format]}", format, size, axes, name)
        record = {
            "network": name,
            "format": format,
            "dynamic": list(axes),
            "bytes": written.size,
            "seconds": round(time.perf_counter() - start, 1),
            "passed": not written.proof.failure,
            "worst": written.proof.worst,
            "shapes": [list(row.shape) for row in written.proof.rows],
            "torch": version("torch"),
            "runtime": f"{written.proof.runtime} {version(written.proof.runtime)}",
        }
        if seconds and not written.proof.failure:
            record |= latencies(graph, open_runtime(written.path), size, seconds)
    return record


def calm_boxes(detector: Detector) -> None:
    """Make the changes of Sparse R-CNN's boxes small: at random, six rounds blow up every rounding."""
    for name, parameter in detector.named_parameters():
        if isinstance(detector, SparseRCNN) and ".regress." in name:
            parameter.data *= 0.02


def exported(
    graph: Graph, network: nn.Module, path: Path, format: Any, size: tuple[int, int], axes: tuple[str, ...], name: str
) -> Written:
    """Write the file of a network, proved on noise."""
    task: Any = TASKS[graph.kind]
    if name in ("upernet", "semantic_fpn"):
        task = "segmentation"
    rules = {"classification": MiddleCrop(224), "detection": KeepRatio((1333, 800)), "segmentation": Views()}

    def describe(traced: Traced) -> Description:
        height, width = (None if axis in axes else side for axis, side in zip(AXES[1:], size, strict=True))
        sizes = "sizes" if graph.reads_sizes else None
        batch = None if "batch" in axes else 1
        input = Input("images", batch=batch, height=height, width=width, divisor=graph.multiple, sizes=sizes,
                      smallest=traced.smallest)  # fmt: skip
        classes = () if task == "backbone" else tuple(map(str, range(int(getattr(network, "num_classes", 0)))))
        return Description(task, graph.kind, graph.outputs, classes, input, name, rules.get(task), graph.suppression)

    options = Options(format, axes)
    return write(
        graph, network, path, format, describe,
        lambda traced: noise_images(noise_sizes(size, options, graph.multiple, traced.smallest)), size=size, axes=axes,
    )  # fmt: skip


def latencies(graph: Graph, runtime: Runtime, size: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Return the median milliseconds of one image, of the graph in PyTorch and of the file, measured in turns."""
    [images] = noise_images([(1, *size)])
    images_BCHW, sizes = images.images_BCHW, torch.tensor([size])
    given = (images_BCHW, sizes) if graph.reads_sizes else (images_BCHW,)
    arrays = images_BCHW.numpy()

    def eager() -> None:
        with torch.inference_mode():
            graph(*given)

    both = {"eager_ms": eager, "file_ms": lambda: runtime.run(arrays, size)}
    times: dict[str, list[float]] = {key: [] for key in both}
    for compute in both.values():
        for _ in range(WARM):
            compute()
    for _ in range(ROUNDS):
        for key, compute in both.items():
            end = time.perf_counter() + seconds / ROUNDS
            while time.perf_counter() < end or len(times[key]) < ROUNDS:
                start = time.perf_counter()
                compute()
                times[key].append(1000 * (time.perf_counter() - start))
    medians = {key: round(statistics.median(values), 1) for key, values in times.items()}
    return {**medians, "ratio": round(medians["eager_ms"] / medians["file_ms"], 2), "threads": available_cores()}


def write_page() -> None:
    """Write the table into the page."""
    newest: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for line in RESULTS.read_text().splitlines():
        record = json.loads(line)
        key = record["network"], record["format"], bool(record["dynamic"])
        timed = newest.get(key, {})
        newest[key] = {**{k: timed[k] for k in ("eager_ms", "file_ms", "ratio") if k in timed}, **record}
    head = ["network", "format", "sizes", "largest deviation", "MB", "ms in PyTorch", "ms of the file", "ratio"]
    order = {name: i for i, name in enumerate(NETWORKS)}
    rows = [row_of(record) for _, record in sorted(newest.items(), key=lambda item: (order[item[0][0]], item[0][1:]))]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")


def row_of(record: dict[str, Any]) -> list[str]:
    """Return the cells of a record."""
    shapes = dict.fromkeys(f"{h} x {w}" if b == 1 else f"{b} of {h} x {w}" for b, _, h, w in record["shapes"])
    units = {
        "boxes": "px",
        "scores": "of a score",
        "pixels": "of the pixels",
        "unmatched": "unmatched",
        "values": "",
        "masks": "of a mask",
    }
    worst = ", ".join(f"{value:.0e} {units[name]}".strip() for name, value in record["worst"].items())
    times = [f"{record[key]:g}" if key in record else "" for key in ("eager_ms", "file_ms", "ratio")]
    worst = worst if record["passed"] else f"**fails**: {worst}"
    return [record["network"], record["format"], ", ".join(shapes), worst, f"{record['bytes'] / 1e6:.1f}", *times]


if __name__ == "__main__":
    main()
