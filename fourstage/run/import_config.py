"""From a configuration of MMDetection or MMSegmentation to a recipe, as short as the recipes of the package allow."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from fourstage.files import write_text
from fourstage.methods import find_method
from fourstage.recipe import FREE, Recipe, from_mapping
from fourstage.recipe.resolve import named_recipes, written_values
from fourstage.recipe.schema import TASKS
from fourstage.tasks.detection.rpn import RPNHead
from fourstage.weights.openmmlab.training import ImportedConfig, import_config

BESIDE = ("expect", "reconstructed", "workers")  # keys that say nothing about the training
WORTH_A_BASE = 0.6  # share of the values of a recipe without a base, up to which a base is taken


@dataclass(frozen=True)
class ImportedRecipe:
    """A recipe of an imported configuration.

    Attributes:
        recipe: with all values.
        base: the recipe of the package that it is based on; None: it is complete.
        equal: whether a training gives the results of that recipe.
        text: as YAML, with comments about what is not in it.
        left_out, assumed: as those of `ImportedConfig`.
    """

    recipe: Recipe
    base: str | None
    equal: bool
    text: str
    left_out: tuple[str, ...]
    assumed: tuple[str, ...]


def imported_recipe(
    path: str | Path, *, gpus: int | None = None, version: str | None = None, folders: Sequence[str | Path] = ()
) -> ImportedRecipe:
    """Return the recipe that a configuration file describes.

    Args:
        gpus: the number of devices of its training; None: what the configuration says, or eight.
        version: of MMDetection, where it changes numbers.
        folders: where base files of packages (`mmdet::...`) are; installed packages are found without them.

    Raises:
        ValueError: the file is no configuration, or describes what cannot be built here; the sentence says what.
        OSError: a file is missing or cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; give the configuration of a detector or segmentor, a .py file"
        )
    if gpus is not None and not 1 <= gpus <= 100_000:
        raise ValueError(f"--gpus is the number of devices of the training, 1 or more; got {gpus}")
    if version is not None and not re.fullmatch(r"\d+(\.\d+)+", version):
        raise ValueError(f"--mmdet is a version of MMDetection, such as 2.11; got {version!r:.40}")
    if (missing := next((folder for folder in folders if not Path(folder).is_dir()), None)) is not None:
        raise ValueError(f"--configs is a folder of configurations, such as a checkout of MMDetection; got {missing}")
    found = import_config(path, gpus=gpus, version=version, folders=[Path(folder) for folder in folders])
    recipe = from_mapping(_values(found, path), str(path)).recipe
    based = _nearest(recipe)
    recipe = from_mapping(based.values, str(path)).recipe
    return ImportedRecipe(
        recipe, based.base, based.is_base, _text(recipe, based, found, path), found.left_out, found.assumed
    )


def write_recipe(imported: ImportedRecipe, out: str | Path, *, force: bool = False) -> Path:
    """Write a recipe's YAML.

    Raises:
        ValueError: the name does not end in .yaml, or the file exists and `force` is not given.
    """
    path = Path(out)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out is a recipe, whose name ends in .yaml; got {path}")
    if path.exists() and not force:
        raise ValueError(f"{path} exists; give another name, or --force to replace it")
    write_text(path, imported.text)
    return path


def _values(found: ImportedConfig, path: Path) -> dict[str, Any]:
    network = found.network
    arguments = _unusual_arguments(str(network.method), network.task, found.values["method_args"], network.backbone)
    return {
        "name": re.sub(r"\W", "_", path.stem) or "imported",
        "task": network.task,
        "method": network.method,
        "backbone": network.backbone,
        "num_classes": network.num_classes,
        **_normalisation(found),
        **found.values,
        "method_args": arguments,
    }


def _normalisation(found: ImportedConfig) -> dict[str, Any]:
    """Return mean and standard deviation, where they are not the usual ones."""
    schema, out = TASKS[found.network.task], {}
    for key in ("mean", "std"):
        given, usual = getattr(found.network, key), schema.model_fields[key].default
        if given is not None and not all(math.isclose(a, b, rel_tol=1e-6) for a, b in zip(given, usual, strict=True)):
            out[key] = list(given)
    return out


def _unusual_arguments(method: str, task: str, given: Mapping[str, Any], backbone: str) -> dict[str, Any]:
    """Return the arguments of a method that differ from its own defaults."""
    usual = _defaults(find_method(method, task).builder)
    rpn = {name: value for name, value in _defaults(RPNHead).items() if name != "training_proposals"}
    usual |= {"rpn": rpn} if "rpn" in usual else {}
    if method == "atss":
        usual["convs"] = 0 if given.get("dyhead") else 4
    if method == "sparse_rcnn":
        usual["per_image"] = given.get("proposals", usual["proposals"])
    if method == "upernet":  # the map at stride 16, and what nothing reads without the auxiliary head
        usual["auxiliary_map"] = 1 if backbone.startswith("visformer_") else 2
    return _without(given, usual)


def _without(given: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in given.items():
        below = usual.get(name)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            different = _without(value, below)
            if not different:
                continue
            # settings of one kind replace the default as a whole, and need those without a default
            out[name] = dict(value) if name.endswith("proposals") else different
        elif name not in usual or _plain(value) != _plain(below):
            out[name] = value
    return out


def _defaults(build: Any) -> dict[str, Any]:
    parameters = inspect.signature(build).parameters.values()
    return {one.name: _plain(one.default) for one in parameters if one.default is not inspect.Parameter.empty}


def _plain(value: Any) -> Any:
    """Return a default as a recipe has it: lists and mappings."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class _Based:
    """A recipe as changes of another one. `values` are all of its values, in the words of that one."""

    base: str | None
    changes: dict[str, Any]
    values: dict[str, Any]

    @property
    def is_base(self) -> bool:
        """Whether a training gives the same results as one of the base."""
        return self.base is not None and not set(self.changes) - FREE


def _nearest(recipe: Recipe) -> _Based:
    """Return a recipe as changes of the nearest one of the package, or of none where that is shorter."""
    target = recipe.model_dump(mode="json")
    changes = _changes(_complete(type(recipe), {}), target)
    assert changes is not None, "defaults take nothing away"
    best = _Based(None, changes, target)
    most = WORTH_A_BASE * _count(changes)
    for name in named_recipes():
        found = _based_on(name, recipe, target)
        if found is None or _count(found.changes) > most:
            continue
        if best.base is None or _count(found.changes) < _count(best.changes):
            best = found
    return best


def _based_on(name: str, recipe: Recipe, target: dict[str, Any]) -> _Based | None:
    """Return a recipe as changes of this one; None where it is of another network or publishes other results."""
    written = written_values(name)
    same = all(written.get(key, target[key]) == target[key] for key in ("method", "backbone"))
    if written.get("task") != recipe.task or not same:
        return None
    values = {**target, "method_args": _in_words_of(written.get("method_args") or {}, target)}
    below = _complete(type(recipe), written)
    changes = _changes(below, values)
    if changes is None:
        return None
    found = _Based(name, changes, {**values, **{key: below[key] for key in BESIDE if key in below}})
    published = bool(written.get("expect") or written.get("reconstructed"))
    return None if published and not found.is_base else found


def _in_words_of(written: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a method with the defaults that another recipe writes out."""
    usual = _defaults(find_method(target["method"], target["task"]).builder)
    spelled = {name: value for name, value in written.items() if name in usual and _plain(value) == usual[name]}
    return {**spelled, **target["method_args"]}


def _complete(schema: type[BaseModel], written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a recipe that may lack some, with those that it has by default."""
    out: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            out[name] = _complete(kind, written.get(name) or {})
        elif name in written:
            out[name] = _plain(written[name])
        elif not field.is_required():
            out[name] = _plain(field.get_default(call_default_factory=True))
    return out


def _changes(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what has to be written over `below` to get `above`; None where something would have to be taken away."""
    if any(key not in above for key in below):
        return None
    out: dict[str, Any] = {}
    for key, value in above.items():
        if key in BESIDE or key == "name" or (key in below and below[key] == value):
            continue
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping):
            inner = _changes(below[key], value)
            if inner is None:
                return None
            out[key] = inner
        else:
            out[key] = value
    return out


def _count(changes: Mapping[str, Any]) -> int:
    return sum(_count(value) if isinstance(value, Mapping) else 1 for value in changes.values())


def _text(recipe: Recipe, based: _Based, found: ImportedConfig, path: Path) -> str:
    """Return a recipe as YAML, with comments."""
    first = {"base": based.base} if based.base else {"task": recipe.task}  # by which the other keys are read
    values = {"name": recipe.name, **first, **based.changes}
    begin = [f"Imported from {path.name}. Start it with: fourstage train THIS.yaml --data PATH"]
    end: list[str] = []
    if found.assumed:
        end += ["", "Assumed, because the configuration does not say:", *(f"  {one}" for one in found.assumed)]
    if found.left_out:
        end += ["", "Without a counterpart here, as path = value:", *(f"  {one}" for one in found.left_out)]
    body = yaml.safe_dump(values, sort_keys=False, width=120, default_flow_style=None, allow_unicode=True)
    return "".join(["\n".join(map(_comment, begin)), "\n", body, *(f"{_comment(line)}\n" for line in end)])


def _comment(line: str) -> str:
    """Return a comment of one line, whatever a foreign file has put into it: the rest would be keys of the recipe."""
    return f"# {''.join(c if c.isprintable() else ' ' for c in line)}".rstrip()
