"""Time of a receptive field of one image beside one forward and backward pass, in turns in one process.

python benchmarks/erf_cost.py swin_tiny --size 224 --rounds 15
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fourstage import create_model
from fourstage.analysis.erf import receptive_field


def forward_and_backward(network: nn.Module, image_BCHW: Tensor) -> None:
    """One pass in evaluation mode with gradients of the parameters and of the image."""
    image_BCHW = image_BCHW.clone().requires_grad_(True)
    network.zero_grad(set_to_none=True)
    network(image_BCHW).sum().backward()


def seconds(call: Callable[[], object]) -> float:
    """Return the processor time of one call, all threads together: other processes do not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="swin_tiny")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    network, image_BCHW = create_model(args.model).eval(), torch.randn(1, 3, args.size, args.size)
    calls = {
        "erf": lambda: receptive_field(network, [image_BCHW]),
        "pass": lambda: forward_and_backward(network, image_BCHW),
    }
    times = {name: [] for name in calls}
    for turn in range(args.rounds + 2):
        for name, call in calls.items():
            spent = seconds(call)
            if turn >= 2:  # the first rounds warm up
                times[name].append(spent)
    ratio = np.array(times["erf"]) / np.array(times["pass"])
    print(
        json.dumps(
            {
                "model": args.model,
                "size_px": args.size,
                "erf_s": round(float(np.median(times["erf"])), 4),
                "pass_s": round(float(np.median(times["pass"])), 4),
                "ratio": round(float(np.median(ratio)), 3),
                "ratio_quartiles": [round(float(q), 3) for q in np.percentile(ratio, [25, 75])],
                "clock": "processor time",
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
