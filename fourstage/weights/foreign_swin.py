"""Swin under the names of timm, torchvision and Hugging Face's transformers. All three are the function of swin_*.

All join the neighbours of a merge in the order of microsoft/Swin-Transformer. timm numbers a merge with the stage that
it begins, torchvision as a stage of its own, and transformers with the stage that it ends.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fourstage.weights.rules import Rule, Table

BLOCK = r"layers[._](\d+)\.blocks\.(\d+)\."  # `features_only=True` writes layers_0
TIMM = Table(
    (
        Rule(r"patch_embed\.proj\.(weight|bias)", r"stem.0.\1"),
        Rule(r"patch_embed\.norm\.(weight|bias)", r"stem.1.\1"),
        Rule(BLOCK + r"(norm[12])\.(weight|bias)", r"stages.\1.blocks.\2.\3.\4"),
        Rule(BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", r"stages.\1.blocks.\2.attn.\3.\4"),
        Rule(BLOCK + r"attn\.relative_position_bias_table", r"stages.\1.blocks.\2.attn.table"),
        Rule(BLOCK + r"attn\.relative_position_index", None),  # follows from the window
        Rule(BLOCK + r"attn_mask", None),  # follows from the size of the map
        Rule(BLOCK + r"mlp\.fc1\.(weight|bias)", r"stages.\1.blocks.\2.mlp.expand.\3"),
        Rule(BLOCK + r"mlp\.fc2\.(weight|bias)", r"stages.\1.blocks.\2.mlp.reduce.\3"),
        # never of the first stage: that would be Microsoft's numbering
        Rule(r"layers[._]([1-9]\d*)\.downsample\.norm\.(weight|bias)", r"stages.\1.embed.norm.\2"),
        Rule(r"layers[._]([1-9]\d*)\.downsample\.reduction\.weight", r"stages.\1.embed.reduce.weight"),
        Rule(r"norm\.(weight|bias)", r"final.\1"),
        Rule(r"head\.fc\.(weight|bias)", r"head.\1"),
    ),
    writer="timm",
)

FEATURE = r"features\.(\d*[13579])\.(\d+)\."
MERGE = r"features\.(\d*[2468])\."


def _stage_of_blocks(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) // 2}.blocks.{int(match[2])}"


def _stage_of_merge(match: re.Match[str]) -> str:
    return f"stages.{int(match[1]) // 2}.embed"


TORCHVISION = Table(
    (
        Rule(r"features\.0\.0\.(weight|bias)", r"stem.0.\1"),
        Rule(r"features\.0\.2\.(weight|bias)", r"stem.1.\1"),
        Rule(FEATURE + r"(norm[12])\.(weight|bias)", lambda m: f"{_stage_of_blocks(m)}.{m[3]}.{m[4]}"),
        Rule(FEATURE + r"attn\.(qkv|proj)\.(weight|bias)", lambda m: f"{_stage_of_blocks(m)}.attn.{m[3]}.{m[4]}"),
        Rule(FEATURE + r"attn\.relative_position_bias_table", lambda m: f"{_stage_of_blocks(m)}.attn.table"),
        Rule(FEATURE + r"attn\.relative_position_index", None),  # follows from the window
        Rule(FEATURE + r"mlp\.0\.(weight|bias)", lambda m: f"{_stage_of_blocks(m)}.mlp.expand.{m[3]}"),
        Rule(FEATURE + r"mlp\.3\.(weight|bias)", lambda m: f"{_stage_of_blocks(m)}.mlp.reduce.{m[3]}"),
        Rule(MERGE + r"norm\.(weight|bias)", lambda m: f"{_stage_of_merge(m)}.norm.{m[2]}"),
        Rule(MERGE + r"reduction\.weight", lambda m: f"{_stage_of_merge(m)}.reduce.weight"),
        Rule(r"norm\.(weight|bias)", r"final.\1"),
        Rule(r"head\.(weight|bias)", r"head.\1"),
    ),
    writer="torchvision",
)

QKV = ("q", "k", "v")
ATTENTION = re.compile(r"(.*\.attention)\.(?:self\.(query|key|value)|([qkv])_proj)\.(weight|bias)")


def with_joined_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict whose queries, keys and values are one matrix each; others stay as they are."""
    out, separate = dict[str, Tensor](), dict[str, dict[str, Tensor]]()
    for key, value in state.items():
        if match := ATTENTION.fullmatch(key):
            separate.setdefault(f"{match[1]}.qkv.{match[4]}", {})[(match[2] or match[3])[0]] = value
        else:
            out[key] = value
    for key, found in separate.items():
        if found.keys() != set(QKV) or len({value.shape for value in found.values()}) > 1 or not found["q"].ndim:
            return dict(state)  # no attention of this kind: no rule will match its keys
        out[key] = torch.cat([found[name] for name in QKV])
    return out


LAYER = r"(?:swin\.)?encoder\.layers\.(\d+)\."
HF_BLOCK = LAYER + r"blocks\.(\d+)\."
OURS = r"stages.\1.blocks.\2."
TRANSFORMERS = Table(
    (
        Rule(r"(?:swin\.)?embeddings\.patch_embeddings\.projection\.(weight|bias)", r"stem.0.\1"),
        Rule(r"(?:swin\.)?embeddings\.norm\.(weight|bias)", r"stem.1.\1"),
        Rule(HF_BLOCK + r"layernorm_before\.(weight|bias)", OURS + r"norm1.\3"),
        Rule(HF_BLOCK + r"layernorm_after\.(weight|bias)", OURS + r"norm2.\3"),
        Rule(HF_BLOCK + r"attention\.qkv\.(weight|bias)", OURS + r"attn.qkv.\3"),
        Rule(HF_BLOCK + r"attention\.(?:output\.dense|o_proj)\.(weight|bias)", OURS + r"attn.proj.\3"),
        Rule(
            HF_BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_bias_table", OURS + "attn.table"
        ),
        Rule(HF_BLOCK + r"attention\.(?:self|relative_position_bias)\.relative_position_index", None),
        Rule(HF_BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)", OURS + r"mlp.expand.\3"),
        Rule(HF_BLOCK + r"(?:output\.dense|mlp\.fc2)\.(weight|bias)", OURS + r"mlp.reduce.\3"),
        # their merge ends a stage, ours begins the next one
        Rule(LAYER + r"downsample\.norm\.(weight|bias)", lambda m: f"stages.{int(m[1]) + 1}.embed.norm.{m[2]}"),
        Rule(LAYER + r"downsample\.reduction\.weight", lambda m: f"stages.{int(m[1]) + 1}.embed.reduce.weight"),
        Rule(r"(?:swin\.)?layernorm\.(weight|bias)", r"final.\1"),
        Rule(r"hidden_states_norms\.stage([1-9]\d*)\.(weight|bias)", lambda m: f"norms.{int(m[1]) - 1}.{m[2]}"),
        Rule(r"classifier\.(weight|bias)", r"head.\1"),
    ),
    # the token and the decoder of masked images, and the norm of a map that no network here returns
    outside=(r"(?:swin\.)?embeddings\.mask_token", r"decoder\..*", r"hidden_states_norms\.stem\..*"),
    prepare=with_joined_attention,
    writer="transformers",
)
