"""Every setting of a segmentor means what it means in MMSegmentation, on sides of every length."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain import FPN, Backbone, EncoderDecoder, FCNHead, FPNHead, UPerHead, resize
from torch import Tensor, nn

import fourstage
from fourstage.backbones.layers import Level
from fourstage.data.sample import Batch
from fourstage.data.transforms.resizing import Normalise
from fourstage.tasks.segmentation.inference import Inference
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.semantic_fpn import semantic_fpn as build_semantic_fpn
from fourstage.tasks.segmentation.upernet import upernet as build_upernet

NORMALISE = Normalise.of((0, 0, 0), (1, 1, 1))
UPERNETS: dict[str, dict[str, Any]] = {
    "corners aligned": {"align_corners": True},
    "two classes, odd pools": {"num_classes": 2, "pool_scales": (1, 4)},
    "three levels": {"widths": (4, 6, 8), "auxiliary_map": 1, "auxiliary_convs": 2},
    "another auxiliary map": {"auxiliary_map": -1, "auxiliary_convs": 2, "auxiliary_concat": True},
    "the deepest maps": {"maps": (1, 3), "auxiliary_map": 0, "auxiliary_weight": 1.0, "align_corners": True},
    "coarse, no auxiliary": {"steps": (8, 2, 2, 2), "auxiliary_weight": 0, "num_classes": 150},
}
SEMANTIC_FPNS: dict[str, dict[str, Any]] = {
    "corners aligned": {"align_corners": True},
    "from the second map": {"maps": (1, 2, 3), "num_classes": 2},
    "one more map": {"num_outs": 5, "align_corners": True},
    "coarse": {"steps": (8, 2, 2, 2), "widths": (4, 6, 8, 10)},
}


def upernet(settings: dict[str, Any], widths: tuple[int, ...], backbone: Backbone, classes: int) -> EncoderDecoder:
    maps, align = settings.get("maps", range(len(widths))), settings.get("align_corners", False)
    auxiliary = None
    if settings.get("auxiliary_weight", 0.4):
        index, convs = settings.get("auxiliary_map", 2), settings.get("auxiliary_convs", 1)
        auxiliary = FCNHead(widths, classes, 5, convs, index, settings.get("auxiliary_concat", False))
    head = UPerHead(widths, classes, 6, settings.get("pool_scales", (1, 2, 3, 6)), tuple(maps), align)
    return EncoderDecoder(backbone, head, auxiliary=auxiliary, align=align)


def semantic_fpn(settings: dict[str, Any], widths: tuple[int, ...], backbone: Backbone, classes: int) -> EncoderDecoder:
    start, align = settings.get("maps", (0,))[0], settings.get("align_corners", False)
    strides = [level.stride for level in backbone.levels[start:]]
    outs = settings.get("num_outs", len(strides))
    strides += [strides[-1] * 2] * (outs - len(strides))
    neck = FPN(widths, 4, start, outs)
    return EncoderDecoder(backbone, FPNHead(4, classes, 6, strides, align), neck=neck, align=align)


def both(method: str, settings: dict[str, Any], folder: Path) -> tuple[EncoderDecoder, Any]:
    """The plain network, and ours with its weights from a file."""
    torch.manual_seed(0)
    widths, classes = settings.get("widths", (4, 6, 8, 10)), settings.get("num_classes", 7)
    steps = settings.get("steps", (4, 2, 2, 2))[: len(widths)]
    theirs = (upernet if method == "upernet" else semantic_fpn)(settings, widths, Backbone(widths, steps), classes)
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            fresh = torch.rand_like(value) + 0.5 if value.ndim == 1 else torch.randn_like(value)
            value.copy_(fresh if value.ndim == 1 else fresh * (2 / value[0].numel()) ** 0.5)
            assert not name.endswith("running_var") or (value > 0).all()
    torch.save({"meta": {}, "state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, folder / "m.pth")
    sizes = {"channels": 6, "auxiliary_channels": 5} if method == "upernet" else {"channels": 6, "neck_channels": 4}
    given = {key: value for key, value in settings.items() if key not in ("widths", "steps", "num_classes")}
    ours = fourstage.create_segmentor(method, Backbone(widths, steps), classes, dropout=0.0, **sizes, **given)
    report = fourstage.load_checkpoint(ours, folder / "m.pth")
    assert not report.fresh
    assert not report.dropped
    return theirs.eval(), ours.eval()


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


CASES = [("upernet", name) for name in UPERNETS] + [("semantic_fpn", name) for name in SEMANTIC_FPNS]


@pytest.mark.parametrize(("method", "name"), CASES)
@torch.no_grad()
def test_logits_losses_and_windows(method: str, name: str, tmp_path: Path) -> None:
    settings = (UPERNETS if method == "upernet" else SEMANTIC_FPNS)[name]
    theirs, ours = both(method, settings, tmp_path)
    for network in (theirs, ours):
        network.double()  # where two orders of sums agree
    images, labels = torch.randn(2, 3, 75, 106, dtype=torch.float64), torch.randint(0, ours.num_classes, (2, 75, 106))
    labels[:, 10:30] = 0
    weight = settings.get("auxiliary_weight", 0.4)
    for training, over_valid, ignore in ((False, False, 0), (False, True, 0), (True, False, 255)):
        for network in (theirs, ours):
            network.train(training)
        expected = theirs.losses(images, labels, weight=weight, ignore=ignore, over_valid=over_valid)
        found = ours.losses(images, labels, over_valid=over_valid, ignore=ignore)
        assert found.keys() == expected.keys()
        for loss in expected:
            close(found[loss], expected[loss])
    for network in (theirs, ours):
        network.eval()
    close(ours(images), theirs(images))
    align, batch = (
        settings.get("align_corners", False),
        Batch(("a", "b"), images, ((75, 106), (70, 101)), ((50, 61), (91, 140))),
    )
    plans = {
        Protocol(scale=None): theirs(images),
        Protocol(scale=None, window=(40, 48), stride=(27, 33)): theirs.slide(images, (40, 48), (27, 33)),
    }
    for protocol, logits in plans.items():
        for strip in (None, 1000):
            for i, scores in enumerate(Inference(ours, NORMALISE, strip=strip).scores(batch, protocol)):
                (height, width), size = batch.sizes[i], batch.original_sizes[i]
                close(scores, resize(logits[i : i + 1, :, :height, :width], size, align)[0])


@pytest.mark.parametrize("window", [None, (40, 48)])
@torch.no_grad()
def test_views_are_filled_up_after_they_are_mirrored(window: tuple[int, int] | None, tmp_path: Path) -> None:
    theirs, ours = both("upernet", {"align_corners": True}, tmp_path)
    for network in (theirs, ours):
        network.double()
    images, stride = torch.randn(1, 3, 75, 106, dtype=torch.float64), None if window is None else (27, 33)
    protocol = Protocol(scale=None, ratios=(1.0, 1.4), flip=True, window=window, stride=stride, divisor=32)
    [scores] = Inference(ours, NORMALISE, strip=1000).scores(Batch(("a",), images, ((75, 106),), ((60, 91),)), protocol)
    expected = torch.zeros(())
    for height, width in ((75, 106), (105, 148)):
        resized = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        for mirrored in (False, True):
            seen = F.pad(resized.flip(-1) if mirrored else resized, (0, -width % 32, 0, -height % 32))
            logits = theirs(seen) if window is None or stride is None else theirs.slide(seen, window, stride)
            logits = logits[:, :, :height, :width]
            logits = resize(logits.flip(-1) if mirrored else logits, (60, 91), align=True)
            expected = expected + logits.softmax(dim=1)[0] / 4
    close(scores, expected)
    assert "filled up to multiples of 32" in str(protocol)


class Still(nn.Module):
    """A backbone without weights."""

    levels = tuple(Level(3, stride) for stride in (4, 8, 16, 32))

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(image_BCHW, level.stride, ceil_mode=True) for level in self.levels]


def test_a_backbone_without_weights_leaves_the_heads_to_the_file(tmp_path: Path) -> None:
    theirs = UPerHead((3, 3, 3, 3), 5, 6, (1, 2, 3, 6), (0, 1, 2, 3), align=False)
    torch.save({f"decode_head.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "m.pth")
    ours: Any = fourstage.create_segmentor("upernet", Still(), 5, channels=6, auxiliary_weight=0)
    report = fourstage.load_checkpoint(ours, tmp_path / "m.pth")
    assert report.read == len(theirs.state_dict())
    images = torch.randn(1, 3, 64, 96)
    close(ours.eval().coarse(images), theirs.eval()(Still()(images)))


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("method", ["upernet", "semantic_fpn"])
def test_auxiliary_heads_of_another_kind_are_left_out(method: str, several: bool, tmp_path: Path) -> None:
    theirs, _ = both(method, {"auxiliary_weight": 0} if method == "upernet" else {}, tmp_path)
    prefix = "auxiliary_head.1." if several else "auxiliary_head."
    extra = {
        f"{prefix}psp_modules.0.1.conv.weight": torch.zeros(5, 8, 1, 1),
        f"{prefix}project.ln.bias": torch.zeros(5),
    }
    torch.save({"state_dict": theirs.state_dict() | extra}, tmp_path / "m.pth")
    sizes: dict[str, Any] = {"channels": 6}
    sizes |= {"auxiliary_channels": 5} if method == "upernet" else {"neck_channels": 4}
    off: dict[str, Any] = {"auxiliary_weight": 0.0} if method == "upernet" else {}
    ours = fourstage.create_segmentor(method, Backbone((4, 6, 8, 10), (4, 2, 2, 2)), 7, **sizes, **off)
    report = fourstage.load_checkpoint(ours, tmp_path / "m.pth")
    assert set(report.dropped) == set(extra)
    assert not report.fresh


@pytest.mark.parametrize("maps", [(), (2, 1), (1, 1), (0, 4), (-5, 1)])
def test_maps_that_are_not_there_are_refused(maps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"numbers of the backbone's 4 maps.*got"):
        fourstage.create_segmentor("upernet", Still(), 5, maps=maps)
    with pytest.raises(ValueError, match="divisor"):
        Protocol(window=(64, 64), stride=(64, 64), divisor=65)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"channels": -4}, "channels must be an integer of at least 1; got -4"),
        ({"pool_scales": [1, 0]}, r"pool_scales\[1\] must be an integer of at least.*got 0"),
        ({"pool_scales": 3}, r"upernet cannot be built with pool_scales=3 \(.*not iterable\); correct them"),
        ({"auxiliary_channels": 0}, "auxiliary_channels must be an integer of at least"),
        ({"auxiliary_convs": -1}, "auxiliary_convs must be an integer of at least 0"),
        ({"prior": [0.5, 0.5]}, r"of each of 5 classes.*got \[0.5, 0.5\]; .*method_args.prior=auto in a recipe"),
        ({"prior": [1, 1, 1, 1, 0]}, "above 0"),
        ({"prior": "auto"}, "prior is a list of 5 numbers or None, or in a recipe auto; got 'auto'"),
        ({"prior": 3}, r"cannot be built with prior=3"),
    ],
)
def test_settings_that_there_are_not_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        fourstage.create_segmentor("upernet", Still(), 5, **arguments)


@pytest.mark.parametrize("build", [build_upernet, build_semantic_fpn])
def test_a_backbone_that_says_nothing_of_its_maps_is_refused(build: Callable[..., nn.Module]) -> None:
    with pytest.raises(ValueError, match="Identity has no levels"):
        build(nn.Identity(), 3)


def test_a_classifier_with_its_backbone_by_name_fills_the_backbone(tmp_path: Path) -> None:
    theirs = fourstage.create_backbone("visformer_digits").state_dict()
    head = {"head.fc.weight": torch.zeros(3, 4), "head.fc.bias": torch.zeros(3)}
    torch.save({"state_dict": {f"backbone.{k}": v for k, v in theirs.items()} | head}, tmp_path / "m.pth")
    ours = fourstage.create_segmentor("upernet", "visformer_digits", 5, channels=6, auxiliary_channels=5)
    report = fourstage.load_checkpoint(ours, tmp_path / "m.pth")
    assert set(report.dropped) == set(head)
    assert report.read == len(theirs)
    assert all(torch.equal(value, ours.state_dict()[f"backbone.{key}"]) for key, value in theirs.items())
    assert report.fresh
    assert all(key.startswith(("decoder.", "auxiliary.")) for key in report.fresh)
