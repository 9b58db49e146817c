"""The backbone of a configuration of MMDetection or MMSegmentation: our network with the same sizes."""

from collections.abc import Mapping
from typing import Any

from fourstage import registry
from fourstage.weights.openmmlab.section import ConfigSection, Values, is_number

MAPS = (0, 1, 2, 3)  # indices of the maps of four stages
SWIN_VISFORMER, VISFORMER = "swin_visformer_", "visformer_"
UNIFIED = {  # class of the STM study -> prefix of our names
    "UnifiedConvNeXt": "unified_convnext_",
    "UnifiedDCNv3": "unified_dcn_v3_",
    "UnifiedHalonet": "unified_halo_",
    "UnifiedPVT": "unified_pvt_",
    "UnifiedSwinTransformer": "unified_swin_",
}
SMT_SETTINGS: Values = {  # what all SMTs have in common; some of it leaves no trace in the shapes of weights
    "ca_num_heads": [4, 4, 4, -1],
    "sa_num_heads": [-1, -1, 8, 16],
    "ca_attentions": [1, 1, 1, 0],
    "expand_ratio": 2,
    "num_stages": 4,
    "qkv_bias": True,
    "qk_scale": None,
}


def backbone_of(backbone: ConfigSection) -> tuple[str, Values]:
    """Return the name of our network and its arguments.

    Raises:
        ValueError: the type of the backbone is not supported.
    """
    type_name = backbone.type_name
    if type_name == "SwinTransformer":
        name, arguments = _swin(backbone)
    elif type_name == "SMT":
        name, arguments = _smt(backbone)
    elif type_name in UNIFIED:
        name, arguments = _unified(backbone, UNIFIED[type_name])
    elif type_name in ("SwinVisformer", "Visformer"):
        name, arguments = _visformer(backbone, SWIN_VISFORMER if type_name == "SwinVisformer" else VISFORMER)
    elif type_name in registry.list_models("scalable_vit_*"):  # its authors publish functions of these names
        name, arguments = type_name, {}
    else:
        known = ", ".join(("SwinTransformer", "SMT", *UNIFIED, "SwinVisformer", "Visformer", "scalable_vit_small"))
        raise ValueError(
            f"{backbone.source} cannot be built from its own configuration: {backbone.path}: backbone type "
            f"{type_name!r} is not supported; supported: {known}"
        )
    maps = backbone.integers("out_indices", MAPS)
    if type_name != "Visformer" and maps != MAPS:
        arguments["out_indices"] = list(maps)
    arguments["drop_path_rate"] = backbone.fraction("drop_path_rate", 0.0)
    return name, arguments


def _swin(backbone: ConfigSection) -> tuple[str, Values]:
    width = backbone.get("embed_dims", backbone.get("embed_dim", 96))
    wanted = {"width": width, "depths": backbone.integers("depths"), "heads": backbone.integers("num_heads")}
    window = backbone.integer("window_size", 7)
    for name, value in (("mlp_ratio", 4), ("patch_size", 4), ("qkv_bias", True), ("patch_norm", True)):
        backbone.require(name, [value], default=value)
    backbone.require("qk_scale", [None], default=None)
    backbone.require("strides", [[4, 2, 2, 2]], default=[4, 2, 2, 2])
    backbone.section("act_cfg").require("type", ["GELU"], default="GELU")
    name = _match(backbone, "swin_", wanted, first=f"_window{window}_")
    arguments: Values = {}
    if window != _design(name).window:
        arguments["window_size"] = window
    if backbone.get("use_abs_pos_embed", backbone.get("ape", False)):
        arguments |= {"ape": True, "img_size": backbone.integer("pretrain_img_size", 224)}
    return name, arguments


def _smt(backbone: ConfigSection) -> tuple[str, Values]:
    wanted = {"widths": backbone.integers("embed_dims"), "depths": backbone.integers("depths")}
    wanted |= {"ratios": backbone.integers("mlp_ratios")} if backbone.get("mlp_ratios") else {}
    wanted |= {"kernel": backbone.integer("head_conv", 3)} if backbone.get("head_conv") else {}
    for key, value in SMT_SETTINGS.items():
        backbone.require(key, [value], default=value)
    name = _match(backbone, "smt_", wanted)
    if backbone.flag("use_layerscale", False):
        return name, {"init_values": backbone.number("layerscale_value", 1e-4)}
    return name, {"init_values": 0} if _design(name).init_values else {}  # the source's detectors have no layer scales


def _unified(backbone: ConfigSection, prefix: str) -> tuple[str, Values]:
    return _match(backbone, prefix, {"widths": backbone.integers("dims"), "depths": backbone.integers("depths")}), {}


def _visformer(backbone: ConfigSection, prefix: str) -> tuple[str, Values]:
    """Its `embed_dim` is the width of the stage at stride 16."""
    width, depths = backbone.integer("embed_dim", 384), backbone.integers("depth")
    if prefix == SWIN_VISFORMER:
        wanted: Values = {"width": width // 4, "depths": depths}
    else:
        wanted = {"widths": (width // 2, width, 2 * width), "depths": depths}
    name = _match(backbone, prefix, wanted)
    scale = backbone.get("qk_scale")
    if scale is not None and not is_number(scale):
        raise backbone.error(f"has qk_scale={scale!r:.60}, and a number is needed")
    return name, {"qk_scale_factor": scale} if scale is not None else {}


def _match(backbone: ConfigSection, prefix: str, wanted: Mapping[str, Any], first: str = "") -> str:
    """Return our network with these sizes; of several, one whose name contains `first`."""
    fitting, known = [], []
    for name in registry.list_models(f"{prefix}*"):
        design = _design(name)
        if name != registry.find(name).name or not all(hasattr(design, key) for key in wanted):
            continue
        known.append(name)
        if all(getattr(design, key) == value for key, value in wanted.items()):
            fitting.append(name)
    fitting = [name for name in fitting if _same_heads(backbone.get("num_heads"), _design(name))]
    if not fitting:
        if (heads := backbone.get("num_heads")) is not None:
            wanted = {**wanted, "heads": heads}
        sizes = ", ".join(f"{key} {value}" for key, value in wanted.items())
        raise backbone.error(f"is a {backbone.type_name} with {sizes}, which none of {', '.join(known)} has")
    return next((name for name in fitting if first and first in name), fitting[0])


def _same_heads(given: Any, design: Any) -> bool:
    """Return whether the heads of a configuration are the design's. Stages without attention have none in ours."""
    ours = getattr(design, "heads", None)
    if given is None or ours is None:
        return True
    theirs = given if isinstance(given, list | tuple) else [given] * len(ours)
    pairs = zip(reversed(theirs), reversed(ours), strict=False)  # a configuration may count the stem as a stage
    return all(heads in (0, theirs_heads) for theirs_heads, heads in pairs)


def _design(name: str) -> Any:
    """Return the design of a network of ours; None for a user's own."""
    return next(iter(getattr(registry.find(name).dense, "args", ())), None)
