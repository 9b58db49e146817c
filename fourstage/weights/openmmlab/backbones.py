"""Which backbone of ours a configuration of MMDetection or MMSegmentation means, by its sizes."""

from collections.abc import Mapping
from typing import Any

from fourstage import registry
from fourstage.weights.openmmlab.section import Part, Values, is_number

MAPS = (0, 1, 2, 3)  # that a backbone of four stages gives
SWIN_VISFORMER, VISFORMER = "swin_visformer_", "visformer_"
UNIFIED = {  # class of the STM study -> how our names begin
    "UnifiedConvNeXt": "unified_convnext_",
    "UnifiedDCNv3": "unified_dcn_v3_",
    "UnifiedHalonet": "unified_halo_",
    "UnifiedPVT": "unified_pvt_",
    "UnifiedSwinTransformer": "unified_swin_",
}


def backbone_of(part: Part) -> tuple[str, Values]:
    """Return our name of a backbone and its arguments."""
    kind = part.kind
    if kind == "SwinTransformer":
        found = _swin(part)
    elif kind == "SMT":
        found = _smt(part)
    elif kind in UNIFIED:
        found = _unified(part, UNIFIED[kind])
    elif kind in ("SwinVisformer", "Visformer"):
        found = _visformer(part, SWIN_VISFORMER if kind == "SwinVisformer" else VISFORMER)
    else:
        known = ", ".join(("SwinTransformer", "SMT", *UNIFIED, "SwinVisformer", "Visformer"))
        raise part.error(f"is of the type {kind!r}, which is not among the backbones here ({known})")
    name, arguments = found
    maps = part.whole("out_indices", MAPS)
    if kind != "Visformer" and maps != MAPS:
        arguments["out_indices"] = list(maps)
    arguments["drop_path_rate"] = part.share("drop_path_rate", 0.0)
    return name, arguments


def _swin(part: Part) -> tuple[str, Values]:
    width = part.get("embed_dims", part.get("embed_dim", 96))
    wanted = {"width": width, "depths": part.whole("depths"), "heads": part.whole("num_heads")}
    window = part.number("window_size", 7)
    for name, value in (("mlp_ratio", 4), ("patch_size", 4), ("qkv_bias", True), ("patch_norm", True)):
        part.must(name, [value], default=value)
    part.must("qk_scale", [None], default=None)
    part.must("strides", [[4, 2, 2, 2]], default=[4, 2, 2, 2])
    part.part("act_cfg").must("type", ["GELU"], default="GELU")
    name = _match(part, "swin_", wanted, first=f"_window{window}_")
    arguments: Values = {}
    if window != _design(name).window:
        arguments["window_size"] = window
    if part.get("use_abs_pos_embed", part.get("ape", False)):
        arguments |= {"ape": True, "img_size": part.number("pretrain_img_size", 224)}
    return name, arguments


def _smt(part: Part) -> tuple[str, Values]:
    wanted = {"widths": part.whole("embed_dims"), "depths": part.whole("depths")}
    wanted |= {"ratios": part.whole("mlp_ratios")} if part.get("mlp_ratios") else {}
    name = _match(part, "smt_", wanted)
    return name, {"init_values": 0} if _design(name).init_values else {}  # its detectors have no layer scales


def _unified(part: Part, prefix: str) -> tuple[str, Values]:
    return _match(part, prefix, {"widths": part.whole("dims"), "depths": part.whole("depths")}), {}


def _visformer(part: Part, prefix: str) -> tuple[str, Values]:
    """Its `embed_dim` is that of the stage at stride 16."""
    width, depths = part.number("embed_dim", 384), part.whole("depth")
    if prefix == SWIN_VISFORMER:
        wanted: Values = {"width": width // 4, "depths": depths}
    else:
        wanted = {"widths": (width // 2, width, 2 * width), "depths": depths}
    name = _match(part, prefix, wanted)
    scale = part.get("qk_scale")
    if scale is not None and not is_number(scale):
        raise part.error(f"has qk_scale={scale!r:.60}, and a number is needed")
    return name, {"qk_scale_factor": scale} if scale is not None else {}


def _match(part: Part, prefix: str, wanted: Mapping[str, Any], first: str = "") -> str:
    """Our network with these sizes; of several one whose name contains `first`."""
    fitting, known = [], []
    for name in registry.list_models(f"{prefix}*"):
        design = _design(name)
        if name != registry.find(name).name or not all(hasattr(design, key) for key in wanted):
            continue
        known.append(name)
        if all(getattr(design, key) == value for key, value in wanted.items()):
            fitting.append(name)
    if not fitting:
        sizes = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise part.error(f"is a {part.kind} with {sizes}, which none of {', '.join(known)} has")
    return next((name for name in fitting if first and first in name), fitting[0])


def _design(name: str) -> Any:
    """The sizes of a network of ours; None for a user's own."""
    return next(iter(getattr(registry.find(name).dense, "args", ())), None)
