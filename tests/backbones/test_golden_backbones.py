"""Our networks give the numbers of the original code, from checkpoints with its names: maps, logits and gradients."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden.fill import image, original_state, read_manifest, sampled
from torch import Tensor, nn

import fourstage

FOLDER = Path(__file__).parents[1] / "golden" / "backbones"
FILES = sorted(FOLDER.rglob("*.npz"))
# the original's names of configurations, and ours
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "swin_base_det_backbone": ("swin_base", {}),
    "swin_base_patch4_window12_384_finetune": ("swin_base_patch4_window12_384", {}),
    "swin_small_det_backbone": ("swin_small", {}),
    "swin_tiny_ape_det_backbone": ("swin_tiny", {"ape": True}),
    "swin_tiny_det_backbone": ("swin_tiny", {}),
    "smt_t_det_backbone": ("smt_tiny", {}),
    "smt_t_seg_backbone": ("smt_tiny", {}),
    "net4": ("visformer_net4", {}),
    "swin_visformer_tiny_v2_qk05": ("swin_visformer_tiny_v2", {"qk_scale_factor": -0.5}),
    "swin_visformer_tiny_v2_det_backbone": ("swin_visformer_tiny_v2", {"qk_scale_factor": -0.5}),
    "visformer_tiny_qk05": ("visformer_tiny", {"qk_scale_factor": -0.5}),
}


def our_model(manifest: dict) -> nn.Module:
    name, arguments = MODELS.get(manifest["model"], (manifest["model"].removesuffix("_det_backbone"), {}))
    create = fourstage.create_model if manifest["kind"] == "cls" else fourstage.create_backbone
    return create(name, **arguments)


@pytest.fixture(params=FILES, ids=lambda path: path.stem, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A network of ours, filled through a file that looks like the original's, with the numbers it must give."""
    manifest = read_manifest(request.param.with_suffix(".json.gz"))
    checkpoint = tmp_path_factory.mktemp("golden") / "original.pth"
    torch.save({"model": {k: torch.from_numpy(v) for k, v in original_state(manifest).items()}}, checkpoint)
    model = our_model(manifest).eval()
    report = fourstage.load_checkpoint(model, checkpoint)
    assert not report.resized
    assert not report.dropped
    assert not report.fresh
    with np.load(request.param) as golden:
        yield model, manifest, dict(golden)


def record(model: nn.Module, tags: set[str]) -> tuple[dict[str, Tensor], list[Any]]:
    """Where the original was tapped, by its names `tags`. The tensors arrive when the model runs."""
    taps: dict[str, Tensor] = {}
    stem = model.get_submodule("stem")
    modules = {"stem": stem, "embed": stem} if tags & {"stem", "embed"} else {"embed1": stem}
    if hasattr(model, "final"):
        modules |= {"norm": model.get_submodule("final"), "conv_head": model.get_submodule("final")}
    for i, stage in enumerate(model.get_submodule("stages").children(), 0 if "stage0" in tags else 1):
        parts = {name.removeprefix("blocks.0."): part for name, part in stage.named_modules()}
        modules = {f"{name}{i}": part for name, part in parts.items()} | modules  # embed, peg
        modules |= {f"stage{i}": stage, f"prenorm{i}": parts.get("norm", stage)}

    def tap(name: str) -> Any:
        return lambda _module, inputs, output: taps.__setitem__(name, inputs[0] if "prenorm" in name else output)

    return taps, [module.register_forward_hook(tap(name)) for name, module in modules.items() if name in tags]


def assert_matches(ours: Tensor | np.ndarray, golden: np.ndarray, what: str, std: float | None = None) -> None:
    expected = torch.from_numpy(np.asarray(golden))
    std = float(expected.std()) if std is None else std
    actual = torch.as_tensor(ours).detach()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * std, msg=lambda m: f"{what}: {m}")


def run(model: nn.Module, shape: list[int], tags: set[str]) -> tuple[dict[str, Tensor], float, Tensor]:
    """Taps and outputs, the probe loss, and the input that it was backpropagated to."""
    taps, hooks = record(model, tags)
    model.zero_grad()
    x_BCHW = torch.from_numpy(image(tuple(shape))).requires_grad_()
    out = model(x_BCHW)
    for hook in hooks:
        hook.remove()
    outs = {"logits": out} if isinstance(out, Tensor) else {f"out{i}": x for i, x in enumerate(out)}
    probes = [np.random.default_rng(100 + i).standard_normal(tuple(x.shape)) for i, x in enumerate(outs.values())]
    terms = [(x.double() * torch.from_numpy(p)).sum() for x, p in zip(outs.values(), probes, strict=True)]
    loss = torch.stack(terms).sum()
    loss.backward()
    return {**taps, **outs}, loss.item(), x_BCHW


def case_sizes(manifest: dict, golden: dict) -> dict[str, list[int]]:
    """Prefix of the golden names -> shape of the image."""
    sizes = {"": manifest["input_shape"]}
    for prefix in {key.split("__")[0] for key in golden if "__" in key}:
        height, width = prefix.removeprefix("d").split("x")
        sizes[f"{prefix}__"] = [1, 3, int(height), int(width)]
    return sizes


def test_outputs_stage_maps_and_gradients_are_the_originals(case: tuple) -> None:
    model, manifest, golden = case
    tags = {tag.rpartition("/")[2] for tag in manifest["tensors"]}
    for prefix, shape in case_sizes(manifest, golden).items():
        values, loss, x_BCHW = run(model, shape, tags)
        checked = 0
        for tag, info in manifest["tensors"].items():
            if tag.rpartition("/")[0].replace("/", "") != prefix.removesuffix("__"):
                continue
            name = tag.rpartition("/")[2]
            ours = list(values[name].shape)
            assert info["shape"] in (ours, [*ours[:2], math.prod(ours[2:])])  # some have their cells in one row
            actual = values[name].detach().numpy()
            assert_matches(
                actual if info.get("full") else sampled(actual, info["n"]), golden[prefix + name], tag, info["std"]
            )
            checked += 1
        assert checked >= len(values) - 1
        assert x_BCHW.grad is not None
        gradient = x_BCHW.grad.numpy()
        assert_matches(sampled(gradient, golden[prefix + "grad"].size), golden[prefix + "grad"], prefix + "grad")
        np.testing.assert_allclose(np.linalg.norm(gradient), golden[prefix + "grad_norm"], rtol=1e-4)
        # the probe is random, so terms of `size` mostly cancel, and what is left holds the rounding of all of them
        size = sum(float(x.detach().norm()) for name, x in values.items() if name.startswith(("out", "logits")))
        np.testing.assert_allclose(loss, golden[prefix + "loss"], rtol=1e-4, atol=1e-5 * size)
        if not prefix:
            check_parameter_gradients(model, manifest, golden["param_grad_norms"])


def check_parameter_gradients(model: nn.Module, manifest: dict, norms: np.ndarray) -> None:
    """Gradients carry over name by name: the same renaming that fills the network, read with each key's norm."""
    from fourstage.weights.load import our_names

    tags = {key: torch.tensor(float(i)) for i, key in enumerate(manifest["params"])}
    named = our_names(model, tags)
    assert named is not None
    ours = dict(model.named_parameters())
    assert named[0].keys() == ours.keys()
    for key, index in named[0].items():
        gradient = ours[key].grad
        assert gradient is not None
        expected = norms[int(index)]
        tolerance = 1e-3 * expected + 1e-4 * np.median(norms)
        assert abs(float(gradient.norm()) - expected) <= tolerance, f"{key}: {float(gradient.norm())} != {expected}"
