"""AFeng-x/SMT: its classifier, and the copies for detection and segmentation, where `local_conv` is called `dw_conv`.

Stages count from 1. `gamma_1` and `gamma_2` are the layer scales of the large network.
"""

from fourstage.weights.rules import Rule

BLOCK = r"block([1-4])\.(\d+)\."
WB = r"\.(weight|bias)"
NORM = r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"


def block(number: str, block: str) -> str:
    """Our name of a block in a stage that counts from 1."""
    return f"stages.{int(number) - 1}.blocks.{block}"


RULES = (
    Rule(r"patch_embed1\.conv\.([03])" + WB, r"stem.\1.\2"),
    Rule(r"patch_embed1\.conv\.1" + NORM, r"stem.1.\1"),
    Rule(r"patch_embed1\.norm" + WB, r"stem.4.\1"),
    Rule(r"patch_embed([2-4])\.proj" + WB, lambda m: f"stages.{int(m[1]) - 1}.embed.0.{m[2]}"),
    Rule(r"patch_embed([2-4])\.norm" + WB, lambda m: f"stages.{int(m[1]) - 1}.embed.1.{m[2]}"),
    Rule(BLOCK + r"(norm[12])" + WB, lambda m: f"{block(m[1], m[2])}.{m[3]}.{m[4]}"),
    Rule(BLOCK + r"gamma_([12])", lambda m: f"{block(m[1], m[2])}.scale{m[3]}.scale"),
    Rule(BLOCK + r"attn\.(q|kv|proj)" + WB, lambda m: f"{block(m[1], m[2])}.attn.{m[3]}.{m[4]}"),
    Rule(BLOCK + r"attn\.v" + WB, lambda m: f"{block(m[1], m[2])}.attn.value.{m[3]}"),
    Rule(BLOCK + r"attn\.s" + WB, lambda m: f"{block(m[1], m[2])}.attn.context.{m[3]}"),
    Rule(
        BLOCK + r"attn\.local_conv_([1-4])" + WB,
        lambda m: f"{block(m[1], m[2])}.attn.windows.{int(m[3]) - 1}.{m[4]}",
    ),
    Rule(BLOCK + r"attn\.proj0" + WB, lambda m: f"{block(m[1], m[2])}.attn.weigh.{m[3]}"),
    Rule(BLOCK + r"attn\.bn" + NORM, lambda m: f"{block(m[1], m[2])}.attn.norm.{m[3]}"),
    Rule(BLOCK + r"attn\.proj1" + WB, lambda m: f"{block(m[1], m[2])}.attn.mix.{m[3]}"),
    Rule(BLOCK + r"attn\.(?:local|dw)_conv" + WB, lambda m: f"{block(m[1], m[2])}.attn.local.{m[3]}"),
    Rule(BLOCK + r"mlp\.fc1" + WB, lambda m: f"{block(m[1], m[2])}.mlp.expand.{m[3]}"),
    Rule(BLOCK + r"mlp\.dwconv\.dwconv" + WB, lambda m: f"{block(m[1], m[2])}.mlp.spatial.{m[3]}"),
    Rule(BLOCK + r"mlp\.fc2" + WB, lambda m: f"{block(m[1], m[2])}.mlp.reduce.{m[3]}"),
    Rule(r"norm([1-4])" + WB, lambda m: f"stages.{int(m[1]) - 1}.norm.{m[2]}"),
    Rule(r"head" + WB, r"head.\1"),
)
