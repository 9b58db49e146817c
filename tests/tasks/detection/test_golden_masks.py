"""Small masks on their images, as the original pastes them."""

import json
from pathlib import Path

import numpy as np
import torch
from faster_coco_eval.core import mask as coco_mask

from fourstage.tasks.detection.masks import SmallMasks

GOLDEN = Path(__file__).parents[2] / "golden" / "pipelines"


def test_pasted_masks_are_the_originals() -> None:
    said, arrays = json.loads((GOLDEN / "mask_paste.json").read_text()), np.load(GOLDEN / "mask_paste.npz")
    logits_NCMM = torch.from_numpy(arrays["logits"]).float() / 64
    labels_N = torch.from_numpy(arrays["labels"]).long()
    small_NMM = logits_NCMM[torch.arange(len(labels_N)), labels_N].sigmoid()
    boxes_N4 = torch.from_numpy(arrays["boxes_original"])
    height, width = said["ori_shape_hw"]
    masks = SmallMasks(small_NMM, boxes_N4, (height, width), said["threshold"])
    pasted_NHW = masks.full_size().numpy()
    wanted_NHW = np.stack([coco_mask.decode(rle) for rle in said["pasted"]]).astype(bool)
    assert [int(mask.sum()) for mask in wanted_NHW] == [rle["area"] for rle in said["pasted"]]
    np.testing.assert_array_equal(pasted_NHW, wanted_NHW)
    assert masks.run_lengths() == [rle["counts"] for rle in said["pasted"]]
