"""The softmax of powers of two equals PyTorch's, for products of any size."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourstage.ops.softmax import LOG2_E, softmax

INF = float("inf")


def by_powers(scores: Tensor) -> tuple[Tensor, list[float]]:
    """Return our softmax, and the factors that the products were asked for."""
    factors: list[float] = []

    def products(factor: float) -> Tensor:
        factors.append(factor)
        return scores * factor

    return softmax(products), factors


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.floats(1e-6, 20.0), st.integers(0, 2**31))
def test_it_equals_pytorchs(rows: int, columns: int, size: float, seed: int) -> None:
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    ours, factors = by_powers(scores)
    exact = scores.double().softmax(-1)
    # the last bit of a product of this size, as in exp(score - largest) of PyTorch, and of a sum
    torch.testing.assert_close(ours.double(), exact, rtol=2.0**-22 * (4 + float(scores.abs().max())), atol=2.0**-40)
    assert factors[0] == LOG2_E


@pytest.mark.parametrize("row", [[100.0, 99.0], [-100.0, -99.0], [-300.0, 300.0], [3e38, -3e38], [INF, 0.0]])
def test_a_row_out_of_range_takes_the_plain_way(row: list[float]) -> None:
    scores = torch.tensor([[0.0, 1.0], row])
    ours, factors = by_powers(scores)
    torch.testing.assert_close(ours[1], scores[1].softmax(-1), rtol=0, atol=0, equal_nan=True)
    assert factors == [LOG2_E, 1.0]
    torch.testing.assert_close(ours[:1], by_powers(scores[:1])[0], rtol=0, atol=0)  # a row is as it would be alone


@pytest.mark.parametrize("hidden", [-100.0, torch.finfo(torch.float32).min / 2, torch.finfo(torch.float32).min, -INF])
def test_hidden_cells_get_nothing(hidden: float) -> None:
    ours, factors = by_powers(torch.tensor([[1.0, hidden, 2.0]]))
    torch.testing.assert_close(ours, torch.tensor([[1.0, -INF, 2.0]]).softmax(-1), rtol=1e-6, atol=1e-30)
    assert factors == [LOG2_E]


def test_rows_in_which_all_cells_are_hidden() -> None:
    finite, infinite = torch.full((2, 3), torch.finfo(torch.float32).min / 2), torch.full((2, 3), -INF)
    torch.testing.assert_close(by_powers(finite)[0], torch.full((2, 3), 1 / 3))
    assert by_powers(infinite)[0].isnan().all()


def test_a_number_that_is_none_stays_in_its_row() -> None:
    ours, _ = by_powers(torch.tensor([[float("nan"), 0.0], [0.0, 0.0]]))
    assert ours.isnan().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    assert by_powers(torch.empty(shape))[0].shape == shape


def test_it_fills_the_products_own_memory() -> None:
    memory = torch.empty(4, 5)
    assert softmax(lambda factor: torch.linspace(-1, 1, 20, out=memory.view(-1)).view(4, 5).mul_(factor)) is not None
    torch.testing.assert_close(memory, torch.linspace(-1, 1, 20).view(4, 5).softmax(-1))
