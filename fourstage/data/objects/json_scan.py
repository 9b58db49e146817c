"""Large JSON files, one entry at a time: the lists of the file are never in memory completely."""

import json
import re
from collections.abc import Generator, Iterator
from typing import Any

SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


def entries(text: str) -> Iterator[tuple[str, int, Any]]:
    """Yield the entries of the lists in one JSON object.

    Yields:
        (key, position, entry) for each entry of each list, and (key, -1, value) ahead of a list's entries, where value
        is an empty list, and for every value that is no list.

    Raises:
        ValueError: not JSON, or not an object.
    """
    at = _expect(text, _after_space(text, 0), "{")
    if text[at : at + 1] == "}":
        return _end(text, at + 1)
    while True:
        key, at = DECODER.raw_decode(text, at)
        if not isinstance(key, str):
            raise _unexpected(text, at)
        at = _expect(text, _after_space(text, at), ":")
        if text[at : at + 1] == "[":
            yield key, -1, []
            at = yield from _list(text, at + 1, key)
        else:
            value, at = DECODER.raw_decode(text, at)
            yield key, -1, value
        at = _after_space(text, at)
        if text[at : at + 1] == "}":
            return _end(text, at + 1)
        at = _expect(text, at, ",")


def _list(text: str, at: int, key: str) -> Generator[tuple[str, int, Any], None, int]:
    """Yield the entries of a list that starts before `at`; return where it ends."""
    at, position = _after_space(text, at), 0
    if text[at : at + 1] == "]":
        return at + 1
    while True:
        entry, at = DECODER.raw_decode(text, at)
        yield key, position, entry
        at, position = _after_space(text, at), position + 1
        if text[at : at + 1] == "]":
            return at + 1
        at = _expect(text, at, ",")


def _after_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    assert match is not None, "it matches nothing at all too"
    return match.end()


def _expect(text: str, at: int, sign: str) -> int:
    """Return where the next value starts. Raises ValueError unless `sign` is at `at`."""
    if text[at : at + 1] != sign:
        raise _unexpected(text, at)
    return _after_space(text, at + 1)


def _end(text: str, at: int) -> None:
    if (at := _after_space(text, at)) != len(text):
        raise _unexpected(text, at)


def _unexpected(text: str, at: int) -> ValueError:
    return json.JSONDecodeError("something else was expected", text, min(at, len(text)))
