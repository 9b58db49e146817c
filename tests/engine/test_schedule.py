"""Rates by the step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.engine.schedule import Schedule


def test_cosine_spans_what_warm_up_leaves() -> None:
    schedule = Schedule(peak=1.0, total=110, warmup=10, warmup_lr=0.1, min_lr=0.2)
    assert schedule.lr(0) == 0.1
    assert schedule.lr(5) == pytest.approx(0.55)
    assert schedule.lr(10) == 1.0
    assert schedule.lr(60) == pytest.approx(0.6)
    assert schedule.lr(110) == pytest.approx(0.2)
    assert schedule.lr(35) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi / 4)))


def test_milestones_multiply() -> None:
    schedule = Schedule(peak=1.0, total=12, kind="step", milestones=(8, 11))
    assert [round(schedule.lr(step), 6) for step in (7, 8, 10, 11)] == [1.0, 0.1, 0.1, 0.01]


def test_poly_and_linear() -> None:
    assert Schedule(peak=1.0, total=10, kind="poly", power=2).lr(5) == pytest.approx(0.25)
    assert Schedule(peak=1.0, total=10, kind="linear").lr(5) == pytest.approx(0.5)
    assert Schedule(peak=1.0, total=10, kind="constant").lr(9) == 1.0


@given(st.sampled_from(["cosine", "linear", "poly"]), st.integers(0, 50), st.integers(51, 500))
def test_after_warm_up_the_rate_only_falls(kind: str, warmup: int, total: int) -> None:
    schedule = Schedule(peak=1.0, total=total, kind=kind, warmup=warmup, min_lr=0.01)  # type: ignore[arg-type]
    rates = [schedule.lr(step) for step in range(warmup, total + 1)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.01)
