"""Networks and token mixers by name.

A family is one file in `fourstage/backbones`; `FAMILIES` maps the beginning of a name to that file. This module does
not import torch: a family is imported when one of its networks is looked up.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fourstage.files import real_path
from fourstage.user_files import BUILT_IN, OWN, Place, check_name, name_of, place_of, place_of_caller

if TYPE_CHECKING:
    from torch import nn

# name prefix -> file in fourstage/backbones
FAMILIES = {
    "visformer_": "visformer",
    "swin_visformer_": "swin_visformer",
    "swin_": "swin",
    "scalable_vit_": "scalablevit",
    "unified_": "unified",
    "official_": "unified",
    "smt_": "smt",
}

OF_ALL_NETWORKS = ("in_chans", "img_size", "drop_path_rate", "out_indices")  # arguments

Build = TypeVar("Build", bound=Callable[..., "nn.Module"])


@dataclass(frozen=True)
class Entry:
    """The two forms of one network."""

    name: str
    classifier: "Callable[..., nn.Module]"
    dense: "Callable[..., nn.Module]"
    place: Place = BUILT_IN  # of what registered it


_entries: dict[str, Entry] = {}

# built-in token mixers of the unified architecture; backbones/mixers/build.py builds them
MIXERS = ("convnext", "dcn_v3", "halo", "pvt", "pvt_v2", "swin")
_mixers: dict[str, "tuple[Callable[..., nn.Module], Place]"] = {}


def add(
    name: str,
    *,
    classifier: "Callable[..., nn.Module]",
    dense: "Callable[..., nn.Module]",
    aliases: tuple[str, ...] = (),
) -> None:
    """Register the two forms of a network under `name` and its aliases. The same file may do so again.

    Raises:
        ValueError: another file has registered one of the names.
    """
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    _add(Entry(name, classifier, dense, place_of_caller(frame.f_back.f_globals, name)), aliases)


def _add(entry: Entry, aliases: tuple[str, ...] = ()) -> None:
    names = (entry.name, *aliases)
    for name in names:
        _import_family(name)  # a built-in name is refused even where its family was not imported yet
        check_name(name, "models", entry.place, _entries[name].place if name in _entries else None)
    _entries.update(dict.fromkeys(names, entry))


def register(build: Build) -> Build:
    """Register your own network for `create_model(build.__name__)` and `create_backbone(build.__name__)`.

    A network that `build` returns serves as a dense backbone if it has `levels` and its forward returns the list of
    maps. The same file may register it again.

    Raises:
        ValueError: `build` is no class or function with a name, or another file has registered the name.
    """
    _add(Entry(name_of(build, "network"), build, build, place_of(build)))
    return build


def register_mixer(build: Build) -> Build:
    """Register your own token mixer for `create_model("unified_swin_tiny", mixer=build.__name__)`.

    `build` is a class or a function; docs/mixers.md lists the arguments that it is called with. The same file may
    register it again.

    Raises:
        ValueError: `build` is no class or function with a name, or another file has registered the name.
    """
    name, place = name_of(build, "mixer"), place_of(build)
    check_name(name, "mixers", place, BUILT_IN if name in MIXERS else _mixers.get(name, (None, None))[1])
    _mixers[name] = build, place
    return build


def find_mixer(name: str) -> "Callable[..., nn.Module]":
    """Return the mixer that a user registered as `name`. Built-in mixers are not looked up here.

    Raises:
        ValueError: no mixer has this name; the message suggests similar names.
    """
    if name not in _mixers:
        known = sorted({*MIXERS, *_mixers})
        hint = f"did you mean {' or '.join(close)}?" if (close := get_close_matches(name, known, n=3)) else ""
        raise ValueError(f"no mixer is called {name!r}; {hint or 'there are ' + ', '.join(known)} ({OWN})")
    return _mixers[name][0]


def registered_in(
    file: Path,
) -> "tuple[dict[str, Callable[..., nn.Module]], dict[str, Callable[..., nn.Module]]]":
    """Return the mixers and the networks, in their dense form, that a file of the user has registered, by name."""
    path = str(real_path(file))
    mixers = {name: build for name, (build, place) in _mixers.items() if place[0] == path}
    return mixers, {name: entry.dense for name, entry in _entries.items() if entry.place[0] == path}


def find(name: str, own: str = OWN) -> Entry:
    """Return the entry called `name`, importing only its family.

    Args:
        own: for the message: what to do about a network of one's own.

    Raises:
        ValueError: no model has this name; the message suggests similar names.
    """
    if not isinstance(name, str):
        raise ValueError(f"a model's name is a string, such as 'swin_tiny'; got {name!r}")
    _import_family(name)
    if name not in _entries:
        known = list_models()
        close = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`fourstage models` and list_models() list all names"
        if name.startswith("timm/"):
            hint = "networks of timm are backbones of detectors and segmentors, and no classifiers; " + hint
        raise ValueError(f"no model is called {name!r}; {hint} ({own})")
    return _entries[name]


def registered_names() -> list[str]:
    """Return the names in this process so far, sorted: those of users, and of the families that were imported."""
    return sorted(_entries)


def list_models(pattern: str = "*") -> list[str]:
    """Return all names and aliases that match a shell-style wildcard, sorted.

    Args:
        pattern: `*` any text, `?` one character, `[ab]` one of these.
    """
    for family in sorted(set(FAMILIES.values())):
        import_module(f"fourstage.backbones.{family}")
    return sorted(name for name in _entries if fnmatchcase(name, pattern))


def call(build: "Callable[..., nn.Module]", name: str, arguments: Mapping[str, Any]) -> "nn.Module":
    """Return `build(**arguments)`. An argument that is None takes its default.

    Raises:
        ValueError: `build` has no such argument, or one has the wrong type; the message suggests similar names.
    """
    known = _arguments(build)
    if known is not None:
        for argument in arguments:
            if argument not in known:
                close = get_close_matches(argument, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known) or 'none'}"
                raise ValueError(f"{name} has no argument {argument}; {hint}")
    try:
        return build(**{key: value for key, value in arguments.items() if value is not None})
    except TypeError as error:
        raise ValueError(f"{name} was given an argument of the wrong type ({error}); correct its value") from error


def name_of_network(name: str) -> str:
    """Return the first name of a network that has several; a name that is not known here stays as it is."""
    try:
        return find(name).name
    except ValueError:
        return name


def arguments_of(name: str, *, dense: bool) -> Collection[str] | None:
    """Return the names of a network's arguments; None: it is not known here, or takes any."""
    if name.startswith("timm/"):
        return OF_ALL_NETWORKS
    try:
        entry = find(name)
    except ValueError:
        return None
    return _arguments(entry.dense if dense else entry.classifier)


def _arguments(build: "Callable[..., nn.Module]") -> list[str] | None:
    """Return the names that a call takes; None: any."""
    parameters = inspect.signature(build).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    # a positional argument that a partial has filled in is not among the parameters
    return [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _import_family(name: str) -> None:
    prefix = max((prefix for prefix in FAMILIES if name.startswith(prefix)), key=len, default=None)
    if prefix is not None:
        import_module(f"fourstage.backbones.{FAMILIES[prefix]}")
