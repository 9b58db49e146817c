"""Expressions of a configuration as plain values. They are computed here, within limits, and never run.

Known are literals, `dict(...)`, lists, names that the file has assigned before, `_base_.name`, arithmetic on numbers,
joined and formatted text, `range`, and list comprehensions over known values. Anything else becomes `Unread`.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

MOST_VALUES = 200_000  # of a configuration with its base files, each name counted as what it stands for
LONGEST_TEXT = 10_000  # characters of a text that is computed
LARGEST = 2**63  # of an integer
LARGEST_EXPONENT, LARGEST_BASE = 64, 1e6
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
Key = str | int | float


class NotPlainError(Exception):
    """An error in a configuration; its text follows the word "configuration"."""


@dataclass(frozen=True)
class Unread:
    """Code in the place of a value. It is not run, and only an error where the value is needed."""

    code: str
    place: str  # file and line

    def __repr__(self) -> str:
        return f"{self.code} ({self.place})"


class Budget:
    """Counts the values of a configuration, so that a few short lines cannot describe billions."""

    def __init__(self, most: int = MOST_VALUES) -> None:
        self.left = self.most = most

    def spend(self, values: int = 1) -> None:
        self.left -= values
        if self.left < 0:
            raise NotPlainError(f"of more than {self.most:,} values")

    def copy(self, value: Any) -> Any:
        """Return a copy of a plain value, whose values count once more."""
        self.spend()
        if isinstance(value, dict):
            return {key: self.copy(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.copy(one) for one in value)
        return value


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the errors of Python's own parser and of its limits as `NotPlainError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about backslashes in text
            yield
    except SyntaxError as error:
        raise NotPlainError(f"that is not valid Python (line {error.lineno or 1})") from None
    except (RecursionError, MemoryError):
        raise NotPlainError("that is nested too deeply") from None
    except ValueError:  # null bytes, integers of thousands of digits
        raise NotPlainError("that is not valid Python") from None


class Evaluator:
    """Computes expressions of one file.

    Args:
        place: the file's name, for messages.
        names: values that the file has assigned; None: no expression may name a value.
        base: the values of its base files.
        texts: what `{{ name }}` stands for in text.
        strict: raise NotPlainError for code, instead of returning `Unread`.
    """

    def __init__(
        self,
        place: str = "",
        names: dict[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
        texts: Mapping[str, str] | None = None,
        budget: Budget | None = None,
        *,
        strict: bool = False,
    ) -> None:
        self.place, self.names, self.base, self.texts = place, names, base or {}, texts or {}
        self.budget, self.strict = budget or Budget(), strict
        self.used: set[str] = set()  # names that some expression loads
        self.used_of_base: set[str] = set()

    def value(self, node: ast.expr) -> Any:
        """Return the value of an expression; `Unread` where it is code.

        Raises:
            NotPlainError: code in a strict file, or more than the budget allows.
        """
        self.budget.spend()
        try:
            return self._value(node)
        except _CodeError as error:
            if self.strict:
                raise NotPlainError(f"with code; only literal values are allowed (line {error.node.lineno})") from None
            return Unread(_code(error.node), f"{self.place}, line {error.node.lineno}")

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value):
                return self._constant(node, value)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                number = self._value(node.operand)
                if isinstance(number, int | float | complex) and not isinstance(number, bool):
                    return -number if isinstance(node.op, ast.USub) else number
            case ast.List():
                return self._items(node.elts)
            case ast.Tuple():
                return tuple(self._items(node.elts))
            case ast.Dict():
                return self._dictionary(node)
            case ast.Call(func=ast.Name(id="dict"), args=[] | [_]):
                return self._dict_call(node)
            case ast.Name(id="inf" | "nan") if self.names is None:
                return float(node.id)
            case _ if self.names is not None:
                return self._computed(node)
            case _:
                pass
        raise _CodeError(node)

    def _computed(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name) if self.names is not None and name in self.names:
                self.used.add(name)
                return self.budget.copy(self.names[name])
            case ast.Attribute() | ast.Subscript():
                return self.budget.copy(self._entry(node))
            case ast.Set(elts=[ast.Set(elts=[ast.Attribute() as entry])]):  # {{ _base_.name }}
                return self.budget.copy(self._entry(entry))
            case ast.BinOp():
                return self._arithmetic(node)
            case ast.JoinedStr():
                return self._text(node, "".join(map(self._piece, node.values)))
            case ast.ListComp():
                return self._comprehension(node)
            case ast.Call(keywords=[]):
                return self._call(node)
            case _:
                pass
        raise _CodeError(node)

    def _constant(self, node: ast.expr, value: Any) -> Any:
        if isinstance(value, str) and "{{" in value and self.names is not None:
            return self._substituted(node, value)
        if isinstance(value, int) and abs(value) > LARGEST:
            raise _CodeError(node)
        if self.names is not None and not isinstance(value, str | int | float | bool | None):
            raise _CodeError(node)  # bytes, complex numbers, ...
        return value

    def _substituted(self, node: ast.expr, text: str) -> Any:
        """Return a text with `{{ fileBasename }}` and `{{ _base_.name }}` replaced."""
        pieces = text.split("{{")
        out = [pieces[0]]
        for piece in pieces[1:]:
            name, closed, rest = piece.partition("}}")
            name = name.strip()
            of_base = name.startswith("_base_.")
            found = self._of_base(node, name.split(".")[1:]) if of_base else self.texts.get(name)
            if not closed or not isinstance(found, str | int | float):
                raise _CodeError(node)
            if (out, rest, len(pieces)) == ([""], "", 2):
                return found  # the complete text is one value
            out += [str(found), rest]
        return self._text(node, "".join(out))

    def _items(self, nodes: list[ast.expr]) -> list[Any]:
        out: list[Any] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                more = self._value(node.value) if self.names is not None else None
                if not isinstance(more, list | tuple):
                    raise _CodeError(node)
                out += more
            else:
                out.append(self.value(node))
        return out

    def _dictionary(self, node: ast.Dict) -> dict[Key, Any]:
        out: dict[Key, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                out |= self._unpacked(value)
            else:
                out[self._key(key)] = self.value(value)
        return out

    def _dict_call(self, node: ast.Call) -> dict[Key, Any]:
        out: dict[Key, Any] = self._unpacked(node.args[0]) if node.args else {}
        for keyword in node.keywords:
            if keyword.arg is not None:
                out[keyword.arg] = self.value(keyword.value)
            elif self.strict:
                raise NotPlainError(f"that unpacks a dictionary (line {keyword.lineno})")
            else:
                out |= self._unpacked(keyword.value)
        return out

    def _unpacked(self, node: ast.expr) -> dict[Key, Any]:
        if self.strict and not isinstance(node, ast.Dict):
            raise _CodeError(node)
        found = self._value(node)
        if not isinstance(found, dict):
            raise _CodeError(node)
        return found

    def _key(self, node: ast.expr) -> Key:
        """Return a key of a dictionary, which is not Unread: a dictionary with an unknown key is code as a whole."""
        if self.strict and not isinstance(node, ast.Constant):
            raise NotPlainError("with a dictionary whose keys are not text or numbers")
        found = self._value(node)
        if isinstance(found, str | int | float):
            return found
        if self.strict:
            raise NotPlainError("with a dictionary whose keys are not text or numbers")
        raise _CodeError(node)

    def _entry(self, node: ast.expr) -> Any:
        """Return what `name["a"][0]`, `name.a` or `_base_.a.b` stands for."""
        keys: list[ast.expr | str] = []
        top = node
        while isinstance(top, ast.Attribute | ast.Subscript):
            keys.append(top.attr if isinstance(top, ast.Attribute) else top.slice)
            top = top.value
        if not isinstance(top, ast.Name):
            raise _CodeError(node)
        found: list[Any] = [key if isinstance(key, str) else self._value(key) for key in reversed(keys)]
        if top.id == "_base_":
            return self._of_base(node, found)
        if self.names is None or top.id not in self.names:
            raise _CodeError(node)
        self.used.add(top.id)
        return _within(node, self.names[top.id], found)

    def _of_base(self, node: ast.expr, keys: list[Any]) -> Any:
        if keys and isinstance(keys[0], str):
            self.used_of_base.add(keys[0])
        return _within(node, self.base, keys)

    def _arithmetic(self, node: ast.BinOp) -> Any:
        left, right = self._value(node.left), self._value(node.right)
        compute = OPERATORS.get(type(node.op))
        if compute is None:
            raise _CodeError(node)
        if _number(left) and _number(right):
            return _of_numbers(node, compute, left, right)
        pair = (left, right) if isinstance(left, list | tuple | str) else (right, left)
        if isinstance(node.op, ast.Mult) and isinstance(pair[0], list | tuple | str) and type(pair[1]) is int:
            return self._repeated(node, pair[0], pair[1])
        if isinstance(node.op, ast.Add) and type(left) is type(right) and isinstance(left, list | tuple | str):
            return self._text(node, left + right) if isinstance(left, str) else left + right
        raise _CodeError(node)

    def _repeated(self, node: ast.expr, value: Any, times: int) -> Any:
        if isinstance(value, str):
            if len(value) * max(0, times) > LONGEST_TEXT:
                raise _CodeError(node)
            return self._text(node, value * times)
        if times * len(value) > self.budget.left:
            self.budget.spend(times * len(value))
        return type(value)(self.budget.copy(one) for _ in range(times) for one in value)

    def _piece(self, node: ast.expr) -> str:
        """Return a piece of an f-string; only names and entries without a format are computed."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.FormattedValue) and node.conversion == -1 and node.format_spec is None:
            found = self._value(node.value)
            if isinstance(found, str | int | float):
                return str(found)
        raise _CodeError(node)

    def _text(self, node: ast.expr, text: str) -> str:
        if len(text) > LONGEST_TEXT:
            raise _CodeError(node)
        self.budget.spend(len(text) // 64)
        return text

    def _comprehension(self, node: ast.ListComp) -> list[Any]:
        if len(node.generators) != 1 or node.generators[0].ifs or node.generators[0].is_async:
            raise _CodeError(node)
        (loop,) = node.generators
        over = self._value(loop.iter)
        if not isinstance(loop.target, ast.Name) or not isinstance(over, list | tuple) or self.names is None:
            raise _CodeError(node)
        name, names, out = loop.target.id, self.names, []
        before = {name: names[name]} if name in names else {}
        for one in over:
            names[name] = one
            out.append(self.value(node.elt))
        names.pop(name, None)
        names |= before
        return out

    def _call(self, node: ast.Call) -> Any:
        """Return the result of `range`, `list`, `tuple`, `int`, `float` and `text.join`."""
        arguments = [self._value(argument) for argument in node.args]
        match node.func, arguments:
            case ast.Name(id="range"), [*limits] if limits and len(limits) <= 3 and all(type(n) is int for n in limits):
                if len(limits) == 3 and limits[2] == 0:
                    raise _CodeError(node)
                steps = range(*limits)
                count = (abs(steps.stop - steps.start) // abs(steps.step) + 1) if steps else 0  # len() may overflow
                self.budget.spend(count)
                return list(steps)
            case ast.Name(id="list" | "tuple" as name), [list() | tuple() as items]:
                return list(items) if name == "list" else tuple(items)
            case ast.Name(id="int" | "float" as name), [int() | float() as number] if _number(number):
                return _of_numbers(node, lambda a, _: int(a) if name == "int" else float(a), number, 0)
            case ast.Attribute(value=ast.Constant(value=str() as between), attr="join"), [
                list() | tuple() as texts
            ] if all(isinstance(text, str) for text in texts):
                return self._text(node, between.join(texts))
            case _:
                raise _CodeError(node)


class _CodeError(Exception):
    """An expression that is code."""

    def __init__(self, node: ast.expr) -> None:
        super().__init__()
        self.node = node


def _within(node: ast.expr, value: Any, keys: list[Any]) -> Any:
    for key in keys:
        inside = isinstance(value, Mapping) and isinstance(key, str | int | float) and key in value
        listed = isinstance(value, list | tuple) and type(key) is int and -len(value) <= key < len(value)
        if not inside and not listed:
            raise _CodeError(node)
        value = value[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
    return value


def _of_numbers(node: ast.expr, compute: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    if compute is operator.pow and (abs(right) > LARGEST_EXPONENT or abs(left) > LARGEST_BASE):
        raise _CodeError(node)
    try:
        found = compute(left, right)
    except (ArithmeticError, ValueError):
        raise _CodeError(node) from None
    if isinstance(found, complex) or (isinstance(found, int) and abs(found) > LARGEST):
        raise _CodeError(node)
    return found


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _code(node: ast.AST) -> str:
    """Return the beginning of an expression's code in one line."""
    try:
        text = " ".join(ast.unparse(node).split())
    except (ValueError, RecursionError):  # integers of thousands of digits
        text = "code"
    return text if len(text) <= 60 else f"{text[:57]}..."
