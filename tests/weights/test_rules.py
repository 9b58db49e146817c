"""Every key on both sides is accounted for."""

import pytest
import torch
from torch import Tensor

from fourstage.weights.rules import Rule, check_complete, rename

RULES = (
    Rule(r"a\.(\d)\.w", lambda m: f"b.{int(m[1]) + 1}.weight"),
    Rule(r"mask", None),
    Rule(r"t", r"turned", lambda x: x.T),
)


def state(*names: str) -> dict[str, Tensor]:
    return {name: torch.arange(6.0).reshape(2, 3) for name in names}


def test_keys_are_renamed_changed_and_dropped() -> None:
    out = rename(state("a.0.w", "mask", "t"), RULES)
    assert {name: tuple(x.shape) for name, x in out.items()} == {"b.1.weight": (2, 3), "turned": (3, 2)}


@pytest.mark.parametrize(
    ("names", "rules", "sentence"),
    [
        (("a.0.w", "zzz"), RULES, "'zzz' matches 0 rules"),
        (("t",), (*RULES, Rule(r"\w", "x")), "'t' matches 2 rules"),
        (("t", "u"), (*RULES, Rule("u", "turned")), "both become 'turned'"),
    ],
)
def test_a_key_has_exactly_one_rule_and_one_place(names: tuple, rules: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rename(state(*names), rules)


@pytest.mark.parametrize(
    ("filled", "fresh", "sentence"),
    [
        (["a"], [], r"never filled: \['b'\]"),
        (["a", "b", "c"], [], r"not ours: \['c'\]"),
        (["a", "b"], ["z"], r"not ours: \['z'\]"),
        (["a", "b"], ["b"], r"twice: \['b'\]"),
    ],
)
def test_all_of_ours_is_filled_or_named_and_nothing_else(filled: list[str], fresh: list[str], sentence: str) -> None:
    check_complete(["a"], ["a", "b"], ["b"])
    with pytest.raises(ValueError, match=sentence):
        check_complete(filled, ["a", "b"], fresh)
