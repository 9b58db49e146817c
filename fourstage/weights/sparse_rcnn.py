"""Sparse R-CNN of MMDetection and of its authors: proposals and heads under the names of each.

What is below `backbone.` (`backbone.bottom_up.` of the authors) is renamed by the tables of the backbone's own family.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fourstage.weights.openmmlab.detector_names import FPN, WB
from fourstage.weights.rules import Rule, needed_tensor

OURS = r"box_heads.\1."
THEIRS, AUTHORS = r"roi_head\.bbox_head\.(\d+)\.", r"head\.head_series\.(\d+)\."


def _modules(head: str, named: Mapping[str, str]) -> tuple[Rule, ...]:
    """Weights and biases of the modules of a head, by their names and ours."""
    return tuple(Rule(rf"{head}{re.escape(theirs)}\.{WB}", rf"{OURS}{ours}.\2") for theirs, ours in named.items())


def _attention(head: str, name: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{head}{name}\.in_proj_{WB}", rf"{OURS}self_attn.qkv.\2"),
        Rule(rf"{head}{name}\.out_proj\.{WB}", rf"{OURS}self_attn.out.\2"),
    )


def _layers(head: str, classes: str, boxes: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{head}{classes}\.(\d+)\.{WB}", rf"{OURS}class_layers.\2.\3"),
        Rule(rf"{head}{boxes}\.(\d+)\.{WB}", rf"{OURS}box_layers.\2.\3"),
    )


CONV = "instance_interactive_conv"
SPARSE_RCNN = (
    *FPN,
    Rule(r"rpn_head\.init_proposal_bboxes\.weight", "proposal_boxes.weight"),
    Rule(r"rpn_head\.init_proposal_features\.weight", "proposal_features.weight"),
    *_attention(THEIRS, r"attention\.attn"),
    *_layers(THEIRS, "cls_fcs", "reg_fcs"),
    *_modules(
        THEIRS,
        {
            "attention_norm": "self_norm",
            f"{CONV}.dynamic_layer": "interact.filters",
            f"{CONV}.norm_in": "interact.norm_in",
            f"{CONV}.norm_out": "interact.norm_out",
            f"{CONV}.fc_layer": "interact.flat",
            f"{CONV}.fc_norm": "interact.flat_norm",
            f"{CONV}_norm": "interact_norm",
            "ffn.layers.0.0": "ffn.expand",
            "ffn.layers.1": "ffn.reduce",
            "ffn_norm": "ffn.norm",
            "fc_cls": "classify",
            "fc_reg": "regress",
        },
    ),
    # the authors' own, https://github.com/PeizeSun/SparseR-CNN, after `regular`
    Rule(r"init_proposal_boxes\.weight", "proposal_boxes.weight"),
    Rule(r"init_proposal_features\.weight", "proposal_features.weight"),
    *_attention(AUTHORS, "self_attn"),
    *_layers(AUTHORS, "cls_module", "reg_module"),
    *_modules(
        AUTHORS,
        {
            "norm1": "self_norm",
            "norm2": "interact_norm",
            "norm3": "ffn.norm",
            "inst_interact.dynamic_layer": "interact.filters",
            "inst_interact.norm1": "interact.norm_in",
            "inst_interact.norm2": "interact.norm_out",
            "inst_interact.out_layer": "interact.flat",
            "inst_interact.norm3": "interact.flat_norm",
            "linear1": "ffn.expand",
            "linear2": "ffn.reduce",
            "class_logits": "classify",
            "bboxes_delta": "regress",
        },
    ),
    Rule(r"(?:pixel_mean|pixel_std)", None),  # the normalisation of images is no weight
)


def regular(state: Mapping[str, Tensor], classes: int | None) -> Mapping[str, Tensor]:
    """Return a checkpoint of the authors with its backbone and pyramid apart; any other state dict as it is.

    Their backbone is `backbone.bottom_up.`, and their pyramid below `backbone.` counts its levels from 2.
    """
    if "init_proposal_boxes.weight" not in state:
        return state
    return {_apart(key): value for key, value in state.items()}


def _apart(key: str) -> str:
    if match := re.fullmatch(rf"backbone\.fpn_(lateral|output)(\d)\.{WB}", key):
        part = {"lateral": "lateral_convs", "output": "fpn_convs"}[match[1]]
        return f"neck.{part}.{int(match[2]) - 2}.conv.{match[3]}"
    return key.replace("backbone.bottom_up.", "backbone.", 1)


def arguments_of_state(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of a Sparse R-CNN of MMDetection or of its authors; None for another file.

    Raises:
        ValueError: a tensor that shows a size is missing or has another shape.
    """
    names = ("rpn_head.init_proposal_features.weight", "init_proposal_features.weight")
    features = next((key for key in names if key in state), None)
    first = next((match[0] for key in state if (match := re.match(rf"{THEIRS}|{AUTHORS}", key))), None)
    if features is None or first is None:
        return None
    proposals, channels = needed_tensor(state, features, 2, network="Sparse R-CNN").shape
    biases = _sizes(re.sub(r"\d+", "0", first))
    sizes = {name: len(needed_tensor(state, key, 1, network="Sparse R-CNN")) for name, key in biases.items()}
    stages = len({match[0] for key in state if (match := re.match(rf"{THEIRS}|{AUTHORS}", key))})
    return {"proposals": proposals, "stages": stages, "channels": channels, **sizes}


def _sizes(head: str) -> dict[str, str]:
    """Return the biases that have as many numbers as an argument says, by the beginning of the first head's names."""
    if head.startswith("roi_head."):
        return {"hidden": f"{head}ffn.layers.0.0.bias", "filter_channels": f"{head}{CONV}.norm_in.bias"}
    return {"hidden": f"{head}linear1.bias", "filter_channels": f"{head}inst_interact.norm1.bias"}


def count_of_sparse_rcnn(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of the first head, in the names of each source and ours."""
    weight = r"(roi_head\.bbox_head\.0\.fc_cls|head\.head_series\.0\.class_logits|box_heads\.0\.classify)\.weight"
    return next((len(value) for key, value in state.items() if re.fullmatch(weight, key)), None)
