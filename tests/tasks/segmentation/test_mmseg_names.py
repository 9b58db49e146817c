"""Every key of a checkpoint of MMSegmentation is claimed once, and fills one of ours."""

from collections.abc import Callable
from pkgutil import resolve_name

import pytest
import torch
from heads import METHODS, Patches

from fourstage.methods import all_methods
from fourstage.tasks.segmentation.segmentor import Segmentor
from fourstage.weights.rules import Rule, matching_rules, rename

TABLES: dict[str, tuple[Rule, ...]] = {
    method.name: resolve_name(method.names) for method in all_methods("segmentation") if method.names is not None
}
BUILDS: dict[str, Callable[[], Segmentor]] = {
    "upernet": lambda: METHODS["upernet"](Patches((4, 6, 8, 10)), 3, channels=8, auxiliary_convs=2),
    "semantic_fpn": lambda: METHODS["semantic_fpn"](Patches((4, 6, 8, 10)), 3, channels=8, neck_channels=8),
}


def theirs(method: str) -> dict[str, str]:
    """Keys of MMSegmentation, and ours, written out by hand."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def block(a: str, b: str) -> dict[str, str]:
        return {f"{a}.conv.weight": f"{b}.conv.weight", **{f"{a}.bn.{n}": f"{b}.norm.{n}" for n in norm}}

    def last(a: str, b: str) -> dict[str, str]:
        return {f"{a}.conv_seg.{n}": f"{b}.classify.{n}" for n in ("weight", "bias")}

    keys = last("decode_head", "decoder")
    if method == "semantic_fpn":
        for i in range(4):
            for n in ("weight", "bias"):
                keys[f"neck.lateral_convs.{i}.conv.{n}"] = f"neck.laterals.{i}.{n}"
                keys[f"neck.fpn_convs.{i}.conv.{n}"] = f"neck.outputs.{i}.{n}"
            for k in range(max(1, i)):
                keys |= block(f"decode_head.scale_heads.{i}.{2 * k}", f"decoder.scales.{i}.convs.{k}")
        return keys
    for i in range(4):
        keys |= block(f"decode_head.psp_modules.{i}.1", f"decoder.pooled.{i}")
    for i in range(3):
        keys |= block(f"decode_head.lateral_convs.{i}", f"decoder.laterals.{i}")
        keys |= block(f"decode_head.fpn_convs.{i}", f"decoder.outputs.{i}")
    for a, b in (("bottleneck", "bottleneck"), ("fpn_bottleneck", "fuse")):
        keys |= block(f"decode_head.{a}", f"decoder.{b}")
    keys |= last("auxiliary_head", "auxiliary")
    for i in range(2):
        keys |= block(f"auxiliary_head.convs.{i}", f"auxiliary.convs.{i}")
    return keys


@pytest.mark.parametrize("method", BUILDS)
def test_names(method: str) -> None:
    keys = theirs(method)
    state = {key: torch.tensor(float(i)) for i, key in enumerate(keys)}
    ours = rename(state | {"data_preprocessor.mean": torch.zeros(3, 1, 1)}, TABLES[method])
    assert ours == {name: state[key] for key, name in keys.items()}
    own = BUILDS[method]().state_dict()
    assert {key for key in own if not key.startswith("backbone.")} == set(ours)


@pytest.mark.parametrize("method", BUILDS)
def test_strange_keys_are_claimed_by_nobody(method: str) -> None:
    for key in ("decode_head.conv_seg.scale", "xdecode_head.conv_seg.weight", "backbone.decode_head.conv_seg.bias"):
        assert not matching_rules(TABLES[method], key)


def test_there_is_a_table_for_every_method() -> None:
    assert set(TABLES) == set(METHODS)
