"""Sparse R-CNN's files by MMDetection's names and by its authors': every name once, and no configuration."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from golden.fill import read_manifest
from tiny_networks import SWIN, tiny
from torch import Tensor, nn

import fourstage
from fourstage import registry
from fourstage.backbones import swin
from fourstage.weights.complete_checkpoints import count_classes, load_dense_state
from fourstage.weights.rules import matching_rules, rename
from fourstage.weights.sparse_rcnn import SPARSE_RCNN, arguments_of_state, regular

MANIFEST = read_manifest(Path(__file__).parents[1] / "golden" / "heads" / "sparse_rcnn.json.gz")
HEAD = {  # MMDetection's names of the modules of a head, and the authors'
    "attention.attn": "self_attn",
    "attention_norm": "norm1",
    "instance_interactive_conv.dynamic_layer": "inst_interact.dynamic_layer",
    "instance_interactive_conv.norm_in": "inst_interact.norm1",
    "instance_interactive_conv.norm_out": "inst_interact.norm2",
    "instance_interactive_conv.fc_layer": "inst_interact.out_layer",
    "instance_interactive_conv.fc_norm": "inst_interact.norm3",
    "instance_interactive_conv_norm": "norm2",
    "ffn.layers.0.0": "linear1",
    "ffn.layers.1": "linear2",
    "ffn_norm": "norm3",
    "cls_fcs": "cls_module",
    "reg_fcs": "reg_module",
    "fc_cls": "class_logits",
    "fc_reg": "bboxes_delta",
}


def of_authors(key: str) -> str:
    """The authors' name of a key of MMDetection."""
    if match := re.fullmatch(r"roi_head\.bbox_head\.(\d)\.(.*)", key):
        theirs = next(name for name in sorted(HEAD, key=len, reverse=True) if match[2].startswith(f"{name}."))
        return f"head.head_series.{match[1]}.{HEAD[theirs]}{match[2].removeprefix(theirs)}"
    if match := re.fullmatch(r"neck\.(lateral|fpn)_convs\.(\d)\.conv\.(.*)", key):
        part = {"lateral": "lateral", "fpn": "output"}[match[1]]
        return f"backbone.fpn_{part}{int(match[2]) + 2}.{match[3]}"
    return key.replace("rpn_head.init_proposal_bboxes", "init_proposal_boxes").replace("rpn_head.", "")


NAMES: dict[str, Callable[[str], str]] = {"MMDetection": str, "its authors": of_authors}


@pytest.mark.parametrize("source", NAMES)
def test_every_name_is_claimed_once_and_becomes_one_of_ours(source: str) -> None:
    theirs = regular({NAMES[source](key): torch.zeros(1) for key in MANIFEST["params"]}, None)
    assert all(len(matching_rules(SPARSE_RCNN, key)) == 1 for key in theirs)
    with torch.device("meta"):
        network = fourstage.create_detector("sparse_rcnn", "swin_tiny", 80)
    around = {key for key in network.state_dict() if not key.startswith("backbone.")}
    assert rename(theirs, SPARSE_RCNN).keys() == around


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Swin small enough for tests, by a name."""
    registry.list_models()
    build = partial(swin.dense, SWIN)
    monkeypatch.setitem(registry._entries, "swin_mini", registry.Entry("swin_mini", partial(tiny, "swin"), build))


SMALL: dict[str, Any] = {"proposals": 7, "stages": 2, "channels": 16, "hidden": 24, "filter_channels": 4}


@pytest.mark.parametrize("source", NAMES)
def test_a_file_without_a_configuration_is_built_by_its_tensors(source: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network: Any = fourstage.create_detector("sparse_rcnn", "swin_mini", 5, **SMALL)
    torch.save({"model": foreign(network, NAMES[source], source)}, tmp_path / "m.pth")
    found: Any = fourstage.from_checkpoint(tmp_path / "m.pth")
    assert (found.method, found.num_classes, found.proposal_boxes.num_embeddings) == ("sparse_rcnn", 5, 7)
    ours = network.state_dict()
    assert found.state_dict().keys() == ours.keys()
    assert all(torch.equal(value, ours[key]) for key, value in found.state_dict().items())
    wide = fourstage.create_detector("sparse_rcnn", "swin_mini", 5, **{**SMALL, "hidden": 32})
    with pytest.raises(ValueError, match="does not fit this sparse_rcnn"):
        fourstage.load_checkpoint(wide, tmp_path / "m.pth")


def foreign(network: nn.Module, name: Callable[[str], str], source: str) -> dict[str, Tensor]:
    """The state dict by the names of a source, with the backbone's own names below its prefix."""
    state, out = network.state_dict(), {}
    for key in MANIFEST["params"]:
        [(ours, _)] = rename({key: torch.zeros(0)}, SPARSE_RCNN).items()
        if ours in state:
            out[name(key)] = state[ours]
    assert len(out) == sum(not key.startswith("backbone.") for key in state)
    prefix = "backbone.bottom_up." if source == "its authors" else "backbone."
    return {**out, **{prefix + key: value for key, value in network.get_submodule("backbone").state_dict().items()}}


SIZES = ["init_proposal_features", r"ffn\.layers\.0\.0|linear1", r"norm_in|inst_interact\.norm1", "fc_cls|class_logits"]


@pytest.mark.parametrize("pattern", SIZES)
@pytest.mark.parametrize("source", NAMES)
def test_damaged_tensors_are_a_sentence(source: str, pattern: str) -> None:
    """Missing, a single number, without rows, or with one axis more."""
    torch.manual_seed(0)
    network: Any = fourstage.create_detector("sparse_rcnn", "swin_mini", 5, **SMALL)
    state = foreign(network, NAMES[source], source)
    keys = {key for key in state if re.search(pattern, key)}
    assert keys
    for damage in (lambda value: None, lambda value: value.sum(), lambda value: value[:0], lambda value: value[None]):
        damaged = {key: damage(value) if key in keys else value for key, value in state.items()}
        damaged = {key: value for key, value in damaged.items() if value is not None}
        if "cls" not in pattern and len(damaged) == len(state):
            with pytest.raises(ValueError, match=rf"names of a Sparse R-CNN, but \S*({pattern})\S* is "):
                arguments_of_state(damaged)
        assert count_classes(damaged, "detection") != 0
        with pytest.raises(ValueError, match=r"^the file "):
            load_dense_state(network, damaged, method="sparse_rcnn", source="the file")
