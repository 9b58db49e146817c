"""Files of every kind fill the networks they are for, and are refused by the others with a sentence."""

import dataclasses
from pathlib import Path

import pytest
import torch
from golden.fill import original_state, read_manifest
from torch import Tensor

import fourstage
from fourstage.backbones import swin
from fourstage.backbones.base import Classifier, Dense
from fourstage.weights import catalog
from fourstage.weights.load import FAMILIES, load_state, our_names, unwrap
from fourstage.weights.resize import resize_position, resize_table

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
    assert (report.read, report.renamed, report.resized, report.fresh, report.head) == (173, 169, (), (), "")
    assert all(key.endswith(("relative_position_index", "attn_mask")) for key in report.dropped)
    assert str(report).startswith("swin.pth: 173 read, 169 of them renamed, 17 left out (layers.0.blocks.0.attn.rel")


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
    assert {"norm.weight", "norm.bias", "head.weight", "head.bias"} <= set(report.dropped)
    dense_state = original("swin/swin_tiny_det_backbone")
    detector = {f"backbone.{key}": value for key, value in dense_state.items()} | {"rpn_head.x": torch.zeros(1)}
    report = load_state(backbone, detector, source="mask_rcnn.pth")
    assert (report.read, report.fresh) == (177, ())
    assert torch.equal(backbone.state_dict()["norms.3.weight"], dense_state["norm3.weight"])
    two = fourstage.create_backbone("swin_tiny", out_indices=(0, 2))
    report = load_state(two, dense_state, source="swin.pth")
    assert {"norms.1.weight", "norms.3.weight", "stages.3.embed.reduce.weight"} <= set(report.dropped)
    with pytest.raises(ValueError, match="holds the dense form of swin_tiny, without a head: load it into create_back"):
        load_state(fourstage.create_model("swin_tiny"), dense_state, source="swin.pth")


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
    assert "head dropped: 1000 to 10 classes" in str(report)
    assert report.fresh == ("head.weight", "head.bias")
    assert torch.equal(model.state_dict()["head.weight"], before)
    headless = {key: value for key, value in visformer_state.items() if not key.startswith("head.")}
    with pytest.raises(ValueError, match=r"v\.pth has no head: give load_checkpoint fresh_head=True"):
        load_state(model, headless, source="v.pth")
    assert load_state(model, headless, source="v.pth", fresh_head=True).head == "the file has none"
    pooled = fourstage.create_model("visformer_tiny", num_classes=0)
    assert load_state(pooled, visformer_state, source="v.pth").dropped == ("head.weight", "head.bias")


def test_the_same_class_count_keeps_the_files_head(visformer_state: dict[str, Tensor]) -> None:
    model = fourstage.create_model("visformer_tiny")
    assert load_state(model, visformer_state, source="v", fresh_head=True).head == ""
    assert torch.equal(model.state_dict()["head.weight"], visformer_state["head.weight"])


@pytest.mark.parametrize("ours", [False, True])
def test_a_sibling_and_another_family_are_refused_by_name(ours: bool, visformer_state: dict[str, Tensor]) -> None:
    state = visformer_state
    if ours:
        state = fourstage.create_model("visformer_tiny", num_classes=3).state_dict()
    for other in ("visformer_small", "swin_tiny"):
        model = fourstage.create_model(other)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        sentence = rf"v.pth does not fit {other}, it is visformer_tiny: type create_model\('visformer_tiny'\)"
        with pytest.raises(ValueError, match=sentence):
            load_state(model, state, source="v.pth")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.pop("norm.bn.weight"), r"norm.weight is missing from the file"),
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
    large, small = (swin.classifier(dataclasses.replace(swin.TEST_DESIGN, window=w)) for w in (7, 4))
    report = load_state(large, small.state_dict(), source="s.pth")
    assert len(report.resized) == 8
    assert large.state_dict()["stages.0.blocks.0.attn.table"].shape == (169, 1)


def test_resizing_keeps_constants_and_a_native_table(visformer_state: dict[str, Tensor]) -> None:
    table = torch.randn(49, 3)
    torch.testing.assert_close(resize_table(table, 49), table)
    torch.testing.assert_close(resize_table(torch.ones(49, 3), 169), torch.ones(169, 3))
    rising = torch.arange(7.0).repeat(7, 1).reshape(49, 1)  # grows along the second side of the square
    square = resize_table(rising, 169).reshape(13, 13)
    torch.testing.assert_close(square, square[:1].expand(13, -1))
    assert bool((square[0].diff() > 0)[1:-1].all())
    position = torch.randn(1, 4, 6, 5, dtype=torch.float16)
    assert resize_position(position, 6, 5).dtype == torch.float16
    assert resize_position(position, 9, 7).shape == (1, 4, 9, 7)


def test_running_at_another_size_is_loading_for_that_size(visformer_state: dict[str, Tensor]) -> None:
    here, there = (fourstage.create_model("visformer_tiny", img_size=size).eval() for size in (224, 128))
    for model in (here, there):
        load_state(model, visformer_state, source="v.pth")
    image_BCHW = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        torch.testing.assert_close(here(image_BCHW), there(image_BCHW), rtol=1e-5, atol=1e-5)


def test_the_catalog_names_models_that_exist() -> None:
    names = fourstage.list_models()
    assert len({weight.name for weight in catalog.WEIGHTS}) == len(catalog.WEIGHTS)
    for weight in catalog.WEIGHTS:
        assert weight.model in names
        assert weight.licence
        assert weight.top1 is not None
        assert 70 < weight.top1 < 90
    assert isinstance(fourstage.create_backbone("swin_tiny"), Dense)
