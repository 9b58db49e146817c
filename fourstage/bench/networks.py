"""Names to networks that can be measured.

Ours by name, timm's as `timm/NAME`, torchvision's as `torchvision/NAME`; a detector or segmentor as `METHOD:BACKBONE`,
where the backbone is one of ours or of timm's, or by the name of its recipe.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

from fourstage import registry
from fourstage.api import create_backbone, create_model
from fourstage.bench.count import image_shape
from fourstage.dense import DETECTORS, SEGMENTORS

METHODS = (*DETECTORS, *SEGMENTORS)
ELSEWHERE = ("timm", "torchvision")
# classes of layers that drop something at random in training, and the attribute that says how much
DROPS = {"Dropout": "p", "Dropout2d": "p", "StochasticDepth": "p", "DropPath": "drop_prob"}


def expand(patterns: Sequence[str]) -> list[str]:
    """The names that the patterns match, each network once, in the order of the patterns.

    Raises:
        ValueError: a pattern matches nothing, or there is no model of a name.
    """
    names: dict[str, None] = {}
    for pattern in patterns:
        names.update(dict.fromkeys(_matches(pattern)))
    return list(names)


def _matches(pattern: str) -> list[str]:
    if ":" in pattern:
        return _dense_matches(pattern)
    if is_dense_task(pattern):
        return [pattern]
    home, slash, name = pattern.partition("/")
    if slash:
        known = _known_elsewhere(home)
        base = name.partition(".")[0] if home == "timm" else name  # timm's names may end in a tag of weights
        if base in known:
            return [pattern]
        found = [f"{home}/{one}" for one in known if fnmatchcase(one, name)]
        close = get_close_matches(name, known, n=1) or [one for one in known if one.startswith(name[:6])]
        hint = f"; did you mean {home}/{close[0]}?" if close else ""
    elif set(pattern) & set("*?["):
        # an alias is the same network again
        found = list(dict.fromkeys(registry.find(name).name for name in registry.list_models(pattern)))
        hint = "; `fourstage models` lists all"
    else:
        registry.find(pattern)
        return [pattern]
    if not found:
        raise ValueError(f"no model is called {pattern!r}{hint}")
    return found


def _dense_matches(pattern: str) -> list[str]:
    """`METHOD:BACKBONE`; the backbone may be a wildcard."""
    method, _, backbone = pattern.partition(":")
    if method not in METHODS:
        close = get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METHODS)}"
        raise ValueError(f"before the colon of {pattern!r} stands a detector or a segmentor; {hint}")
    if backbone.startswith("torchvision/") or ":" in backbone:
        raise ValueError(f"the backbone of {pattern!r} is to be one of ours, or timm/NAME")
    return [f"{method}:{name}" for name in _matches(backbone)]


@cache
def dense_recipes() -> frozenset[str]:
    """Names of the recipes of detection and segmentation."""
    from fourstage.recipe import list_recipes, resolve

    return frozenset(name for name in list_recipes() if resolve(name).recipe.task in ("detection", "segmentation"))


def is_dense_task(name: str) -> bool:
    """Whether the name is of a detector or a segmentor."""
    return ":" in name or (any(method in name for method in METHODS) and name in dense_recipes())


def _known_elsewhere(home: str) -> list[str]:
    if home not in ELSEWHERE:
        raise ValueError(f"models come from here, from timm/ or from torchvision/; there is no {home!r}")
    try:
        import_module(home)
    except ImportError as error:
        raise ValueError(f'{home}/ needs {home}; type: pip install "fourstage[train]"') from error
    if home == "timm":
        import timm

        return timm.list_models()
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def build(name: str, img_size: tuple[int, int] | None, *, dense: bool) -> nn.Module:
    """A new network for images of this size (None: its own), which drops nothing at random in training.

    Raises:
        ValueError: a size that it cannot have, or no dense form.
    """
    home, slash, base = name.partition("/")
    if is_dense_task(name):
        if dense:
            raise ValueError(f"{name} is measured whole; --dense is for backbones alone")
        model = dense_subject(name, img_size)
    elif not slash:
        model = create_backbone(name, img_size=img_size) if dense else create_model(name, img_size=img_size)
    elif home == "timm":
        model = _of_timm(base, img_size, dense=dense)
    else:
        if dense:
            raise ValueError(
                f"{name} has no dense form here; measure it as a classifier, or take one of ours or timm's"
            )
        import torchvision

        model = torchvision.models.get_model(base)
    return undropped(model)


def dense_subject(name: str, img_size: tuple[int, int] | None) -> nn.Module:
    """A detector or segmentor as it is measured."""
    from fourstage.bench.count_tasks import network_of, subject_of, usual_size
    from fourstage.bench.task_workloads import DenseWork

    network = subject_of(name) if ":" in name else network_of(name)
    return DenseWork(network, img_size or usual_size(network))


def _of_timm(name: str, img_size: tuple[int, int] | None, *, dense: bool) -> nn.Module:
    """A network of timm; those that take any size know no `img_size`."""
    import timm

    def with_arguments(**arguments: Any) -> nn.Module:
        return create_backbone(f"timm/{name}", **arguments) if dense else timm.create_model(name, **arguments)

    if img_size is None:
        return with_arguments()
    try:
        return with_arguments(img_size=img_size)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return with_arguments()


def undropped(model: nn.Module) -> nn.Module:
    """The network without dropout and stochastic depth, so that training steps of two networks do equal work."""
    for module in model.modules():
        attribute = DROPS.get(type(module).__name__)
        if attribute is not None and hasattr(module, attribute):
            setattr(module, attribute, 0.0)
    return model


def image_for(model: Any, img_size: tuple[int, int] | None) -> tuple[int, int, int]:
    """(C, H, W) of the images to measure with: the size that is asked for, else the model's own."""
    inner = model if hasattr(model, "default_cfg") else getattr(model, "model", model)  # timm's network in a wrapper
    channels, height, width = image_shape(inner)
    return channels, *(img_size or (height, width))
