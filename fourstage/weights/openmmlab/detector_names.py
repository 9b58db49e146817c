"""MMDetection 2 and 3, and the forks of the Swin line: necks and heads of detectors, by the same names in all of them.

The tables are complete for RetinaNet, ATSS (with and without DyHead), Mask R-CNN (with and without masks) and Cascade
Mask R-CNN. What is below `backbone.` is renamed by the tables of the backbone's own family.
"""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from fourstage.weights.rules import Rule

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
TOWERS = (
    Rule(rf"bbox_head\.cls_convs\.(\d+)\.conv\.{WB}", r"dense_head.class_tower.\1.conv.\2"),
    Rule(rf"bbox_head\.reg_convs\.(\d+)\.conv\.{WB}", r"dense_head.box_tower.\1.conv.\2"),
)
RETINA = (
    *TOWERS,
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

BLOCK, OUR_BLOCK = r"neck\.1\.dyhead_blocks\.(\d+)\.", r"neck.1.blocks.\1."
NEIGHBOURS = {"spatial_conv_high": "coarser", "spatial_conv_mid": "same", "spatial_conv_low": "finer"}
ATSS = (
    *FPN,
    *TOWERS,
    Rule(rf"bbox_head\.cls_convs\.(\d+)\.gn\.{WB}", r"dense_head.class_tower.\1.norm.\2"),
    Rule(rf"bbox_head\.reg_convs\.(\d+)\.gn\.{WB}", r"dense_head.box_tower.\1.norm.\2"),
    Rule(rf"bbox_head\.atss_cls\.{WB}", r"dense_head.classify.\1"),
    Rule(rf"bbox_head\.atss_reg\.{WB}", r"dense_head.regress.\1"),
    Rule(rf"bbox_head\.atss_centerness\.{WB}", r"dense_head.centerness.\1"),
    Rule(r"bbox_head\.scales\.(\d+)\.scale", r"dense_head.scales.\1"),
    # with DyHead there are two necks, which have numbers
    Rule(rf"neck\.0\.lateral_convs\.(\d+)\.conv\.{WB}", r"neck.0.laterals.\1.\2"),
    Rule(rf"neck\.0\.fpn_convs\.(\d+)\.conv\.{WB}", r"neck.0.outputs.\1.\2"),
    *(Rule(rf"{BLOCK}{theirs}\.conv\.weight", rf"{OUR_BLOCK}{ours}.weight") for theirs, ours in NEIGHBOURS.items()),
    *(Rule(rf"{BLOCK}{theirs}\.norm\.{WB}", rf"{OUR_BLOCK}{ours}.norm.\2") for theirs, ours in NEIGHBOURS.items()),
    Rule(rf"{BLOCK}spatial_conv_offset\.{WB}", rf"{OUR_BLOCK}offsets.\2"),
    Rule(rf"{BLOCK}scale_attn_module\.1\.{WB}", rf"{OUR_BLOCK}weigh.\2"),
    Rule(rf"{BLOCK}task_attn_module\.conv1\.conv\.{WB}", rf"{OUR_BLOCK}activate.squeeze.\2"),
    Rule(rf"{BLOCK}task_attn_module\.conv2\.conv\.{WB}", rf"{OUR_BLOCK}activate.expand.\2"),
)


def count_of_box_head(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a box head, theirs or ours; the background has a row of its own."""
    weight = r"(roi_head\.bbox_head\.(0\.)?fc_cls|box_head(s\.0)?\.classify)\.weight"
    rows = next((len(value) for key, value in state.items() if re.fullmatch(weight, key)), None)
    return None if rows is None else rows - 1


def count_of_atss(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of an ATSS head, theirs or ours, which has one anchor a cell."""
    layer = next(
        (state[key] for key in ("bbox_head.atss_cls.weight", "dense_head.classify.weight") if key in state), None
    )
    return None if layer is None else len(layer)


def count_of_retinanet(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a RetinaNet's head, theirs or ours: there are four deltas for each anchor of a cell."""
    for classify, regress in (
        ("bbox_head.retina_cls", "bbox_head.retina_reg"),
        ("dense_head.classify", "dense_head.regress"),
    ):
        logits, deltas = state.get(f"{classify}.weight"), state.get(f"{regress}.weight")
        if logits is not None and deltas is not None and len(deltas) >= 4:
            return len(logits) // (len(deltas) // 4)
    return None
