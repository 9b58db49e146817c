"""An MLP of convolutions is a linear one only where both convolutions are of 1x1."""

from typing import Any

import pytest
import torch
from torch import nn

from fourstage.ops import mlp, products
from fourstage.ops.conv_gelu import convolved_mlp

USUAL: dict[str, Any] = {"kernel_size": 1}


@pytest.mark.parametrize(
    ("first", "second", "fast"),
    [
        (USUAL, USUAL, True),
        ({"kernel_size": 3, "padding": 1}, USUAL, False),
        (USUAL, {"kernel_size": 3}, False),
        (USUAL, {"kernel_size": 1, "stride": 2}, False),
        ({"kernel_size": 1, "padding": 1}, USUAL, False),
        (USUAL, {"kernel_size": 1, "groups": 2}, False),
    ],
)
def test_which_convolutions_are_linear_layers(
    first: dict[str, Any], second: dict[str, Any], *, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[None] = []
    by_passes = mlp.by_passes
    monkeypatch.setattr(mlp, "by_passes", lambda *given: seen.append(None) or by_passes(*given))
    monkeypatch.setattr(products, "_chosen", [])  # PyTorch's own products, whose passes can be computed alone
    torch.manual_seed(0)
    expand, reduce = nn.Conv2d(8, 12, **first), nn.Conv2d(12, 8, **second)
    x_BCHW = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    out_BCHW = convolved_mlp(expand, nn.GELU(), reduce, x_BCHW)
    assert bool(seen) == fast
    torch.testing.assert_close(out_BCHW, reduce(nn.GELU()(expand(x_BCHW))))
