"""Parameters and multiply-accumulates: by hand for small networks, by what the sources' code has for every model."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourstage.api import create_backbone, create_model
from fourstage.bench.count import Count, count, count_module, image_shape

ROWS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "published.json").read_text())["rows"]
LAYERS_ONLY = ("thop",)  # counters that leave out the products of attention
MORE_THAN_LAYERS = ("ptflops",)  # they leave those out too, but count activations: 1.5 % more than layers alone
GIVEN = [row for row in ROWS if row["model"] is not None]


def row_id(row: dict[str, Any]) -> str:
    return row["row"].replace(" (factory)", "-factory")


@cache
def on_meta(model: str, arguments: str, dense: bool) -> nn.Module:
    build = create_backbone if dense else create_model
    with torch.device("meta"):
        return build(model, **json.loads(arguments))


@cache
def cost_of(model: nn.Module) -> Count:
    return count_module(model, image_shape(model))


def test_every_row_names_a_model_or_says_why_not() -> None:
    assert len(ROWS) == 95
    assert [row["row"] for row in ROWS if row["model"] is None and not row["why"]] == []
    assert len({(row["source"], row["row"]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", GIVEN, ids=row_id)
def test_a_model_costs_what_the_original_does(row: dict[str, Any]) -> None:
    model = on_meta(row["model"], json.dumps(row["arguments"]), row["dense"])
    assert sum(p.numel() for p in model.parameters()) == row["params"]
    if "gmacs" in row:
        filled_up = row["model"].startswith("scalable_vit")  # zeros in heads are counted
        error = 0.003 * row["gmacs"] if filled_up else 6e-4  # of the last digit
        assert cost_of(model).macs / 1e9 == pytest.approx(row["gmacs"], abs=error)
    for counter, gmacs in row.get("other", {}).items():
        cost = cost_of(model)
        if counter in MORE_THAN_LAYERS:
            assert cost.layer_macs / 1e9 < gmacs < cost.macs / 1e9
            continue
        ours = cost.layer_macs if counter in LAYERS_ONLY else cost.macs
        assert ours / 1e9 == pytest.approx(gmacs, rel=0.01), counter


# ------------------------------------------------------------------------------------------------- counted by hand


class Small(nn.Module):
    """One product of each kind, on a (1, 8, 4, 4) image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.linear = nn.Linear(8, 5)
        self.table = nn.Parameter(torch.randn(7, 8))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        cells_BNC = x_BCHW.flatten(2).transpose(1, 2)
        heads = cells_BNC.unflatten(-1, (2, 4)).transpose(1, 2)  # B, 2 heads, 16 cells, 4 channels
        mask = torch.zeros(1, 1, 16, 16, device=x_BCHW.device)
        grid = torch.zeros(1, 3, 3, 2, device=x_BCHW.device)
        return {
            "convolution in groups": lambda: self.grouped(x_BCHW),
            "linear": lambda: self.linear(cells_BNC),  # over memory that does not lie in a row
            "linear, many axes": lambda: self.linear(x_BCHW.movedim(1, -1)),
            "attention": lambda: F.scaled_dot_product_attention(heads, heads, heads),
            "attention with a mask": lambda: F.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask),
            "matmul": lambda: heads @ heads.transpose(-1, -2),
            "einsum": lambda: torch.einsum("bnc,kc->bnk", cells_BNC, self.table),
            "baddbmm": lambda: torch.baddbmm(cells_BNC, cells_BNC, torch.ones(1, 8, 8, device=x_BCHW.device)),
            "sampling": lambda: F.grid_sample(x_BCHW, grid, align_corners=False),
            "norm and activation": lambda: F.gelu(F.layer_norm(cells_BNC, (8,))),
        }[self.kind]()


BY_HAND = {  # layers, attention, sampling; numbers put out
    "convolution in groups": (16 * 16 * 9 * 2, 0, 0, 256),
    "linear": (16 * 8 * 5, 0, 0, 80),
    "linear, many axes": (16 * 8 * 5, 0, 0, 80),
    "attention": (0, 2 * 2 * 16 * 16 * 4, 0, 2 * 16 * 16 + 16 * 8),
    "attention with a mask": (0, 2 * 2 * 16 * 16 * 4, 0, 2 * 16 * 16 + 16 * 8),
    "matmul": (0, 2 * 16 * 16 * 4, 0, 512),
    "einsum": (0, 16 * 7 * 8, 0, 112),
    "baddbmm": (0, 16 * 8 * 8, 0, 128),
    "sampling": (0, 0, 4 * 8 * 9, 0),
    "norm and activation": (0, 0, 0, 0),
}


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_product_is_counted_as_by_hand(kind: str) -> None:
    cost = count_module(Small(kind), (8, 4, 4))
    layers, attention, sampling, activations = BY_HAND[kind]
    assert (cost.layer_macs, cost.macs - cost.layer_macs) == (layers, attention)
    assert cost.sampling_macs == sampling
    assert cost.activations == activations
    assert cost.parameters == 16 * 2 * 9 + 16 + 45 + 56
    assert cost.size == (4, 4)


def test_counting_leaves_a_network_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[2].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_module(model, (3, 8, 8))
    assert [module.training for module in model] == [True, True, False]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_images_of_another_size_cost_more_and_the_dense_form_has_no_head() -> None:
    small, large = count("visformer_tiny"), count("visformer_tiny", 448)
    assert small.size == (224, 224)
    assert large.size == (448, 448)
    assert large.macs > 4 * small.macs  # attention grows faster than the image
    assert large.layer_macs == pytest.approx(4 * small.layer_macs, rel=1e-3)
    assert count("visformer_tiny", (224, 448)).layer_macs == pytest.approx(2 * small.layer_macs, rel=1e-3)
    assert count("visformer_tiny", dense=True).parameters < small.parameters
    with pytest.raises(ValueError, match="below the smallest"):
        count("visformer_tiny", 16)


def test_sampling_is_counted_separately() -> None:
    cost = count("unified_dcn_v3_micro")
    assert 0 < cost.sampling_macs < cost.macs / 10


def test_activations_are_those_of_timms_result_files() -> None:
    assert count("swin_tiny").activations / 1e6 == pytest.approx(17.06, abs=0.006)
    assert count("visformer_small").activations / 1e6 == pytest.approx(11.43, abs=0.006)
