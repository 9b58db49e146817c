"""microsoft/Swin-Transformer and OpenMMLab's mim-example, by the same names; `norm0` to `norm3` are the latter's."""

import math

from torch import Tensor

from fourstage.weights.rules import Rule

BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."


def as_map(position: Tensor) -> Tensor:
    """A position embedding as (1, C, H, W), which classifiers store as (1, H * W, C) of a square map."""
    side = math.isqrt(position.shape[1]) if position.ndim == 3 else 0
    return position.mT.unflatten(2, (side, side)) if side and side**2 == position.shape[1] else position


RULES = (
    Rule(r"patch_embed\.proj\.(weight|bias)", r"stem.0.\1"),
    Rule(r"patch_embed\.norm\.(weight|bias)", r"stem.1.\1"),
    Rule(r"absolute_pos_embed", "stages.0.embed.position", as_map),
    Rule(BLOCK + r"(norm[12])\.(weight|bias)", r"stages.\1.blocks.\2.\3.\4"),
    Rule(BLOCK + r"attn\.(qkv|proj)\.(weight|bias)", r"stages.\1.blocks.\2.attn.\3.\4"),
    Rule(BLOCK + r"attn\.relative_position_bias_table", r"stages.\1.blocks.\2.attn.table"),
    Rule(BLOCK + r"attn\.relative_position_index", None),  # follows from the window
    Rule(BLOCK + r"attn_mask", None),  # follows from the size of the map
    Rule(BLOCK + r"mlp\.fc1\.(weight|bias)", r"stages.\1.blocks.\2.mlp.expand.\3"),
    Rule(BLOCK + r"mlp\.fc2\.(weight|bias)", r"stages.\1.blocks.\2.mlp.reduce.\3"),
    # their merge ends a stage, ours begins the next one
    Rule(r"layers\.(\d+)\.downsample\.norm\.(weight|bias)", lambda m: f"stages.{int(m[1]) + 1}.embed.norm.{m[2]}"),
    Rule(r"layers\.(\d+)\.downsample\.reduction\.weight", lambda m: f"stages.{int(m[1]) + 1}.embed.reduce.weight"),
    Rule(r"norm\.(weight|bias)", r"final.\1"),
    Rule(r"norm(\d)\.(weight|bias)", r"norms.\1.\2"),
    Rule(r"head\.(weight|bias)", r"head.\1"),
)
