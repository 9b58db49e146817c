"""DINO under the names of MMDetection 3, detrex and IDEA-Research: files fill ours and give the same detections."""

import argparse
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.fill import original_state, read_manifest
from tiny_networks import SWIN, tiny
from torch import Tensor
from weights.foreign import MICROSOFT, Names, foreign, renamed

import fourstage
from fourstage import registry
from fourstage.backbones import swin
from fourstage.data.sample import Batch
from fourstage.methods import recognise
from fourstage.tasks.detection.dino import DINO
from fourstage.weights.complete_checkpoints import load_dense_state
from fourstage.weights.dino import COCO_IDS, arguments_of_state

SMALL: dict[str, Any] = {
    "queries": 12,
    "channels": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "heads": 8,
    "points": 4,
    "hidden": 24,
    "pad_to": 1,
}
DETREX_OWN: dict[str, Any] = {"neck_bias": True, "position_temperature": 10000.0, "position_offset": -0.5}
IDEA_OWN: dict[str, Any] = {"neck_bias": True}
GOLDEN = Path(__file__).parents[1] / "golden"
LINEARS = (
    (r"attn\.offsets\.", "attn.sampling_offsets."),
    (r"attn\.weights\.", "attn.attention_weights."),
    (r"attn\.value\.", "attn.value_proj."),
)
ENDS = ((r"^query_embed\.", "transformer.tgt_embed."), (r"^label_embed\.", "label_enc."))
ENDS += ((r"^project\.", "transformer.enc_output."), (r"^project_norm\.", "transformer.enc_output_norm."))
ENDS += ((r"^decoder\.embed_box\.", "decoder.ref_point_head."), (r"^(en|de)coder\.", r"transformer.\g<0>"))
DETREX: Names = (
    *LINEARS,
    (r"^(encoder\.)(\d+\.attn)\.out\.", r"\1\2.output_proj."),
    (r"cross_attn\.out\.", "cross_attn.output_proj."),
    (r"^neck\.extra\.", "neck.extra_convs."),
    (r"^level_embed$", "transformer.level_embeds"),
    (r"^encoder\.(\d+)\.attn\.", r"encoder.layers.\1.attentions.0."),
    (r"^encoder\.(\d+)\.norm\.", r"encoder.layers.\1.norms.0."),
    (r"^encoder\.(\d+)\.ffn\.norm\.", r"encoder.layers.\1.norms.1."),
    (r"^encoder\.(\d+)\.ffn\.", r"encoder.layers.\1.ffns.0."),
    (r"\.self_attn\.qkv\.", ".attentions.0.attn.in_proj_"),
    (r"\.self_attn\.out\.", ".attentions.0.attn.out_proj."),
    (r"\.cross_attn\.", ".attentions.1."),
    (r"\.self_norm\.", ".norms.0."),
    (r"\.cross_norm\.", ".norms.1."),
    (r"^(decoder\.layers\.\d+)\.ffn\.norm\.", r"\1.norms.2."),
    (r"^(decoder\.layers\.\d+)\.ffn\.", r"\1.ffns.0."),
    (r"\.ffns\.0\.expand\.", ".ffns.0.layers.0.0."),
    (r"\.ffns\.0\.reduce\.", ".ffns.0.layers.1."),
    (r"^classify\.", "class_embed."),
    (r"^regress\.", "bbox_embed."),
    *ENDS,
)
IDEA: Names = (
    *LINEARS,
    (r"^(encoder\.)(\d+\.attn)\.out\.", r"\1\2.output_proj."),
    (r"cross_attn\.out\.", "cross_attn.output_proj."),
    (r"^neck\.convs\.(\d+)\.conv\.", r"input_proj.\1.0."),
    (r"^neck\.convs\.(\d+)\.norm\.", r"input_proj.\1.1."),
    (r"^neck\.extra\.0\.conv\.", "input_proj.EXTRA.0."),
    (r"^neck\.extra\.0\.norm\.", "input_proj.EXTRA.1."),
    (r"^level_embed$", "transformer.level_embed"),
    (r"^encoder\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^encoder\.(\d+)\.norm\.", r"encoder.layers.\1.norm1."),
    (r"^encoder\.(\d+)\.ffn\.norm\.", r"encoder.layers.\1.norm2."),
    (r"^encoder\.(\d+)\.ffn\.", r"encoder.layers.\1."),
    (r"\.self_attn\.qkv\.", ".self_attn.in_proj_"),
    (r"decoder(.*)\.self_attn\.out\.", r"decoder\1.self_attn.out_proj."),
    (r"\.self_norm\.", ".norm2."),
    (r"\.cross_norm\.", ".norm1."),
    (r"^(decoder\.layers\.\d+)\.ffn\.norm\.", r"\1.norm3."),
    (r"^(decoder\.layers\.\d+)\.ffn\.", r"\1."),
    (r"\.expand\.", ".linear1."),
    (r"\.reduce\.", ".linear2."),
    (r"^classify\.3\.", "transformer.enc_out_class_embed."),
    (r"^regress\.3\.", "transformer.enc_out_bbox_embed."),
    (r"^classify\.", "class_embed."),
    (r"^regress\.", "bbox_embed."),
    *ENDS,
)
MMDETECTION: Names = (
    *LINEARS,
    (r"^(encoder\.)(\d+\.attn)\.out\.", r"\1\2.output_proj."),
    (r"cross_attn\.out\.", "cross_attn.output_proj."),
    (r"^neck\.(convs\.\d+)\.norm\.", r"neck.\1.gn."),
    (r"^neck\.extra\.(\d+)\.norm\.", r"neck.extra_convs.\1.gn."),
    (r"^neck\.extra\.", "neck.extra_convs."),
    (r"^query_embed\.", "query_embedding."),
    (r"^label_embed\.", "dn_query_generator.label_embedding."),
    (r"^project\.", "memory_trans_fc."),
    (r"^project_norm\.", "memory_trans_norm."),
    (r"^encoder\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^encoder\.(\d+)\.norm\.", r"encoder.layers.\1.norms.0."),
    (r"^encoder\.(\d+)\.ffn\.norm\.", r"encoder.layers.\1.norms.1."),
    (r"^encoder\.(\d+)\.ffn\.", r"encoder.layers.\1.ffn."),
    (r"^(decoder\.layers\.\d+)\.self_attn\.qkv\.", r"\1.self_attn.attn.in_proj_"),
    (r"^(decoder\.layers\.\d+)\.self_attn\.out\.", r"\1.self_attn.attn.out_proj."),
    (r"\.self_norm\.", ".norms.0."),
    (r"\.cross_norm\.", ".norms.1."),
    (r"^(decoder\.layers\.\d+)\.ffn\.norm\.", r"\1.norms.2."),
    (r"\.ffn\.expand\.", ".ffn.layers.0.0."),
    (r"\.ffn\.reduce\.", ".ffn.layers.1."),
    (r"^decoder\.embed_box\.", "decoder.ref_point_head."),
    (r"^classify\.", "bbox_head.cls_branches."),
    (r"^regress\.(\d+)\.layers\.(\d)\.", lambda m: f"bbox_head.reg_branches.{m[1]}.{2 * int(m[2])}."),
)


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Swin small enough for tests, by a name."""
    registry.list_models()
    entry = registry.Entry("swin_mini", partial(tiny, "swin"), partial(swin.dense, SWIN))
    monkeypatch.setitem(registry._entries, "swin_mini", entry)


def network(classes: int = 80, backbone: str = "swin_mini", **more: Any) -> DINO:
    """With weights that give every query a class and a box of its own."""
    torch.manual_seed(0)
    levels = {} if more.get("scales") == 5 or backbone != "swin_mini" else {"out_indices": [1, 2, 3]}
    model: Any = fourstage.create_detector("dino", backbone, classes, backbone_args=levels, **{**SMALL, **more})
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def photo() -> Batch:
    image = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 75, 101)).astype(np.float32))
    return Batch(("a",), image, ((75, 101),), ((75, 101),), None)


def assert_same_detections(ours: Any, theirs: Any) -> None:
    [a], [b] = ours.detect(photo()), theirs.detect(photo())
    assert len(a) > 10
    assert torch.equal(a.boxes_N4, b.boxes_N4)
    assert torch.equal(a.labels_N, b.labels_N)
    assert torch.equal(a.scores_N, b.scores_N)


def split(model: DINO) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dict of the backbone and of the rest."""
    state = model.state_dict()
    inner = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return inner, {key: value for key, value in state.items() if not key.startswith("backbone.")}


def detrex(model: DINO) -> dict[str, Tensor]:
    inner, around = split(model)
    state = renamed(inner, MICROSOFT, "backbone.") | renamed(around, DETREX)
    copies = {
        f"transformer.decoder.{key}": value for key, value in state.items() if re.match("(class|bbox)_embed", key)
    }
    return state | copies


def idea(model: DINO) -> dict[str, Tensor]:
    inner, around = split(model)
    maps = len(model.neck.get_submodule("convs")._modules)
    state = {foreign(key, IDEA).replace("EXTRA", str(maps)): value for key, value in around.items()}
    for key in [key for key in state if re.match(r"(transformer\.enc_out_)?class_embed|label_enc", key)]:
        rows = torch.zeros(92 if key.startswith("label") else 91, *state[key].shape[1:])
        rows[[*COCO_IDS]] = state[key]
        state[key] = rows
    copies = {
        f"transformer.decoder.{key}": value for key, value in state.items() if re.match("(class|bbox)_embed", key)
    }
    return renamed(inner, MICROSOFT, "backbone.0.") | state | copies


@pytest.mark.parametrize("scales", [4, 5])
def test_a_file_of_detrex_describes_itself(scales: int, tmp_path: Path) -> None:
    model = network(scales=scales, **DETREX_OWN)
    states = {"model": detrex(model), "ema_state": detrex(network(scales=scales, **DETREX_OWN)), "iteration": 7}
    torch.save({**states, "trainer": {"optimizer": {}}}, tmp_path / "dino_swin.pth")
    found: Any = fourstage.from_checkpoint(tmp_path / "dino_swin.pth")
    assert (found.method, found.num_classes, len(found.class_names)) == ("dino", 80, 80)
    assert (found.temperature, found.offset, found.pad_to) == (10000.0, -0.5, 1)
    assert_same_detections(model, found)
    by_name: Any = fourstage.create_detector(
        "dino",
        "swin_mini",
        80,
        checkpoint_path=tmp_path / "dino_swin.pth",
        backbone_args={} if scales == 5 else {"out_indices": [1, 2, 3]},
        **{**SMALL, **DETREX_OWN, "scales": scales},
    )
    assert_same_detections(model, by_name.eval())
    assert fourstage.from_checkpoint(tmp_path / "dino_swin.pth", which="ema") is not None


def test_a_file_of_detrex_over_smt_describes_itself(tmp_path: Path) -> None:
    """SMT's own names below `backbone.`, as its detectors have them."""
    model = network(backbone="smt_tiny", **DETREX_OWN)
    manifest = read_manifest(GOLDEN / "backbones" / "smt" / "smt_t_det_backbone.json.gz")
    inner = {f"backbone.{key}": torch.from_numpy(value) for key, value in original_state(manifest).items()}
    around = {key: value for key, value in detrex(model).items() if not key.startswith("backbone.")}
    torch.save({"model": inner | around}, tmp_path / "smt.pth")
    found: Any = fourstage.from_checkpoint(tmp_path / "smt.pth")
    assert found.backbone.default_cfg["architecture"] == "smt_tiny"
    fourstage.load_checkpoint(model, tmp_path / "smt.pth")
    assert_same_detections(model, found)


def test_a_file_of_detrex_with_other_classes_keeps_them(tmp_path: Path) -> None:
    model = network(91, **DETREX_OWN)
    torch.save({"model": detrex(model)}, tmp_path / "own.pth")
    found: Any = fourstage.from_checkpoint(tmp_path / "own.pth")
    assert found.num_classes == 91
    assert_same_detections(model, found)


@pytest.mark.parametrize("scales", [4, 5])
def test_a_file_of_idea_research_keeps_the_rows_of_coco(scales: int, tmp_path: Path) -> None:
    model = network(scales=scales, **IDEA_OWN)
    state = {f"module.{key}": value for key, value in idea(model).items()}
    torch.save(
        {"model": state, "ema_model": state, "epoch": 3, "args": argparse.Namespace(lr=1e-4)}, tmp_path / "i.pth"
    )
    found: Any = fourstage.from_checkpoint(tmp_path / "i.pth")
    assert (found.num_classes, found.temperature, found.offset) == (80, 20.0, 0.0)
    assert_same_detections(model, found)


def test_a_network_of_91_classes_takes_all_rows(tmp_path: Path) -> None:
    torch.save({"model": idea(network(**IDEA_OWN))}, tmp_path / "i.pth")
    own: Any = network(91, **IDEA_OWN)
    report = fourstage.load_checkpoint(own, tmp_path / "i.pth")
    assert not report.fresh
    assert float(own.classify[0].weight[0].detach().abs().sum()) == 0  # row 0 is no category


def test_a_file_of_mmdetection_fills_everything(tmp_path: Path) -> None:
    model = network()
    inner, around = split(model)
    state = renamed(inner, MICROSOFT, "backbone.") | renamed(around, MMDETECTION)
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "m.pth")
    other: Any = network()
    other.query_embed.weight.data.zero_()
    report = fourstage.load_checkpoint(other, tmp_path / "m.pth")
    assert not report.fresh
    assert_same_detections(model, other)


@pytest.mark.parametrize("make", [detrex, idea])
def test_every_name_is_known_and_the_method_is_recognised(make: Any) -> None:
    state = make(network(**DETREX_OWN))
    found = recognise(key for key in state if not key.startswith("backbone."))
    assert found is not None
    assert found.name == "dino"


def test_swapped_norms_are_not_mistaken(tmp_path: Path) -> None:
    """IDEA-Research's decoder calls the norm after cross-attention norm1."""
    model = network(**IDEA_OWN)
    state = idea(model)
    for n in range(3):
        one, two = (f"transformer.decoder.layers.{n}.norm{i}.weight" for i in (1, 2))
        state[one], state[two] = state[two], state[one]
    torch.save({"model": state}, tmp_path / "swapped.pth")
    found: Any = fourstage.from_checkpoint(tmp_path / "swapped.pth")
    assert torch.equal(
        found.decoder.layers[0].self_norm.weight, model.decoder.layers[0].get_parameter("cross_norm.weight")
    )
    [a], [b] = model.detect(photo()), found.detect(photo())
    assert not torch.equal(a.scores_N, b.scores_N)


SIZES = [
    "level_embeds?",
    "attention_weights",
    "tgt_embed",
    r"linear1\.|ffns\.0\.layers\.0\.",
    "class_embed",
    "input_proj",
]


@pytest.mark.parametrize("pattern", SIZES)
@pytest.mark.parametrize("make", [detrex, idea])
def test_damaged_tensors_are_a_sentence(make: Callable[[DINO], dict[str, Tensor]], pattern: str) -> None:
    """Missing, a single number, or without rows."""
    model = network(**DETREX_OWN)
    state = make(model)
    keys = [key for key in state if re.search(pattern, key) and not re.search(r"transformer\.decoder", key)]
    for damage in (lambda value: None, lambda value: value.sum(), lambda value: value[:0]):
        damaged = {key: damage(value) if key in keys else value for key, value in state.items()}
        damaged = {key: value for key, value in damaged.items() if value is not None}
        with suppress(ValueError):  # any other error is a fault
            arguments_of_state(damaged)
        if keys:
            with pytest.raises(ValueError, match="file"):
                load_dense_state(model, damaged, method="dino", source="the file")
