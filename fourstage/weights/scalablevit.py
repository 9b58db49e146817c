"""Yangr116/ScalableViT. Its names tell window from scalable attention by the parts that each has."""

from fourstage.weights.rules import Rule

BLOCK = r"stages\.(\d+)\.(\d+)\."
PART = r"\.(weight|bias)"

RULES = (
    Rule(r"patch_embeds\.0\.proj" + PART, r"stem.0.\1"),
    Rule(r"patch_embeds\.0\.norm" + PART, r"stem.1.\1"),
    Rule(r"patch_embeds\.([1-3])\.proj" + PART, r"stages.\1.embed.0.\2"),
    Rule(r"patch_embeds\.([1-3])\.norm" + PART, r"stages.\1.embed.1.\2"),
    Rule(r"pos_block\.(\d)\.proj\.0\.weight", r"stages.\1.blocks.0.peg.kernel"),
    Rule(r"pos_block\.(\d)\.proj\.0\.bias", r"stages.\1.blocks.0.peg.shift"),
    Rule(BLOCK + r"(norm[12])" + PART, r"stages.\1.blocks.\2.\3.\4"),
    Rule(BLOCK + r"attn\.(qkv|q|kv|k|v|proj)" + PART, r"stages.\1.blocks.\2.attn.\3.\4"),
    Rule(BLOCK + r"attn\.lim_func" + PART, r"stages.\1.blocks.\2.attn.local.\3"),
    Rule(BLOCK + r"attn\.reduction\.0" + PART, r"stages.\1.blocks.\2.attn.reduce.\3"),
    Rule(BLOCK + r"attn\.reduction\.1" + PART, r"stages.\1.blocks.\2.attn.mix.\3"),
    Rule(BLOCK + r"attn\.norm_act\.0" + PART, r"stages.\1.blocks.\2.attn.norm.\3"),
    Rule(BLOCK + r"mlp\.fc1" + PART, r"stages.\1.blocks.\2.mlp.expand.\3"),
    Rule(BLOCK + r"mlp\.fc2" + PART, r"stages.\1.blocks.\2.mlp.reduce.\3"),
    Rule(r"norm" + PART, r"final.\1"),
    Rule(r"head\.([01])" + PART, r"pre_logits.\1.\2"),
    Rule(r"head\.3" + PART, r"head.\1"),
    Rule(r"head" + PART, r"head.\1"),  # of small_0, which has no hidden layer
)
