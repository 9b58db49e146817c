"""An MLP of convolutions is a linear one only where both convolutions are of 1x1, on a small map."""

from typing import Any

import pytest
import torch
from torch import nn

from fourstage.ops import mlp, products
from fourstage.ops.conv_gelu import convolved_mlp

USUAL: dict[str, Any] = {"kernel_size": 1}

CASES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    (USUAL, USUAL, True),
    (USUAL | {"out_channels": 32}, USUAL | {"in_channels": 32}, False),  # fewer channels than cells
    ({"kernel_size": 3, "padding": 1}, USUAL, False),
    (USUAL, {"kernel_size": 3}, False),
    (USUAL, {"kernel_size": 1, "stride": 2}, False),
    ({"kernel_size": 1, "padding": 1}, USUAL, False),
    (USUAL, {"kernel_size": 1, "groups": 2}, False),
]


@pytest.mark.parametrize(
    ("first", "second", "fast"),
    CASES,
)
def test_which_convolutions_are_linear_layers(
    first: dict[str, Any], second: dict[str, Any], *, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[None] = []
    by_passes = mlp.by_passes
    monkeypatch.setattr(mlp, "by_passes", lambda *given: seen.append(None) or by_passes(*given))
    monkeypatch.setattr(products, "_chosen", [])  # PyTorch's own products, whose passes can be computed alone
    torch.manual_seed(0)
    expand = nn.Conv2d(**{"in_channels": 8, "out_channels": 96, **first})
    reduce = nn.Conv2d(**{"in_channels": 96, "out_channels": 8, **second})
    x_BCHW = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    out_BCHW = convolved_mlp(expand, nn.GELU(), reduce, x_BCHW)
    assert bool(seen) == fast
    torch.testing.assert_close(out_BCHW, reduce(nn.GELU()(expand(x_BCHW))))
