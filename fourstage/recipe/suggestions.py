"""What to type instead of a key that no recipe has, or of an option that a command lacks, with the given value."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel

from fourstage.recipe.other_names import Row, all_words, first_usable, row_of
from fourstage.recipe.spelling import MOST, OTHER_LETTER, distance, nearest, nearest_with_costs

LIST_OF_KEYS = "`fourstage recipes --keys` lists all keys"
SURE = 1.0  # distance of one swapped, dropped or doubled letter
LEAST_WORD = 4  # letters of another tool's word that a misspelt word may be taken for
ASSIGNMENT = re.compile(r"([\w.]+)=(.*)", re.DOTALL)
VALUES_OF_RECIPES = "values of a recipe have no dashes"
WITH_CHANGES = ("--out", "--fresh", "--dry-run")  # options of the commands that take changes of a recipe
NETWORK_ARGUMENTS = ("model_args", "backbone_args")  # keys of different tasks for the same arguments


def known_keys(schema: type[BaseModel], before: str = "") -> dict[str, Any]:
    """Return the dotted keys of a schema with their types; `dict` where any further key may follow."""
    out: dict[str, Any] = {}
    for name, info in schema.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            out |= known_keys(annotation, f"{before}{name}.")
        else:
            out[before + name] = dict if getattr(annotation, "__origin__", annotation) is dict else annotation
    return out


def unknown_keys(changes: Sequence[tuple[str, str]], schema: type[BaseModel]) -> str:
    """Return the sentence on changes `key=value` whose keys are not in the schema."""
    return _sentence({key: _hint(key, value, schema, as_word) for key, value in changes}, schema)


def unknown_keys_in_file(values: Sequence[tuple[str, object]], schema: type[BaseModel]) -> str:
    """Return the sentence on keys of a YAML file that are not in the schema."""
    return _sentence({key: _hint(key, as_yaml(value), schema, _as_line) for key, value in values}, schema)


def _sentence(hints: Mapping[str, str], schema: type[BaseModel]) -> str:
    texts = [f"no key {key!r}; {hint or LIST_OF_KEYS}" for key, hint in hints.items()]
    return f"a {schema.__name__.lower()} recipe has {', and '.join(texts)}"


def _hint(key: str, value: str, schema: type[BaseModel], written: Callable[[str], str]) -> str:
    """Return what to write instead; empty: nothing is near.

    Args:
        written: gives `key=value` the form that it has on the command line or in a file.
    """
    keys, usable = known_keys(schema), _usable_in(schema, WITH_CHANGES)
    if (row := row_of(key.rpartition(".")[2])) is not None and (hint := _of_row(row, value, usable, written)):
        return hint
    close = nearest_keys(key, keys)
    if not close or close[0][0] > SURE:
        words = (word for word in all_words() if len(word) >= LEAST_WORD)
        word = next(iter(nearest_with_costs(key, words)), None)
        if word is not None and not (close and close[0][0] <= word[0]):
            row = row_of(word[1])
            assert row is not None
            if hint := _of_row(row, value, usable, written, sure=False):
                return hint
    names = [name for cost, name in close if cost <= SURE] or _with_word(key, keys) or [name for _, name in close]
    return f"did you mean {' or '.join(written(f'{name}={value}') for name in names)}?" if names else ""


def _with_word(word: str, keys: Iterable[str]) -> list[str]:
    """Return the keys that have a word in their name, those that end in it and the short ones first."""
    found = [key for key in keys if word in key.rpartition(".")[2].split("_")]
    return sorted(found, key=lambda key: (not key.endswith(f"_{word}"), len(key)))[:MOST]


def _of_row(
    row: Row, value: str, usable: Callable[[str, str], bool], written: Callable[[str], str], sure: bool = True
) -> str:
    """Return the hint that a row gives, in the form that it has where it is written; empty: it gives none here.

    Args:
        sure: whether the word was typed as the row has it, and not only nearly so.
    """
    way = first_usable(row, value, usable)
    if way is None:
        return row.advice
    what = written(way) + (f" ({row.note})" if row.note else "")
    return f"write {what}" if sure else f"did you mean {what}?"


def _usable_in(schema: type[BaseModel] | None, options: Iterable[str] = ()) -> Callable[[str, str], bool]:
    """Return whether a way to write a row names a key of the schema, or one of the options."""
    options, keys = set(options), {} if schema is None else known_keys(schema)

    def usable(name: str, task: str) -> bool:
        if task and (schema is None or schema.model_fields["task"].default != task):
            return False
        head = name.partition(".")[0]
        return name in options or name in keys or (head in keys and keys[head] is dict)

    return usable


def nearest_keys(key: str, keys: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Return the keys of a schema that a misspelt or misplaced key may stand for, each after its distance."""
    head, dot, rest = key.partition(".")
    free = [known for known, type in keys.items() if type is dict]
    if dot and not any(known.startswith(f"{head}.") for known in keys):
        owners = [known for known in free if head in NETWORK_ARGUMENTS and known in NETWORK_ARGUMENTS]
        owners = owners or nearest(head, [known for known in free if "." not in known])
        if owners:
            return [(0.0, f"{owner}.{rest}") for owner in owners]
    sections = {known.rpartition(".")[0] for known in keys if "." in known}
    return nearest_with_costs(key, [*keys, *sections], _key_distance)


def _key_distance(given: str, known: str) -> float:
    """Return how far a key is from a known one: the section may be left out, misspelt, or another one."""
    section, _, name = given.rpartition(".")
    of_known, _, last = known.rpartition(".")
    apart = 0.0 if section in ("", of_known) else min(OTHER_LETTER, distance(section, of_known))
    return min(distance(given, known), distance(name, last) + apart)


def as_yaml(value: object) -> str:
    """Return a value as YAML has it in one line, complete."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.strip().removesuffix("...").strip()


def as_word(assignment: str) -> str:
    """Return `key=value` as a word of the command line."""
    return assignment if assignment.startswith("--") else shlex.quote(assignment)


def _as_line(assignment: str) -> str:
    """Return `section.key=value` as the line of a YAML file, with the section that it belongs to."""
    parts = ASSIGNMENT.fullmatch(assignment)
    if parts is None:
        return f"{assignment} on the command line"
    section, _, name = parts[1].rpartition(".")
    line = f"`{name}: {parts[2]}`"
    return f"{line} below `{section}:`" if section else line


def unknown_option(
    option: str, value: str, options: Iterable[str], schemas: Iterable[type[BaseModel]]
) -> tuple[str, str]:
    """Return what to write instead of an option that a command lacks, and a note on it; both may be empty.

    Args:
        option: as typed, such as --epochs.
        value: the word after it; empty: there is none.
        options: the options of the command.
        schemas: those of the recipe that the command changes, the likeliest first; none: it changes no recipe.
    """
    options, name = sorted(options), option.lstrip("-").replace("-", "_")
    row, schemas = row_of(name), list(schemas)
    if row is not None and (way := first_usable(row, value, _usable_in(None, options))):
        return way, row.note
    for schema in schemas:
        if full := [key for key in known_keys(schema) if name in (key, key.rpartition(".")[2])]:
            return as_word(f"{full[0]}={value or 'VALUE'}"), VALUES_OF_RECIPES
    for schema in schemas:
        if row is not None and (way := first_usable(row, value, _usable_in(schema))):
            return as_word(way), row.note or VALUES_OF_RECIPES
    if row is not None and row.advice:
        return "", row.advice
    if close := nearest(option, options):
        return f"{close[0]} {value}".strip(), ""
    for schema in schemas:
        if near := nearest_keys(name, known_keys(schema)):
            return as_word(f"{near[0][1]}={value or 'VALUE'}"), VALUES_OF_RECIPES
    return "", ""
