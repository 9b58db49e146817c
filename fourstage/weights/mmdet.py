"""MMDetection 2 and 3, and the forks of the Swin line: necks and heads of detectors, by the same names in all of them.

The heads' tables are complete for RetinaNet, Mask R-CNN (with and without masks) and Cascade Mask R-CNN; what is below
`backbone.` is renamed by the tables of the backbone's own family, see `detector_rules`.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fourstage.weights.rules import Rule, claims, rename

WB = r"(weight|bias)"
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def _indexed(name: str) -> Callable[[re.Match[str]], str]:
    """Our name from a template whose HEAD is one head, or one of several where the first group has its number."""

    def ours(match: re.Match[str]) -> str:
        stage = match[1]
        head = "head" if stage is None else f"heads.{stage[:-1]}"
        return match.expand(name.replace("HEAD", head))

    return ours


STAGE = r"(\d+\.)?"
BOX, MASK = rf"roi_head\.bbox_head\.{STAGE}", rf"roi_head\.mask_head\.{STAGE}"

FPN = (
    Rule(rf"neck\.lateral_convs\.(\d+)\.conv\.{WB}", r"neck.laterals.\1.\2"),
    Rule(rf"neck\.fpn_convs\.(\d+)\.conv\.{WB}", r"neck.outputs.\1.\2"),
)
RETINA = (
    Rule(rf"bbox_head\.cls_convs\.(\d+)\.conv\.{WB}", r"dense_head.class_tower.\1.conv.\2"),
    Rule(rf"bbox_head\.reg_convs\.(\d+)\.conv\.{WB}", r"dense_head.box_tower.\1.conv.\2"),
    Rule(rf"bbox_head\.retina_cls\.{WB}", r"dense_head.classify.\1"),
    Rule(rf"bbox_head\.retina_reg\.{WB}", r"dense_head.regress.\1"),
)
RPN = (
    Rule(rf"rpn_head\.rpn_conv\.{WB}", r"rpn.convs.0.conv.\1"),
    Rule(rf"rpn_head\.rpn_conv\.(\d+)\.conv\.{WB}", r"rpn.convs.\1.conv.\2"),  # where there are several
    Rule(rf"rpn_head\.rpn_cls\.{WB}", r"rpn.objectness.\1"),
    Rule(rf"rpn_head\.rpn_reg\.{WB}", r"rpn.deltas.\1"),
)
REGIONS = (
    Rule(BOX + rf"shared_convs\.(\d+)\.conv\.{WB}", _indexed(r"box_HEAD.convs.\2.conv.\3")),
    Rule(BOX + rf"shared_convs\.(\d+)\.(?:bn|gn|ln)\.{NORM}", _indexed(r"box_HEAD.convs.\2.norm.\3")),
    Rule(BOX + rf"shared_fcs\.(\d+)\.{WB}", _indexed(r"box_HEAD.fcs.\2.\3")),
    Rule(BOX + rf"fc_cls\.{WB}", _indexed(r"box_HEAD.classify.\2")),
    Rule(BOX + rf"fc_reg\.{WB}", _indexed(r"box_HEAD.regress.\2")),
    Rule(MASK + rf"convs\.(\d+)\.conv\.{WB}", _indexed(r"mask_HEAD.convs.\2.conv.\3")),
    Rule(MASK + rf"upsample\.{WB}", _indexed(r"mask_HEAD.upsample.\2")),
    Rule(MASK + rf"conv_logits\.{WB}", _indexed(r"mask_HEAD.logits.\2")),
)
HEADS = (*FPN, *RETINA, *RPN, *REGIONS)
METHODS: dict[str, tuple[Rule, ...]] = dict.fromkeys(("retinanet", "mask_rcnn", "cascade_mask_rcnn"), HEADS)


def below(prefix: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules for keys, theirs and ours, that stand below `prefix`, which ends with a dot."""

    def named(rule: Rule) -> Callable[[re.Match[str]], str]:
        return lambda match: f"{prefix}{rule.ours(match)}"

    return tuple(
        Rule(re.escape(prefix) + rule.pattern, None if rule.name is None else named(rule), rule.change)
        for rule in rules
    )


def detector_rules(backbone: Sequence[Rule]) -> tuple[Rule, ...]:
    """The table of a whole detector, from that of its backbone."""
    return (*below("backbone.", backbone), *HEADS)


def rename_detector(state: Mapping[str, Tensor], tables: Sequence[Sequence[Rule]]) -> dict[str, Tensor]:
    """A detector's state dict under our names.

    Args:
        tables: of those who write checkpoints of this backbone; the one that claims every key of it is taken. Where
            none does, as with those of timm and your own, the backbone keeps its names.

    Raises:
        ValueError: a key of neck or heads is none that these detectors have.
    """
    inner = [key.removeprefix("backbone.") for key in state if key.startswith("backbone.")]
    fitting = (rules for rules in tables if inner and all(len(claims(rules, key)) == 1 for key in inner))
    return rename(state, detector_rules(next(fitting, (Rule(r"(.*)", r"\1"),))))
