"""Checkpoints as training programs wrap them, feature extractors, and images of other than three channels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_networks import NETWORKS, tiny, tiny_dense
from torch import Tensor, nn

import fourstage
from fourstage import registry
from fourstage.backbones.feature_maps import FeatureMaps
from fourstage.weights.adapt import adapt_stem
from fourstage.weights.load import load_state

State = dict[str, Tensor]


def with_prefix(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def filled(value: float, **arguments: int) -> State:
    return {key: torch.full_like(x, value) for key, x in tiny("swin", **arguments).state_dict().items()}


@pytest.mark.parametrize(
    "prefix",
    [
        "model.",
        "net.",
        "model.net.",
        "model.backbone.",
        "model._orig_mod.",
        "module.model.",
        "student.",
        "teacher.backbone.",
    ],
)
def test_prefixes_of_training_programs_are_taken_off(prefix: str, tmp_path: Path) -> None:
    other = {"criterion.weight": torch.zeros(1000)}
    torch.save({"state_dict": {**other, **with_prefix(prefix, filled(3))}, "epoch": 1}, tmp_path / "last.ckpt")
    model = tiny("swin")
    report = fourstage.load_checkpoint(model, tmp_path / "last.ckpt")
    assert report.read == len(model.state_dict())
    assert report.dropped == ("criterion.weight",)
    assert all(bool((value == 3).all()) for value in model.state_dict().values())


@pytest.mark.parametrize("nested", [True, False])
def test_the_teacher_is_taken_and_the_report_says_so(nested: bool, tmp_path: Path) -> None:
    twins = {"student": with_prefix("module.backbone.", filled(1)), "teacher": with_prefix("backbone.", filled(2))}
    flat = {f"{name}.{key}": value for name, state in twins.items() for key, value in state.items()}
    torch.save({**twins, "epoch": 1} if nested else {"state_dict": flat}, tmp_path / "dino.pth")
    model = tiny("swin")
    report = fourstage.load_checkpoint(model, tmp_path / "dino.pth")
    assert float(model.state_dict()["head.bias"][0]) == 2
    assert str(report).startswith(f"dino.pth: {report.read} read, teacher taken, not the student, ")


def test_the_student_is_taken_where_the_teacher_is_another_network() -> None:
    state = with_prefix("student.", filled(1)) | with_prefix("teacher.", tiny("smt").state_dict())
    model = tiny("swin")
    report = load_state(model, state, source="distilled.ckpt")
    assert report.taken == "student taken, not the teacher"
    assert float(model.state_dict()["head.bias"][0]) == 1


def test_endless_prefixes_end() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        load_state(tiny("swin"), {"model." * 10_000 + "x": torch.zeros(1)}, source="long.pt")


@pytest.mark.parametrize("prefix", ["model.", "net.", "teacher.", "module.model."])
def test_detectors_are_read_behind_prefixes(prefix: str) -> None:
    def build() -> nn.Module:
        return fourstage.create_detector("retinanet", tiny_dense("swin"), 2)

    ours, state = build(), build().state_dict()
    from fourstage.weights.complete_checkpoints import load_dense_state

    brought = (
        {"loss.weight": torch.zeros(1), **with_prefix(prefix, state)}
        if "module" not in prefix
        else with_prefix(prefix, state)
    )
    report = load_dense_state(ours, brought, method="retinanet", source="lightning.ckpt")
    assert (report.read, report.fresh) == (len(state), ())
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())
    backbone = with_prefix(prefix, tiny("swin").state_dict())
    assert load_dense_state(build(), backbone, method="retinanet", source="c.ckpt").read > 90


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_feature_extractor_takes_a_fine_tuned_file(name: str) -> None:
    torch.manual_seed(0)
    tuned, maps = tiny(name, num_classes=5).eval(), FeatureMaps(tiny(name).eval())
    report = load_state(maps, tuned.state_dict(), source="five_classes.pth")
    assert "head left out: this network has none, the file one for 5 classes" in str(report)
    assert {"head.weight", "head.bias"} <= set(report.dropped)
    assert not report.fresh
    x_BCHW = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for mine, theirs in zip(maps(x_BCHW), tuned.forward_maps(x_BCHW), strict=True):
            assert torch.equal(mine, theirs)
    own = maps.state_dict()
    assert load_state(FeatureMaps(tiny(name)), own, source="maps.pth").read == len(own)
    assert load_state(tiny_dense(name), own, source="maps.pth").read > 0
    with pytest.raises(ValueError, match="fresh_head=True"):
        load_state(tiny(name), own, source="maps.pth")
    assert load_state(tiny(name), own, source="maps.pth", fresh_head=True).read == len(own)


def test_create_model_with_features_only_and_without_classes(tmp_path: Path) -> None:
    path = tmp_path / "five_classes.pth"
    tuned = fourstage.create_model("visformer_digits", num_classes=5)
    torch.save({"model": tuned.state_dict()}, path)
    maps = fourstage.create_model("visformer_digits", features_only=True, checkpoint_path=path)
    assert torch.equal(maps.state_dict()["model.stem.0.weight"], tuned.state_dict()["stem.0.weight"])
    two = fourstage.create_model("visformer_digits", features_only=True, out_indices=(0, 1), checkpoint_path=path)
    assert any(key.startswith("stages.2.") for key in fourstage.load_checkpoint(two, path).dropped)
    pooled = fourstage.create_model("visformer_digits", num_classes=0, checkpoint_path=path)
    report = fourstage.load_checkpoint(pooled, path)
    assert str(report).endswith("read, head left out: this network has none, the file one for 5 classes")
    with pytest.raises(ValueError, match="predicts 5 classes"):
        fourstage.create_model("visformer_digits", checkpoint_path=path)


def test_the_stem_is_adapted_as_timm_does() -> None:
    timm = pytest.importorskip("timm")
    weight = torch.randn(4, 3, 5, 5)
    for channels in (1, 2, 4, 5, 6, 7):
        for dtype in (torch.float32, torch.float16):
            expected = timm.models.adapt_input_conv(channels, weight.to(dtype))
            assert torch.equal(adapt_stem(weight.to(dtype), channels), expected)


@pytest.mark.parametrize("form", [tiny, tiny_dense])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_rgb_weights_fill_a_network_for_other_channels(name: str, form: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    rgb = form(name).eval()
    grey, four, same = (form(name, in_chans=count).eval() for count in (1, 4, 3))
    note = "stem adapted: RGB summed to 1 channel"
    assert note in str(load_state(grey, rgb.state_dict(), source="rgb.pth"))
    assert "stem adapted: RGB repeated to 4 channels" in str(load_state(four, rgb.state_dict(), source="rgb.pth"))
    assert load_state(same, rgb.state_dict(), source="rgb.pth").stem == ""
    assert all(torch.equal(value, rgb.state_dict()[key]) for key, value in same.state_dict().items())
    x_B1HW = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        expected, found = rgb(x_B1HW.expand(-1, 3, -1, -1)), grey(x_B1HW)
        assert four(torch.randn(1, 4, 64, 64))[0].isfinite().all()
    for theirs, mine in zip(expected, found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_grey_weights_do_not_fill_a_network_for_rgb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", {})  # do not search for a network that it fits
    for theirs, ours in ((1, 3), (4, 3), (4, 1)):
        with pytest.raises(ValueError, match=r"is \(.*\) in the file and \(.*\) in the network"):
            load_state(tiny("swin", in_chans=ours), tiny("swin", in_chans=theirs).state_dict(), source="grey.pth")


def test_published_style_files_fill_create_model_for_grey_images(tmp_path: Path) -> None:
    rgb = fourstage.create_model("visformer_digits", num_classes=5)
    torch.save({"model": rgb.state_dict()}, tmp_path / "rgb.pth")
    grey = fourstage.create_model("visformer_digits", in_chans=1, num_classes=3, checkpoint_path=tmp_path / "rgb.pth")
    weight = rgb.state_dict()["stem.0.weight"].sum(dim=1, keepdim=True)
    assert torch.equal(grey.state_dict()["stem.0.weight"], weight)
    maps = fourstage.create_model("visformer_digits", in_chans=1, features_only=True)
    assert "summed to 1 channel, head left out" in str(fourstage.load_checkpoint(maps, tmp_path / "rgb.pth"))
