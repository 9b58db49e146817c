"""MMSegmentation's own names of necks and heads, of versions 0.x and 1.x.

What is below `backbone.` is renamed by the tables of the backbone's own family.
"""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from fourstage.weights.rules import Rule

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def _below(rules: Sequence[Rule], theirs: str, ours: str) -> tuple[Rule, ...]:
    """`rules` for keys with a prefix, theirs and ours, such as `decode_head.` and `decoder.`."""

    def moved(rule: Rule) -> Rule:
        pattern = re.escape(theirs) + f"(?:{rule.pattern})"
        if rule.name is None:
            return Rule(pattern, None)
        return Rule(pattern, lambda match: f"{ours}{rule.ours(match)}", rule.change)

    return tuple(moved(rule) for rule in rules)


def _conv_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A convolution with its norm, whichever that is."""
    groups = re.compile(theirs).groups
    return (
        Rule(theirs + r"\.conv\.(weight|bias)", rf"{ours}.conv.\{groups + 1}"),
        Rule(theirs + rf"\.(?:bn|gn|ln)\.{NORM}", rf"{ours}.norm.\{groups + 1}"),
    )


CLASSIFY = Rule(r"conv_seg\.(weight|bias)", r"classify.\1")

FPN_NECK = (
    Rule(r"lateral_convs\.(\d+)\.conv\.(weight|bias)", r"laterals.\1.\2"),
    Rule(r"fpn_convs\.(\d+)\.conv\.(weight|bias)", r"outputs.\1.\2"),
)
UPER_HEAD = (
    CLASSIFY,
    *_conv_norm(r"psp_modules\.(\d+)\.1", r"pooled.\1"),
    *_conv_norm(r"bottleneck", r"bottleneck"),
    *_conv_norm(r"lateral_convs\.(\d+)", r"laterals.\1"),
    *_conv_norm(r"fpn_convs\.(\d+)", r"outputs.\1"),
    *_conv_norm(r"fpn_bottleneck", r"fuse"),
)
FPN_HEAD = (  # between its convolutions lie doublings, which have a number too and no weights
    CLASSIFY,
    Rule(
        r"scale_heads\.(\d+)\.(\d+)\.conv\.(weight|bias)",
        lambda m: f"scales.{m[1]}.convs.{int(m[2]) // 2}.conv.{m[3]}",
    ),
    Rule(
        rf"scale_heads\.(\d+)\.(\d+)\.(?:bn|gn)\.{NORM}",
        lambda m: f"scales.{m[1]}.convs.{int(m[2]) // 2}.norm.{m[3]}",
    ),
)
FCN_HEAD = (CLASSIFY, *_conv_norm(r"convs\.(\d+)", r"convs.\1"), *_conv_norm("conv_cat", "merge"))
# Auxiliary heads may be several and of any type: those that do not exist here are left out
OTHER_AUXILIARY = Rule(r"auxiliary_head\.(?!conv_seg\.|(?:convs\.\d+|conv_cat)\.(?:conv|bn|gn|ln)\.).*", None)

AROUND = (Rule(r"data_preprocessor\.(?:mean|std)", None),)  # the normalisation of images is no weight

UPERNET = (
    *_below(UPER_HEAD, "decode_head.", "decoder."),
    *_below(FCN_HEAD, "auxiliary_head.", "auxiliary."),
    OTHER_AUXILIARY,
    *AROUND,
)
SEMANTIC_FPN = (
    *_below(FPN_NECK, "neck.", "neck."),
    *_below(FPN_HEAD, "decode_head.", "decoder."),
    Rule(r"auxiliary_head\..*", None),
    *AROUND,
)


def count_of_decoder(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a decoder's last layer, theirs or ours."""
    weight = r"(decode_head\.conv_seg|decoder\.classify)\.weight"
    return next((len(value) for key, value in state.items() if re.fullmatch(weight, key)), None)
