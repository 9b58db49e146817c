"""danczs/Visformer and its detectors. Its BatchNorm wrapper adds `.bn` to keys.

Visformer's stages count from 1, those of SwinVisformer from 0. net1 has its blocks in the second stage, without an
embedding of their own. `norm0` to `norm3` are the detectors'.
"""

from torch import Tensor

from fourstage.weights.rules import Rule


def flat(norm_C11: Tensor) -> Tensor:
    """(C,) from (C,), and from (C, 1, 1) as the source's LayerNorm has it."""
    return norm_C11.reshape(norm_C11.shape[:1])


def pointwise(weight_OI11: Tensor) -> Tensor:
    """(O, I) of a 1x1 convolution."""
    return weight_OI11.reshape(weight_OI11.shape[:2])


NORM = r"(?:bn\.|ln\.)?(weight|bias|running_mean|running_var|num_batches_tracked)"
BLOCK = r"stage([123])\.(\d+)\."
SWIN_BLOCK = r"stage([0-3])\.(\d+)\."

RULES = (
    Rule(r"stem\.0\.weight", r"stem.0.weight"),
    Rule(r"stem\.1\." + NORM, r"stem.1.\1"),
    Rule(r"pos_embed([123])", lambda m: f"{stage(m[1])}.position"),
    Rule(r"patch_embed([123])\.proj\.(weight|bias)", lambda m: f"{stage(m[1])}.embed.0.{m[2]}"),
    Rule(r"patch_embed([123])\.norm\." + NORM, lambda m: f"{stage(m[1])}.embed.1.{m[2]}"),
    Rule(BLOCK + r"(norm[12])\." + NORM, lambda m: f"{stage(m[1])}.blocks.{m[2]}.{m[3]}.{m[4]}", flat),
    Rule(BLOCK + r"attn\.(qkv|proj)\.weight", lambda m: f"{stage(m[1])}.blocks.{m[2]}.attn.{m[3]}.weight"),
    Rule(BLOCK + r"mlp\.conv1\.weight", lambda m: f"{stage(m[1])}.blocks.{m[2]}.mlp.expand.weight"),
    Rule(BLOCK + r"mlp\.conv2\.weight", lambda m: f"{stage(m[1])}.blocks.{m[2]}.mlp.spatial.weight"),
    Rule(BLOCK + r"mlp\.conv3\.weight", lambda m: f"{stage(m[1])}.blocks.{m[2]}.mlp.reduce.weight"),
    Rule(r"norm\." + NORM, r"final.\1", flat),
    Rule(r"head\.(weight|bias)", r"head.\1"),
)

NET1_RULES = (
    Rule(r"pos_embed1", r"stages.0.position"),
    Rule(r"patch_embed1\.proj\.(weight|bias)", r"stages.0.embed.0.\1"),
    Rule(r"stage2\.(\d+)\.(norm[12])\." + NORM, r"stages.0.blocks.\1.\2.\3", flat),
    Rule(r"stage2\.(\d+)\.attn\.(qkv|proj)\.weight", r"stages.0.blocks.\1.attn.\2.weight"),
    Rule(r"stage2\.(\d+)\.mlp\.conv1\.weight", r"stages.0.blocks.\1.mlp.expand.weight"),
    Rule(r"stage2\.(\d+)\.mlp\.conv3\.weight", r"stages.0.blocks.\1.mlp.reduce.weight"),
    Rule(r"norm\." + NORM, r"final.\1", flat),
    Rule(r"head\.(weight|bias)", r"head.\1"),
)

SWIN_RULES = (
    Rule(r"stem\.0\.weight", r"stem.0.weight"),
    Rule(r"stem\.1\." + NORM, r"stem.1.\1"),
    Rule(r"pos_embed([0-3])", r"stages.\1.position"),
    Rule(r"patch_embed([0-3])\.proj\.(weight|bias)", r"stages.\1.embed.0.\2"),
    Rule(r"patch_embed([0-3])\.norm\." + NORM, r"stages.\1.embed.1.\2"),
    Rule(SWIN_BLOCK + r"(norm[12])\." + NORM, r"stages.\1.blocks.\2.\3.\4"),
    Rule(SWIN_BLOCK + r"attn\.(qkv|proj)\.weight", r"stages.\1.blocks.\2.attn.\3.weight", pointwise),
    Rule(SWIN_BLOCK + r"attn\.relative_position_bias_table", r"stages.\1.blocks.\2.attn.table"),
    Rule(SWIN_BLOCK + r"attn\.relative_position_index", None),  # follows from the window
    Rule(SWIN_BLOCK + r"attn_mask", None),  # follows from the size of the map
    Rule(SWIN_BLOCK + r"mlp\.conv1\.weight", r"stages.\1.blocks.\2.mlp.expand.weight"),
    Rule(SWIN_BLOCK + r"mlp\.conv2\.weight", r"stages.\1.blocks.\2.mlp.spatial.weight"),
    Rule(SWIN_BLOCK + r"mlp\.conv3\.weight", r"stages.\1.blocks.\2.mlp.reduce.weight"),
    Rule(r"norm\." + NORM, r"final.\1"),
    Rule(r"norm([0-3])\." + NORM, r"norms.\1.\2"),
    Rule(r"head\.(weight|bias)", r"head.\1"),
)


def stage(number: str) -> str:
    """Our name of a stage that counts from 1."""
    return f"stages.{int(number) - 1}"
