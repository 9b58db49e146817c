"""What SwinVisformer alone has. The originals' numbers are in test_golden_backbones.py."""

from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden.fill import original_state, read_manifest
from tiny_networks import tiny, tiny_dense
from torch import Tensor, nn

import fourstage
from fourstage.backbones import swin_visformer
from fourstage.backbones.mixers.window import WindowAttention
from fourstage.weights.load import load_state

FOLDER = Path(__file__).parents[1] / "golden" / "backbones" / "visformer"


def attentions(model: nn.Module) -> list[tuple[int, WindowAttention]]:
    """Each attention with its block's place among the blocks of all stages."""
    stages = model.get_submodule("stages").children()
    blocks = [block for stage in stages for block in stage.get_submodule("blocks").children()]
    parts = [(i, part) for i, block in enumerate(blocks) for part in block.modules()]
    return [(i, part) for i, part in parts if isinstance(part, WindowAttention)]


@pytest.mark.parametrize("name", ["swin_visformer_tiny_v2", "swin_visformer_small"])
def test_blocks_shift_by_their_place_among_all(name: str) -> None:
    with torch.device("meta"):
        model = fourstage.create_backbone(name)
    assert all(attention.shifted == (i % 2 == 1) for i, attention in attentions(model))
    depths = [len(stage.get_submodule("blocks")._modules) for stage in model.get_submodule("stages").children()]
    assert [i for i, _ in attentions(model)] == list(range(sum(depths[:2]), sum(depths)))
    odd = [sum(depths[:2]) % 2, list(accumulate(depths))[2] % 2]
    assert 1 in odd  # else the place in the stage would say the same


@pytest.mark.parametrize(
    ("img_size", "windows"), [(224, (14, 7)), (448, (14, 7)), (160, (10, 5)), ((448, 128), (8, 4))]
)
def test_windows_of_the_classifier_are_as_large_as_maps_until_they_are_whole(
    img_size: int | tuple[int, int], windows: tuple[int, int]
) -> None:
    with torch.device("meta"):
        model = fourstage.create_model("swin_visformer_tiny_v2", img_size=img_size)
        dense = fourstage.create_backbone("swin_visformer_tiny_v2", img_size=img_size)
    tables = {tuple(attention.table.shape) for _, attention in attentions(model)}
    assert tables == {((2 * window - 1) ** 2, heads) for window, heads in zip(windows, (6, 12), strict=True)}
    assert {len(attention.table) for _, attention in attentions(dense)} == {27**2, 13**2}
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    positions = [tuple(p.shape[-2:]) for name, p in model.named_parameters() if name.endswith("position")]
    assert positions == [(height // stride, width // stride) for stride in (4, 8, 16, 32)]


def test_where_windows_fit_and_are_several_the_two_forms_differ_in_position_embeddings_only() -> None:
    torch.manual_seed(0)
    model, dense = tiny("swin_visformer", img_size=128).eval(), tiny_dense("swin_visformer").eval()
    for name, parameter in model.named_parameters():
        if name.endswith("position"):
            nn.init.zeros_(parameter)
        elif name.endswith("table"):
            nn.init.normal_(parameter)  # so that it matters
    state = {key: value for key, value in model.state_dict().items() if key in dense.state_dict()}
    dense.load_state_dict({**dense.state_dict(), **state})
    image_BCHW = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        for ours, other in zip(model.forward_maps(image_BCHW), dense.forward_maps(image_BCHW), strict=True):
            torch.testing.assert_close(ours, other)


@pytest.mark.parametrize(("height", "width"), [(90, 70), (100, 150)])
def test_what_fills_up_the_last_windows_changes_nothing_in_the_classifier(height: int, width: int) -> None:
    torch.manual_seed(0)
    model = tiny("swin_visformer").eval()
    image_BCHW = torch.randn(1, 3, height, width)
    zeros, filled = F.pad, []

    def noise(x: Tensor, pad: tuple[int, ...]) -> Tensor:
        filled.append(pad)
        return zeros(x, pad) + zeros(torch.zeros_like(x), pad, value=1e3) * torch.randn(zeros(x, pad).shape)

    with torch.inference_mode():
        expected = model.forward_maps(image_BCHW)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "pad", noise)
            noisy = model.forward_maps(image_BCHW)
    assert filled
    for a, b in zip(noisy, expected, strict=True):
        assert float((a - b).abs().max()) < 1e-6 * max(1, float(b.std()))


def test_a_classifiers_checkpoint_fills_the_dense_form_but_for_positions_and_norms() -> None:
    torch.manual_seed(0)
    model, dense = tiny("swin_visformer"), tiny_dense("swin_visformer")
    report = load_state(dense, model.state_dict(), source="v.pth")
    gone = {key for key in model.state_dict() if key.startswith(("final.", "head.")) or key.endswith(".position")}
    assert set(report.dropped) == gone
    assert {key.split(".")[0] for key in report.fresh} == {"norms"}
    assert report.read == len(model.state_dict()) - len(gone)


def test_buffers_that_follow_from_sizes_are_dropped() -> None:
    manifest = read_manifest(FOLDER / "swin_visformer_tiny_v2.json.gz")
    state = {key: torch.from_numpy(value) for key, value in original_state(manifest).items()}
    buffers = {key: torch.zeros(2, 2) for key in manifest["state"] if key.endswith("relative_position_index")}
    buffers["stage2.1.attn_mask"] = torch.zeros(4, 196, 196)  # which the source has at 448 pixels
    report = load_state(fourstage.create_model("swin_visformer_tiny_v2"), {**state, **buffers}, source="v.pth")
    assert len(buffers) == 10
    assert report.dropped == tuple(buffers)
    assert not report.fresh


def test_another_resolution_resizes_position_embeddings_and_the_tables_of_windows_that_change() -> None:
    torch.manual_seed(0)
    small, large = (tiny("swin_visformer", img_size=size) for size in (32, 96))
    report = load_state(large, small.state_dict(), source="v.pth")
    tables = [f"stages.{i}.blocks.{j}.attn.table" for i in (2, 3) for j in (0, 1)]
    assert set(report.resized) == {f"stages.{i}.position" for i in range(4)} | set(tables)


def test_a_stage_without_blocks_is_its_embedding_and_position() -> None:
    design = swin_visformer.Design(stem=8, width=8, depths=(0, 1, 1, 1), heads=(0, 0, 2, 2))
    torch.manual_seed(0)
    model = swin_visformer.classifier(design, img_size=64, num_classes=3).eval()
    image_BCHW = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        [first_BCHW] = model.forward_maps(image_BCHW, count=1)
        stage = model.get_submodule("stages.0")
        embedded_BCHW = stage.get_submodule("embed")(model.get_submodule("stem")(image_BCHW))
        assert torch.equal(first_BCHW, embedded_BCHW + model.state_dict()["stages.0.position"])


def test_initial_weights_follow_the_table() -> None:
    torch.manual_seed(0)
    state = fourstage.create_model("swin_visformer_tiny_v2").state_dict()
    for name in ("attn.qkv", "attn.proj", "mlp.expand"):
        weight = state[f"stages.3.blocks.0.{name}.weight"]
        assert float(weight.std()) == pytest.approx((2 / weight.shape[0]) ** 0.5, rel=0.02)
    assert float(state["head.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert float(state["stages.2.blocks.0.attn.table"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(state["stages.1.position"].std()) == pytest.approx(0.02, rel=0.02)


def test_qk_scale_factor_multiplies_queries_and_keys_each() -> None:
    with torch.device("meta"):
        usual = fourstage.create_model("swin_visformer_medium_v2")
        half = fourstage.create_backbone("swin_visformer_medium_v2", qk_scale_factor=-0.5)
    assert all(part.scale == pytest.approx(48**-0.5) for _, part in attentions(usual))
    assert all(part.scale == pytest.approx(1 / 48) for _, part in attentions(half))
