"""Segmentors in a configuration of MMSegmentation: their method and its arguments."""

from collections.abc import Mapping, Sequence
from typing import Any

from fourstage.weights.openmmlab.backbones import MAPS
from fourstage.weights.openmmlab.evaluation import Tested
from fourstage.weights.openmmlab.section import Built, Part, Values, is_index, is_number


def segmentor(model: Part, test: Tested, meta: Mapping[str, Any]) -> Built:
    head = model.part("decode_head")
    head.must("type", ["UPerHead", "FPNHead"])
    head.must("align_corners", [False, True], default=False)
    head.part("norm_cfg").must("type", ["BN", "SyncBN", "MMSyncBN", "BN2d"], default="BN")
    head.part("act_cfg").must("type", ["ReLU"], default="ReLU")
    head.must("conv_cfg", [None], default=None)
    classes = head.number("num_classes", 150)
    head.must("out_channels", [classes], default=classes)
    loss = head.parts("loss_decode")[0]
    loss.must("use_sigmoid", [False], default=False)
    arguments: Values = {"dropout": head.share("dropout_ratio", 0.1)}
    if head.get("align_corners", False):
        arguments["align_corners"] = True
    if head.kind == "UPerHead":
        arguments |= {"channels": head.number("channels", 512), **_auxiliary(model)}
        arguments["pool_scales"] = list(head.whole("pool_scales", (1, 2, 3, 6)))
        arguments |= _read(head.indices("in_index", _maps(model)), _maps(model))
        method = "upernet"
    else:
        arguments |= {"channels": head.number("channels", 128), **_pyramid(model, head)}
        method = "semantic_fpn"
    return Built(
        task="segmentation",
        method=method,
        method_args=arguments,
        num_classes=classes,
        evaluation=test.protocol(),
        over_valid=bool(loss.get("avg_non_ignore", False)),
    )


def _maps(model: Part) -> list[int]:
    """The numbers of the maps that the backbone gives."""
    return list(range(len(model.part("backbone").whole("out_indices", MAPS))))


def _read(used: Sequence[int], maps: Sequence[int]) -> Values:
    return {} if list(used) == list(maps) else {"maps": list(used)}


def _pyramid(model: Part, head: Part) -> Values:
    """Arguments of the pyramid below Semantic FPN's decoder."""
    neck, maps = model.part("neck"), _maps(model)
    neck.must("type", ["FPN"])
    for name in ("norm_cfg", "act_cfg", "conv_cfg"):
        neck.must(name, [None], default=None)
    neck.must("end_level", [-1, maps[-1]], default=-1)
    neck.must("add_extra_convs", [False], default=False)
    neck.part("upsample_cfg").must("mode", ["nearest"], default="nearest")
    used = maps[neck.number("start_level", 0) :]
    outs = neck.number("num_outs", len(used))
    head.must("in_index", [list(range(outs))], default=list(range(outs)))
    finest = head.whole("feature_strides", (4,))[0]
    doubled = [finest * 2**i for i in range(outs)]
    head.must("feature_strides", [doubled], default=doubled)
    arguments: Values = {"neck_channels": neck.number("out_channels", 256), **_read(used, maps)}
    return arguments if outs == len(used) else arguments | {"num_outs": outs}


def _auxiliary(model: Part) -> Values:
    """It predicts nothing: one that we have not is left out."""
    head = Part(model.get("auxiliary_head"), f"{model.path}.auxiliary_head", model.source)
    usual = head.get("kernel_size", 3) == 3 and head.get("dilation", 1) == 1
    if head.kind != "FCNHead" or not usual or not is_index(head.get("in_index", -1)):
        return {"auxiliary_weight": 0}
    maps, at = _maps(model), head.get("in_index", -1)
    weight = head.parts("loss_decode")[0].get("loss_weight", 1.0)
    if not -len(maps) <= at < len(maps) or not is_number(weight) or weight <= 0:
        return {"auxiliary_weight": 0}
    arguments: Values = {"auxiliary_channels": head.number("channels", 256)}
    arguments |= {"auxiliary_convs": head.number("num_convs", 2), "auxiliary_weight": weight}
    if head.get("concat_input", True):
        arguments["auxiliary_concat"] = True
    return arguments | {"auxiliary_map": maps[at]}
