"""Bicubic resizing where operators must be deterministic. tests/any_device asks which operators run."""

import pytest
import torch
import torch.nn.functional as F

from fourstage.ops import resize


@pytest.mark.parametrize("size", [(3, 4), (9, 5), (6, 8), (12, 31)])
def test_bicubic_resizing_by_products_is_pytorchs_and_keeps_the_precision(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "must_repeat_itself", lambda _: True)
    x_BChw = torch.randn(2, 3, 6, 8)
    expected = F.interpolate(x_BChw, size, mode="bicubic", align_corners=False)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(resize.resize_bicubically(x_BChw, size), expected, rtol=1e-5, atol=1e-5)
