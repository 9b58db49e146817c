"""The reference of every recipe key, generated from the schema: as rows for a terminal, and as docs/recipe-keys.md.

python -m fourstage.recipe.keys > docs/recipe-keys.md
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fourstage.methods import all_methods
from fourstage.recipe.common import Length, PositiveLength, Recipe, Section
from fourstage.recipe.schema import TASKS

COMMAND = "python -m fourstage.recipe.keys > docs/recipe-keys.md"
HEAD = ("key", "type", "default", "allowed", "meaning")
REQUIRED = "required"
OF_EACH_TASK = ("task", "expect")  # keys of every recipe whose values depend on the task
INTRODUCTION = f"""\
# Recipe keys

Every key that a recipe may have. Any of them can be changed on the command line as `key=value`, and a last name that
is unambiguous is enough: `lr=1e-3` is `optimisation.lr=1e-3`. `fourstage recipes --keys [TASK]` prints this page in a
terminal. [Method arguments](method-args.md) lists what `method_args` takes. A length is a number of epochs, such as
`300ep`, or of optimiser steps, such as `160000it`.

This page is generated from the schema in `fourstage/recipe/`. After a change there, write it again:

    {COMMAND}
"""


@dataclass(frozen=True)
class Key:
    """One key of a recipe, in words."""

    name: str  # dotted
    type: str
    default: str  # as YAML has it; REQUIRED where there is none
    allowed: str  # values or limits; empty: any of the type
    meaning: str

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        return self.name, self.type, self.default, self.allowed, self.meaning


def keys_of(schema: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a schema and of its sections, in the order of the source."""
    for name, field in schema.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from keys_of(annotation, f"{prefix}{name}.")
            continue
        assert field.description, f"{schema.__name__}.{name} has no docstring below it, which describes it"
        allowed = _allowed(_with_metadata(field))
        meaning = " ".join(field.description.split())
        yield Key(prefix + name, type_in_words(_with_metadata(field)), _default(field), allowed, meaning)


def keys_by_task() -> dict[str, list[Key]]:
    """Return the common keys under "every task", and the further keys of each task under its name."""
    common = [key for key in keys_of(Recipe) if key.name not in OF_EACH_TASK]
    names = {key.name for key in common}
    of_tasks = {task: _keys_of_task(task, schema, names) for task, schema in TASKS.items()}
    return {"every task": common, **of_tasks}


def _keys_of_task(task: str, schema: type[Recipe], common: set[str]) -> list[Key]:
    methods = ", ".join(method.name for method in all_methods(task))
    allowed = {"task": task, "expect": ", ".join(schema.METRICS), "method": methods}
    keys = [key for key in keys_of(schema) if key.name not in common]
    return [replace(key, allowed=allowed.get(key.name, key.allowed)) for key in keys]


def page() -> str:
    """Return docs/recipe-keys.md."""
    titles = {"every task": "Keys of every task"} | {task: f"Keys of {task}" for task in TASKS}
    sections = [f"## {titles[name]}\n\n{table(HEAD, [k.cells for k in keys])}" for name, keys in keys_by_task().items()]
    return "\n".join([INTRODUCTION, "\n".join(sections)])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown whose first and third columns are names and defaults."""
    written = [(f"`{name}`", kind, _code(default), *rest) for name, kind, default, *rest in rows]
    lines = [head, ("---",) * len(head), *written]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _code(default: str) -> str:
    return default if default == REQUIRED else f"`{default}`"


def _with_metadata(field: FieldInfo) -> Any:
    """Return the annotation as it was written: pydantic moves the outermost `Annotated` into `metadata`."""
    annotation: Any = field.annotation
    for item in field.metadata:
        annotation = Annotated[annotation, item]
    return annotation


def type_in_words(annotation: Any) -> str:
    """Return the type of a key in words."""
    if _is_length(annotation):
        return "length"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_in_words(arguments[0])
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else type_in_words(one) for one in arguments)
    if origin is Literal:
        return "text"
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_in_words(arguments[0])}"
        return f"[{', '.join(type_in_words(one) for one in arguments)}]"
    if origin is dict:
        return f"mapping of {type_in_words(arguments[0])} to {type_in_words(arguments[1])}"
    return {str: "text", bool: "bool", int: "int", float: "float", Any: "any"}[annotation]


def _is_length(annotation: Any) -> bool:
    validators = {id(item) for length in (Length, PositiveLength) for item in get_args(length)[1:]}
    return get_origin(annotation) is Annotated and any(id(item) in validators for item in get_args(annotation)[1:])


def _allowed(annotation: Any) -> str:
    """Return the allowed values or the limits of a key."""
    choices = [value for literal in _literals(annotation) for value in get_args(literal)]
    if choices:
        return ", ".join(map(str, choices))
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    limits = [
        f"{sign} {value:g}" if value < 2**53 else f"{sign} 2^{value.bit_length() - 1}"
        for item in _annotations(annotation)
        for name, sign in signs.items()
        if (value := getattr(item, name, None)) is not None
    ]
    return ", ".join(limits)


def _literals(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Literal:
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, types.UnionType):
        for one in get_args(annotation):
            yield from _literals(one)


def _annotations(annotation: Any) -> Iterator[Any]:
    """Yield the constraints on a value, those inside a union too."""
    if get_origin(annotation) is Annotated:
        for item in get_args(annotation)[1:]:
            yield from getattr(item, "metadata", [item])
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        for one in get_args(annotation):
            if get_origin(one) is not None:
                yield from _annotations(one)


def _default(field: FieldInfo) -> str:
    return REQUIRED if field.is_required() else in_yaml(field.default)


def in_yaml(value: object) -> str:
    """Return a value as YAML has it in one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1e4 else f"{value:g}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(in_yaml, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {in_yaml(one)}" for key, one in value.items()) + "}"
    return str(value)


if __name__ == "__main__":
    print(page(), end="")
