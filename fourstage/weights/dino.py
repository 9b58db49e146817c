"""DINO of MMDetection 3, of detrex and of IDEA-Research: neck, encoder, decoder and heads under the names of each.

What is below `backbone.` is renamed by the tables of the backbone's own family.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from fourstage.weights.rules import Rule

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
NAMES = MMDETECTION


def count_of_dino(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a DINO, under any of its names."""
    weight = r"(bbox_head\.cls_branches|class_embed|classify)\.0\.weight"
    if not any("sampling_offsets" in key or ".cross_attn.offsets" in key for key in state):
        return None
    return next((len(value) for key, value in state.items() if re.fullmatch(weight, key)), None)
