"""Our classifiers in timm's registry: `import fourstage.timm`, then `timm.create_model("smt_tiny")`.

A name that timm has already gets the prefix `fs_`, such as `fs_visformer_tiny`. timm builds, loads and wraps the
networks itself, by its own `build_model_with_cfg`, so that whatever takes a network of timm takes these.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fourstage.api import create_model
from fourstage.extras import install
from fourstage.registry import list_models

try:
    import timm
    from timm.models import PretrainedCfg, build_model_with_cfg, register_model
except ImportError as error:
    raise ImportError(f"fourstage.timm needs timm; type: {install('train')}") from error

__all__: list[str] = []  # timm adds the name of each entry point

PREFIX = "fs_"  # of a name that timm has
NAMES: dict[str, str] = {}  # timm's name -> ours


def name_in_timm(name: str) -> str:
    """Return the name under which timm knows one of our classifiers."""
    return f"{PREFIX}{name}" if timm.is_model(name) else name


def _entry_point(name: str, name_there: str) -> Callable[..., nn.Module]:
    """Return a function that builds a network as timm asks for it."""

    def build(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: Any = None,
        **arguments: Any,
    ) -> nn.Module:
        own = pretrained and pretrained_cfg is None  # from our own catalogue; timm loads what it names itself
        return build_model_with_cfg(
            lambda **kwargs: create_model(name, pretrained=own, **kwargs),
            name_there,
            pretrained and not own,
            pretrained_cfg=_configuration(name, name_there, pretrained_cfg),
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            cache_dir=cache_dir,
            feature_cfg={"out_indices": _all_maps(name), "feature_cls": "getter"},
            **arguments,
        )

    build.__name__ = build.__qualname__ = name_there
    build.__module__ = __name__
    build.__doc__ = f"Build {name} of fourstage; see `fourstage.create_model`."
    return build


def _configuration(name: str, name_there: str, given: Any) -> Any:
    """Return timm's configuration of a network: our defaults, and over them the values that timm was given."""
    with torch.device("meta"):  # values without memory
        network: Any = create_model(name)
    values = {**network.default_cfg, "architecture": name_there}
    given = given.to_dict() if isinstance(given, PretrainedCfg) else dict(given or {})
    return PretrainedCfg(**{**values, **given})


def _all_maps(name: str) -> tuple[int, ...]:
    with torch.device("meta"):
        network: Any = create_model(name)
    return tuple(range(len(network.levels)))


def _register() -> None:
    for name in list_models():
        if name not in NAMES.values():
            name_there = name_in_timm(name)
            register_model(_entry_point(name, name_there))
            NAMES[name_there] = name


_register()
