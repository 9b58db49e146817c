"""Time networks on one device, one after the other. A network that fails costs its own line alone.

    benchmarks/gpu_networks.py --device cuda [--dtype bfloat16] [--channels-last] [--train | --compile] [--out FILE]

Each line is written as soon as its network is measured, so that a run that is cut short keeps what it has. timm's
swin_tiny is the yardstick. `fourstage bench` lets networks take turns, for which `make gpu` has too little time.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from fourstage.bench.machine import machine
from fourstage.bench.options import Options
from fourstage.bench.results import Files, append_jsonl
from fourstage.bench.run import bench

RESULTS = Path(__file__).parent / "results" / "gpu_networks.jsonl"
NETWORKS = (
    "swin_tiny", "timm/swin_tiny_patch4_window7_224", "unified_dcn_v3_tiny", "visformer_small", "smt_tiny",
    "unified_convnext_tiny", "scalable_vit_small", "unified_halo_tiny", "unified_pvt_tiny", "unified_swin_tiny",
    "swin_visformer_tiny_v2", "unified_pvt_v2_tiny",
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    top.add_argument("--tiny", action="store_true", help="one small network, for a test of the script")
    top.add_argument("--networks", nargs="+", metavar="NAME", help="of ours or timm/NAME; default: twelve")
    top.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    top.add_argument("--train", action="store_true", help="training steps too")
    top.add_argument("--channels-last", action="store_true")
    top.add_argument("--compile", action="store_true")
    top.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for each network and mode; default: 3")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="FILE", help=f"default: {RESULTS.name} in results")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu_networks.py: torch sees no GPU; type --device cpu --tiny to try the script", file=sys.stderr)
        return 2
    options = Options(
        device=args.device,
        seconds=args.seconds,
        dtype=args.dtype,
        train=args.train,
        channels_last=args.channels_last,
        compile=args.compile,
        **({"img_size": (32, 32), "batch_size": 2} if args.tiny else {}),
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    files, failed = Files(options, jsonl=args.out), False
    for name in args.networks or (("visformer_digits",) if args.tiny else NETWORKS):
        try:
            bench([name], options, done=files.add, show=False)
        except Exception as error:  # of any kind: the other networks still have time
            line = {"model": name, "error": (str(error).strip() or repr(error)).splitlines()[0]}
            append_jsonl(
                args.out, [{**line, "options": asdict(options), "machine": machine(torch.device(args.device))}]
            )
            print(name, line["error"], flush=True)
            failed = True
        if args.compile:
            torch.compiler.reset()  # graphs and guards of one network slow down the next one
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
