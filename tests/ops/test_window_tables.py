"""The index tables of window attention are kept for later passes only where they are small."""

import pytest
import torch

from fourstage.ops import window_attention
from fourstage.ops.window_attention import Windows, attend_windows


@pytest.mark.parametrize(("side", "kept"), [(24, 4), (160, 2), (264, 0)])
def test_large_tables_are_not_kept(side: int, kept: int) -> None:
    window_attention.kept_table.cache_clear()
    qkv_1HWC, bias_hNN = torch.randn(1, side, side, 48, requires_grad=True), torch.randn(16, 4, 4)
    for _ in range(2):
        attend_windows(qkv_1HWC, Windows(2, 1, 16, 1.0), bias_hNN).sum().backward()
    assert window_attention.kept_table.cache_info().currsize == kept
    assert window_attention.kept_table.cache_info().misses == kept
