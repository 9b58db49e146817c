"""Rates by the step."""

import math
from typing import Any, Literal

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
    schedule = Schedule(peak=1.0, total=12, curve="step", milestones=(8, 11))
    assert [round(schedule.lr(step), 6) for step in (7, 8, 10, 11)] == [1.0, 0.1, 0.1, 0.01]


def test_poly_and_linear() -> None:
    assert Schedule(peak=1.0, total=10, curve="poly", power=2).lr(5) == pytest.approx(0.25)
    assert Schedule(peak=1.0, total=10, curve="linear").lr(5) == pytest.approx(0.5)
    assert Schedule(peak=1.0, total=10, curve="constant").lr(9) == 1.0


KINDS: tuple[Literal["cosine", "linear", "poly"], ...] = ("cosine", "linear", "poly")


@given(st.sampled_from(KINDS), st.integers(0, 50), st.integers(51, 500))
def test_after_warm_up_the_rate_only_falls(kind: Literal["cosine", "linear", "poly"], warmup: int, total: int) -> None:
    schedule = Schedule(peak=1.0, total=total, curve=kind, warmup=warmup, min_lr=0.01)
    rates = [schedule.lr(step) for step in range(warmup, total + 1)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.01)


def test_a_curve_over_all_steps_has_warm_up_as_a_factor() -> None:
    """OpenMMLab's older poly: the regular rate from step 0, times a share that climbs to 1."""
    schedule = Schedule(peak=6e-5, total=160, curve="poly", warmup=15, warmup_lr=6e-11, spans="whole")
    for step in (0, 1, 7, 14, 15, 80, 159):
        regular = 6e-5 * (1 - step / 160)
        share = 1 - (1 - step / 15) * (1 - 1e-6) if step < 15 else 1.0
        assert schedule.lr(step) == pytest.approx(regular * share)


@pytest.mark.parametrize("spans", ["rest", "whole", "behind"])
@pytest.mark.parametrize("curve", ["cosine", "linear", "poly", "step", "constant"])
def test_without_warm_up_the_first_step_has_the_peak(spans: Any, curve: Any) -> None:
    schedule = Schedule(peak=1e-4, total=12, curve=curve, milestones=(8,), spans=spans)
    assert schedule.lr(0) == 1e-4
