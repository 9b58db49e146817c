"""DINO of MMDetection 3, of detrex and of IDEA-Research: neck, encoder, decoder and heads under the names of each.

What is below `backbone.` is renamed by the tables of the backbone's own family.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from fourstage.weights.rules import Rule, matching_rules, needed_tensor, rename

WB = r"(weight|bias)"
ATTENTION = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "value", "output_proj": "out"}
LINEARS = rf"({'|'.join(ATTENTION)})\.{WB}"
MLP_PLACES = {"0": "0", "2": "1", "4": "2"}  # linear layers of a box head of MMDetection, with ReLU between them


def _attention(ours: str) -> Callable[[re.Match[str]], str]:
    """Our name of a linear layer of deformable attention; the first group is the layer's number."""
    return lambda m: f"{ours.replace('N', m[1])}.{ATTENTION[m[2]]}.{m[3]}"


def _self_attention(theirs: str) -> tuple[Rule, ...]:
    """The rules of PyTorch's attention below a name that ends in a layer's number and more."""
    return (
        Rule(theirs + rf"in_proj_{WB}", r"decoder.layers.\1.self_attn.qkv.\2"),
        Rule(theirs + rf"out_proj\.{WB}", r"decoder.layers.\1.self_attn.out.\2"),
    )


ENCODER, DECODER = r"encoder\.layers\.(\d+)\.", r"decoder\.layers\.(\d+)\."
MMDETECTION = (
    Rule(rf"neck\.convs\.(\d+)\.conv\.{WB}", r"neck.convs.\1.conv.\2"),
    Rule(rf"neck\.convs\.(\d+)\.gn\.{WB}", r"neck.convs.\1.norm.\2"),
    Rule(rf"neck\.extra_convs\.(\d+)\.conv\.{WB}", r"neck.extra.\1.conv.\2"),
    Rule(rf"neck\.extra_convs\.(\d+)\.gn\.{WB}", r"neck.extra.\1.norm.\2"),
    Rule("level_embed", "level_embed"),
    Rule(r"query_embedding\.weight", "query_embed.weight"),
    Rule(r"dn_query_generator\.label_embedding\.weight", "label_embed.weight"),
    Rule(rf"memory_trans_fc\.{WB}", r"project.\1"),
    Rule(rf"memory_trans_norm\.{WB}", r"project_norm.\1"),
    Rule(ENCODER + rf"self_attn\.{LINEARS}", _attention("encoder.N.attn")),
    Rule(ENCODER + rf"norms\.0\.{WB}", r"encoder.\1.norm.\2"),
    Rule(ENCODER + rf"norms\.1\.{WB}", r"encoder.\1.ffn.norm.\2"),
    Rule(ENCODER + rf"ffn\.layers\.0\.0\.{WB}", r"encoder.\1.ffn.expand.\2"),
    Rule(ENCODER + rf"ffn\.layers\.1\.{WB}", r"encoder.\1.ffn.reduce.\2"),
    *_self_attention(DECODER + r"self_attn\.attn\."),
    Rule(DECODER + rf"cross_attn\.{LINEARS}", _attention("decoder.layers.N.cross_attn")),
    Rule(DECODER + rf"norms\.0\.{WB}", r"decoder.layers.\1.self_norm.\2"),
    Rule(DECODER + rf"norms\.1\.{WB}", r"decoder.layers.\1.cross_norm.\2"),
    Rule(DECODER + rf"norms\.2\.{WB}", r"decoder.layers.\1.ffn.norm.\2"),
    Rule(DECODER + rf"ffn\.layers\.0\.0\.{WB}", r"decoder.layers.\1.ffn.expand.\2"),
    Rule(DECODER + rf"ffn\.layers\.1\.{WB}", r"decoder.layers.\1.ffn.reduce.\2"),
    Rule(rf"decoder\.norm\.{WB}", r"decoder.norm.\1"),
    Rule(rf"decoder\.ref_point_head\.layers\.(\d+)\.{WB}", r"decoder.embed_box.layers.\1.\2"),
    Rule(rf"bbox_head\.cls_branches\.(\d+)\.{WB}", r"classify.\1.\2"),
    Rule(
        rf"bbox_head\.reg_branches\.(\d+)\.([024])\.{WB}", lambda m: f"regress.{m[1]}.layers.{MLP_PLACES[m[2]]}.{m[3]}"
    ),
)
T = r"transformer\."
BOTH = (  # of detrex and of IDEA-Research
    Rule(rf"{T}tgt_embed\.weight", "query_embed.weight"),
    Rule(r"label_enc\.weight", "label_embed.weight"),
    Rule(rf"{T}enc_output\.{WB}", r"project.\1"),
    Rule(rf"{T}enc_output_norm\.{WB}", r"project_norm.\1"),
    Rule(rf"{T}decoder\.norm\.{WB}", r"decoder.norm.\1"),
    Rule(rf"{T}decoder\.ref_point_head\.layers\.(\d+)\.{WB}", r"decoder.embed_box.layers.\1.\2"),
    Rule(rf"class_embed\.(\d+)\.{WB}", r"classify.\1.\2"),
    Rule(rf"bbox_embed\.(\d+)\.layers\.(\d+)\.{WB}", r"regress.\1.layers.\2.\3"),
    Rule(rf"{T}decoder\.(class|bbox)_embed\..*", None),  # the same parameters once more
)
DETREX = (
    Rule(rf"neck\.convs\.(\d+)\.norm\.{WB}", r"neck.convs.\1.norm.\2"),
    Rule(rf"neck\.extra_convs\.(\d+)\.norm\.{WB}", r"neck.extra.\1.norm.\2"),
    Rule(rf"{T}level_embeds", "level_embed"),
    Rule(T + ENCODER + rf"attentions\.0\.{LINEARS}", _attention("encoder.N.attn")),
    Rule(T + ENCODER + rf"norms\.0\.{WB}", r"encoder.\1.norm.\2"),
    Rule(T + ENCODER + rf"norms\.1\.{WB}", r"encoder.\1.ffn.norm.\2"),
    Rule(T + ENCODER + rf"ffns\.0\.layers\.0\.0\.{WB}", r"encoder.\1.ffn.expand.\2"),
    Rule(T + ENCODER + rf"ffns\.0\.layers\.1\.{WB}", r"encoder.\1.ffn.reduce.\2"),
    *_self_attention(T + DECODER + r"attentions\.0\.attn\."),
    Rule(T + DECODER + rf"attentions\.1\.{LINEARS}", _attention("decoder.layers.N.cross_attn")),
    Rule(T + DECODER + rf"norms\.0\.{WB}", r"decoder.layers.\1.self_norm.\2"),
    Rule(T + DECODER + rf"norms\.1\.{WB}", r"decoder.layers.\1.cross_norm.\2"),
    Rule(T + DECODER + rf"norms\.2\.{WB}", r"decoder.layers.\1.ffn.norm.\2"),
    Rule(T + DECODER + rf"ffns\.0\.layers\.0\.0\.{WB}", r"decoder.layers.\1.ffn.expand.\2"),
    Rule(T + DECODER + rf"ffns\.0\.layers\.1\.{WB}", r"decoder.layers.\1.ffn.reduce.\2"),
)
IDEA = (
    Rule(rf"input_proj\.(\d+)\.0\.{WB}", r"neck.convs.\1.conv.\2"),  # `regular` moves those of the extra maps
    Rule(rf"input_proj\.(\d+)\.1\.{WB}", r"neck.convs.\1.norm.\2"),
    Rule(rf"{T}level_embed", "level_embed"),
    Rule(rf"{T}enc_out_class_embed\.{WB}", r"classify.ENCODER.\1"),  # and these too
    Rule(rf"{T}enc_out_bbox_embed\.layers\.(\d+)\.{WB}", r"regress.ENCODER.layers.\1.\2"),
    Rule(T + ENCODER + rf"self_attn\.{LINEARS}", _attention("encoder.N.attn")),
    Rule(T + ENCODER + rf"norm1\.{WB}", r"encoder.\1.norm.\2"),
    Rule(T + ENCODER + rf"norm2\.{WB}", r"encoder.\1.ffn.norm.\2"),
    Rule(T + ENCODER + rf"linear1\.{WB}", r"encoder.\1.ffn.expand.\2"),
    Rule(T + ENCODER + rf"linear2\.{WB}", r"encoder.\1.ffn.reduce.\2"),
    *_self_attention(T + DECODER + r"self_attn\."),
    Rule(T + DECODER + rf"cross_attn\.{LINEARS}", _attention("decoder.layers.N.cross_attn")),
    Rule(T + DECODER + rf"norm2\.{WB}", r"decoder.layers.\1.self_norm.\2"),  # after self-attention
    Rule(T + DECODER + rf"norm1\.{WB}", r"decoder.layers.\1.cross_norm.\2"),
    Rule(T + DECODER + rf"norm3\.{WB}", r"decoder.layers.\1.ffn.norm.\2"),
    Rule(T + DECODER + rf"linear1\.{WB}", r"decoder.layers.\1.ffn.expand.\2"),
    Rule(T + DECODER + rf"linear2\.{WB}", r"decoder.layers.\1.ffn.reduce.\2"),
)
NAMES = (*MMDETECTION, *BOTH, *DETREX)
COCO_IDS = (
    *range(1, 12),
    *range(13, 26),
    27,
    28,
    *range(31, 45),
    *range(46, 66),
    67,
    70,
    *range(72, 83),
    *range(84, 91),
)
"""Rows of IDEA-Research's 91 that are categories of COCO, in the order of the labels."""
CLASS_ROWS = r"(class_embed\.\d+|transformer\.enc_out_class_embed)\.(weight|bias)"


def is_of_idea(state: Mapping[str, Tensor]) -> bool:
    """Return whether a state dict has IDEA-Research's names."""
    return "input_proj.0.0.weight" in state and "label_enc.weight" in state


_needed = partial(needed_tensor, network="DINO")


def regular(state: Mapping[str, Tensor], classes: int | None) -> Mapping[str, Tensor]:
    """Return IDEA-Research's DINO under the names of detrex or of ours; any other state dict as it is.

    Its class layers have a row for each of COCO's 91 category ids, and its label embedding one more than classes. Its
    other layers differ from detrex's in names alone.

    Args:
        classes: of the network that is filled; None: of the 91 rows the 80 of COCO's categories are kept.

    Raises:
        ValueError: a tensor that shows a size is missing or has another shape.
    """
    if not is_of_idea(state):
        return state
    rows = len(_needed(state, "class_embed.0.weight", 2))
    kept = [*COCO_IDS] if rows == 91 and classes != 91 else [*range(rows)]
    layers = 1 + max(int(match[1]) for key in state if (match := re.match(r"class_embed\.(\d+)\.", key)))
    maps = range(len(_needed(state, "transformer.level_embed", 2)))
    extra = [i for i in maps if _needed(state, f"input_proj.{i}.0.weight", 4).shape[2] > 1]
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("backbone."):
            out[re.sub(r"^backbone\.0\.(body\.)?", "backbone.", key)] = value
            continue
        if re.fullmatch(CLASS_ROWS, key) or key == "label_enc.weight":
            value = _needed(state, key, value.ndim or 1, rows=rows)[kept]  # noqa: PLW2901
        for name, moved in rename_one(key, value).items():
            place = re.match(r"neck\.convs\.(\d+)\.", name)
            if place and int(place[1]) in extra:
                name = f"neck.extra.{int(place[1]) - extra[0]}.{name[place.end() :]}"  # noqa: PLW2901
            out[name.replace(".ENCODER.", f".{layers}.")] = moved
    return out


def rename_one(key: str, value: Tensor) -> dict[str, Tensor]:
    """Return an entry of IDEA-Research's under our name; none where it is a copy, and as it is where it is unknown."""
    hits = matching_rules((*BOTH, *IDEA), key)
    return rename({key: value}, (*BOTH, *IDEA)) if len(hits) == 1 else {key: value}


def count_of_dino(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a DINO, under any of its names."""
    weight = r"(bbox_head\.cls_branches|class_embed|classify)\.0\.weight"
    if not any("sampling_offsets" in key or ".cross_attn.offsets" in key for key in state):
        return None
    found = next((len(value) for key, value in state.items() if re.fullmatch(weight, key)), None)
    return len(COCO_IDS) if found == 91 and is_of_idea(state) else found


def arguments_of_state(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the arguments of a DINO of detrex or IDEA-Research, whose files have no configuration, by its tensors.

    None for other names. Heads and points are eight and four where the layers allow it, as in all published files.

    Raises:
        ValueError: a tensor that shows a size is missing or has another shape.
    """
    if "label_enc.weight" not in state or "transformer.tgt_embed.weight" not in state:
        return None
    idea = is_of_idea(state)
    around = {key: value for key, value in regular(state, None).items() if not key.startswith("backbone.")}
    ours = around if idea else rename(around, NAMES)
    scales, channels = _needed(ours, "level_embed", 2).shape
    weights = len(_needed(ours, "encoder.0.attn.weights.weight", 2, rows=scales)) // scales
    heads = 8 if weights % 8 == 0 else 1
    return {
        "queries": len(_needed(ours, "query_embed.weight", 2)),
        "scales": scales,
        "channels": channels,
        "encoder_layers": _layers(ours, r"encoder\.(\d+)\."),
        "decoder_layers": _layers(ours, r"decoder\.layers\.(\d+)\."),
        "heads": heads,
        "points": weights // heads,
        "hidden": len(_needed(ours, "encoder.0.ffn.expand.weight", 2)),
        "neck_bias": "neck.convs.0.conv.bias" in ours,
        **({} if idea else {"position_temperature": 10000.0, "position_offset": -0.5}),
        "pad_to": 1,
    }


def _layers(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})
