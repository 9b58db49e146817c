"""Networks that `save_pretrained` wrote: their description in the metadata of model.safetensors.

config.json beside it has the same description for people and for timm; the metadata decides. So the file alone is
enough, and its sum covers both the weights and what they are for.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fourstage.documents import read_json
from fourstage.weights.reading.metadata import FORMAT, check_version, damaged, value_of
from fourstage.weights.reading.safe import Checkpoint

if TYPE_CHECKING:
    from fourstage.weights.description import NetworkDescription

ENTRY = "network"  # in the metadata: the description as JSON
RECIPE, ABOUT = "recipe", "about"  # what trained it, and what the task knows of its data
FORMS = {"classification": "classifier", "backbone": "dense", "detection": "detector", "segmentation": "segmentor"}
FIELDS: Mapping[str, tuple[type, ...]] = {  # of a description, and what JSON may have there
    "task": (str,),
    "backbone": (str,),
    "num_classes": (int,),
    "backbone_args": (dict,),
    "method": (str, type(None)),
    "method_args": (dict,),
    "mean": (list, type(None)),
    "std": (list, type(None)),
    "evaluation": (dict,),
    "over_valid": (bool,),
    "palette": (list, type(None)),
    "imports": (list,),
}
WEIGHTS, CONFIG = "model.safetensors", "config.json"
CONFIG_BYTES = 16 * 2**20  # it has the names of all classes
OURS = "fourstage"  # the key of config.json with our own values


def network_values(description: "NetworkDescription") -> dict[str, Any]:
    """Return a description as values of JSON, without the names of its classes.

    Raises:
        ValueError: an argument is no plain value, such as a class.
    """
    values = {name: getattr(description, name) for name in FIELDS}
    for section in ("backbone_args", "method_args"):
        for key, value in values[section].items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError):
                raise ValueError(
                    f"{key}={value!r:.60} cannot be written into a file; register it by a name, such as with "
                    f"fourstage.register_mixer, and build the network with that name"
                ) from None
    return json.loads(json.dumps(values))  # tuples become lists, as they are when the file is read


def entries_of(
    description: "NetworkDescription",
    *,
    classes: Sequence[str],
    recipe: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """Return the metadata of a network's file.

    Args:
        recipe: that of the network's task, as plain values; None: there is none.
        about: what the task knows of its data beside the classes.
    """
    values = network_values(description)
    arguments = dict(values["backbone_args"])
    if description.task == "classification":
        arguments["num_classes"] = description.num_classes
    entries: dict[str, Any] = {
        "format": "pt",  # as other readers of safetensors expect for tensors of PyTorch
        "fourstage_format": FORMAT,
        "fourstage_version": version("fourstage"),
        "model": description.backbone,
        "form": FORMS[description.task],
        "arguments": arguments,
        ENTRY: values,
    }
    entries |= {"classes": list(classes)} if classes else {}
    entries |= {RECIPE: recipe, ABOUT: about or {}} if recipe is not None else {}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}


def network_of(file: Checkpoint) -> "NetworkDescription":
    """Return the network that `save_pretrained` wrote into a file.

    Raises:
        ValueError: the description is damaged, of a newer version, or config.json beside it says something else.
    """
    from fourstage.weights.description import NetworkDescription

    check_version(file.metadata, file.path)
    values = value_of(file.metadata, ENTRY, file.path)
    if not isinstance(values, dict) or values.keys() != FIELDS.keys():
        raise damaged(file.path, "network is incomplete")
    for name, kinds in FIELDS.items():
        if type(values[name]) not in kinds:
            raise damaged(file.path, f"network.{name} is {values[name]!r:.40}")
    task, classes = values["task"], file.classes
    if task not in FORMS or (values["method"] is None) != (task in ("classification", "backbone")):
        raise damaged(file.path, f"network.task is {task!r:.40}")
    if classes is not None and len(classes) != values["num_classes"]:
        raise damaged(file.path, f"classes has {len(classes)} names, and num_classes is {values['num_classes']}")
    _check_numbers_in(file, values)
    _check_config(file, values)
    return NetworkDescription(
        **{
            **values,
            "classes": None if classes is None else tuple(classes),
            "mean": values["mean"] and tuple(values["mean"]),
            "std": values["std"] and tuple(values["std"]),
            "palette": values["palette"] and tuple((r, g, b) for r, g, b in values["palette"]),
            "imports": tuple(map(str, values["imports"])),
        }
    )


def recipe_of_file(file: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the recipe and what the task knows of its data, from a file of `save_pretrained`; None: it has none.

    Raises:
        ValueError: one of them is damaged.
    """
    if ENTRY not in file.metadata or RECIPE not in file.metadata:
        return None
    found = [value_of(file.metadata, key, file.path) if key in file.metadata else {} for key in (RECIPE, ABOUT)]
    for key, value in zip((RECIPE, ABOUT), found, strict=True):
        if not isinstance(value, dict):
            raise damaged(file.path, f"{key} is {value!r:.40}")
    return found[0], found[1]


def stored_recipe(file: Checkpoint) -> Mapping[str, Any] | None:
    """Return the recipe that a run's checkpoint or a file of `save_pretrained` has; None: it has none.

    Raises:
        ValueError: it is damaged.
    """
    found = file.content.get(RECIPE)
    return found if isinstance(found, Mapping) else (recipe_of_file(file) or (None,))[0]


def stored_about(file: Checkpoint) -> Mapping[str, Any] | None:
    """Return what the task of a file knows of its data; None: the file does not say. Errors as `stored_recipe`."""
    found = file.content.get(ABOUT)
    return found if isinstance(found, Mapping) else (recipe_of_file(file) or (None, None))[1]


def is_folder(folder: Path) -> bool:
    """Return whether `save_pretrained` wrote a folder, or a program that names its files in the same way."""
    return not (folder / "recipe.yaml").exists() and (folder / WEIGHTS).is_file()


def _check_numbers_in(file: Checkpoint, values: Mapping[str, Any]) -> None:
    """Raise ValueError where mean, std or palette are not rows of three numbers."""
    rows = {name: [values[name]] for name in ("mean", "std") if values[name] is not None}
    rows |= {"palette": values["palette"] or []}
    for name, found in rows.items():
        for row in found:
            numbers = isinstance(row, list) and len(row) == 3 and all(type(x) in (int, float) for x in row)
            if not numbers:
                raise damaged(file.path, f"network.{name} has {row!r:.40}")


def _check_config(file: Checkpoint, values: Mapping[str, Any]) -> None:
    """Raise ValueError where the config.json beside a file describes another network: one of the two was changed."""
    path = file.path.with_name(CONFIG)
    if not path.is_file():
        return
    content = read_json(path, most_bytes=CONFIG_BYTES)
    ours = content.get(OURS) if isinstance(content, dict) else None
    if not isinstance(ours, dict) or ENTRY not in ours:
        return  # of another program
    theirs = {ENTRY: ours[ENTRY], "class_names": ours.get("class_names")}
    mine = {ENTRY: dict(values), "class_names": file.classes}
    if differing := [key for key in mine if mine[key] != theirs[key]]:
        raise ValueError(
            f"{path} and {file.path.name} describe different networks ({OURS}.{differing[0]} differs), and one of them "
            f"was changed after they were saved; save the network again, or remove {CONFIG}"
        )
