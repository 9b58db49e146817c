"""Entries of lists one by one: what json itself would read."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.data.objects.json_scan import entries

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(content=st.dictionaries(st.text(max_size=4), values, max_size=5), indent=st.sampled_from([None, 1, "\t"]))
@settings(max_examples=100, deadline=None)
def test_what_is_scanned_is_what_json_reads(content: dict[str, Any], indent: Any) -> None:
    back: dict[str, Any] = {}
    for key, position, entry in entries(json.dumps(content, indent=indent)):
        if position < 0:
            back[key] = entry
        else:
            assert position == len(back[key])
            back[key].append(entry)
    assert back == content


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"a"', '{"a":', '{"a":1', '{"a":1,', '{"a":1,}', '{"a":[1,]}', '{"a":[1', '{"a":[', '{"a" 1}',
     "{1:2}", '{"a":1}x', '{"a":1 "b":2}', '{"a":[1 2]}', "nul"],
)  # fmt: skip
def test_what_is_not_json_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="line 1 column"):
        list(entries(text))
