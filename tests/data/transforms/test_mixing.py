"""Mixing is timm's to the last bit, whatever order the images are worked through in."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup

from fourstage.data.sample import Batch
from fourstage.data.transforms.mixing import Mixing

WAYS: dict[str, dict[str, Any]] = {
    "smt": {"mixup": 0.2, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"},
    "mixup, sometimes": {"mixup": 0.8, "cutmix": 0.0, "prob": 0.5, "switch_prob": 0.5, "mode": "batch"},
    "boxes of a size": {"mixup": 0.0, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"},
    "pair": {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "pair"},
    "elem": {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "elem"},
}


@pytest.mark.parametrize("way", WAYS)
def test_mixing_is_timms_to_the_last_bit(way: str) -> None:
    words, minmax = WAYS[way], (0.2, 0.8) if way == "boxes of a size" else None
    ours = Mixing(4, smoothing=0.1, cutmix_minmax=minmax, **words)
    theirs: Any = Mixup(
        words["mixup"], words["cutmix"], minmax, words["prob"], words["switch_prob"], words["mode"],
        label_smoothing=0.1, num_classes=4,
    )  # fmt: skip
    changed = 0
    for seed in range(25):
        images_BCHW, labels_B = torch.randn(6, 3, 17, 19), torch.randint(0, 4, (6,))
        np.random.seed(seed)  # noqa: NPY002 - the generator that timm draws from
        wanted_BCHW, wanted_BC = theirs(images_BCHW.clone(), labels_B)
        batch = Batch(("a",) * 6, images_BCHW.clone(), ((17, 19),) * 6, ((17, 19),) * 6, labels_B)
        np.random.seed(seed)  # noqa: NPY002
        mixed = pickle.loads(pickle.dumps(ours))(batch)  # as it reaches the processes of a loader
        assert mixed.targets_BC is not None
        assert torch.equal(mixed.images_BCHW, wanted_BCHW)
        assert torch.equal(mixed.targets_BC, wanted_BC)
        changed += not torch.equal(mixed.images_BCHW, images_BCHW)
    assert changed > 5
