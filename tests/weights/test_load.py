"""Files of every kind fill the networks they are for, and are refused by the others with a sentence."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign import MICROSOFT, renamed
from golden.fill import original_state, read_manifest
from tiny_networks import SWIN, tiny, tiny_dense
from torch import Tensor, nn

import fourstage
from fourstage.backbones import swin
from fourstage.backbones.base import Classifier
from fourstage.weights.load import FAMILIES, load_state, our_names, unwrap, which_models

GOLDEN = Path(__file__).parents[1] / "golden" / "backbones"


def original(name: str) -> dict[str, Tensor]:
    """A checkpoint as the original repository would have written it, with the buffers that ours drops."""
    manifest = read_manifest(GOLDEN / f"{name}.json.gz")
    state = {key: torch.from_numpy(value) for key, value in original_state(manifest).items()}
    kept = {key: torch.zeros(tuple(shape)) for key, (shape, _, kind) in manifest["state"].items() if kind == "keep"}
    return {key: (state | kept)[key] for key in manifest["state"]}


@pytest.fixture(scope="module")
def swin_state() -> dict[str, Tensor]:
    return original("swin/swin_tiny_patch4_window7_224")


@pytest.fixture(scope="module")
def visformer_state() -> dict[str, Tensor]:
    return original("visformer/visformer_tiny")


def test_a_classifier_of_the_original_is_read_in_full(swin_state: dict[str, Tensor]) -> None:
    model = fourstage.create_model("swin_tiny")
    report = load_state(model, swin_state, source="swin.pth")
    assert (report.read, report.renamed, report.resized, report.fresh, report.head) == (173, 171, (), (), "")
    assert all(key.endswith(("relative_position_index", "attn_mask")) for key in report.dropped)
    assert report.dropped == report.rebuilt
    assert str(report) == "swin.pth: 173 read, 17 buffers rebuilt"


def test_counters_are_read_where_the_file_has_them(visformer_state: dict[str, Tensor]) -> None:
    model = fourstage.create_model("visformer_tiny")
    report = load_state(model, visformer_state, source="v.pth")
    assert report.read == len(model.state_dict())
    assert not report.dropped


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "_orig_mod.module."])
def test_prefixes_compose(prefix: str, visformer_state: dict[str, Tensor]) -> None:
    state = {prefix + key: value for key, value in visformer_state.items()}
    extra = {"neck.weight": torch.zeros(1), "head.weight": torch.zeros(1)} if "backbone" in prefix else {}
    extra = {prefix.removesuffix("backbone.") + key: value for key, value in extra.items()}
    model = fourstage.create_model("visformer_tiny")
    report = load_state(model, state | extra, source="v.pth")
    assert sorted(report.dropped) == ["head.weight", "neck.weight"][: len(extra)]
    assert torch.equal(model.state_dict()["stages.2.position"], visformer_state["pos_embed3"])


def test_a_classifier_and_a_detector_fill_the_dense_form(swin_state: dict[str, Tensor]) -> None:
    backbone = fourstage.create_backbone("swin_tiny")
    report = load_state(backbone, swin_state, source="swin.pth")
    assert report.fresh == tuple(f"norms.{i}.{part}" for i in range(4) for part in ("weight", "bias"))
    left_out = "4 left out (final.*, head.*), 8 as built (norms.*.weight, norms.*.bias)"
    assert str(report) == f"swin.pth: 169 read, 17 buffers rebuilt, {left_out}"
    assert {"final.weight", "final.bias", "head.weight", "head.bias"} <= set(report.dropped)
    dense_state = original("swin/swin_tiny_det_backbone")
    detector = {f"backbone.{key}": value for key, value in dense_state.items()} | {"rpn_head.x": torch.zeros(1)}
    report = load_state(backbone, detector, source="mask_rcnn.pth")
    assert (report.read, report.fresh) == (177, ())
    assert str(report) == "mask_rcnn.pth: 177 read, 12 buffers rebuilt, 1 left out (rpn_head.x)"
    assert torch.equal(backbone.state_dict()["norms.3.weight"], dense_state["norm3.weight"])
    two = fourstage.create_backbone("swin_tiny", out_indices=(0, 2))
    report = load_state(two, dense_state, source="swin.pth")
    assert {"norms.1.weight", "norms.3.weight", "stages.3.embed.reduce.weight"} <= set(report.dropped)
    with pytest.raises(ValueError, match="holds the dense form of swin_tiny, without a head: load it into create_back"):
        load_state(fourstage.create_model("swin_tiny"), dense_state, source="swin.pth")


@pytest.mark.parametrize("out_indices", [(0,), (1,), (0, 2)])
def test_a_classifier_fills_a_dense_form_of_few_stages(out_indices: tuple[int, ...]) -> None:
    model = tiny("swin")
    dense = tiny_dense("swin", out_indices=out_indices)
    report = load_state(dense, model.state_dict(), source="file.pth")
    assert torch.equal(dense.state_dict()["stem.0.weight"], model.state_dict()["stem.0.weight"])
    assert report.fresh == tuple(f"norms.{i}.{key}" for i in out_indices for key in ("weight", "bias"))


def test_our_own_files_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = (fourstage.create_model("visformer_digits") for _ in range(2))
    state = {f"network.{key}": value for key, value in model.state_dict().items()}
    path = tmp_path / "last.pt"
    ema = {key: torch.full_like(value, 3) for key, value in state.items()}
    torch.save({"fourstage": 1, "step": 5, "model": state, "ema": ema, "classes": list("0123456789")}, path)
    report = fourstage.load_checkpoint(other, path)
    assert str(report) == f"last.pt: {len(state)} read"
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
    fourstage.load_checkpoint(other, path, which="ema")
    assert float(other.state_dict()["head.bias"].mean()) == 3
    backbone = fourstage.create_backbone("visformer_digits")
    assert fourstage.load_checkpoint(backbone, path).fresh == tuple(
        f"norms.{i}.{part}" for i in range(3) for part in ("weight", "bias", "running_mean", "running_var")
    )


def test_another_class_count_names_both_and_what_to_type(visformer_state: dict[str, Tensor]) -> None:
    model = fourstage.create_model("visformer_tiny", num_classes=10)
    before = model.state_dict()["head.weight"].clone()
    with pytest.raises(ValueError, match=r"v.pth predicts 1000 classes and the network 10: .*num_classes=1000"):
        load_state(model, visformer_state, source="v.pth")
    report = load_state(model, visformer_state, source="v.pth", fresh_head=True)
    assert str(report) == f"v.pth: {len(model.state_dict()) - 2} read, head dropped: 1000 to 10 classes"
    assert report.fresh == ("head.weight", "head.bias")
    assert torch.equal(model.state_dict()["head.weight"], before)
    headless = {key: value for key, value in visformer_state.items() if not key.startswith("head.")}
    with pytest.raises(ValueError, match=r"v\.pth has no head: give load_checkpoint fresh_head=True"):
        load_state(model, headless, source="v.pth")
    assert load_state(model, headless, source="v.pth", fresh_head=True).head == "head new: the file has none"
    pooled = fourstage.create_model("visformer_tiny", num_classes=0)
    assert load_state(pooled, visformer_state, source="v.pth").dropped == ("head.weight", "head.bias")


def test_the_same_class_count_keeps_the_files_head(visformer_state: dict[str, Tensor]) -> None:
    model = fourstage.create_model("visformer_tiny")
    assert load_state(model, visformer_state, source="v", fresh_head=True).head == ""
    assert torch.equal(model.state_dict()["head.weight"], visformer_state["head.weight"])


@pytest.mark.parametrize(
    ("other", "ours"), [("visformer_small", False), ("visformer_small", True), ("swin_tiny", False)]
)
def test_a_sibling_and_another_family_are_refused_by_name(
    other: str, ours: bool, visformer_state: dict[str, Tensor]
) -> None:
    state = visformer_state
    if ours:
        state = fourstage.create_model("visformer_tiny", num_classes=3).state_dict()
    model = fourstage.create_model(other)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sentence = rf"v.pth is a checkpoint of visformer_tiny, not of {other}: type create_model\('visformer_tiny'\)"
    with pytest.raises(ValueError, match=sentence):
        load_state(model, state, source="v.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_file_that_fits_as_it_is_goes_before_those_that_would_be_resized() -> None:
    base, base_384 = "swin_base", "swin_base_patch4_window12_384"
    with torch.device("meta"):
        small, large = (fourstage.create_model(name).state_dict() for name in (base, base_384))
        other = fourstage.create_model(base, window_size=5).state_dict()
        detector = fourstage.create_backbone(base_384).state_dict()
    assert which_models(small, first="swin_tiny") == [base]
    assert which_models(large, first="swin_tiny") == [base_384]
    assert which_models(renamed(detector, MICROSOFT)) == [base_384]
    assert which_models(renamed(other, MICROSOFT)) == [base, base_384]
    assert which_models({"a": torch.zeros(1)}) == []


def test_the_search_over_all_networks_initialises_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("values that nobody reads, which take most of the time")

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.init, "_no_grad_normal_", fail)
        patch.setattr(torch.nn.init, "_no_grad_uniform_", fail)
        assert which_models({"stages.0.nobody": torch.zeros(1)}) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("norm.bn.weight"), r"final.weight is missing from the file"),
        (lambda s: s.update({"zzz": torch.zeros(1)}), r"nor any other network here"),
        (
            lambda s: s.update({"stem.0.weight": torch.zeros(16, 1, 7, 7)}),
            r"stem.0.weight is \(16, 1, 7, 7\) in the file",
        ),
        (lambda s: s.clear(), "it holds no tensors"),
    ],
)
def test_a_strange_file_is_refused_with_what_is_strange(change, sentence, visformer_state: dict[str, Tensor]) -> None:
    state = dict(visformer_state)
    change(state)
    with pytest.raises(ValueError, match=sentence):
        load_state(fourstage.create_model("visformer_tiny"), state, source="v.pth")


def with_scales(state: dict[str, Tensor]) -> None:
    for key in [key for key in state if key.endswith(".norm1.weight")]:
        state |= {key.replace("norm1.weight", f"gamma_{i}"): torch.ones_like(state[key]) for i in (1, 2)}


def without_scales(state: dict[str, Tensor]) -> None:
    for key in [key for key in state if "gamma" in key]:
        del state[key]


def with_position(state: dict[str, Tensor]) -> None:
    state["absolute_pos_embed"] = torch.zeros(1, 56 * 56, 96)


@pytest.mark.parametrize(
    ("file", "change", "network", "sentence"),
    [
        ("smt/smt_tiny_224", with_scales, "smt_tiny", r"type create_model\('smt_tiny', init_values=0\.0001\)"),
        ("stm/unified_pvt_micro", without_scales, "unified_pvt_micro", r"\('unified_pvt_micro', init_values=0\)"),
        ("swin/swin_tiny_patch4_window7_224", with_position, "swin_tiny", r"create_model\('swin_tiny', ape=True\)"),
        ("smt/smt_tiny_224", with_scales, "smt_base", r"of smt_tiny, .*: type .*'smt_tiny', init_values=0\.0001\)"),
    ],
)
def test_a_file_with_other_parameters_names_the_argument_that_makes_them(
    file: str, change: Callable[[dict[str, Tensor]], None], network: str, sentence: str
) -> None:
    state = original(file)
    change(state)
    with torch.device("meta"):
        model = fourstage.create_model(network)
    with pytest.raises(ValueError, match=sentence):
        load_state(model, state, source="x.pth")


def test_of_networks_with_the_same_tensors_the_own_one_is_named() -> None:
    """The file fits smt_large as well, which comes first."""
    with torch.device("meta"):
        state = fourstage.create_model("smt_large_384", init_values=0).state_dict()
        model = fourstage.create_model("smt_large_384")
    with pytest.raises(ValueError, match=r"is a smt_large_384 .*: type create_model\('smt_large_384', init_values="):
        load_state(model, state, source="x.pth")


def test_every_key_of_ours_comes_from_exactly_one_rule(swin_state: dict[str, Tensor]) -> None:
    for name, state in (("swin_tiny", swin_state), ("visformer_small", original("visformer/visformer_tiny"))):
        model = fourstage.create_model(name)
        assert isinstance(model, Classifier)
        assert model.family.name in FAMILIES
        named = our_names(model, state)
        assert named is not None
        assert named[0].keys() == model.state_dict().keys()
    assert unwrap({}) == ({}, [])


def test_tables_are_resized_to_the_network(visformer_state: dict[str, Tensor]) -> None:
    model = fourstage.create_model("visformer_tiny", img_size=(256, 192))
    report = load_state(model, visformer_state, source="v.pth")
    assert report.resized == tuple(f"stages.{i}.position" for i in range(3))
    assert "3 resized" in str(report)
    large, small = (swin.classifier(dataclasses.replace(SWIN, window=w)) for w in (7, 4))
    report = load_state(large, small.state_dict(), source="s.pth")
    assert len(report.resized) == 8
    assert large.state_dict()["stages.0.blocks.0.attn.table"].shape == (169, 1)


def test_running_at_another_size_is_loading_for_that_size(visformer_state: dict[str, Tensor]) -> None:
    here, there = (fourstage.create_model("visformer_tiny", img_size=size).eval() for size in (224, 128))
    for model in (here, there):
        load_state(model, visformer_state, source="v.pth")
    image_BCHW = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(here(image_BCHW), there(image_BCHW), rtol=1e-5, atol=1e-5)


class Sorter(nn.Module):
    """A classifier of a user's own, whose head has other names than ours."""

    def __init__(self, classes: int, head: str) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 4)
        layers = {"fc": nn.Linear(8, classes), "pixels": nn.Conv2d(8, classes, 1)}
        layers["head"] = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, classes))
        self.add_module(head, layers[head])


@pytest.mark.parametrize("head", ["fc", "pixels", "head"])
def test_heads_of_own_classifiers_are_filled_or_as_built(head: str) -> None:
    file, same = Sorter(4, head).state_dict(), Sorter(4, head)
    assert "4 read" in str(load_state(same, {**file}, source="f.pt")) or head == "head"
    assert all(torch.equal(value, file[key]) for key, value in same.state_dict().items())
    other = Sorter(7, head)
    built = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"f.pt predicts 4 classes and the network 7: .*fresh_head=True"):
        load_state(other, file, source="f.pt")
    report = load_state(other, file, source="f.pt", fresh_head=True)
    assert report.head == "head dropped: 4 to 7 classes"
    ends = tuple(key for key in built if built[key].shape != file[key].shape)
    assert len(ends) == 2
    for key, value in other.state_dict().items():
        assert torch.equal(value, built[key] if key in ends else file[key]), key


def test_what_is_no_head_of_an_own_classifier_is_never_left_as_built() -> None:
    """A width that another layer reads, and a row per place."""

    class Places(Sorter):
        def __init__(self, rows: int) -> None:
            super().__init__(4, "fc")
            self.places = nn.Parameter(torch.zeros(rows, 3))

    class Wide(nn.Sequential):
        def __init__(self, width: int) -> None:
            super().__init__(nn.Linear(3, width), nn.Linear(width, 4))

    for build in (Places, Wide):
        with pytest.raises(ValueError, match=r"f.pt does not fit this network"):
            load_state(build(9), build(16).state_dict(), source="f.pt", fresh_head=True)
