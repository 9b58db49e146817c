"""The smallest sensible network of every family, for tests; nobody published these."""

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from fourstage.backbones import scalablevit, smt, swin, swin_visformer, unified, visformer
from fourstage.backbones.base import Classifier, Dense

UNIFIED = {
    name.removesuffix("_micro"): replace(
        design, widths=(8, 16, 32, 64), depths=(1, 2, 1, 1), heads=(1, 2, 4, 8), mlp_ratios=(2,) * 4
    )
    for name, design in unified.DESIGNS.items()
    if name.endswith("_micro")
}
UNIFIED |= {
    "official_swin": replace(UNIFIED["unified_swin"], shell=unified.SWIN),
    "official_pvt_v2": replace(UNIFIED["unified_pvt_v2"], shell=unified.PVT_V2),
}
SCALABLE_VIT = scalablevit.Design(
    widths=(16, 32, 32, 64),
    depths=(2, 2, 3, 2),
    heads=(1, 2, 2, 4),
    ratios=(2, 0.5, 1.25, 1.25),
    window=4,
    hidden=48,
)
SMT = smt.Design(widths=(16, 16, 32, 32), depths=(1, 1, 2, 1), ratios=(2, 2, 2, 1), kernel=3, init_values=0.1)
SWIN = swin.Design(width=16, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=4)
SWIN_VISFORMER = swin_visformer.Design(stem=8, width=8, depths=(1, 2, 2, 2), heads=(0, 0, 2, 4), windows=(0, 0, 4, 2))
VISFORMER = visformer.Design(stem=8, widths=(16, 32, 64), depths=(1, 2, 1), heads=(0, 2, 2))

# name -> the family's file, the sizes, and arguments that both forms need beside them
NETWORKS: Mapping[str, tuple[ModuleType, Any, Mapping[str, Any]]] = {
    "scalablevit": (scalablevit, SCALABLE_VIT, {}),
    "smt": (smt, SMT, {}),
    "swin": (swin, SWIN, {}),
    "swin_visformer": (swin_visformer, SWIN_VISFORMER, {}),
    "visformer": (visformer, VISFORMER, {}),
    **{name: (unified, design, {"init_values": 0.5}) for name, design in UNIFIED.items()},
}


def tiny(name: str, *, img_size: int = 64, num_classes: int = 10, **arguments: Any) -> Classifier:
    """Build the tiny classifier of a family."""
    family, design, needed = NETWORKS[name]
    return family.classifier(design, img_size=img_size, num_classes=num_classes, **{**needed, **arguments})


def tiny_dense(name: str, **arguments: Any) -> Dense:
    """Build the tiny dense backbone of a family."""
    family, design, needed = NETWORKS[name]
    return family.dense(design, **{"img_size": 64, **needed, **arguments})
