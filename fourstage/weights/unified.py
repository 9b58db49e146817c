"""OpenGVLab/STM-Evaluation: the unified networks of all mixers, classifiers and detection copies, and official_*."""

from torch import Tensor

from fourstage.weights.rules import Rule

BLOCK = r"stages\.(\d)\.(\d+)\."
OURS = r"stages.\1.blocks.\2."
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def as_linear(weight: Tensor) -> Tensor:
    """The weight of a 1x1 convolution, (out, in, 1, 1), as that of a linear layer; others as they are."""
    return weight.squeeze(-1).squeeze(-1) if weight.ndim == 4 else weight


def channels_last(scale: Tensor) -> Tensor:
    """A layer scale of four axes with the channels on the last one; others as they are."""
    return scale.reshape(1, 1, 1, -1) if scale.ndim == 4 else scale


BLOCKS = (
    Rule(BLOCK + r"(norm[12])\.(weight|bias)", OURS + r"\3.\4"),
    Rule(BLOCK + r"gamma_?([12])", OURS + r"scale\3.scale", channels_last),  # U-InternImage has no underscore
    Rule(BLOCK + r"mlp\.fc1\.(weight|bias)", OURS + r"mlp.expand.\3"),
    Rule(BLOCK + r"mlp\.fc2\.(weight|bias)", OURS + r"mlp.reduce.\3"),
    Rule(BLOCK + r"mlp\.dwconv\.dwconv\.(weight|bias)", OURS + r"mlp.spatial.\3"),
)
CONVNEXT = (
    Rule(BLOCK + r"dw_norm\.(weight|bias)", OURS + r"norm1.\3"),
    Rule(BLOCK + r"dw_input_proj\.(weight|bias)", OURS + r"mixer.before.\3", as_linear),
    Rule(BLOCK + r"dwconv\.(weight|bias)", OURS + r"mixer.spatial.\3"),
    Rule(BLOCK + r"dw_out_proj\.(weight|bias)", OURS + r"mixer.after.\3", as_linear),
    Rule(BLOCK + r"pw_norm\.(weight|bias)", OURS + r"norm2.\3"),
    Rule(BLOCK + r"pwconv1\.(weight|bias)", OURS + r"mlp.expand.\3"),
    Rule(BLOCK + r"pwconv2\.(weight|bias)", OURS + r"mlp.reduce.\3"),
)
ATTENTION = (  # PVT, PVTv2, Swin and HaloNet; HaloNet's kv is a convolution, without a bias
    Rule(BLOCK + r"attn\.(q|kv|qkv|proj)\.(weight|bias)", OURS + r"mixer.\3.\4", as_linear),
    Rule(BLOCK + r"pos_embed", OURS + r"position"),
    Rule(BLOCK + r"attn\.sr\.(weight|bias)", OURS + r"mixer.reduce.\3"),
    Rule(BLOCK + r"attn\.norm\.(weight|bias)", OURS + r"mixer.norm.\3"),
    Rule(BLOCK + r"attn\.relative_position_bias_table", OURS + r"mixer.table"),
    Rule(BLOCK + r"attn\.relative_position_index", None),  # follows from the window
    Rule(BLOCK + r"attn_mask", None),  # follows from the size of the map
    Rule(BLOCK + r"attn\.pos_embed\.(height_rel|width_rel)", OURS + r"mixer.\3"),
)
DCN_V3 = (
    Rule(BLOCK + r"attn\.dw_conv\.0\.(weight|bias)", OURS + r"mixer.look.\3"),
    Rule(BLOCK + r"attn\.dw_conv\.1\.norm\.(weight|bias)", OURS + r"mixer.norm.\3"),
    Rule(BLOCK + r"attn\.sampling_offsets\.(weight|bias)", OURS + r"mixer.offset.\3"),
    Rule(BLOCK + r"attn\.attention_weights\.(weight|bias)", OURS + r"mixer.weigh.\3"),
    Rule(BLOCK + r"attn\.value_proj\.(weight|bias)", OURS + r"mixer.value.\3"),
    Rule(BLOCK + r"attn\.output_proj\.(weight|bias)", OURS + r"mixer.proj.\3"),
)
ENDS = (
    Rule(r"stage_norms\.(\d)\.(weight|bias)", r"stages.\1.norm.\2"),
    Rule(r"out_norm_(\d)\.(weight|bias)", r"norms.\1.\2"),  # of the detection copies
    Rule(r"conv_head\.0\.weight", r"final.expand.weight", as_linear),
    Rule(r"conv_head\.1\." + NORM, r"final.norm.\1"),
    Rule(r"head\.(weight|bias)", r"head.\1"),
)
RULES = (
    Rule(r"downsample_layers\.0\.stem\.([0134])\.(weight|bias)", r"stem.\1.\2"),
    Rule(r"downsample_layers\.([123])\.reduction\.([01])\.(weight|bias)", r"stages.\1.embed.\2.\3"),
    *BLOCKS,
    *CONVNEXT,
    *ATTENTION,
    *DCN_V3,
    *ENDS,
)
OFFICIAL_SWIN = (
    Rule(r"downsample_layers\.0\.proj\.(weight|bias)", r"stem.0.\1"),
    Rule(r"downsample_layers\.0\.norm\.(weight|bias)", r"stem.1.\1"),
    Rule(r"downsample_layers\.([123])\.norm\.(weight|bias)", r"stages.\1.embed.merge.norm.\2"),
    Rule(r"downsample_layers\.([123])\.reduction\.weight", r"stages.\1.embed.merge.reduce.weight"),
    Rule(r"stage_end_norm\.(weight|bias)", r"final.\1"),
    *BLOCKS,
    *ATTENTION,
    *ENDS,
)
OFFICIAL_PVT_V2 = (
    Rule(r"downsample_layers\.0\.proj\.(weight|bias)", r"stem.0.\1"),
    Rule(r"downsample_layers\.0\.norm\.(weight|bias)", r"stem.1.\1"),
    Rule(r"downsample_layers\.([123])\.proj\.(weight|bias)", r"stages.\1.embed.0.\2"),
    Rule(r"downsample_layers\.([123])\.norm\.(weight|bias)", r"stages.\1.embed.1.\2"),
    *BLOCKS,
    *ATTENTION,
    *ENDS,
)
