"""What SMT alone has. The originals' numbers are in test_golden_backbones.py."""

import re
from dataclasses import replace

import pytest
import torch
from tiny_networks import SMT, tiny, tiny_dense
from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones import smt
from fourstage.backbones.layers import LayerNorm2d
from fourstage.backbones.mixers.modulation import LocalGlobalAttention, ScaleAwareModulation
from fourstage.ops.depthwise import depthwise
from fourstage.weights.load import load_state

PLAIN = replace(SMT, init_values=0)
THEIRS = (  # our names -> the source's, after the stages were counted from 1
    (r"^stem\.([013])", r"patch_embed1.conv.\1"),
    (r"^stem\.4", r"patch_embed1.norm"),
    (r"^stage(\d)\.embed\.0", r"patch_embed\1.proj"),
    (r"^stage(\d)\.embed\.1", r"patch_embed\1.norm"),
    (r"^stage(\d)\.norm", r"norm\1"),
    (r"^stage(\d)\.blocks", r"block\1"),
    (r"scale([12])\.scale", r"gamma_\1"),
    (r"attn\.value", "attn.v"),
    (r"attn\.context", "attn.s"),
    (r"attn\.windows\.(\d)", lambda m: f"attn.local_conv_{int(m[1]) + 1}"),
    (r"attn\.weigh", "attn.proj0"),
    (r"attn\.norm", "attn.bn"),
    (r"attn\.mix", "attn.proj1"),
    (r"attn\.local\.", "attn.local_conv."),
    (r"mlp\.expand", "mlp.fc1"),
    (r"mlp\.spatial", "mlp.dwconv.dwconv"),
    (r"mlp\.reduce", "mlp.fc2"),
)


def their_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as the source's classifier has it."""
    out = {}
    for key, value in state.items():
        theirs = re.sub(r"^stages\.(\d)", lambda m: f"stage{int(m[1]) + 1}", key)
        for ours, name in THEIRS:
            theirs = re.sub(ours, name, theirs)
        out[theirs] = value
    return out


def modulation_with_statistics(dim: int) -> ScaleAwareModulation:
    torch.manual_seed(0)
    mixer = ScaleAwareModulation(dim)
    mixer.norm.running_mean = torch.randn(2 * dim)
    mixer.norm.running_var = torch.rand(2 * dim) + 0.5
    nn.init.normal_(mixer.norm.weight)
    nn.init.normal_(mixer.norm.bias)
    return mixer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dim", [16, 48, 96])  # one short run, runs of 4, three runs of 8
def test_weighing_in_runs_changes_no_number(dim: int, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    x_BHWC = torch.randn(2, 5, 7, dim)
    results = []
    for switch in ("plain", "fast"):
        monkeypatch.setenv("FOURSTAGE_OPS", switch)
        mixer = modulation_with_statistics(dim).train(training)
        out = mixer(x_BHWC)
        out.square().sum().backward()
        gradients = [p.grad for p in mixer.parameters() if p.grad is not None]
        results.append(([out.detach(), *mixer.buffers()], gradients))
    (values, gradients), (others, other_gradients) = results
    for value, other in zip(values, others, strict=True):
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-4 * float(value.float().abs().mean()))
    assert len(gradients) == len(other_gradients) == len(list(mixer.parameters()))
    size = max(float(x.norm()) for x in gradients)  # a bias before a norm in training has nothing but rounding
    for value, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-6 * size)


def test_modulation_runs_with_another_norm_in_evaluation() -> None:
    mixer = modulation_with_statistics(16)
    mixer.norm = nn.Identity()  # type: ignore[assignment]
    mixer.eval()
    x_BHWC = torch.randn(1, 4, 4, 16)
    shares = mixer.context(x_BHWC).movedim(-1, 1).chunk(4, dim=1)
    woven = torch.stack([w(x) for w, x in zip(mixer.windows, shares, strict=True)], dim=2).flatten(1, 2)
    gate_BCHW = mixer.mix(nn.functional.gelu(mixer.weigh(woven)))
    expected = mixer.proj(gate_BCHW.movedim(1, -1) * mixer.value(x_BHWC))
    torch.testing.assert_close(mixer(x_BHWC), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (3, 4)])
def test_maps_of_one_cell_a_side_have_zeros_around_them_like_all_others(height: int, width: int) -> None:
    conv = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    x_BHWC = torch.randn(2, height, width, 6)
    expected = conv(x_BHWC.movedim(-1, 1).contiguous()).movedim(1, -1)
    torch.testing.assert_close(depthwise(conv, x_BHWC), expected)


def test_channels_that_do_not_split_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="18 channels must split evenly over 4 scales; 2 are left over"):
        ScaleAwareModulation(18)
    with pytest.raises(ValueError, match="18 channels must split evenly over 4 heads; 2 are left over"):
        LocalGlobalAttention(18, 4)


def test_modulation_comes_first_and_attention_last() -> None:
    with torch.device("meta"):
        model = smt.classifier(replace(smt.DESIGNS["smt_tiny"], depths=(2, 2, 5, 2)))
    kinds = [[type(block.get_submodule("attn")) for block in stage.blocks] for stage in model.stages]  # type: ignore[union-attr]
    first, last = ScaleAwareModulation, LocalGlobalAttention
    assert kinds == [[first, first], [first, first], [first, last, first, last, first], [last, last]]


def test_epsilons_are_the_sources() -> None:
    model = tiny("smt")
    norms = {name: part.eps for name, part in model.named_modules() if isinstance(part, nn.LayerNorm | LayerNorm2d)}
    outside = {"stem.4", "stages.1.embed.1", "stages.2.embed.1", "stages.3.embed.1"}
    assert {name for name, eps in norms.items() if eps == 1e-5} == outside
    assert {eps for name, eps in norms.items() if name not in outside} == {1e-6}
    assert {part.eps for part in model.modules() if isinstance(part, nn.BatchNorm2d)} == {1e-5}


@pytest.mark.parametrize(
    ("design", "asked", "first"),
    [
        (smt.DESIGNS["smt_large"], None, 1e-4),
        (smt.DESIGNS["smt_large"], 0, None),
        (smt.DESIGNS["smt_small"], None, None),
        (smt.DESIGNS["smt_small"], 0.5, 0.5),
    ],
)
def test_init_values_give_layer_scales_or_none(design: smt.Design, asked: float | None, first: float | None) -> None:
    narrow = replace(design, widths=(16, 16, 32, 32), depths=(1, 1, 1, 1))
    model = smt.classifier(narrow, init_values=asked)
    scales = [p for name, p in model.named_parameters() if ".scale" in name]
    assert len(scales) == (0 if first is None else 8)
    assert all(torch.equal(p, torch.full_like(p, first)) for p in scales if first is not None)
    assert len([name for name, _ in smt.dense(narrow, init_values=asked).named_parameters() if ".scale" in name]) == (
        len(scales)
    )


def test_layer_scales_do_not_begin_below_zero() -> None:
    with pytest.raises(ValueError, match="init_values is what layer scales begin with, or 0 for none; got -1"):
        smt.classifier(SMT, init_values=-1)


def test_a_checkpoint_has_layer_scales_as_the_network_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", {})  # do not search for a network that it fits
    torch.manual_seed(0)
    scaled, plain = (smt.classifier(design, num_classes=10) for design in (SMT, PLAIN))
    with pytest.raises(ValueError, match=r"stages\.0\.blocks\.0\.scale1\.scale is missing from the file"):
        load_state(scaled, their_names(plain.state_dict()), source="no_gammas.pth")
    with pytest.raises(ValueError, match=r"stages\.0\.blocks\.0\.scale1\.scale is not in it"):
        load_state(plain, their_names(scaled.state_dict()), source="gammas.pth")


@pytest.mark.parametrize("name", ["local_conv.", "dw_conv."])
def test_the_dense_form_reads_the_classifiers_file_and_the_detection_copys(name: str) -> None:
    torch.manual_seed(0)
    classifier, dense = tiny("smt"), tiny_dense("smt")
    for part in classifier.parameters():
        nn.init.normal_(part)
    state = {re.sub(r"local_conv\.", name, key): value for key, value in their_names(classifier.state_dict()).items()}
    assert any("gamma_1" in key for key in state)
    report = load_state(dense, state, source="smt.pth")
    assert (report.dropped, report.fresh, report.resized) == (("head.weight", "head.bias"), (), ())
    ours = classifier.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in dense.state_dict().items())
    again = tiny("smt")
    assert not load_state(again, state, source="smt.pth").dropped
    assert all(torch.equal(value, ours[key]) for key, value in again.state_dict().items())


def test_both_forms_have_the_same_maps() -> None:
    torch.manual_seed(0)
    classifier, dense = tiny("smt").eval(), tiny_dense("smt").eval()
    load_state(dense, classifier.state_dict(), source="ours.pth")
    image_BCHW = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        for a, b in zip(classifier.forward_maps(image_BCHW), dense(image_BCHW), strict=True):
            assert torch.equal(a, b)


def test_the_network_for_384_pixels_differs_in_what_it_says_alone() -> None:
    with torch.device("meta"):
        usual, larger = (registry.find(name).classifier() for name in ("smt_large_224", "smt_large_384"))
    shapes = [{name: p.shape for name, p in model.state_dict().items()} for model in (usual, larger)]
    assert shapes[0] == shapes[1]
    assert [model.default_cfg["input_size"] for model in (usual, larger)] == [(3, 224, 224), (3, 384, 384)]  # type: ignore[index]
    assert [model.default_cfg["pool_size"] for model in (usual, larger)] == [(7, 7), (12, 12)]  # type: ignore[index]


def test_initial_weights_follow_the_table() -> None:
    torch.manual_seed(0)
    state = smt.classifier(replace(smt.DESIGNS["smt_tiny"], depths=(1, 1, 2, 1))).state_dict()
    expected = {
        "head.weight": 0.02,
        "stages.2.blocks.1.attn.kv.weight": 0.02,
        "stem.3.weight": (2 / (4 * 64)) ** 0.5,
        "stages.2.embed.0.weight": (2 / (9 * 256)) ** 0.5,
        "stages.2.blocks.0.mlp.spatial.weight": (2 / 9) ** 0.5,  # a channel of its own: nine weights fan out
        "stages.2.blocks.0.attn.weigh.weight": (2 / 8) ** 0.5,  # in groups of eight
        "stages.2.blocks.0.attn.mix.weight": (2 / 256) ** 0.5,
    }
    for key, std in expected.items():
        assert float(state[key].std()) == pytest.approx(std, rel=0.05), key
    assert not any(value.any() for key, value in state.items() if key.endswith("bias"))
