"""danczs/Visformer, the networks of three stages. Its BatchNorm wrapper adds `.bn` to keys; its stages count from 1."""

from fourstage.weights.rules import Rule

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"

RULES = (
    Rule(r"stem\.0\.weight", r"stem.0.weight"),
    Rule(r"stem\.1\.bn\." + NORM, r"stem.1.\1"),
    Rule(r"pos_embed([123])", lambda m: f"stages.{int(m[1]) - 1}.position"),
    Rule(r"patch_embed([123])\.proj\.(weight|bias)", lambda m: f"stages.{int(m[1]) - 1}.embed.0.{m[2]}"),
    Rule(r"patch_embed([123])\.norm\.bn\." + NORM, lambda m: f"stages.{int(m[1]) - 1}.embed.1.{m[2]}"),
    Rule(r"stage([123])\.(\d+)\.(norm[12])\.bn\." + NORM, lambda m: f"{block(m[1], m[2])}.{m[3]}.{m[4]}"),
    Rule(r"stage([123])\.(\d+)\.attn\.(qkv|proj)\.weight", lambda m: f"{block(m[1], m[2])}.attn.{m[3]}.weight"),
    Rule(r"stage([123])\.(\d+)\.mlp\.conv1\.weight", lambda m: f"{block(m[1], m[2])}.mlp.expand.weight"),
    Rule(r"stage([123])\.(\d+)\.mlp\.conv2\.weight", lambda m: f"{block(m[1], m[2])}.mlp.spatial.weight"),
    Rule(r"stage([123])\.(\d+)\.mlp\.conv3\.weight", lambda m: f"{block(m[1], m[2])}.mlp.reduce.weight"),
    Rule(r"norm\.bn\." + NORM, r"norm.\1"),
    Rule(r"head\.(weight|bias)", r"head.\1"),
)


def block(stage: str, index: str) -> str:
    """Our name of a block."""
    return f"stages.{int(stage) - 1}.blocks.{index}"
