"""State dicts of ours under the names that the originals give them, for files that tests make up."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

Names = Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]
MICROSOFT: Names = (
    (r"^stem\.0\.", "patch_embed.proj."),
    (r"^stem\.1\.", "patch_embed.norm."),
    (r"^stages\.0\.embed\.position$", "absolute_pos_embed"),
    (r"^stages\.(\d+)\.embed\.norm\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.norm."),
    (r"^stages\.(\d+)\.embed\.reduce\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.reduction."),
    (r"^stages\.(\d+)\.blocks\.", r"layers.\1.blocks."),
    (r"\.attn\.table$", ".attn.relative_position_bias_table"),
    (r"\.mlp\.expand\.", ".mlp.fc1."),
    (r"\.mlp\.reduce\.", ".mlp.fc2."),
    (r"^final\.", "norm."),
    (r"^norms\.(\d)\.", r"norm\1."),
)
MMDETECTION: Names = (
    (r"^stem\.0\.", "patch_embed.projection."),
    (r"^stem\.1\.", "patch_embed.norm."),
    (r"^stages\.0\.embed\.position$", "absolute_pos_embed"),
    (r"^stages\.(\d+)\.embed\.norm\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.norm."),
    (r"^stages\.(\d+)\.embed\.reduce\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.reduction."),
    (r"\.attn\.table$", ".attn.w_msa.relative_position_bias_table"),
    (r"\.attn\.(qkv|proj)\.", r".attn.w_msa.\1."),
    (r"\.mlp\.expand\.", ".ffn.layers.0.0."),
    (r"\.mlp\.reduce\.", ".ffn.layers.1."),
    (r"^norms\.(\d)\.", r"norm\1."),
)
STM: Names = (  # of tables alone
    (r"^stages\.(\d+)\.blocks\.(\d+)\.mixer\.table$", r"stages.\1.\2.attn.relative_position_bias_table"),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.position$", r"stages.\1.\2.pos_embed"),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.mixer\.(\w+)_rel$", r"stages.\1.\2.attn.pos_embed.\3_rel"),
)


def foreign(key: str, names: Names) -> str:
    for pattern, name in names:
        key = re.sub(pattern, name, key)
    return key


def renamed(state: Mapping[str, Tensor], names: Names, prefix: str = "") -> dict[str, Any]:
    return {prefix + foreign(key, names): value for key, value in state.items()}
