"""RoIAlign where PyTorch must be deterministic: the CPU's values and gradients, the same bits each time."""

import torch
from torch import Tensor

from fourstage.ops.roi_align import roi_align


def test_deterministic_gradients_repeat_themselves(device: torch.device) -> None:
    torch.manual_seed(0)
    x_BCHW, grad_RCMM = torch.randn(2, 8, 20, 30), torch.randn(50, 8, 7, 7)
    corners_R2 = torch.rand(50, 2) * 60
    rois_R5 = torch.cat([torch.randint(2, (50, 1)), corners_R2, corners_R2 + torch.rand(50, 2) * 60], dim=1)

    def computed(on: torch.device) -> tuple[Tensor, Tensor]:
        map_BCHW = x_BCHW.to(on).requires_grad_()
        out_RCMM = roi_align(map_BCHW, rois_R5.to(on), 7, 0.25, 0)
        return out_RCMM.detach(), torch.autograd.grad(out_RCMM, map_BCHW, grad_RCMM.to(on))[0]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = computed(device), computed(device)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b, wanted in zip(first, second, computed(torch.device("cpu")), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a.cpu(), wanted, rtol=1e-4, atol=1e-4)
