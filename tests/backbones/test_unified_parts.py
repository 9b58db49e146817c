"""What the unified architecture alone has: a mixer of anyone's, its skeletons, its two forms. Originals' numbers are in
test_golden_backbones.py.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import UNIFIED, tiny, tiny_dense
from torch import Tensor, nn

import fourstage
from fourstage import registry
from fourstage.backbones import unified
from fourstage.backbones.mixers import build
from fourstage.backbones.mixers.depthwise import DepthwiseMixer
from fourstage.backbones.mixers.halo import HaloMixer
from fourstage.backbones.mixers.reduction import ReductionAttention
from fourstage.backbones.mixers.window import WindowAttention
from fourstage.engine.optim import norm_or_bias
from fourstage.recipe import resolve
from fourstage.run.task_protocol import protocol_of
from fourstage.user_files import import_files
from fourstage.weights.load import load_state

PAGE = Path(__file__).parents[2] / "docs" / "mixers.md"
DESIGN = UNIFIED["unified_swin"]


@pytest.fixture(autouse=True)
def own_mixers(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_mixers", own := {})
    return own


class Recording(nn.Module):
    """Notes what it is built with."""

    calls: list[dict[str, Any]] = []  # noqa: RUF012

    def __init__(self, dim: int, heads: int = 3, *, stage: int, map_size: tuple[int, int], other: str = "mine") -> None:
        super().__init__()
        self.calls.append({"dim": dim, "heads": heads, "stage": stage, "map_size": map_size, "other": other})
        self.out = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return self.out(x_BHWC)


def blocks_of(model: nn.Module) -> list[unified.Block]:
    return [block for block in model.modules() if isinstance(block, unified.Block)]


def mixers_of(model: nn.Module) -> list[nn.Module]:
    return [block.mixer for block in blocks_of(model)]


def no_arguments() -> nn.Module:
    return nn.Identity()


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_on_mixers_runs_in_python_and_in_a_recipe(tmp_path: Path, own_mixers: dict) -> None:
    names: dict[str, Any] = {}
    for snippet in code("python"):
        exec(snippet.replace("unified_swin_tiny", "unified_swin_micro"), names)
    assert {type(m).__name__ for m in mixers_of(names["model"])} == {"MeanMixer"}
    assert len(mixers_of(names["backbone"])) == sum(unified.DESIGNS["unified_swin_micro"].depths)
    assert names["model"](torch.zeros(2, 3, 64, 80)).shape == (2, 10)
    own_mixers.clear()
    (tmp_path / "my_mixer.py").write_text(code("python")[0])
    (tmp_path / "mine.yaml").write_text(code("yaml")[0])
    recipe = resolve(str(tmp_path / "mine.yaml"), ()).recipe
    import_files(recipe.imports)
    task = protocol_of(recipe).build_task(("a", "b", "c"))
    assert {type(m).__name__ for m in mixers_of(task)} == {"MeanMixer"}
    assert task.network(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_the_page_lists_the_built_in_mixers_and_what_a_mixer_is_given() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert listed[:5] == ["dim", *build.OFFERED]
    assert sorted(listed[5:]) == sorted(build.BUILT_IN) == list(registry.MIXERS)


def test_a_mixer_is_given_what_its_signature_names_and_nothing_else() -> None:
    Recording.calls.clear()
    unified.classifier(DESIGN, mixer=Recording, img_size=(65, 128))
    first = {"dim": 8, "heads": 1, "stage": 0, "map_size": (17, 32), "other": "mine"}
    assert Recording.calls[0] == first
    assert [call["stage"] for call in Recording.calls] == [0, 1, 1, 2, 3]
    assert Recording.calls[-1] == {"dim": 64, "heads": 8, "stage": 3, "map_size": (3, 4), "other": "mine"}
    Recording.calls.clear()
    unified.dense(DESIGN, mixer=partial(Recording, heads=5, other="yours"), img_size=(65, 128))
    assert Recording.calls[0] == {**first, "heads": 5, "other": "yours"}


@pytest.mark.parametrize("name", registry.MIXERS)
def test_every_skeleton_takes_every_built_in_mixer(name: str) -> None:
    own = {type(m) for m in mixers_of(tiny(f"unified_{name}"))}
    for design in (DESIGN, UNIFIED["unified_pvt"], UNIFIED["official_pvt_v2"]):
        model = unified.classifier(design, mixer=name, img_size=64)
        assert {type(m) for m in mixers_of(model)} == own
        assert isinstance(blocks_of(model)[0], unified.PositionedBlock) == (name == "pvt")
        assert model.eval()(torch.zeros(1, 3, 70, 64)).isfinite().all()
        assert [x.shape[1] for x in unified.dense(design, mixer=name)(torch.zeros(1, 3, 70, 64))] == [8, 16, 32, 64]


def test_a_mixer_changes_nothing_but_mixers() -> None:
    plain, other = (tiny("unified_swin"), unified.classifier(DESIGN, mixer=Recording, num_classes=10))
    shapes = [{k: v.shape for k, v in m.state_dict().items() if ".mixer." not in k} for m in (plain, other)]
    assert shapes[0] == shapes[1]
    other.set_grad_checkpointing()
    assert other(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    weight = other.state_dict()["stages.3.blocks.0.mixer.out.weight"]
    assert float(weight.std()) == pytest.approx(0.02, rel=0.1)  # as the source initialises everything


class Narrow(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return x_BHWC[..., :1]


class Pair(Narrow):
    def forward(self, x_BHWC: Tensor) -> Any:
        return x_BHWC, x_BHWC


class Needy(nn.Module):
    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("mixer", "sentence"),
    [
        ("swim", "no mixer is called 'swim'; did you mean swin"),
        ("qqqq", "no mixer is called 'qqqq'; there are convnext, dcn_v3, halo, pvt, pvt_v2, swin"),
        (nn.Identity(), "from which each block builds its own mixer; got a Identity"),
        (3, "from which each block builds its own mixer; got 3"),
        (Needy, r"cannot be built as Needy\(8, heads=1\): .*'width'; besides C it is given those of heads, stage, blo"),
        (no_arguments, r"cannot be built as no_arguments\(8\): .* positional argument"),
        (lambda dim: None, r"<lambda>\(8\) must give a module from \(B, H, W, C\) to the same; it gave a NoneType"),
        (
            Narrow,
            r"Narrow was given \(2, 16, 16, 8\), \(B, H, W, C\), and must return the same; it gave \(2, 16, 16, 1\)",
        ),
        (Pair, r"Pair was given .* it gave a tuple"),
    ],
)
def test_what_is_no_mixer_is_answered_with_a_sentence(mixer: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fourstage.create_model("unified_swin_micro", mixer=mixer) if isinstance(mixer, str) else unified.classifier(
            DESIGN, mixer=mixer, img_size=64
        )(torch.zeros(2, 3, 64, 64))


def test_names_of_mixers_are_taken_once() -> None:
    @fourstage.register_mixer
    def identity(dim: int) -> nn.Module:
        return nn.Identity()

    assert mixers_of(fourstage.create_backbone("unified_halonet_micro", mixer="identity"))
    fourstage.register_mixer(identity)  # the same place may register again
    with pytest.raises(ValueError, match="two mixers are called 'identity'"):
        fourstage.register_mixer(type("identity", (Narrow,), {}))
    with pytest.raises(ValueError, match="two mixers are called 'swin'"):
        fourstage.register_mixer(type("swin", (Narrow,), {}))


def test_every_name_of_the_source_is_there_and_its_checkpoints_names_too() -> None:
    sizes = ("micro", "tiny", "small", "base")
    mixers = (*registry.MIXERS, "halonet", "internimage")
    expected = {f"unified_{mixer}_{size}" for mixer in mixers for size in sizes}
    expected |= {"unified_dcn_v3_large", "unified_internimage_large"}
    assert set(fourstage.list_models("unified_*")) == expected | {"unified_pico"}  # the last one is ours

    assert fourstage.list_models("official_*") == ["official_pvt_v2_b0", "official_swin_tiny"]
    assert registry.find("unified_internimage_base").name == "unified_dcn_v3_base"


def test_other_widths() -> None:
    model: Any = fourstage.create_model("unified_pico", mixer="halo", widths=[24, 48, 96, 200], num_classes=3)
    assert [level.channels for level in model.levels] == [24, 48, 96, 200]
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    for widths in ([24, 48, 96], [24, 48, 96, 201], [24, 48, 96, 0], [24, 48.0, 96, 200]):
        with pytest.raises(ValueError, match=r"widths must be four multiples of the heads, \[1, 2, 4, 8\]"):
            fourstage.create_model("unified_pico", widths=widths)


@pytest.mark.parametrize(
    ("name", "classifier", "dense"),
    [
        ("unified_convnext_base", 95_865_576, None),
        ("unified_dcn_v3_large", 223_339_610, None),
        ("unified_dcn_v3_tiny", 29_933_272, 28_769_520),
        ("unified_halo_small", 52_831_336, None),
        ("unified_pvt_base", 91_566_312, None),
        ("unified_pvt_tiny", 31_157_736, 29_993_984),
        ("unified_pvt_v2_small", 50_282_472, None),
        ("unified_swin_base", 93_388_576, None),
        ("official_swin_tiny", 28_297_186, None),
        ("official_pvt_v2_b0", 3_668_808, None),
    ],
)
def test_parameters_are_as_many_as_the_sources(name: str, classifier: int, dense: int | None) -> None:
    with torch.device("meta"):
        model, backbone = fourstage.create_model(name), fourstage.create_backbone(name)
    assert sum(p.numel() for p in model.parameters()) == classifier
    assert dense in (None, sum(p.numel() for p in backbone.parameters()))
    assert model.num_features == model.get_submodule("head").in_features


def test_pvt_adds_its_positions_before_the_residual_in_the_classifier_and_beside_it_in_the_dense_form() -> None:
    torch.manual_seed(0)
    x_BHWC = torch.randn(1, 16, 16, 8)
    for model in (tiny("unified_pvt"), tiny_dense("unified_pvt")):
        block = blocks_of(model.eval())[0]
        assert isinstance(block, unified.PositionedBlock)
        block.position.data.normal_()
        seen = x_BHWC + block.position.movedim(1, -1)
        kept = seen if isinstance(model, unified.Classifier) else x_BHWC
        x = kept + block.scale1(block.mixer(block.norm1(seen)))
        torch.testing.assert_close(block(x_BHWC), x + block.scale2(block.mlp(block.norm2(x))))


@pytest.mark.parametrize("build_tiny", [tiny, tiny_dense])
def test_positions_are_resized_corner_to_corner_and_only_for_other_sizes(
    build_tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_tiny("unified_pvt").eval()
    calls = []
    resize = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda x, **how: calls.append(how) or resize(x, **how))
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))
        assert not calls
        model(torch.randn(1, 3, 65, 96))
    assert [how.pop("size") for how in calls] == [(17, 24), (9, 12), (5, 6), (3, 3)]
    assert all(how == {"mode": "bilinear", "align_corners": True} for how in calls)


def test_windows_of_swin_follow_the_form_and_the_block() -> None:
    model, backbone = fourstage.create_model("unified_swin_micro"), fourstage.create_backbone("unified_swin_micro")
    for form, dense in ((model, False), (backbone, True)):
        mixers = mixers_of(form.get_submodule("stages.2"))
        assert all(isinstance(m, WindowAttention) and m.window == 7 and m.dense == dense for m in mixers)
        assert [m.shifted for m in mixers] == [j % 2 == 1 for j in range(9)]
    assert {m.dense for m in mixers_of(tiny_dense("unified_halo"))} == {True}
    assert {m.dense for m in mixers_of(tiny("unified_halo"))} == {False}
    small = [m.window for m in mixers_of(tiny("unified_swin", img_size=64))]
    assert small == [7, 7, 7, 4, 2]  # maps of 16, 8, 4 and 2 cells


def test_reduction_joins_whole_squares_to_one_key_each() -> None:
    torch.manual_seed(0)
    mixer = ReductionAttention(8, 2, reduction=2).eval()
    x_BHWC = torch.randn(1, 5, 7, 8)
    joined = mixer.norm(mixer.reduce(x_BHWC.movedim(-1, 1)).flatten(2).mT)
    assert joined.shape == (1, 6, 8)  # the fifth row and the seventh column give no key
    q = mixer.q(x_BHWC).reshape(1, 35, 2, 4).transpose(1, 2)
    k, v = mixer.kv(joined).reshape(1, 6, 2, 2, 4).permute(2, 0, 3, 1, 4)
    seen = ((q @ k.mT) / 2).softmax(-1) @ v
    torch.testing.assert_close(mixer(x_BHWC), mixer.proj(seen.transpose(1, 2).reshape(1, 5, 7, 8)))
    assert not hasattr(ReductionAttention(8, 2, reduction=1), "reduce")


def test_the_depthwise_mixer_sees_seven_by_seven_cells_channel_by_channel() -> None:
    mixer = DepthwiseMixer(4)
    for name, parameter in mixer.named_parameters():
        nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.ones_(parameter)
    for layer in (mixer.before, mixer.after):
        nn.init.eye_(layer.weight)
    x_BHWC = torch.zeros(1, 15, 15, 4)
    x_BHWC[0, 7, 7, 2] = 1
    assert torch.equal(mixer(x_BHWC).nonzero()[:, 1:3].unique(), torch.arange(4, 11))
    assert mixer(x_BHWC).sum(dim=(0, 1, 2)).tolist() == [0, 0, 49, 0]


@pytest.mark.parametrize("design", ["unified_swin", "unified_convnext"])
def test_layer_scale_begins_with_init_values_or_is_left_out(design: str) -> None:
    scales = {n: p for n, p in unified.classifier(UNIFIED[design]).named_parameters() if ".scale" in n}
    assert len(scales) == 10
    assert all((p == 1e-6).all() for p in scales.values())
    without = unified.classifier(UNIFIED[design], init_values=0)
    assert not [n for n, _ in without.named_parameters() if ".scale" in n]
    with pytest.raises(ValueError, match="init_values is what layer scales begin with"):
        unified.dense(UNIFIED[design], init_values=-1)


@pytest.mark.parametrize(
    ("design", "decayed"), [("unified_convnext", True), ("unified_halo", True), ("unified_pvt", False)]
)
def test_weight_decay_reaches_the_scales_that_the_source_stores_with_four_axes(design: str, decayed: bool) -> None:
    model = tiny(design)
    parameters = dict(model.named_parameters())
    assert norm_or_bias("", parameters["stages.0.blocks.0.scale1.scale"]) != decayed
    assert not model.no_weight_decay()
    assert not any(norm_or_bias(n, p) for n, p in parameters.items() if n.endswith(("position", "_rel")))


def test_initial_weights_follow_the_table() -> None:
    torch.manual_seed(0)
    for design in ("unified_dcn_v3", "unified_halo", "unified_pvt", "unified_pvt_v2"):
        model = unified.classifier(unified.DESIGNS[f"{design}_micro"])
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                error = 4 / module.weight.numel() ** 0.5
                assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=error), module
                assert module.bias is None or not module.bias.any()
            if isinstance(module, HaloMixer):
                assert float(module.height_rel.detach().std()) == pytest.approx(32**-0.5, rel=0.1)
        if design == "unified_pvt":
            assert float(model.state_dict()["stages.0.blocks.0.position"].std()) == pytest.approx(0.02, rel=0.05)


def test_a_classifiers_file_fills_the_dense_form_without_its_norms() -> None:
    for design in UNIFIED:
        state = tiny(design).state_dict()
        backbone = tiny_dense(design)
        report = load_state(backbone, state, source="file")
        assert {key.split(".")[0] for key in report.fresh} == {"norms"}
        assert all(re.match(r"stages\.\d\.norm\.|final\.|head\.", key) for key in report.dropped)
        assert torch.equal(backbone.state_dict()["stem.0.weight"], state["stem.0.weight"])
