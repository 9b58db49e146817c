"""torchvision's kernels without its Python modules: the same bits, and its import still works afterwards."""

import subprocess
import sys

import pytest
import torch

from fourstage.ops import torchvision_kernels
from fourstage.ops.eager import SWITCH

ALONE = """
import sys, torch
from fourstage.ops.torchvision_kernels import nms, roi_align
from fourstage.tasks.detection.boxes import grouped_nms
boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [1.0, 0.0, 9.0, 9.0], [20.0, 0.0, 30.0, 9.0]])
kept = nms(boxes, torch.tensor([0.3, 0.9, 0.5]), 0.5)
rois = torch.tensor([[0.0, 1.0, 1.0, 6.0, 6.0]])
pooled = roi_align(torch.arange(64.0).reshape(1, 1, 8, 8), rois, 2, 1.0, 0)
print("torchvision" in sys.modules, "torch._dynamo" in sys.modules, kept.tolist())
import torchvision
assert torchvision.ops.nms(boxes, torch.tensor([0.3, 0.9, 0.5]), 0.5).tolist() == kept.tolist()
assert torch.equal(torchvision.ops.roi_align(torch.arange(64.0).reshape(1, 1, 8, 8), rois, 2, 1.0, 0, True), pooled)
"""


def test_no_python_module_of_torchvision_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "False False [1, 2]"


@pytest.mark.parametrize("switch", ["fast", "plain"])
def test_both_forms_are_the_same_bits(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.ops import nms, roi_align

    torch.manual_seed(0)
    corners_N2, sizes_N2 = torch.rand(200, 2) * 50, torch.rand(200, 2) * 20
    boxes_N4, scores_N = torch.cat([corners_N2, corners_N2 + sizes_N2], dim=1), torch.rand(200)
    x_BCHW, rois_R5 = torch.randn(1, 3, 32, 32), torch.cat([torch.zeros(200, 1), boxes_N4 * 0.4], dim=1)
    monkeypatch.setenv(SWITCH, switch)
    kept = torchvision_kernels.nms(boxes_N4, scores_N, 0.4)
    assert 0 < len(kept) < 200
    assert torch.equal(kept, nms(boxes_N4, scores_N, 0.4))
    pooled = torchvision_kernels.roi_align(x_BCHW, rois_R5, 7, 0.5, 2)
    assert torch.equal(pooled, roi_align(x_BCHW, rois_R5, 7, 0.5, 2, aligned=True))


def test_without_the_library_torchvision_itself_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_kernels, "have_kernels", lambda: False)
    boxes_N4 = torch.tensor([[0.0, 0.0, 9.0, 9.0], [1.0, 0.0, 9.0, 9.0]])
    assert torchvision_kernels.nms(boxes_N4, torch.tensor([0.3, 0.9]), 0.5).tolist() == [1]


def test_regions_have_a_gradient_in_a_process_that_has_not_imported_torchvision() -> None:
    """The kernels alone have no formula of a gradient: it would be lost, with a warning."""
    code = """
import sys, warnings, torch
from fourstage.ops.torchvision_kernels import roi_align
warnings.simplefilter("error")
x_BCHW = torch.ones(1, 2, 16, 16, requires_grad=True)
rois_R5 = torch.tensor([[0, 2.0, 2.0, 10.0, 10.0]])
with torch.no_grad():
    roi_align(x_BCHW, rois_R5, 7, 1.0, 2)
assert "torchvision" not in sys.modules, "inference needs the kernels alone"
roi_align(x_BCHW, rois_R5, 7, 1.0, 2).sum().backward()
print(float(x_BCHW.grad.sum()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(2 * 7 * 7, rel=1e-4)  # the weights of each of the cells add up to one


def test_regions_are_cut_by_the_kernel_where_the_device_must_repeat_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of torchvision has another form there; float64 stands for a GPU, where no fast path runs."""
    monkeypatch.setattr("torchvision.ops.roi_align", None)
    x_BCHW, rois_R5 = torch.randn(1, 2, 16, 16).double(), torch.tensor([[0, 2.0, 2.0, 10.0, 10.0]]).double()
    with pytest.raises(TypeError, match="not callable"):
        torchvision_kernels.roi_align(x_BCHW, rois_R5, 7, 1.0, 2)
    monkeypatch.setattr(torchvision_kernels, "must_repeat_itself", lambda _: True)
    assert torchvision_kernels.roi_align(x_BCHW, rois_R5, 7, 1.0, 2).shape == (1, 2, 7, 7)
