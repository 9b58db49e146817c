"""Necks and heads give the numbers of MMSegmentation, from checkpoints with its names."""

from typing import Any

import numpy as np
import pytest
import torch
from golden.dense import check_gradients, load
from golden.fill import fill, fill_head
from heads import METHODS, FixedMaps, Patches, assert_sampled, golden, labels_of, state_of
from torch import Tensor, nn

import fourstage
from fourstage.data.sample import Batch
from fourstage.data.transforms.resizing import Normalise
from fourstage.ops.resize import resize
from fourstage.tasks.segmentation.inference import Inference
from fourstage.tasks.segmentation.losses import pixel_cross_entropy
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.segmentor import Segmentor

COMPLETE = Protocol(scale=None)
IGNORED = (slice(None), slice(100, 140), slice(50, 90))  # in the losses of the heads
TAPS = {  # the original's names of what was recorded, and our modules
    "upernet": {
        "decode_head.lateral_convs.0": "decoder.laterals.0",
        **{f"decode_head.psp_modules.{i}": f"decoder.pooled.{i}" for i in range(4)},
        "decode_head.bottleneck": "decoder.bottleneck",
        "decode_head.fpn_bottleneck": "decoder.fuse",
        "auxiliary_head": "auxiliary",
    },
    "semantic_fpn": {f"decode_head.scale_heads.{i}": f"decoder.scales.{i}" for i in range(4)} | {"neck": "neck"},
}
Case = tuple[str, Segmentor, dict[str, Any], dict[str, np.ndarray]]


@pytest.fixture(params=METHODS, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    manifest, arrays = golden(f"heads/{request.param}")
    model = METHODS[request.param](FixedMaps(), 150, dropout=0.0)
    load(model, state_of(manifest), request.param)
    return request.param, model, manifest, arrays


def tapped(model: nn.Module, names: dict[str, str]) -> tuple[dict[str, Tensor], list[Any]]:
    """Outputs of modules by the original's names, several of one numbered; they arrive when the model runs."""
    found: dict[str, Tensor] = {}

    def tap(name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor | list[Tensor]) -> None:
            several = isinstance(output, list)
            found.update({f"{name}.{i}": x for i, x in enumerate(output)} if several else {name: output})

        return keep

    return found, [model.get_submodule(ours).register_forward_hook(tap(name)) for name, ours in names.items()]


def check_taps(found: dict[str, Tensor], arrays: dict[str, np.ndarray]) -> None:
    for name, x_BCHW in found.items():
        assert_sampled(resize(x_BCHW, tuple(arrays[f"raw/{name}/shape"][2:])), arrays, f"raw/{name}")
    recorded = {key.removeprefix("raw/").removesuffix("/val") for key in arrays if key.startswith("raw/")}
    assert {name for name in recorded if "/" not in name and not name.startswith("backbone")} == set(found)


def batch_of(images_BCHW: Tensor, manifest: dict[str, Any]) -> Batch:
    """As the originals batch it: sizes without the padding, and those of the files."""
    sizes, originals = [], []
    for meta in manifest["metas"]:
        (h, w), (_, right, _, bottom) = meta["img_shape"], meta["padding_size"]
        sizes.append((h - bottom, w - right))
        originals.append(tuple(meta["ori_shape"]))
    return Batch(tuple("ab"), images_BCHW, tuple(sizes), tuple(originals))


def check_predictions(model: Segmentor, batch: Batch, arrays: dict[str, np.ndarray]) -> None:
    inference = Inference(model.eval(), Normalise.of((0, 0, 0), (1, 1, 1)))
    for i, scores_CHW in enumerate(inference.scores(batch, COMPLETE)):
        assert_sampled(scores_CHW, arrays, f"pred/{i}/seg_logits")
        check_labels(scores_CHW.argmax(dim=0), scores_CHW, arrays[f"pred/{i}/argmax"])


def check_labels(labels_HW: Tensor, scores_CHW: Tensor, expected_HW: np.ndarray) -> None:
    """Equal, but for a pixel in 50,000 where two classes have the same score within the tolerance of the scores."""
    expected = torch.from_numpy(expected_HW).long()
    y, x = torch.nonzero(labels_HW != expected, as_tuple=True)
    assert len(y) <= expected.numel() / 50_000
    ours, theirs = scores_CHW[labels_HW[y, x].long(), y, x], scores_CHW[expected[y, x], y, x]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(scores_CHW.std()))


def check_losses(losses: dict[str, Tensor], arrays: dict[str, np.ndarray], prefix: str = "loss") -> None:
    names = {"loss_seg": "decode.loss_ce", "loss_aux": "aux.loss_ce"}
    kept = {ours: f"{prefix}/{theirs}" for ours, theirs in names.items()}
    expected = {ours: arrays[theirs][0] for ours, theirs in kept.items() if theirs in arrays}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_outputs(case: Case) -> None:
    """Those of the complete network, which may take fast paths, and of each module."""
    name, model, manifest, arrays = case
    image_BCHW = torch.zeros(2, 3, 256, 320)
    check_predictions(model.eval(), batch_of(image_BCHW, manifest), arrays)
    found, hooks = tapped(model, TAPS[name])
    with torch.no_grad():
        maps = model.backbone(image_BCHW)
        model.decoder(maps if model.neck is None else model.neck(maps))
        if model.auxiliary is not None:
            model.auxiliary(maps)
    for hook in hooks:
        hook.remove()
    check_taps(found, arrays)


def test_losses_and_gradients(case: Case) -> None:
    name, model, manifest, arrays = case
    model.eval().zero_grad()
    losses = model.losses(torch.zeros(2, 3, 256, 320), labels_of(arrays, [IGNORED]))
    check_losses(losses, arrays)
    torch.stack(list(losses.values())).sum().backward()
    check_gradients(model, manifest, arrays["grad_norm"], name)


def test_losses_with_statistics_of_the_batch(case: Case) -> None:
    _, model, _, arrays = case
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        losses = model.train().losses(torch.zeros(2, 3, 256, 320), labels_of(arrays, [IGNORED]))
    model.load_state_dict(state)
    check_losses(losses, arrays, "loss_train_nodropout")


def test_the_mean_over_pixels_that_count() -> None:
    logits, labels = torch.randn(2, 5, 8, 8), torch.randint(0, 5, (2, 16, 16))
    labels[:, :4] = 255
    over_all, over_valid = (pixel_cross_entropy(logits, labels, over_valid=flag) for flag in (False, True))
    assert over_all.item() == pytest.approx(0.75 * over_valid.item())
    log_p = resize(logits, (16, 16)).log_softmax(dim=1)[:, :, 4:]
    expected = -log_p.gather(1, labels[:, None, 4:]).mean()
    assert over_valid.item() == pytest.approx(expected.item())
    nothing = torch.full_like(labels, 255)
    assert pixel_cross_entropy(logits, nothing, over_valid=True) == pixel_cross_entropy(logits, nothing) == 0


@pytest.fixture(scope="module")
def small() -> tuple[Inference, Batch, dict[str, np.ndarray]]:
    manifest, arrays = golden("heads/seg_slide_tta")
    model = METHODS["upernet"](Patches(), 150, channels=64, auxiliary_channels=32).eval()
    load(model, state_of(manifest), "upernet")
    image = torch.from_numpy(np.random.default_rng(9).standard_normal((1, 3, 192, 224)).astype(np.float32))
    return (
        Inference(model, Normalise.of((0, 0, 0), (1, 1, 1))),
        Batch(("a",), image, ((192, 224),), ((150, 175),)),
        arrays,
    )


PROTOCOLS = {
    "whole/seg_logits": COMPLETE,
    "slide/seg_logits": Protocol(scale=None, window=(128, 128), stride=(85, 85)),
    "tta/probs": Protocol(scale=None, ratios=(0.5, 1.0, 1.5), flip=True),
}


@pytest.mark.parametrize("strip", [None, 150 * 175 * 7, 1])  # all rows at once, seven of them, one
@pytest.mark.parametrize("name", PROTOCOLS)
def test_inference(name: str, strip: int | None, small: tuple[Inference, Batch, dict[str, np.ndarray]]) -> None:
    inference, batch, arrays = small
    limited = Inference(inference.network, inference.normalise, strip=strip)
    [scores_CHW] = limited.scores(batch, PROTOCOLS[name])
    assert_sampled(scores_CHW, arrays, name)
    [labels_HW] = limited.label_maps(batch, PROTOCOLS[name])
    check_labels(labels_HW, scores_CHW, arrays[f"{name.partition('/')[0]}/argmax"])


def whole_state(manifest: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict of a segmentor with its backbone; buffers that follow from sizes are zeros."""
    state = {}
    for key, (shape, dtype, kind, rule, _) in manifest["params"].items():
        if rule == "backbone":
            value = fill(key, tuple(shape), kind)
        else:
            value = fill_head(key, tuple(shape), kind, manifest["kind_scale"])
        state[key] = torch.from_numpy(np.zeros(shape, dtype) if value is None else np.asarray(value))
    return state


def test_a_whole_segmentor() -> None:
    manifest, arrays = golden("e2e/upernet_swin_t")
    model = METHODS["upernet"](fourstage.create_backbone("swin_tiny"), 150).eval()
    load(model, whole_state(manifest), "upernet")
    image = np.random.default_rng(7).standard_normal((2, 3, 224, 320)).astype(np.float32)
    image[1, :, 200:, :] = 0
    image[1, :, :, 300:] = 0
    images_BCHW = torch.from_numpy(image)
    ignored = [(slice(None), slice(60, 90), slice(200, 250)), (1, slice(200, None)), (1, slice(None), slice(300, None))]
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0
    found, hooks = tapped(model, {**TAPS["upernet"], "decoder": "decoder"})
    losses = model.losses(images_BCHW, labels_of(arrays, ignored))
    for hook in hooks:
        hook.remove()
    logits_BChw = found.pop("decoder").detach()
    model.decoder.forward = lambda maps: logits_BChw[: len(maps[0])]  # to run the decoder once is enough
    check_predictions(model, batch_of(images_BCHW, manifest), arrays)
    check_taps(found, arrays)
    check_losses(losses, arrays)
    torch.stack(list(losses.values())).sum().backward()
    check_gradients(model, manifest, arrays["grad_norm"], "upernet")
