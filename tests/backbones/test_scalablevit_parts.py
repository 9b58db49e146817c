"""What ScalableViT alone has. The original's numbers are in test_golden_backbones.py."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden.fill import read_manifest
from tiny_networks import tiny, tiny_dense
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fourstage
from fourstage.backbones import scalablevit
from fourstage.backbones.layers import LayerNorm2d
from fourstage.backbones.mixers.scalable import GlobalAttention, InteractiveWindowAttention, ScalableAttention

MANIFEST = Path(__file__).parents[1] / "golden" / "backbones" / "scalablevit" / "scalable_vit_small.json.gz"
FORMS = {"classifier": partial(tiny, "scalablevit"), "dense": partial(tiny_dense, "scalablevit")}


def outputs(model: nn.Module, image_BCHW: Tensor) -> list[Tensor]:
    with torch.inference_mode():
        out = model(image_BCHW)
    return [out] if isinstance(out, Tensor) else out


def by_hand(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Attention of (cells, channels) to (cells, channels), head by head."""
    parts = zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True)
    return torch.cat([(a @ b.T * scale).softmax(-1) @ c for a, b, c in parts], dim=-1)


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [
        ("scalable_vit_small", 32_000_472, 4.265),
        ("scalable_vit_small_0", 26_307_032, 4.260),
        ("scalable_vit_base", 81_881_624, 8.801),
        ("scalable_vit_large", 109_288_840, 14.988),
    ],
)
def test_sizes_are_the_published_ones(name: str, parameters: int, gmacs: float) -> None:
    with torch.device("meta"):
        model, image_BCHW = fourstage.create_model(name), torch.empty(1, 3, 224, 224)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        model(image_BCHW)
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("height", "width"), [(33, 64), (57, 102), (160, 129)])
def test_what_fills_padding_changes_nothing(
    form: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FORMS[form]().eval()
    image_BCHW = torch.randn(1, 3, height, width)
    plain = outputs(model, image_BCHW)
    pad, count = F.pad, []

    def noisy(x: Tensor, widths: tuple[int, ...], *rest: Any) -> Tensor:
        count.append(widths)
        inside = pad(torch.ones_like(x), widths, *rest)
        return torch.where(inside == 1, pad(x, widths, *rest), 10 * torch.randn_like(inside))

    monkeypatch.setattr(F, "pad", noisy)
    for a, b in zip(outputs(model, image_BCHW), plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert count


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 64), (128, 256)])
def test_native_sizes_run_without_padding_or_masks(
    form: str, height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(F, "pad", never)
    monkeypatch.setattr(InteractiveWindowAttention, "mask", never)
    outputs(FORMS[form]().eval(), torch.randn(1, 3, height, width))


@pytest.mark.parametrize(("height", "width"), [(3, 3), (6, 9), (5, 2), (7, 10), (1, 1)])
@pytest.mark.parametrize("gradients", [False, True])
def test_windows_see_themselves_and_the_values_around(height: int, width: int, gradients: bool) -> None:
    mixer, x_BHWC = InteractiveWindowAttention(8, 2, 3).double(), torch.randn(2, height, width, 8).double()
    q, k, v = mixer.qkv(x_BHWC).chunk(3, dim=-1)
    expected = F.conv2d(v.movedim(-1, 1), mixer.local.weight, mixer.local.bias, padding=1, groups=8).movedim(1, -1)
    for image in range(2):
        for top in range(0, height, 3):
            for left in range(0, width, 3):
                here = (image, slice(top, top + 3), slice(left, left + 3))
                out = by_hand(*(x[here].flatten(0, 1) for x in (q, k, v)), heads=2, scale=4**-0.5)
                expected[here] += out.view_as(expected[here])
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(mixer(x_BHWC), mixer.proj(expected))


@pytest.mark.parametrize("ratio", [0.5, 1, 2])
def test_scalable_attention_asks_whole_squares_in_a_space_of_its_own_width(ratio: float) -> None:
    mixer, x_BHWC = ScalableAttention(8, 2, ratio, 2).double(), torch.randn(1, 5, 7, 8).double()
    assert mixer.reduce.bias is not None
    assert mixer.mix.bias is not None
    inner = int(8 * ratio)
    squares = x_BHWC[:, :4, :6].unfold(1, 2, 2).unfold(2, 2, 2)  # B, 2, 3, C, 2, 2
    reduced = (squares * mixer.reduce.weight[:, 0]).sum((-1, -2)) + mixer.reduce.bias
    reduced = reduced @ mixer.mix.weight[:, :, 0, 0].T + mixer.mix.bias
    keys = F.gelu(F.layer_norm(reduced, (inner,), mixer.norm.weight, mixer.norm.bias, 1e-5)).flatten(0, 2)
    out = by_hand(mixer.q(x_BHWC).flatten(0, 2), mixer.k(keys), mixer.v(keys), 2, (4 * ratio) ** -0.5)
    torch.testing.assert_close(mixer(x_BHWC), mixer.proj(out).view(1, 5, 7, 8))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 9), (9, 3)])
def test_a_map_below_the_reduction_gives_keys_as_if_zeros_lay_around_it(height: int, width: int) -> None:
    mixer, x_BHWC = ScalableAttention(8, 2, 1.25, 4), torch.randn(1, height, width, 8)
    larger_BHWC = torch.zeros(1, max(height, 4), max(width, 4), 8)
    larger_BHWC[:, :height, :width] = x_BHWC
    torch.testing.assert_close(mixer(x_BHWC), mixer(larger_BHWC)[:, :height, :width])


def test_unreduced_attention_keeps_the_ratio_in_its_scale() -> None:
    mixer, x_BHWC = GlobalAttention(8, 2, 1.25).double(), torch.randn(1, 3, 4, 8).double()
    q, (k, v) = mixer.q(x_BHWC), mixer.kv(x_BHWC).chunk(2, dim=-1)
    out = by_hand(*(x.flatten(0, 2) for x in (q, k, v)), heads=2, scale=5**-0.5)
    torch.testing.assert_close(mixer(x_BHWC), mixer.proj(out).view(1, 3, 4, 8))


def test_mixers_take_turns_and_positions_follow_the_first_block() -> None:
    kinds = {InteractiveWindowAttention: "w", ScalableAttention: "s", GlobalAttention: "g"}
    with torch.device("meta"):
        stages = fourstage.create_model("scalable_vit_large").get_submodule("stages").children()
    blocks = [list(stage.get_submodule("blocks").children()) for stage in stages]
    rows = [[kinds[type(block.get_submodule("attn"))] for block in row] for row in blocks]
    assert ["".join(row) for row in rows] == ["ws", "ws" * 3, "ws" * 6, "wg" * 2]
    assert all([hasattr(block, "peg") for block in row] == [True] + [False] * (len(row) - 1) for row in blocks)
    encoding = scalablevit.PositionEncoding(4)
    x_BCHW = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(
        encoding(x_BCHW), x_BCHW + F.conv2d(x_BCHW, encoding.kernel, encoding.shift, padding=1, groups=4)
    )


def test_every_epsilon() -> None:
    with torch.device("meta"):
        models = fourstage.create_model("scalable_vit_base"), fourstage.create_backbone("scalable_vit_base")
    for model in models:
        norms = {
            name: module.eps for name, module in model.named_modules() if isinstance(module, nn.LayerNorm | LayerNorm2d)
        }
        assert {name for name, eps in norms.items() if eps != 1e-6} == {n for n in norms if n.endswith("attn.norm")}
        assert {eps for name, eps in norms.items() if name.endswith("attn.norm")} == {1e-5}


def test_the_head_has_a_hidden_layer_but_for_small_0() -> None:
    with torch.device("meta"):
        model = scalablevit.classifier(scalablevit.SMALL, num_classes=7)
        plain = scalablevit.classifier(scalablevit.DESIGNS["scalable_vit_small_0"], num_classes=7)
    assert (model.num_features, model.head_hidden_size) == (512, 4096)
    assert (plain.num_features, plain.head_hidden_size) == (512, 512)
    assert not list(plain.pre_logits.parameters())
    model.reset_classifier(0)
    assert model(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 4096)


def test_the_dense_form_reads_the_classifiers_file(tmp_path: Path) -> None:
    shapes = {key: shape for key, (shape, _, _) in read_manifest(MANIFEST)["state"].items()}
    file = tmp_path / "checkpoint_best.pth"
    torch.save(
        {"model": {key: torch.full((1,) * len(shape), 0.5).expand(shape) for key, shape in shapes.items()}}, file
    )
    model = fourstage.create_backbone("scalable_vit_small")
    report = fourstage.load_checkpoint(model, file)
    assert set(report.fresh) == {f"norms.{i}.{part}" for i in range(4) for part in ("weight", "bias")}
    assert {name.partition(".")[0] for name in report.dropped} == {"final", "pre_logits", "head"}
    for name, parameter in model.named_parameters():
        assert name.startswith("norms.") or bool((parameter == 0.5).all()), name


def test_weight_decay_spares_what_the_source_spares() -> None:
    from fourstage.weights.load import our_names

    with torch.device("meta"):
        model = scalablevit.classifier(scalablevit.SMALL)
    keys = {key: torch.empty(()) for key in read_manifest(MANIFEST)["state"] if key.startswith("pos_block.")}
    named = our_names(model, keys)
    assert named is not None
    assert model.no_weight_decay() == set(named[0])
    assert len(keys) == 8


def test_initial_weights_follow_the_table() -> None:
    model = fourstage.create_model("scalable_vit_small_0")
    state = model.state_dict()
    for name, std in {
        "head.weight": 0.02,
        "stages.2.blocks.1.attn.q.weight": 0.02,
        "stem.0.weight": (2 / (49 * 64)) ** 0.5,
        "stages.2.embed.0.weight": (2 / (9 * 256)) ** 0.5,
        "stages.2.blocks.1.attn.mix.weight": (2 / 320) ** 0.5,
        "stages.2.blocks.1.attn.reduce.weight": (2 / 4) ** 0.5,
        "stages.2.blocks.0.attn.local.weight": (2 / 9) ** 0.5,
        "stages.2.blocks.0.peg.kernel": (2 / 9) ** 0.5,
    }.items():
        assert float(state[name].std()) == pytest.approx(std, rel=0.05), name
    assert not any(value.any() for name, value in state.items() if name.endswith(("bias", "shift")))


def test_maps_lie_channels_last_all_along() -> None:
    model = tiny("scalablevit").eval()
    with torch.inference_mode():
        maps = model.forward_maps(torch.randn(2, 3, 64, 96))
    assert all(x_BCHW.movedim(1, -1).is_contiguous() for x_BCHW in maps)
