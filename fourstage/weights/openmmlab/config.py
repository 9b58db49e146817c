"""The configuration in a checkpoint of OpenMMLab's, as plain values. Its text is read and never run.

mmcv 1 keeps the text of a Python file in `meta["config"]`, mmengine in `meta["cfg"]`. What these libraries write there
is resolved: assignments of numbers, text, lists, tuples, dictionaries and `dict(...)`. Anything else is refused.
"""

import ast
import io
import tokenize
import warnings
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from fourstage.weights.openmmlab.expressions import Budget, Evaluator, NotPlainError

LONGEST = 500_000  # characters; configurations with 1,200 class names stay below a third
DEEPEST = 60  # brackets within brackets
OPENING, CLOSING = ("(", "[", "{"), (")", "]", "}")
CONSTANTS = ("True", "False", "None", "inf", "nan")
PLAIN_OPERATORS = (",", ":", "=", *CLOSING)
HINT = "nothing in it was run; name a recipe of `fourstage recipes` and give the file with --weights"


def config_of(content: Mapping[str, Any], source: str) -> dict[str, Any] | None:
    """Return the configuration that a checkpoint was trained with; None where it carries none.

    Args:
        content: the checkpoint's top level.
        source: the file's name, for messages.

    Raises:
        ValueError: it is there and is no text of plain values.
    """
    meta = _mapping(content.get("meta"))
    running = _mapping(_mapping(content.get("message_hub")).get("runtime_info"))
    for found in (meta.get("cfg"), meta.get("config"), running.get("cfg")):
        if isinstance(found, str) and found.strip():
            return parse_config(found, source)
        if isinstance(found, Mapping) and found:
            return dict(found)
    return None


def parse_config(text: str, source: str) -> dict[str, Any]:
    """Return the assignments of a configuration as a dictionary.

    Raises:
        ValueError: it does more than assign plain values; the sentence says where.
    """
    try:
        check_size(text)
        _check_words(text)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes in text
            tree = ast.parse(text)
        evaluator = Evaluator(budget=Budget(LONGEST), strict=True)
        found = dict(_assignment(evaluator, statement) for statement in tree.body)
    except NotPlainError as error:
        raise ValueError(f"{source} contains a configuration {error}; {HINT}") from None
    except (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError):
        raise ValueError(f"{source} contains a configuration that is not valid Python; {HINT}") from None
    if "_base_" in found:
        raise ValueError(f"{source} contains a configuration that needs other files ({found['_base_']!r:.80}); {HINT}")
    return found


def check_size(text: str) -> None:
    if len(text) > LONGEST:
        raise NotPlainError(f"of {len(text):,} characters; at most {LONGEST:,} are read")
    for mark, name in (('"""', "text in triple quotes"), ("'''", "text in triple quotes"), ("\\\n", "a cut line")):
        if mark in text:
            line = text[: text.index(mark)].count("\n") + 1
            raise NotPlainError(f"with code; only literal values are allowed ({name} in line {line})")


def _check_words(text: str) -> None:
    """Raise unless all words belong to plain values, so that nothing else and no deep nesting reaches the parser."""
    skipped = (tokenize.COMMENT, tokenize.NL)
    words = (word for word in tokenize.generate_tokens(io.StringIO(text).readline) if word.type not in skipped)
    depth, before = 0, ""
    for word, after in pairwise(words):
        if not _is_plain(word, before, after.string):
            code = f"{word.string.strip()[:20]!r} in line {word.start[0]}"
            raise NotPlainError(f"with code; only literal values are allowed ({code})")
        depth += (word.string in OPENING) - (word.string in CLOSING)
        if depth > DEEPEST:
            raise NotPlainError(f"with brackets nested more than {DEEPEST} deep (line {word.start[0]})")
        before = word.string if word.type == tokenize.OP else "(dict" if word.string == "dict" else "value"


def _is_plain(word: tokenize.TokenInfo, before: str, after: str) -> bool:
    """Whether a word may stand between its neighbours.

    Args:
        before: the operator before it, "(dict" after that word, "value" after any other.
        after: the next word.
    """
    if word.type == tokenize.NAME:
        return word.string in CONSTANTS or after == ("(" if word.string == "dict" and after != "=" else "=")
    if word.type == tokenize.STRING:
        return "f" not in word.string[: word.string.index(word.string[-1])].lower()
    if word.type == tokenize.OP:
        begins = before in (*OPENING, ",", ":", "=")  # a value does
        if word.string in OPENING:
            return begins or (before == "(dict" and word.string == "(")
        if word.string in ("-", "+"):
            return begins and (after[:1].isdigit() or after[:1] == "." or after in ("inf", "nan"))
        return word.string in PLAIN_OPERATORS
    return word.type in (tokenize.NUMBER, tokenize.NEWLINE)


def _assignment(evaluator: Evaluator, statement: ast.stmt) -> tuple[str, Any]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, evaluator.value(statement.value)
    raise NotPlainError(f"with code; only assignments of literal values are allowed (line {statement.lineno})")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
