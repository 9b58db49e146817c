"""Find the mixer or the backbone to check in a user's Python file."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from fourstage import registry
from fourstage.user_files import import_files, module_name, modules_by_name

Kind = Literal["mixer", "backbone"]
SPLIT = ".py:"


@dataclass(frozen=True)
class Candidate:
    """What is checked: a name, and what builds one instance."""

    name: str
    kind: Kind
    build: Callable[..., nn.Module]


def find_candidate(source: str) -> Candidate:
    """Run a Python file and return the mixer or backbone of `FILE.py` or `FILE.py:NAME`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file fails, it has no such name, or several and none was chosen.
    """
    file, wanted = _split(source)
    if not Path(file).is_file():
        raise FileNotFoundError(f"there is no file {file}; give a Python file with your mixer or backbone")
    if Path(file).suffix != ".py":
        raise ValueError(f"{file} is not a Python file; give the file.py that defines your mixer or backbone")
    import_files([file])
    module = modules_by_name()[module_name(file)]
    if wanted:
        return _named(vars(module), wanted, file)
    known = _candidates(module.__name__, vars(module), file)
    if not known:
        raise ValueError(
            f"{file} defines no mixer and no backbone: a mixer is a module whose first argument is dim, a backbone is "
            f"registered by @fourstage.register; or name one, as {file}:MyMixer"
        )
    if len(known) > 1:
        listed = ", ".join(one.name for one in known)
        raise ValueError(f"{file} has several to check: {listed}; choose one, such as {file}:{known[0].name}")
    return known[0]


def _split(source: str) -> tuple[str, str]:
    if SPLIT not in source:
        return source, ""
    file, _, name = source.rpartition(":")
    return file, name


def _named(names: dict[str, Any], wanted: str, file: str) -> Candidate:
    mixers, networks = registry.registered_in(Path(file))
    if wanted in networks:
        return Candidate(wanted, "backbone", networks[wanted])
    if wanted in mixers:
        return Candidate(wanted, "mixer", mixers[wanted])
    if wanted not in names:
        close = get_close_matches(wanted, {*names, *mixers, *networks}, n=3)
        known = [one.name for one in _candidates(names["__name__"], names, file)]
        hint = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(known) or 'nothing to check'}"
        raise ValueError(f"{file} defines no {wanted}; {hint}")
    build = names[wanted]
    if inspect.isclass(build) and not issubclass(build, nn.Module):
        raise ValueError(f"{wanted} in {file} is a class, but no torch.nn.Module; derive it from nn.Module")
    if isinstance(build, nn.Module) or not callable(build):
        raise ValueError(
            f"{wanted} in {file} is a value of type {type(build).__name__}; name a class or a function that builds one"
        )
    return Candidate(wanted, "mixer" if _first_argument(build) else "backbone", names[wanted])


def _candidates(module: str, names: dict[str, Any], file: str) -> list[Candidate]:
    """Return what the file registers; else its modules whose first argument is `dim`."""
    mixers, networks = registry.registered_in(Path(file))
    kinds: tuple[tuple[Kind, dict[str, Callable[..., nn.Module]]], ...] = (("mixer", mixers), ("backbone", networks))
    registered = [Candidate(name, kind, build) for kind, builds in kinds for name, build in builds.items()]
    if registered:
        return registered
    own: list[tuple[str, Any]] = [(name, value) for name, value in names.items() if _is_own(value, module)]
    return [Candidate(name, "mixer", value) for name, value in own if _first_argument(value) == "dim"]


def _is_own(value: object, module: str) -> bool:
    if isinstance(value, partial):
        value = value.func
    return inspect.isclass(value) and issubclass(value, nn.Module) and value.__module__ == module


def _first_argument(build: Callable[..., Any]) -> str:
    """Return `dim`, or the first argument without a default; "" where there is neither."""
    try:
        parameters = list(inspect.signature(build).parameters.values())
    except (TypeError, ValueError):  # built in C: it does not say
        return ""
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if positional and positional[0].name == "dim":
        return "dim"
    return next((one.name for one in positional if one.default is one.empty), "")
