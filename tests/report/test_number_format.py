import math

import pytest

from fourstage.plurals import plural
from fourstage.report.markup import Markup, escape, tag
from fourstage.report.number_format import duration, metric, millions, signed, significant


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.5, "0.5 s"), (41, "41 s"), (59.7, "1 min"), (121.4, "2 min 1 s"), (3600, "1 h"), (11100, "3 h 5 min"),
     (187_200, "2 d 4 h"), (86_401, "1 d"), (90_061, "1 d 1 h"), (math.nan, "–"), (-1, "–")],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float, words: str) -> None:
    assert duration(seconds).replace("\u202f", " ") == words


def test_numbers_are_short() -> None:
    assert significant(2e-05) == "2e-5"
    assert significant(0.0001) == "0.0001"
    assert significant(1.5e12) == "1.5e12"
    assert signed(-0.234) == "\u22120.23"
    assert millions(412_340) == "412,340"
    assert millions(28_265_032) == "28.3\u202fM"
    assert plural(1, "image") == "1 image"
    assert plural(1797, "image") == "1,797 images"


def test_metrics_show_their_unit() -> None:
    assert metric("top1").show(82.2) == "82.20\u202f%"
    assert metric("loss").show(0.11) == "0.1100"
    assert metric("loss").show(math.inf) == "infinite"
    assert metric("something new").show(math.nan) == "–"


def test_what_enters_a_tag_is_escaped_once() -> None:
    inner = tag("b", "<&\"'>")
    assert inner == "<b>&lt;&amp;&quot;&#x27;&gt;</b>"
    assert tag("p", inner, title='a"b', class_=None) == f'<p title="a&quot;b">{inner}</p>'
    assert escape(Markup("<i>")) == "<i>"
    assert escape("a\x00b\udcffc\n") == "a\ufffdb\ufffdc\n"
