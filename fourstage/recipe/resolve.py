"""Resolve a name or a file, and `key=value` changes, to one checked recipe. Each mistake is reported in one sentence.

A recipe is a mapping. It may name a `base` whose values it inherits. Named recipes are in `fourstage/recipes/*.yaml`, a
user's own in any YAML file.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fourstage.documents import YAML_BYTES, in_file, parse_yaml
from fourstage.files import is_address, is_hub_name, read_text, real_path
from fourstage.recipe.other_network import for_other_network
from fourstage.recipe.schema import TASKS, Recipe
from fourstage.recipe.suggestions import as_word, as_yaml, known_keys, unknown_keys, unknown_keys_in_file
from fourstage.user_files import as_files, files_of_recipe, files_to_run

PATHS = ("data", "weights")  # keys that name a file or a folder
NO_WEIGHTS = ("", "none", "null")  # values of `weights` for a start from random numbers
CHECKPOINT_ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".json", ".tar")
RUN_RECIPE = "recipe.yaml"  # of a run folder
RUN_FILES = ("checkpoints", "changes.json", "environment.json", "log.jsonl")  # beside it
EMBEDDED = ("digits", "digit_scenes")  # data without a path


@dataclass(frozen=True)
class Resolved:
    """A recipe with its origin."""

    recipe: Recipe
    source: str  # name or file
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # key -> (value of the named recipe, value here)
    given: frozenset[str] = frozenset()  # keys that the user set: in a file of their own, and as changes
    fitted: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # key -> (value without the data, value for it)

    def fit(self, values: Mapping[str, Any]) -> "Resolved":
        """Return the recipe with values that follow from its data and weights, by dotted key."""
        if not values:
            return self
        changed = self.recipe.model_dump(mode="json")
        before = flatten(changed)
        for key, value in values.items():
            _put(changed, key.split("."), value)
        recipe = _validated(changed)
        after = flatten(recipe.model_dump(mode="json"))
        fitted = {key: (before.get(key), after[key]) for key in values if before.get(key) != after[key]}
        changes = {key: (self.changes.get(key, pair)[0], pair[1]) for key, pair in fitted.items()}
        return replace(self, recipe=recipe, changes=self.changes | changes, fitted=self.fitted | fitted)


class _Loader(yaml.SafeLoader):
    """YAML that refuses a duplicate key, where yaml silently keeps the last one, and reads 1e-6 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"  # <<: *other
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        if others := [key for key in keys if not isinstance(key, str | int | float | None)]:
            raise ValueError(
                f"the key {others[0]!r:.60}, near line {node.start_mark.line + 1}, is not a word; keys are words"
            )
        twice = [key for key, count in Counter(map(str, keys)).items() if count > 1]
        if twice:
            raise ValueError(f"the key {twice[0]!r:.60} is given twice, near line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(  # as in YAML 1.2; the resolver of 1.1 needs 1.0e-6
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, where: str) -> dict[str, Any]:
    """Read one YAML mapping. Raises ValueError with the position of the first mistake."""
    try:
        content = parse_yaml(text, where, _Loader)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None
    if not isinstance(content, dict):
        raise ValueError(
            f"{where} must hold keys and values, such as 'base: digits_visformer'; it holds {content!r:.60}"
        )
    return content


@cache
def named_recipes() -> dict[str, dict[str, Any]]:
    """Return every recipe of the package as written, by name; those with a leading underscore serve only as bases."""
    recipes: dict[str, dict[str, Any]] = {}
    for file in sorted(files("fourstage.recipes").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            for name, values in read_yaml(file.read_text(encoding="utf-8"), file.name).items():
                assert name not in recipes, f"two recipes have the name {name}"
                recipes[name] = values
    return recipes


def written_values(name: str) -> dict[str, Any]:
    """Return the values of a recipe of the package and its bases, without defaults and unchecked."""
    return _inherit(_named(name), name, (name,))


def list_recipes(pattern: str = "*") -> list[str]:
    """Return the names that match a wildcard, sorted."""
    return sorted(name for name in named_recipes() if not name.startswith("_") and fnmatchcase(name, pattern))


def resolve(
    source: str | Path,
    changes: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    imports: Iterable[str | Path] = (),
) -> Resolved:
    """Return the recipe of a name or a YAML file, with `key=value` changes.

    Args:
        values: further changes as values, not as text.
        imports: Python files that the user names beside those of the recipe. The recipe in a run folder may come from
            anyone: its own `imports` count only where the user names files, see `user_files.files_to_run`.

    Raises:
        ValueError: an unknown name, key or value; suggests the closest correct one.
        FileNotFoundError: there is no file `source`, which ends in .yaml.
    """
    of_run = Path(source).parent if is_of_run(Path(source)) else None
    return _changed(_written(str(source)), source, changes, values or {}, as_files(imports), of_run)


def resolve_run(
    folder: Path,
    changes: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    imports: Iterable[str | Path] = (),
) -> Resolved:
    """Return the recipe of a run folder; arguments and errors as those of `resolve`."""
    source = folder / RUN_RECIPE
    return _changed(_written(str(source)), source, changes, values or {}, as_files(imports), folder)


def resolve_stored(
    stored: Mapping[str, Any],
    source: str | Path,
    changes: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    imports: Iterable[str | Path] = (),
) -> Resolved:
    """Return the recipe that a checkpoint has, with changes; other arguments and errors as those of `resolve`.

    Args:
        stored: its values.
        source: the checkpoint.
    """
    name = from_mapping(stored, str(source)).recipe.name
    written = _Written(name, {key: value for key, value in stored.items() if key != "name"}, {})
    return _changed(written, source, changes, values or {}, as_files(imports), Path(source))


def is_of_run(path: Path) -> bool:
    """Return whether a file is the recipe in a run folder."""
    return path.name == RUN_RECIPE and any((path.parent / name).exists() for name in RUN_FILES)


@dataclass(frozen=True)
class _Written:
    """A recipe as it is written."""

    name: str
    values: dict[str, Any]  # on top of those of its bases
    inherited: dict[str, Any]  # those of the bases of a user's own file; of a recipe of the package, all
    own: frozenset[str] = frozenset()  # dotted keys that a user's own file has itself


def _changed(
    written: _Written,
    source: str | Path,
    changes: Iterable[str],
    values: Mapping[str, Any],
    imports: Sequence[str | Path],
    of_run: Path | None,
) -> Resolved:
    """Return a recipe with changes; see `resolve`. `of_run` is the run folder that the recipe is from."""
    plain = _validated({**written.values, "name": written.name})
    wanted = _parse_changes(changes, type(plain))
    twice = sorted(wanted.keys() & values.keys())
    if "name" in wanted:
        raise ValueError("a run always has the name of its recipe; choose its folder with --out")
    if twice:
        raise ValueError(f"{twice[0]}=... and --{twice[0]} set the same value twice; leave one out")
    wanted |= values
    if of_run is not None and "imports" not in wanted:
        wanted["imports"] = files_to_run(plain.imports, imports, str(of_run))
    elif (found := files_of_recipe(asked := _files(wanted.get("imports", plain.imports)), imports)) != asked:
        wanted["imports"] = found
    files = _files(wanted.get("imports", plain.imports))
    before = for_other_network(written.inherited, written.values, written.own, files)
    changed = _deep_copy(before)
    for key, value in wanted.items():
        _put(changed, key.split("."), value)
    changed = for_other_network(before, changed, wanted, files)
    with in_file(source):
        _follow_batch_size(plain, changed, wanted)
    recipe = _validated({**changed, "name": written.name})
    own = frozenset() if of_run is not None else written.own
    return Resolved(recipe, str(source), difference(plain, recipe), frozenset(wanted) | own)


def from_mapping(values: Mapping[str, Any], where: str) -> Resolved:
    """Return a recipe from the complete values that a run stored.

    Raises:
        ValueError: the values are no recipe of this version.
    """
    try:
        return Resolved(_validated(dict(values)), where)
    except ValueError as error:
        raise ValueError(f"{where} is not a recipe of this version: {error}") from None


def difference(a: Recipe, b: Recipe, ignore: frozenset[str] = frozenset({"name"})) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys whose values differ, with both values."""
    flat_a, flat_b = flatten(a.model_dump(mode="json")), flatten(b.model_dump(mode="json"))
    keys = [key for key in {**flat_a, **flat_b} if key.split(".")[0] not in ignore]
    return {key: (flat_a.get(key), flat_b.get(key)) for key in keys if flat_a.get(key) != flat_b.get(key)}


def flatten(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= flatten(value, f"{before}{key}.")
        else:
            out[f"{before}{key}"] = value
    return out


def _written(source: str) -> _Written:
    if not source.endswith((".yaml", ".yml")):
        values = _inherit(_named(source), source, (source,))
        return _Written(source, values, values)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe file {source}; `fourstage recipes` lists the named ones")
    values = _with_files(read_yaml(read_text(path, YAML_BYTES), source), path.parent)
    whole, inherited = (_inherit(one, source, ()) for one in (values, {"base": values.get("base")}))
    return _Written(str(values.get("name", path.stem)), whole, inherited, frozenset(flatten(values)))


def _files(imports: object) -> list[str]:
    """Return the files of `imports` as typed: validation reports later what is wrong with them."""
    return [str(file) for file in imports] if isinstance(imports, list | tuple) else []


def _named(name: str) -> dict[str, Any]:
    recipes = named_recipes()
    if name not in recipes:
        if "=" in name:
            raise ValueError(
                f"{name!r} is a change of a recipe, and the recipe comes before it: write RECIPE {name}, with a name "
                "from `fourstage recipes` or a file of your own"
            )
        folder = Path(name)
        if folder.is_dir() and not (folder / "recipe.yaml").is_file():
            raise ValueError(
                f"{name!r} is a folder, and the recipe comes before it: write finetune --data {shlex.quote(name)}, or "
                "finetune_detection for boxes, finetune_segmentation for label maps"
            )
        if "/" in name or folder.is_dir():
            raise ValueError(
                f"there is no recipe {name!r}: a recipe is a name from `fourstage recipes` or a file of your own that "
                "ends in .yaml, and the folder of a run is given with --out"
            )
        close = get_close_matches(name, list_recipes(), n=3)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"there is no recipe {name!r}; {hint}`fourstage recipes` lists them, and a file of your own ends in .yaml"
        )
    return recipes[name]


def _inherit(values: Mapping[str, Any], where: str, seen: tuple[str, ...]) -> dict[str, Any]:
    own = {key: value for key, value in values.items() if key not in ("base", "name")}
    base = values.get("base")
    if base is None:
        return own
    if not isinstance(base, str) or base.endswith((".yaml", ".yml")):
        raise ValueError(f"{where}: base must be a name from `fourstage recipes`; got {base!r}")
    if base in seen:
        raise ValueError(f"{where}: the bases {' -> '.join([*seen, base])} form a cycle")
    return _merge(_inherit(_named(str(base)), str(base), (*seen, str(base))), own)


def _with_files(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve the paths in a recipe file relative to its folder."""
    if isinstance(values.get("imports"), str):  # one file
        values = {**values, "imports": [values["imports"]]}
    if isinstance(values.get("imports"), list):
        values = {**values, "imports": [str(real_path(folder / str(file))) for file in values["imports"]]}
    return {key: _beside(folder, key, value) if key in PATHS else value for key, value in values.items()}


def _beside(folder: Path, key: str, value: object) -> object:
    """Return a path relative to `folder` as an absolute path; names and addresses are none."""
    if not isinstance(value, str) or value in EMBEDDED or (key == "data" and is_address(value)):
        return value
    if key == "weights" and value.lower() in NO_WEIGHTS:
        return None
    path = folder / Path(value).expanduser()
    if key == "weights" and not path.exists() and (is_name_of_weights(value) or is_hub_name(value)):
        return value
    return str(real_path(path))


def data_path(data: str | Path) -> str:
    """Return a data set as a recipe stores it: the name of embedded data, an address, or an absolute path.

    Raises:
        ValueError: the text is empty.
    """
    text = str(data)
    if not text:
        raise ValueError("--data is empty; give a folder, or digits")
    return text if text in EMBEDDED or is_address(text) else str(real_path(Path(text).expanduser()))


def is_name_of_weights(weights: str) -> bool:
    """Return whether `weights` names published weights: `pretrained`, `smt_tiny.in1k` or `in1k`, and no file."""
    is_place = is_hub_name(weights) or any(sign in weights for sign in "/\\~")
    return not is_place and not weights.endswith(CHECKPOINT_ENDINGS)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merge(out[key], value) if both else value
    return out


def _deep_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[path[-1]] = value


def _follow_batch_size(plain: Recipe, changed: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    """Scale the rates that the source scales with the batch size, unless the user set them too."""
    if "optimisation.batch_size" not in wanted:
        return
    try:
        factor = float(wanted["optimisation.batch_size"]) / plain.optimisation.batch_size
    except (TypeError, ValueError):
        return  # validation reports what is wrong with it
    for key, rate in scaled_rates(plain, factor).items():
        if key not in wanted:
            _put(changed, key.split("."), rate)


def scaled_rates(recipe: Recipe, factor: float) -> dict[str, float]:
    """Return the rates that the recipe's source scales, for a batch size `factor` times as large."""
    names = {"none": (), "peak": ("lr",), "all": ("lr", "warmup_lr", "min_lr")}[recipe.optimisation.lr_scaling]
    return {f"optimisation.{name}": getattr(recipe.optimisation, name) * factor for name in names}


class _UnknownKey(ValueError):
    """A change of a key that the schema lacks."""

    def __init__(self, key: str, value: str) -> None:
        super().__init__(key)
        self.key, self.value = key, value


def _parse_changes(changes: Iterable[str], schema: type[BaseModel]) -> dict[str, Any]:
    """Return the values of `key=value` changes by dotted key. All unknown keys are reported at once."""
    wanted: dict[str, Any] = {}
    unknown: list[tuple[str, str]] = []
    for change in (changes,) if isinstance(changes, str) else changes:  # one may be given alone
        try:
            wanted |= _parse_change(change, schema)
        except _UnknownKey as error:
            unknown.append((error.key, error.value))
    if unknown:
        raise ValueError(unknown_keys(unknown, schema))
    return wanted


def _parse_change(text: str, schema: type[BaseModel]) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{text!r} is not a change; write key=value, such as optimisation.lr=1e-3")
    if (path := key.strip()) in PATHS:  # as typed: a folder or a pattern may look like YAML
        return {path: _beside(Path(), path, value) if value else None}
    try:
        parsed = parse_yaml(value, f"the value of {key}", _Loader) if value else None
    except ValueError as error:
        if not isinstance(error.__context__, yaml.YAMLError):
            raise
        raise ValueError(f"the value of {key} is not valid YAML: {value!r}; put it in quotes for the shell") from None
    if isinstance(parsed, dict) and any(known.startswith(f"{key}.") for known in known_keys(schema)):
        values = flatten(parsed, f"{key}.")
        return {_full_key(name, as_yaml(value), schema): value for name, value in values.items()}
    return {_full_key(key.strip(), value, schema): parsed}


def _full_key(key: str, text: str, schema: type[BaseModel]) -> str:
    """Return `lr` as `optimisation.lr`: the section may be left out where only one section has such a key.

    `text` is the value, for the message.
    """
    keys = known_keys(schema)
    first = key.partition(".")[0]
    if key in keys or (first in keys and "." in key and keys[first] is dict):
        return key
    if "." in key and key.rpartition(".")[0] in keys and keys[key.rpartition(".")[0]] is dict:
        return key
    ends = [known for known in keys if known.endswith("." + key)]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise ValueError(f"{key!r} is ambiguous: write {' or '.join(as_word(f'{end}={text}') for end in ends)}")
    if inside := sorted(known for known in keys if known.startswith(f"{key}.")):
        raise ValueError(f"{key} is a section; write one of its keys, such as {inside[0]}=...")
    raise _UnknownKey(key, text)


def _validated(values: dict[str, Any]) -> Recipe:
    task = values.get("task", "classification")
    if not isinstance(task, str) or task not in TASKS:
        close = get_close_matches(str(task), TASKS) or list(TASKS)
        raise ValueError(f"there is no task {task!r}; did you mean {' or '.join(close)}?")
    schema = TASKS[task]
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise ValueError(_sentence(error, schema)) from None


def _sentence(error: ValidationError, schema: type[BaseModel]) -> str:
    """Return the first error in words, and the number of further errors."""
    first, *others = error.errors()
    context = first.get("ctx", {})
    key = ".".join(str(name) for name in first["loc"])
    given, error_type = first["input"], first["type"]
    if error_type == "extra_forbidden":
        unknown = [one for one in error.errors() if one["type"] == error_type]
        others = others[len(unknown) - 1 :]
        named = [(".".join(str(name) for name in one["loc"]), one["input"]) for one in unknown]
        text = unknown_keys_in_file(named, schema)
    elif error_type.startswith("model_"):
        text = f"{key} is a section: write its keys below it, indented; got {given!r}"
    elif error_type in ("tuple_type", "list_type", "dict_type"):
        example = "{key: value}" if error_type == "dict_type" else "[a, b]"
        text = f"{key} must be written {example}; got {given!r}"
    elif first["loc"] and isinstance(first["loc"][-1], int):
        text = f"{key.rpartition('.')[0]}, entry {first['loc'][-1] + 1}: {first['msg'].lower()}; got {given!r}"
    elif error_type == "string_type":
        text = f"{key} must be one name or path; got {given!r}; write {key}=..., with one value"
    elif error_type == "missing":
        text = f"the recipe has no {key}; add {key}=..., or a base that has it"
    elif error_type == "value_error":
        text = f"{key + ': ' if key else ''}{context['error']}"
    elif error_type == "literal_error":
        close = get_close_matches(str(given), re.findall(r"'([^']*)'", context["expected"]), n=1)
        text = f"{key} must be {context['expected']}; got {given!r}" + (
            f", did you mean {close[0]!r}?" if close else ""
        )
    else:
        text = f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}; got {given!r}"
    return text + (f" (and {len(others)} more)" if others else "")
