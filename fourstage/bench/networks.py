"""Build the networks to be measured by their names.

A model of ours has its own name, timm's are `timm/NAME` and torchvision's `torchvision/NAME`. A detector or segmentor
is `METHOD:BACKBONE`, where the backbone is one of ours or of timm's, or the name of its recipe. A file FILE.yaml is the
network of that recipe, of any task, and FILE.onnx, FILE.xml or FILE.pt2 the graph of an exported file.
"""

import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from fourstage import registry
from fourstage.api import create_backbone, create_model
from fourstage.bench.count import image_shape
from fourstage.bench.exported import build_exported
from fourstage.exported.runtime import is_exported
from fourstage.extras import install
from fourstage.methods import list_methods
from fourstage.run_folders import CHECKPOINTS, RECIPE

ELSEWHERE = ("timm", "torchvision")
NAMES = "give a model of ours, timm/NAME or torchvision/NAME"
# layer classes that drop activations at random in training, and the attribute that holds the rate
DROPOUT_RATES = {"Dropout": "p", "Dropout2d": "p", "StochasticDepth": "p", "DropPath": "drop_prob"}


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the names that the patterns match: each network once, in the order of the patterns.

    Raises:
        ValueError: a pattern matches nothing, or no model has such a name.
    """
    names: dict[str, None] = {}
    for pattern in patterns:
        names.update(dict.fromkeys(_matches(pattern)))
    return list(names)


def _matches(pattern: str) -> list[str]:
    if is_recipe_file(pattern) or is_exported(pattern):
        return [pattern]
    if ":" in pattern:
        return _task_matches(pattern)
    if is_task_network(pattern):
        return [pattern]
    home, slash, name = pattern.partition("/")
    if home not in ELSEWHERE and (hint := _of_trained(pattern)) and pattern not in registry.list_models():
        raise ValueError(f"bench measures networks by name, with random weights, and {pattern} is {hint}")
    if slash:
        known = _known_elsewhere(home)
        base = name.partition(".")[0] if home == "timm" else name  # timm's names may end in a tag of weights
        if base in known:
            return [pattern]
        matches = [f"{home}/{one}" for one in known if fnmatchcase(one, name)]
        close = get_close_matches(name, known, n=1) or [one for one in known if one.startswith(name[:6])]
        hint = f"; did you mean {home}/{close[0]}?" if close else ""
    elif set(pattern) & set("*?["):
        # an alias is a second name of the same network
        matches = list(dict.fromkeys(registry.find(name).name for name in registry.list_models(pattern)))
        hint = "; `fourstage models` lists all"
    else:
        registry.find(pattern)
        return [pattern]
    if not matches:
        raise ValueError(f"no model is called {pattern!r}{hint}")
    return matches


def _of_trained(pattern: str) -> str:
    """Return what a path is and what to type instead; empty: it is no run, checkpoint or saved network."""
    path = Path(pattern)
    folder = path.parent.parent if path.parent.name == "checkpoints" else path
    if (folder / RECIPE).is_file():
        return f"a trained one; type fourstage bench {shlex.quote(str(folder / RECIPE))}"
    if path.is_dir() or path.suffix in CHECKPOINTS:
        return (
            "a folder or a file of weights; name its network, or the file that fourstage export makes of it"
            if path.exists()
            else f"not there; {NAMES}"
        )
    return ""


def _task_matches(pattern: str) -> list[str]:
    """Return the names that `METHOD:BACKBONE` matches; the backbone may be a wildcard."""
    method, _, backbone = pattern.partition(":")
    if method not in (known := list_methods()):
        close = get_close_matches(method, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"the methods are {', '.join(known)}"
        raise ValueError(f"{method!r} is not a known detector or segmentor; {hint}")
    if backbone.startswith("torchvision/") or ":" in backbone:
        raise ValueError(f"the backbone of {pattern!r} must be one of ours, or timm/NAME")
    return [f"{method}:{name}" for name in _matches(backbone)]


@cache
def task_recipes() -> frozenset[str]:
    """Return the names of the recipes for detection and segmentation."""
    from fourstage.recipe import list_recipes, resolve

    return frozenset(name for name in list_recipes() if resolve(name).recipe.task in ("detection", "segmentation"))


def is_task_network(name: str) -> bool:
    """Return whether the name is that of a detector or a segmentor."""
    if is_recipe_file(name):
        from fourstage.recipe import resolve

        return resolve(name).recipe.task != "classification"
    return ":" in name or (any(method in name for method in list_methods()) and name in task_recipes())


def is_recipe_file(name: str) -> bool:
    """Return whether the name is that of a recipe's file."""
    return name.endswith((".yaml", ".yml"))


def _known_elsewhere(home: str) -> list[str]:
    if home not in ELSEWHERE:
        named = repr(home) if home else "network by the path of a file"
        raise ValueError(f"there is no {named}; {NAMES}, or an exported file")
    try:
        import_module(home)
    except ImportError as error:
        raise ValueError(f"{home}/ needs {home}; type: {install('train')}") from error
    if home == "timm":
        import timm

        return timm.list_models()
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def build(name: str, img_size: tuple[int, int] | None, *, dense: bool) -> nn.Module:
    """Return a new network for images of this size (None: its own) that drops nothing at random in training.

    Raises:
        ValueError: the network cannot have this size, or it has no dense form.
    """
    home, slash, base = name.partition("/")
    if is_exported(name):
        return build_exported(name, img_size)
    if is_task_network(name):
        if dense:
            raise ValueError(f"{name} is a complete detector or segmentor; leave out --dense, which is for backbones")
        model = build_workload(name, img_size)
    elif is_recipe_file(name):
        model = classifier_of_recipe(name, img_size, dense=dense)
    elif not slash:
        create = create_backbone if dense else create_model
        model = create(name, **size_argument(name, img_size, dense=dense))
    elif home == "timm":
        model = _of_timm(base, img_size, dense=dense)
    else:
        if dense:
            raise ValueError(f"{name} has no dense form here; leave out --dense, or name a model of ours or of timm's")
        import torchvision

        model = torchvision.models.get_model(base)
    return without_dropout(model)


def classifier_of_recipe(file: str, img_size: tuple[int, int] | None, *, dense: bool) -> nn.Module:
    """Return the network of a classification recipe, without weights."""
    from fourstage.bench.count_tasks import embedded_classes
    from fourstage.recipe import Classification, resolve
    from fourstage.user_files import import_files

    recipe = resolve(file).recipe
    assert isinstance(recipe, Classification)
    import_files(recipe.imports)
    size = img_size or (recipe.image_size, recipe.image_size)
    arguments = {**recipe.model_args, **size_argument(recipe.model, size, dense=dense)}
    if dense:
        return create_backbone(recipe.model, **arguments)
    return create_model(recipe.model, num_classes=recipe.num_classes or embedded_classes(recipe), **arguments)


def size_argument(name: str, img_size: tuple[int, int] | None, *, dense: bool) -> dict[str, Any]:
    """Return `img_size` as an argument of a network; a user's own that takes any size may have none."""
    known = registry.arguments_of(name, dense=dense)
    return {"img_size": img_size} if known is None or "img_size" in known else {}


def build_workload(name: str, img_size: tuple[int, int] | None) -> nn.Module:
    """Return a detector or segmentor behind the interface of a classifier."""
    from fourstage.bench.count_tasks import network_of_method, network_of_recipe, published_size
    from fourstage.bench.task_workloads import TaskWorkload

    network = network_of_method(name) if ":" in name and not is_recipe_file(name) else network_of_recipe(name)
    return TaskWorkload(network, img_size or published_size(network))


def _of_timm(name: str, img_size: tuple[int, int] | None, *, dense: bool) -> nn.Module:
    """Return a network of timm. Networks that take any size have no argument `img_size`."""
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


def without_dropout(model: nn.Module) -> nn.Module:
    """Return the network without dropout and stochastic depth, so that training steps of two networks do equal work."""
    for module in model.modules():
        attribute = DROPOUT_RATES.get(type(module).__name__)
        if attribute is not None and hasattr(module, attribute):
            setattr(module, attribute, 0.0)
    return model


def image_for(model: Any, img_size: tuple[int, int] | None) -> tuple[int, int, int]:
    """Return (C, H, W) of the images to measure with: the requested size, else the model's own."""
    inner = model if hasattr(model, "default_cfg") else getattr(model, "model", model)  # timm's network in a wrapper
    channels, height, width = image_shape(inner)
    return channels, *(img_size or (height, width))
