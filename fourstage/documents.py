"""JSON and YAML documents that may come from anyone. Any package may import this module.

A document is checked before it is built: its size in bytes, its number of values, its depth, and in YAML what its
aliases stand for, since a few lines of aliases can describe billions of values. What is wrong is one ValueError that
names the file. `fourstage.files.limit` raises the limits.

    values = read_json(path)                      # a file
    values = parse_yaml(text, where="mine.yaml")  # a text; `where` names it in messages
    with in_file(path):                           # around own code that works on foreign values
        sizes = [int(row["width"]) for row in values]
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fourstage.files import RAISE, limit, read_bytes

JSON_BYTES = 64 * 2**20
JSON_VALUES = 5_000_000  # 64 MiB of empty objects would take 1.6 GB
YAML_BYTES = 2**20
YAML_VALUES = 100_000  # PyYAML builds about 20,000 a second
YAML_DEPTH = 64
LONGEST_NUMBER = 400  # characters; the largest float has 309 digits
LONG = re.compile(r"[-+]?\d[\da-fA-FxXoO_:.]{14,}")  # numbers of 15 characters or more, from 2^53 on
LONG_NUMBERS = 1000  # of a YAML text. As keys, multiples of 2^61 - 1 collide: 30,000 would take minutes


@contextmanager
def in_file(where: str | Path) -> Iterator[None]:
    """Turn errors that numbers, depths and sizes beyond Python's own limits raise into one that names the file.

    Only these three kinds of errors are turned: a KeyError or TypeError is left, since it may be our own mistake.

    Raises:
        ValueError: instead of OverflowError, RecursionError or MemoryError.
    """
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"{where} has a number that is too large ({error}); correct it") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply; put fewer lists and mappings into each other") from error
    except MemoryError as error:
        raise ValueError(f"{where} needs more memory than there is; give a smaller one") from error


def read_json(path: str | Path, *, most_bytes: int = JSON_BYTES, most_values: int = JSON_VALUES) -> Any:
    """Return the content of a JSON file.

    Args:
        most_bytes, most_values: the limits, before `limit` raises them.

    Raises:
        ValueError: the file is not JSON, too large, nested too deeply, or no regular file.
        OSError: there is no such file, or it cannot be read.
    """
    return parse_json(read_bytes(path, most_bytes), path, most_bytes=most_bytes, most_values=most_values)


def parse_json(
    content: bytes | str, where: str | Path, *, most_bytes: int = JSON_BYTES, most_values: int = JSON_VALUES
) -> Any:
    """Return the content of a JSON text; `where` names it in messages. Other arguments and errors as `read_json`."""
    if len(content) > limit(most_bytes):
        raise ValueError(
            f"{where} is {len(content):,} bytes large, and at most {limit(most_bytes):,} are read; {RAISE}"
        )
    marks = (b",", b"[", b"{") if isinstance(content, bytes) else (",", "[", "{")
    values = 1 + sum(content.count(mark) for mark in marks)  # pyright: ignore[reportArgumentType]
    if values > limit(most_values):
        raise ValueError(f"{where} holds about {values:,} values, and at most {limit(most_values):,} are read; {RAISE}")
    with in_file(where):
        try:
            return json.loads(content)
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from None
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}; correct it") from None


def parse_yaml(text: str, where: str | Path, loader: Any = None) -> Any:
    """Return the content of a YAML text; `where` names it in messages.

    Args:
        loader: a subclass of `yaml.SafeLoader` or `yaml.CSafeLoader`; None: the faster of the two.

    Raises:
        ValueError: the text is not YAML, too large or nested too deeply, or its aliases stand for too many values.
    """
    import yaml

    if len(text) > limit(YAML_BYTES):
        raise ValueError(f"{where} is {len(text):,} bytes large, and at most {limit(YAML_BYTES):,} are read; {RAISE}")
    loader = loader or getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with in_file(where):
        try:
            _check_events(text, where, limit(YAML_VALUES))
            return yaml.load(text, Loader=loader)
        except yaml.YAMLError as error:
            raise ValueError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def _check_events(text: str, where: str | Path, most_values: int) -> None:
    """Raise ValueError unless a YAML text stays within the limits with every alias replaced by its values."""
    import yaml

    sizes: dict[str, int] = {}  # anchor -> values below it
    unfinished: list[tuple[str | None, int]] = []  # anchors of the collections around, values before each
    values = long_numbers = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        match event:
            case yaml.AliasEvent():
                if event.anchor not in sizes:  # unknown, or around its own alias
                    raise ValueError(f"{where}: the alias *{event.anchor} refers to itself or to nothing; correct it")
                values += sizes[event.anchor]
            case yaml.CollectionStartEvent():
                unfinished.append((event.anchor, values))
                values += 1
            case yaml.CollectionEndEvent():
                anchor, before = unfinished.pop()
                if anchor:
                    sizes[anchor] = values - before
            case yaml.ScalarEvent():
                values += 1
                _check_number(event.value, where)
                quoted = event.implicit[1]  # and without a tag such as !!int
                long_numbers += not quoted and LONG.fullmatch(event.value) is not None
                if event.anchor:
                    sizes[event.anchor] = 1
        if len(unfinished) > limit(YAML_DEPTH):
            raise ValueError(f"{where} is nested too deeply; put fewer lists and mappings into each other")
        if long_numbers > limit(LONG_NUMBERS):
            raise ValueError(
                f"{where} has more than {limit(LONG_NUMBERS):,} numbers of 15 characters or more; put them in quotes, "
                f"if they are names; {RAISE}"
            )
        if values > most_values:
            raise ValueError(f"{where} describes more than {most_values:,} values; {RAISE}")


def _check_number(text: str, where: str | Path) -> None:
    """Raise ValueError for a number of absurd length: to read `1:59:59:...` or print a long integer takes minutes."""
    if len(text) > LONGEST_NUMBER and re.fullmatch(r"[-+]?[\d.][\w.:+-]*", text):
        raise ValueError(f"{where} has a number of {len(text):,} characters; correct it, or put text in quotes")
