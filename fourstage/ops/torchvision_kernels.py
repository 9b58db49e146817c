"""torchvision's compiled kernels for suppression and RoIAlign. N boxes, R regions, C channels, M x M in a region.

The import of torchvision takes as long as that of torch, because it imports torch's compiler. Where a fast path may
run, its library of kernels is loaded without its Python modules: the same kernels give the same bits. Elsewhere, such
as while a network is exported, torchvision's own functions run.
"""

import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourstage.ops.eager import may_run_fast, must_repeat_itself, runs_eagerly

LIBRARIES = ("_C_stable.so", "_C.so")  # the name of torchvision's library of today, and of older versions


def nms(boxes_N4: Tensor, scores_N: Tensor, iou_threshold: float) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression keeps, best score first.

    Overlaps are compared in float32, as mmcv, GPUs and exported files do. torchvision's kernel for CPUs compares in
    double precision, where the float32 overlap of 3 / 5 is above 0.6.
    """
    iou_threshold = float(np.float32(iou_threshold))
    if may_run_fast(boxes_N4, scores_N) and have_kernels():
        return torch.ops.torchvision.nms(boxes_N4, scores_N, iou_threshold)
    from torchvision.ops import nms as plain

    return plain(boxes_N4, scores_N, iou_threshold)


def roi_align(x_BCHW: Tensor, rois_R5: Tensor, size: int, scale: float, samples: int) -> Tensor:
    """Return (R, C, M, M), aligned by half a cell; see `ops/roi_align.py`."""
    is_here = may_run_fast(x_BCHW, rois_R5) or (must_repeat_itself(x_BCHW.device) and runs_eagerly())
    if is_here and not needs_gradient(x_BCHW) and have_kernels():
        return torch.ops.torchvision.roi_align(x_BCHW, rois_R5, scale, size, size, samples, True)
    from torchvision.ops import roi_align as plain

    return plain(x_BCHW, rois_R5, size, scale, samples, aligned=True)


def needs_gradient(x_BCHW: Tensor) -> bool:
    """Return whether a gradient is recorded: the formula of RoIAlign's is in torchvision's Python modules."""
    return torch.is_grad_enabled() and x_BCHW.requires_grad


@cache
def have_kernels() -> bool:
    """Load torchvision's library of kernels where that is possible; return whether its operators are there."""
    if "torchvision" not in sys.modules:
        spec = find_spec("torchvision")
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        found = [path for folder in folders for name in LIBRARIES if (path := Path(folder) / name).is_file()]
        if not found:
            return False
        try:
            torch.ops.load_library(str(found[0]))
        except OSError:  # of another version of torch: torchvision's import says so
            return False
    return all(hasattr(torch.ops.torchvision, name) for name in ("nms", "roi_align", "_roi_align_backward"))
