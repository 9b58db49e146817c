"""MMDetection's and MMSegmentation's own names of Swin, whose patch merging stores its columns in another order."""

from torch import Tensor

from fourstage.weights.rules import Rule
from fourstage.weights.swin import as_map

BLOCK = r"stages\.(\d+)\.blocks\.(\d+)\."
NEIGHBOURS = (0, 2, 1, 3)  # theirs go across first, then down; ours down first


def merged_columns(weight: Tensor) -> Tensor:
    """Columns of a patch merging from (channels, neighbours), flattened, to (neighbours, channels), flattened.

    Args:
        weight: (..., 4C): the norm's gain or bias, or the matrix that follows it.
    """
    return weight.unflatten(-1, (-1, 4))[..., NEIGHBOURS].transpose(-1, -2).flatten(-2)


SWIN = (
    Rule(r"patch_embed\.projection\.(weight|bias)", r"stem.0.\1"),
    Rule(r"patch_embed\.norm\.(weight|bias)", r"stem.1.\1"),
    Rule(r"absolute_pos_embed", "stages.0.embed.position", as_map),
    Rule(BLOCK + r"(norm[12])\.(weight|bias)", r"stages.\1.blocks.\2.\3.\4"),
    Rule(BLOCK + r"attn\.w_msa\.(qkv|proj)\.(weight|bias)", r"stages.\1.blocks.\2.attn.\3.\4"),
    Rule(BLOCK + r"attn\.w_msa\.relative_position_bias_table", r"stages.\1.blocks.\2.attn.table"),
    Rule(BLOCK + r"attn\.w_msa\.relative_position_index", None),  # follows from the window
    Rule(BLOCK + r"ffn\.layers\.0\.0\.(weight|bias)", r"stages.\1.blocks.\2.mlp.expand.\3"),
    Rule(BLOCK + r"ffn\.layers\.1\.(weight|bias)", r"stages.\1.blocks.\2.mlp.reduce.\3"),
    # their merge ends a stage, ours begins the next one
    Rule(
        r"stages\.(\d+)\.downsample\.norm\.(weight|bias)",
        lambda m: f"stages.{int(m[1]) + 1}.embed.norm.{m[2]}",
        merged_columns,
    ),
    Rule(
        r"stages\.(\d+)\.downsample\.reduction\.weight",
        lambda m: f"stages.{int(m[1]) + 1}.embed.reduce.weight",
        merged_columns,
    ),
    Rule(r"norm(\d)\.(weight|bias)", r"norms.\1.\2"),
)
