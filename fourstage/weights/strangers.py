"""Networks that others publish and that look like one here without being the same function.

PVTv2: official_pvt_v2_b0 follows the STM study: another epsilon in almost every norm, and layer scales. ConvNeXt: the
blocks of unified_convnext_* have two linear layers around the depthwise convolution, and a residual of their own.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Stranger:
    """A published network: how its files are recognised, and what to do with one."""

    name: str
    patterns: tuple[str, ...]  # each matches the beginning of one of the keys at least
    similar: str  # here, and why it is another function
    peer: str  # a network of timm


STRANGERS = (
    Stranger(
        "PVTv2",
        (
            r"(.*\.)?(patch_embed1?|patch_embeddings\.0)\.proj\.weight",
            r"(.*\.)?(stages\.\d+\.blocks|block\d+|encoder\.block\.\d+)\.\d+\.attn(ention)?\.(q|self\.query)\.",
            r"(.*\.)?mlp\.dwconv\.(dwconv\.)?weight",
        ),
        "official_pvt_v2_b0 and unified_pvt_v2_* follow the STM study, with other norms and layer scales",
        "pvt_v2_b0",
    ),
    Stranger(
        "ConvNeXt",
        (
            r"(.*\.)?(dwconv|conv_dw|block\.0|depthwise_conv)\.weight",
            r"(.*\.)?(pwconv1|mlp\.fc1|block\.3)\.weight",
            r"(.*\.)?(gamma|layer_scale|layer_scale_parameter)$",
        ),
        "unified_convnext_* has its convolution in another block, as the STM study built it",
        "convnext_tiny",
    ),
    Stranger(
        "Swin V2",
        (
            r"(.*\.)?attn\.logit_scale|.*attention\.self\.logit_scale",
            r"(.*\.)?.*cpb_mlp|.*continuous_position_bias_mlp",
        ),
        "swin_* is the first version, with tables of biases and norms before the attention",
        "swinv2_tiny_window8_256",
    ),
)


def recognise_stranger(keys: Collection[str]) -> str:
    """Return a sentence on a file of a published network that is not the same function as any here; "" for others."""
    for stranger in STRANGERS:
        if all(any(re.match(pattern, key) for key in keys) for pattern in stranger.patterns):
            return (
                f"it is a {stranger.name}, and no network here computes the same ({stranger.similar}); as a "
                f"backbone use timm's own, such as create_backbone('timm/{stranger.peer}', pretrained=True)"
            )
    return ""
