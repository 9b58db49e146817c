"""Checkpoints at another size become what the original loaders make of them."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import MICROSOFT, STM, foreign
from golden.fill import fill, read_manifest, sampled
from tiny_networks import SWIN
from torch import Tensor

import fourstage
from fourstage.backbones import swin, unified
from fourstage.backbones.mixers.halo import HaloMixer
from fourstage.backbones.mixers.window import WindowAttention
from fourstage.weights import imagenet22k
from fourstage.weights.load import load_state

FOLDER = Path(__file__).parents[1] / "golden" / "loaders"


def goldens(name: str) -> dict[str, tuple[np.ndarray, dict]]:
    """Case and original key -> the samples, and what is known about the whole tensor."""
    manifest = read_manifest(FOLDER / f"{name}.json.gz")
    with np.load(FOLDER / f"{name}.npz") as values:
        return {key: (values[key.replace("/", "__")], info) for key, info in manifest.items() if key != "config"}


def assert_golden(ours: Tensor, golden: tuple[np.ndarray, dict]) -> None:
    values, info = golden
    assert list(ours.shape) == info["shape"]
    actual = torch.from_numpy(sampled(ours.numpy(), values.size))
    torch.testing.assert_close(actual, torch.from_numpy(values), rtol=1e-4, atol=1e-4 * info["std"])
    np.testing.assert_allclose(
        [ours.mean(), ours.std()], [info["mean"], info["std"]], rtol=1e-4, atol=1e-3 * info["std"]
    )


def filled(key: str, like: Tensor) -> Tensor:
    """What the original's checkpoint holds under `key`."""
    if key.endswith(("_table", "_embed", "_rel")):
        kind = "table"
    elif like.ndim > 1:
        kind = "weight"
    else:
        kind = "norm_weight" if key.endswith("weight") else "bias"
    value = fill(key, tuple(like.shape), kind)
    assert value is not None
    return torch.from_numpy(value)


def test_swin_from_224_and_22k_to_384_and_1k(tmp_path: Path) -> None:
    design = swin.Design(width=32, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8))
    with torch.device("meta"):
        small = swin.classifier(design, ape=True, num_classes=21841)
    state = {foreign(key, MICROSOFT): value for key, value in small.state_dict().items()}
    state["absolute_pos_embed"] = state["absolute_pos_embed"].flatten(2).mT
    state = {key: filled(key, value) for key, value in state.items()}
    state |= {f"layers.{i}.blocks.1.attn_mask": torch.zeros(4, 49, 49) for i in range(3)}
    torch.save({"model": state, "epoch": 90}, tmp_path / "swin22k.pth")
    model = swin.classifier(design, ape=True, img_size=384, window_size=12)
    report = fourstage.load_checkpoint(model, tmp_path / "swin22k.pth")
    assert str(report) == (
        f"swin22k.pth: {len(model.state_dict())} read, 9 resized, head mapped: 21841 to 1000 classes, 3 buffers rebuilt"
    )
    ours = {foreign(key, MICROSOFT): value for key, value in model.state_dict().items()}
    ours["absolute_pos_embed"] = ours["absolute_pos_embed"].flatten(2).mT
    for key, golden in goldens("swin_load_pretrained").items():
        assert_golden(ours[key.partition("/")[2]], golden)


UNIFIED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # mixer, arguments of the small and of the large one
    "uswin_w7_to_w12": (
        "swin",
        {},
        {"mixer": lambda dim, heads: WindowAttention(dim, heads, 12, shifted=False, dense=False)},
    ),
    "upvt_224_to_384": ("pvt", {}, {"img_size": 384}),
    "uhalo_7p3_to_8p4": ("halo", {}, {"mixer": partial(HaloMixer, block=8, halo=4, dense=False)}),
    "uswin_22k_to_1k": ("swin", {"num_classes": 21841}, {}),
}


@pytest.mark.parametrize("case", UNIFIED)
def test_unified_networks_of_another_size(case: str) -> None:
    mixer, before, after = UNIFIED[case]
    design = unified.DESIGNS[f"unified_{mixer}_micro"]
    design = replace(design, widths=(32, 64, 128, 256), depths=(2, 2, 2, 2), heads=(1, 2, 4, 8))
    build: Callable[..., Any] = partial(unified.classifier, design)
    with torch.device("meta"):
        state = build(**before).state_dict()
    names = {key: foreign(key, STM) for key in state}
    tables = {key for key, name in names.items() if name != key}
    asked = {
        key.partition("/")[2]: golden for key, golden in goldens("metaarch_load_state_dict").items() if case in key
    }
    state = {
        key: filled(names[key], value) if names[key] in asked else torch.zeros(value.shape)
        for key, value in state.items()
    }
    model = build(**after)
    report = load_state(model, state, source="u.pth")
    assert set(report.resized) == (set() if "22k" in case else tables)
    ours = {foreign(key, STM): value for key, value in model.state_dict().items()}
    assert asked
    for key, golden in asked.items():
        assert_golden(ours[key], golden)


def test_the_rows_of_a_large_head_are_those_of_the_same_wordnet_ids() -> None:
    import timm.data

    folder = Path(timm.data.__file__).parent / "_info"
    small, large = (
        (folder / f"{name}.txt").read_text().split() for name in ("imagenet_synsets", "imagenet21k_goog_synsets")
    )
    at = {wordnet_id: row for row, wordnet_id in enumerate(large)}
    assert [i for i, wordnet_id in enumerate(small) if wordnet_id not in at] == [850]
    assert list(imagenet22k.ROWS) == [at.get(wordnet_id, 5564) for wordnet_id in small]
    assert max(imagenet22k.ROWS) < imagenet22k.CLASSES


def test_a_large_head_is_read_mapped_or_refused() -> None:
    design = replace(SWIN, width=8, heads=(1, 1, 1, 1))
    large = swin.classifier(design, img_size=64, num_classes=21841)
    row = imagenet22k.ROWS[850]
    head = large.state_dict()["head.weight"]
    for classes, rows in ((1000, [row]), (21841, [850])):
        model = swin.classifier(design, img_size=64, num_classes=classes)
        load_state(model, large.state_dict(), source="s.pth", fresh_head=True)
        assert torch.equal(model.state_dict()["head.weight"][[850]], head[rows])
        assert math.isclose(
            float(model.state_dict()["head.bias"][850]), float(large.state_dict()["head.bias"][rows[0]])
        )
    model = swin.classifier(design, img_size=64, num_classes=10)
    sentence = (
        r"s\.pth predicts 21841 classes and the network 10: use data or num_classes=21841 or, mapped, 1000; to train"
    )
    with pytest.raises(ValueError, match=sentence):
        load_state(model, large.state_dict(), source="s.pth")
    report = load_state(model, large.state_dict(), source="s.pth", fresh_head=True)
    assert str(report) == f"s.pth: {len(large.state_dict()) - 2} read, head dropped: 21841 to 10 classes"
    small = swin.classifier(design, img_size=64, num_classes=1000)
    with pytest.raises(ValueError, match="predicts 1000 classes and the network 21841: use data or num_classes=1000;"):
        load_state(large, small.state_dict(), source="s.pth")
