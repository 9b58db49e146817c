"""The number of the largest value is that of `argmax`, ties and NaN included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourstage.ops import first_maximum as module
from fourstage.ops.first_maximum import first_maximum


@given(
    count=st.integers(2, 300),
    size=st.tuples(st.integers(0, 9), st.integers(1, 9)),
    levels=st.sampled_from([2, 50, 10**9]),  # few levels give many ties
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    broken=st.sampled_from([None, float("nan"), float("inf"), float("-inf")]),
)
@settings(max_examples=150, deadline=None)
def test_it_is_argmax(count: int, size: tuple[int, int], levels: int, dtype: torch.dtype, broken: float | None) -> None:
    x_CRK = torch.randint(levels, (count, *size)).to(dtype)
    if broken is not None and x_CRK.numel():
        x_CRK.view(-1)[torch.randint(x_CRK.numel(), (3,))] = broken
    before = x_CRK.clone()
    labels_RK = first_maximum(x_CRK)
    assert torch.equal(labels_RK, x_CRK.argmax(dim=0))
    assert labels_RK.dtype == torch.int64
    assert torch.equal(x_CRK.nan_to_num(7), before.nan_to_num(7))


def test_the_values_may_be_a_view(monkeypatch: pytest.MonkeyPatch) -> None:
    by_product, answered = module._by_product, []

    def watched(x_CRK: Tensor) -> Tensor | None:
        answered.append(by_product(x_CRK))
        return answered[-1]

    monkeypatch.setattr(module, "_by_product", watched)
    x_CRK = torch.randn(40, 12, 30)[:, 2:9, ::3]
    assert torch.equal(first_maximum(x_CRK), x_CRK.argmax(dim=0))
    assert answered[0] is not None  # without ties, the fast path answers
