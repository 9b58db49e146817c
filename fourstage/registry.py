"""Names to models. A family is one file; the table below says which file a name belongs to.

Nothing here imports torch: a family is imported when one of its names is asked for.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

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

Build = TypeVar("Build", bound=Callable[..., "nn.Module"])


@dataclass(frozen=True)
class Entry:
    """The two forms of one network."""

    name: str
    classifier: "Callable[..., nn.Module]"
    dense: "Callable[..., nn.Module]"


_entries: dict[str, Entry] = {}

# token mixers of the unified architecture that have a name from the start; they are built in backbones/mixers/build.py
MIXERS = ("convnext", "dcn_v3", "halo", "pvt", "pvt_v2", "swin")
_mixers: dict[str, "Callable[..., nn.Module]"] = {}


def add(
    name: str,
    *,
    classifier: "Callable[..., nn.Module]",
    dense: "Callable[..., nn.Module]",
    aliases: tuple[str, ...] = (),
) -> None:
    """Make the two forms of a network reachable under `name` and under its other names.

    Raises:
        ValueError: a name is taken.
    """
    for each in (name, *aliases):
        if each in _entries:
            raise ValueError(f"two models are called {each!r}; give the new one another name")
        _entries[each] = Entry(name, classifier, dense)


def register(build: Build) -> Build:
    """Make your own backbone reachable as `create_model(build.__name__)` and `create_backbone(build.__name__)`.

    What `build` returns serves as a dense network if it has `levels` and its forward returns the list of maps.

    Raises:
        ValueError: the name is taken.
    """
    name = getattr(build, "__name__", "")
    _import_family(name)  # so that a name of ours is found taken whichever comes first
    add(name, classifier=build, dense=build)
    return build


def register_mixer(build: Build) -> Build:
    """Make your own token mixer reachable by its name: `create_model("unified_swin_tiny", mixer=build.__name__)`.

    `build` is a class or a function; docs/mixers.md says what it is called with.

    Raises:
        ValueError: the name is taken.
    """
    name = getattr(build, "__name__", "")
    if name in _mixers or name in MIXERS:
        raise ValueError(f"two mixers are called {name!r}; give the new one another name")
    _mixers[name] = build
    return build


def find_mixer(name: str) -> "Callable[..., nn.Module]":
    """The mixer that was registered as `name`; not for those in `MIXERS`.

    Raises:
        ValueError: no mixer has this name; the sentence offers the nearest ones.
    """
    if name not in _mixers:
        known = sorted({*MIXERS, *_mixers})
        hint = f"did you mean {' or '.join(close)}?" if (close := get_close_matches(name, known, n=3)) else ""
        raise ValueError(f"no mixer is called {name!r}; {hint or 'there are ' + ', '.join(known)}")
    return _mixers[name]


def find(name: str) -> Entry:
    """The entry called `name`. Imports one family, not all.

    Raises:
        ValueError: no model has this name; the sentence offers the nearest ones.
    """
    if not isinstance(name, str):
        raise ValueError(f"a model is asked for by its name, got {name!r}; list_models() names them all")
    _import_family(name)
    if name not in _entries:
        known = list_models()
        close = get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "list_models() names them all"
        raise ValueError(f"no model is called {name!r}; {hint}")
    return _entries[name]


def list_models(pattern: str = "*") -> list[str]:
    """All names that match a shell-style wildcard, sorted; aliases included.

    Args:
        pattern: `*` any text, `?` one character, `[ab]` one of these.
    """
    for family in sorted(set(FAMILIES.values())):
        import_module(f"fourstage.backbones.{family}")
    return sorted(name for name in _entries if fnmatchcase(name, pattern))


def call(build: "Callable[..., nn.Module]", name: str, arguments: Mapping[str, Any]) -> "nn.Module":
    """`build(**arguments)`, where None means the default and a wrong name is answered with the nearest right one.

    Raises:
        ValueError: `build` has no such argument.
    """
    parameters = inspect.signature(build).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        # what a partial has filled in as a positional argument is no longer among the parameters
        known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        for argument in arguments:
            if argument not in known:
                close = get_close_matches(argument, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(known)}"
                raise ValueError(f"{name} has no argument {argument}; {hint}")
    try:
        return build(**{key: value for key, value in arguments.items() if value is not None})
    except TypeError as error:
        raise ValueError(f"{name} was given an argument of the wrong type ({error}); see its values") from error


def _import_family(name: str) -> None:
    prefix = max((prefix for prefix in FAMILIES if name.startswith(prefix)), key=len, default=None)
    if prefix is not None:
        import_module(f"fourstage.backbones.{FAMILIES[prefix]}")
