"""Yangr116/ScalableViT. Window and scalable attention differ in their keys."""

from fourstage.weights.rules import Rule

BLOCK = r"stages\.(\d+)\.(\d+)\."
WB = r"\.(weight|bias)"

RULES = (
    Rule(r"patch_embeds\.0\.proj" + WB, r"stem.0.\1"),
    Rule(r"patch_embeds\.0\.norm" + WB, r"stem.1.\1"),
    Rule(r"patch_embeds\.([1-3])\.proj" + WB, r"stages.\1.embed.0.\2"),
    Rule(r"patch_embeds\.([1-3])\.norm" + WB, r"stages.\1.embed.1.\2"),
    Rule(r"pos_block\.(\d)\.proj\.0\.weight", r"stages.\1.blocks.0.peg.kernel"),
    Rule(r"pos_block\.(\d)\.proj\.0\.bias", r"stages.\1.blocks.0.peg.shift"),
    Rule(BLOCK + r"(norm[12])" + WB, r"stages.\1.blocks.\2.\3.\4"),
    Rule(BLOCK + r"attn\.(qkv|q|kv|k|v|proj)" + WB, r"stages.\1.blocks.\2.attn.\3.\4"),
    Rule(BLOCK + r"attn\.lim_func" + WB, r"stages.\1.blocks.\2.attn.local.\3"),
    Rule(BLOCK + r"attn\.reduction\.0" + WB, r"stages.\1.blocks.\2.attn.reduce.\3"),
    Rule(BLOCK + r"attn\.reduction\.1" + WB, r"stages.\1.blocks.\2.attn.mix.\3"),
    Rule(BLOCK + r"attn\.norm_act\.0" + WB, r"stages.\1.blocks.\2.attn.norm.\3"),
    Rule(BLOCK + r"mlp\.fc1" + WB, r"stages.\1.blocks.\2.mlp.expand.\3"),
    Rule(BLOCK + r"mlp\.fc2" + WB, r"stages.\1.blocks.\2.mlp.reduce.\3"),
    Rule(r"norm" + WB, r"final.\1"),
    Rule(r"head\.([01])" + WB, r"pre_logits.\1.\2"),
    Rule(r"head\.3" + WB, r"head.\1"),
    Rule(r"head" + WB, r"head.\1"),  # of small_0, which has no hidden layer
)
