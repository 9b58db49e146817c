"""The methods of class activation maps: how the channels of a layer are weighed, and joined to one map.

B images, C channels, h x w cells: activations A and gradients G of a layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor

EPS_PLUS_PLUS = 1e-6  # of grad-cam; behind global pooling G^2 is of this size, so it is part of the definition
EPS_SUM = 1e-7

Method = Callable[[Tensor, Tensor], Tensor]  # from A and G to (B, C, h, w), the channels times their weights
Join = Callable[[Tensor], Tensor]  # from these channels to the map, (B, h, w)


def gradcam_weights(a_BChw: Tensor, g_BChw: Tensor) -> Tensor:
    """Return (B, C): the mean gradient over positions."""
    return g_BChw.mean(dim=(2, 3))


def plus_plus_weights(a_BChw: Tensor, g_BChw: Tensor) -> Tensor:
    """Return (B, C) of Grad-CAM++, with the plain score in place of its exponential."""
    squared, cubed = g_BChw**2, g_BChw**3
    alpha = squared / (2 * squared + a_BChw.sum(dim=(2, 3), keepdim=True) * cubed + EPS_PLUS_PLUS)
    return (torch.where(g_BChw != 0, alpha, torch.zeros_like(alpha)) * g_BChw.relu()).sum(dim=(2, 3))


def xgrad_weights(a_BChw: Tensor, g_BChw: Tensor) -> Tensor:
    """Return (B, C) of XGrad-CAM."""
    return (g_BChw * a_BChw).sum(dim=(2, 3)) / (a_BChw.sum(dim=(2, 3)) + EPS_SUM)


def _weighted(weights: Method) -> Method:
    return lambda a_BChw, g_BChw: weights(a_BChw, g_BChw)[..., None, None] * a_BChw


def _layercam(a_BChw: Tensor, g_BChw: Tensor) -> Tensor:
    return g_BChw.relu() * a_BChw


def _hirescam(a_BChw: Tensor, g_BChw: Tensor) -> Tensor:
    return g_BChw * a_BChw


def _eigencam(a_BChw: Tensor, _g_BChw: Tensor) -> Tensor:
    return a_BChw


METHODS: dict[str, Method] = {
    "gradcam": _weighted(gradcam_weights),
    "gradcam++": _weighted(plus_plus_weights),
    "layercam": _layercam,
    "hirescam": _hirescam,
    "eigencam": _eigencam,
    "xgradcam": _weighted(xgrad_weights),
}
SCORE_CAM = "scorecam"  # needs no gradient, but a forward pass for each channel; see `cam.score_cam`
FIVE = ("gradcam", "gradcam++", "layercam", "hirescam", "eigencam")
NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "Layer-CAM",
    "hirescam": "HiResCAM",
    "eigencam": "Eigen-CAM",
    "xgradcam": "XGrad-CAM",
    SCORE_CAM: "Score-CAM",
}


def joining(method: str, eigen_smooth: bool) -> Join:
    """Return what joins the weighed channels of a method: their sum, or their first principal component."""
    if method == "eigencam":
        return largest_component
    return smooth_sum if eigen_smooth else channel_sum


def channel_sum(x_BChw: Tensor) -> Tensor:
    return x_BChw.sum(dim=1)


def largest_component(x_BChw: Tensor) -> Tensor:
    """Return the first principal component, of the sign with which its largest absolute value is positive."""
    map_Bhw = _principal_component(x_BChw)
    return torch.where(
        (map_Bhw.amin(dim=(1, 2)).abs() > map_Bhw.amax(dim=(1, 2)).abs())[:, None, None], -map_Bhw, map_Bhw
    )


def smooth_sum(x_BChw: Tensor) -> Tensor:
    """Return the first principal component, of the sign with which it grows where the sum of the channels grows."""
    map_Bhw, sum_Bhw = _principal_component(x_BChw), channel_sum(x_BChw)
    along_B = (map_Bhw * (sum_Bhw - sum_Bhw.mean(dim=(1, 2), keepdim=True))).sum(dim=(1, 2))
    return torch.where((along_B < 0)[:, None, None], -map_Bhw, map_Bhw)


def _principal_component(x_BChw: Tensor) -> Tensor:
    """Return the projection on the first right singular vector of (h w, C), each channel centred over positions.

    Its sign is arbitrary.
    """
    x_BNC = x_BChw.flatten(2).transpose(1, 2)
    x_BNC = x_BNC - x_BNC.mean(dim=1, keepdim=True)
    first_BC = torch.linalg.svd(x_BNC, full_matrices=False).Vh[:, 0]
    return (x_BNC @ first_BC[..., None])[..., 0].unflatten(1, tuple(x_BChw.shape[-2:]))
