"""Every key on both sides is accounted for."""

import pytest
import torch
from torch import Tensor

from fourstage.weights.rules import Rule, convert, rename

RULES = (
    Rule(r"a\.(\d)\.w", lambda m: f"b.{int(m[1]) + 1}.weight"),
    Rule(r"mask", None),
    Rule(r"t", r"turned", lambda x: x.T),
)


def state(*names: str) -> dict[str, Tensor]:
    return {name: torch.arange(6.0).reshape(2, 3) for name in names}


def test_keys_are_renamed_changed_and_dropped() -> None:
    out = convert(state("a.0.w", "mask", "t"), RULES, ["b.1.weight", "turned", "steps"], fresh=["steps"])
    assert {name: tuple(x.shape) for name, x in out.items()} == {"b.1.weight": (2, 3), "turned": (3, 2)}


@pytest.mark.parametrize(
    ("names", "rules", "sentence"),
    [
        (("a.0.w", "zzz"), RULES, "'zzz' is claimed by 0 rules"),
        (("t",), (*RULES, Rule(r"\w", "x")), "'t' is claimed by 2 rules"),
        (("t", "u"), (*RULES, Rule("u", "turned")), "both become 'turned'"),
    ],
)
def test_a_key_has_exactly_one_rule_and_one_place(names: tuple, rules: tuple, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rename(state(*names), rules)


@pytest.mark.parametrize(("wanted", "sentence"), [(["turned", "more"], r"never filled: \['more'\]"), ([], "not ours")])
def test_all_of_ours_is_filled_and_nothing_else(wanted: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        convert(state("t"), RULES, wanted)
