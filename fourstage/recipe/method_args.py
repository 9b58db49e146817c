"""The reference of every detector's and segmentor's arguments, generated from their signatures and docstrings.

python -m fourstage.recipe.method_args > docs/method-args.md
"""

import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pkgutil import resolve_name
from typing import Any, Literal, Union, get_args, get_origin

from fourstage.methods import METHODS, Builder, Method
from fourstage.recipe.keys import REQUIRED, Key, in_yaml, table, type_in_words

COMMAND = "python -m fourstage.recipe.method_args > docs/method-args.md"
HEAD = ("argument", "type", "default", "meaning")
OF_THE_RECIPE = ("backbone", "num_classes")  # arguments that follow from other keys
RPN = "fourstage.tasks.detection.rpn:RPNHead"  # the values of `rpn`
OF_THE_DETECTOR = ("levels", "training_proposals")  # arguments of RPN that the detector gives
IN_YAML = {"None": "null", "True": "true", "False": "false"}
INTRODUCTION = f"""\
# Method arguments

Every argument of every detector and segmentor: in a recipe `method_args: {{name: value}}`, on the command line
`method_args.name=value`, and in Python `create_detector(..., name=value)` or `create_segmentor(..., name=value)`. A dot
leads into a mapping: `rpn.scales` is `rpn: {{scales: ...}}`. `[]` stands for each item of a list.
[Detection](detection.md) and [Segmentation](segmentation.md) describe the methods, and [Recipe keys](recipe-keys.md)
lists the other keys.

This page is generated from the signatures and docstrings of the methods. After a change there, write it again:

    {COMMAND}
"""


def arguments_of(method: Method) -> list[Key]:
    """Return the arguments of a method and of its mappings, in the order of the source."""
    return list(_arguments(method.builder, "", OF_THE_RECIPE, {}))


def _arguments(build: Builder, prefix: str, but: tuple[str, ...], defaults: Mapping[str, Any]) -> Iterator[Key]:
    """Yield the arguments of `build`, except `but`; `defaults` replace those of its signature."""
    for name, parameter in inspect.signature(build).parameters.items():
        if name in but:
            continue
        default, annotation = defaults.get(name, parameter.default), parameter.annotation
        written = REQUIRED if default is parameter.empty else in_yaml(_plain(default))
        yield Key(prefix + name, _type(annotation), written, "", meaning_of(build, name))
        if name == "rpn":
            yield from _arguments(
                resolve_name(RPN), f"{prefix}rpn.", OF_THE_DETECTOR, getattr(build, "rpn_defaults", {})
            )
        for settings in _settings(annotation):
            items = "[]" if get_origin(annotation) is Sequence else ""
            yield from _arguments(settings, f"{prefix}{name}{items}.", (), {})


def _settings(annotation: Any) -> Iterator[Builder]:
    """Yield the dataclass that a mapping stands for, if there is one."""
    if is_dataclass(annotation) and isinstance(annotation, type):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Sequence):
        for one in get_args(annotation):
            yield from _settings(one)


def _plain(value: Any) -> Any:
    """Return a default without classes."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.__name__ if callable(value) else value


def meaning_of(build: Builder, name: str) -> str:
    """Return the meaning of an argument by the docstring of `build`, or of the code to which that refers."""
    meanings = _meanings(build)
    assert name in meanings, f"the docstring of {build.__name__} lacks {name} in its Args"
    refers = re.fullmatch(r"(?:.*\W)?see `(\w+)`\.", meanings[name])
    if refers:
        return meaning_of(_named(refers[1], build), name)
    text = re.sub(r"\b(?:None|True|False)\b", lambda word: IN_YAML[word[0]], meanings[name])
    return text[0].upper() + text[1:]


def _meanings(build: Builder) -> dict[str, str]:
    """Return the entries of a docstring's Args; one entry may describe several arguments."""
    _, _, after = (inspect.getdoc(build) or "").partition("Args:\n")
    entries = re.split(r"^ {4}(?=\w)", re.split(r"\n(?=\S|\n)", after)[0], flags=re.MULTILINE)[1:]
    pairs = [entry.partition(": ")[::2] for entry in entries]
    return {name.strip(): " ".join(meaning.split()) for names, meaning in pairs for name in names.split(",")}


def _named(name: str, build: Builder) -> Builder:
    """Return the code of this name: what the file of `build` has, or a method."""
    builders = {method.builder.__name__: method.builder for method in METHODS.values()}
    return {**builders, **vars(sys.modules[build.__module__])}[name]


def _type(annotation: Any) -> str:
    """Return the type of an argument in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys("null" if one is types.NoneType else _type(one) for one in arguments))
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin is Sequence:
        return f"list of {_type(arguments[0])}"
    if origin is Mapping or is_dataclass(annotation):
        return "mapping"
    return "function" if origin is Callable else type_in_words(annotation)


def page() -> str:
    """Return docs/method-args.md."""
    return "\n".join([INTRODUCTION, *(f"## `{method.name}`\n\n{_table(method)}" for method in METHODS.values())])


def _table(method: Method) -> str:
    rows = [(a.name, a.type, a.default, a.meaning) for a in arguments_of(method)]
    return table(HEAD, rows)


if __name__ == "__main__":
    print(page(), end="")
