"""The errors on options that a command lacks and on words that are no changes, with what to type instead."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fourstage.cli.parsing import names_a_file, options_of, takes_changes

if TYPE_CHECKING:
    from fourstage.recipe import Recipe

ASSIGNMENT = re.compile(
    r"([A-Za-z_]\w*)=([^/\\]*)"
)  # a file that is missing has a folder before its name, or an ending
NEGATIVE = re.compile(r"-[.\d]")


def refuse_options(options: Sequence[str], verb: argparse.ArgumentParser, arguments: Sequence[str]) -> NoReturn:
    """End with an error on all options that a command lacks; `arguments` are all words of the command."""
    instead: dict[str, tuple[str, str]] = {}
    for option in options:
        name, equals, value = option.partition("=")
        following = [value] if equals else list(arguments)[arguments.index(option) + 1 :]
        instead[name] = _instead(name, following, verb, arguments)
    known = {name: both for name, both in instead.items() if both[0]}
    texts = [f"{_no_options(list(known))}{_write(list(known.values()))}"] if known else []
    texts += [
        f"{_no_options([name])}; {note}".removesuffix("; ") for name, (write, note) in instead.items() if not write
    ]
    verb.error(", and ".join(texts))


def _no_options(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"there is no option {names[0]} here"
    return f"there are no options {', '.join(names[:-1])} and {names[-1]} here"


def _write(instead: Sequence[tuple[str, str]]) -> str:
    """Return the end of the sentence: what to write for words, with the notes on it."""
    words = " ".join(write for write, _ in instead)
    notes = "; ".join(dict.fromkeys(note for _, note in instead if note))
    how = f", did you mean {words}" if words.startswith("--") else f"; write {words}"
    return f"{how} ({notes})" if notes else how


def check_changes(words: Sequence[str], verb: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """End with an error unless each word is a change KEY=VALUE; another word is often an option without its dashes."""
    for i, word in enumerate(words):
        if "=" in word:
            continue
        before = "".join(arguments[1:2])
        if "=" in before and not before.startswith("-"):
            verb.error(f"{word!r} comes after {before!r}, and the recipe comes first: write {word} {before}")
        write, note = _instead(word, words[i + 1 :], verb, arguments)
        if not (write or note) and "--data" in options_of(verb) and names_a_file(word):
            import shlex  # here: --help would load it too

            write = f"--data {shlex.quote(word)}"
        end = _write([(write, note)]) if write else f"; {note}" if note else ", a change is written key=value"
        verb.error(f"{word!r} is not expected here{end}")


def check_files(words: Sequence[str], verb: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """End with an error on a word NAME=VALUE that is no file: other tools write their options in this way."""
    for word in words:
        assignment = ASSIGNMENT.fullmatch(word)
        if assignment is None or names_a_file(word):
            continue
        write, note = _instead(f"--{assignment[1]}", [assignment[2]], verb, arguments)
        end = _write([(write, note)]) if write else f"; {note}" if note else ", options are written --NAME VALUE"
        verb.error(f"{word!r} is not a file and not expected here{end}")


def _instead(
    word: str, following: Sequence[str], verb: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[str, str]:
    """Return what to write instead of a word and its value, which may follow it, and a note; both may be empty."""
    from fourstage.recipe.suggestions import unknown_option

    schemas, recipe = _schemas(verb, arguments)
    value = next(iter(following), "")
    if "=" in value or (value.startswith("-") and not NEGATIVE.match(value)) or value == recipe:
        value = ""  # the word has a meaning of its own
    return unknown_option(word, value, options_of(verb), schemas)


def _schemas(verb: argparse.ArgumentParser, arguments: Sequence[str]) -> "tuple[list[type[Recipe]], str]":
    """Return the schemas of the recipe that a command changes, that of the named recipe first, and its name.

    There are none where a command changes no recipe, and the name is empty where none is found.
    """
    from fourstage.recipe import TASKS, list_recipes, resolve

    if not takes_changes(verb):
        return [], ""
    schemas, names = list(TASKS.values()), list_recipes()
    for word in arguments:
        try:
            file = Path(word) / "recipe.yaml" if Path(word).is_dir() else Path(word)
            if word not in names and not (file.suffix in (".yaml", ".yml") and file.is_file()):
                continue
            task = type(resolve(word if word in names else file).recipe)
        except (ValueError, OSError):  # such as a change that is too long for the name of a file
            continue  # the error on the option comes first
        return sorted(schemas, key=lambda schema: schema is not task), word
    return schemas, ""
