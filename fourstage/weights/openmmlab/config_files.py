"""A configuration file of OpenMMLab's with the files that it is based on, as plain values. Nothing in them is run.

Files are read as MMCV and MMEngine read them: the values of `_base_` are merged first, the file's own values are laid
over them, and `_delete_=True` replaces a dictionary instead of adding to it. What would have to run is left as
`Unread`.
"""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourstage.files import limit, read_text, real_path
from fourstage.weights.openmmlab.base_files import base_file
from fourstage.weights.openmmlab.config import DEEPEST, LONGEST
from fourstage.weights.openmmlab.expressions import Budget, Evaluator, NotPlainError, Unread, plain_errors
from fourstage.weights.openmmlab.merging import merged as merged_value
from fourstage.weights.openmmlab.merging import without_marks
from fourstage.weights.openmmlab.read_base import (
    change_value,
    has_read_base,
    imported_file,
    imported_names,
    read_base_imports,
)

MOST_FILES = 30
MOST_OPERATORS = 400  # of one statement, beside brackets, commas, colons and equals signs: each may nest once more
WRITTEN_OUT = "`with read_base():` may hold imports of base files alone; write out what else it does"
BASE = "_base_"
KEYS = frozenset(  # of OpenMMLab's configurations; a file without any of them is none
    (
        *("model", "data", "dataset_type", "data_root", "train_pipeline", "test_pipeline", "img_norm_cfg", "classes"),
        *("optimizer", "optimizer_config", "lr_config", "momentum_config", "runner", "total_epochs", "total_iters"),
        *("train_cfg", "val_cfg", "test_cfg", "train_dataloader", "val_dataloader", "test_dataloader", "evaluation"),
        *("val_evaluator", "test_evaluator", "optim_wrapper", "param_scheduler", "auto_scale_lr", "fp16", "norm_cfg"),
        *("checkpoint_config", "log_config", "custom_hooks", "default_hooks", "default_scope", "env_cfg", "log_level"),
        *("dist_params", "load_from", "resume_from", "workflow", "visualizer", "vis_backends", "tta_model", BASE),
    )
)


@dataclass(frozen=True)
class ConfigFile:
    """The merged values of a configuration file.

    Attributes:
        values: by their names.
        helpers: names of values that are only there for others, such as `img_norm_cfg`.
        statements: code that was left out because it cannot change a value, as "line 3: import os".
    """

    values: dict[str, Any]
    helpers: frozenset[str] = frozenset()
    statements: tuple[str, ...] = ()


def read_config_file(path: Path, folders: Sequence[Path] = ()) -> ConfigFile:
    """Return the values of a configuration file and its base files.

    Args:
        folders: where base files of packages such as MMDetection are looked for, before the installed packages.

    Raises:
        ValueError: a file is no configuration, too large, or does what would have to be run; the sentence says where.
        OSError: a file is missing or cannot be read.
    """
    reader = _Reader(path, folders)
    try:
        values = reader.merged(path, ())
    except NotPlainError as error:
        raise ValueError(f"{path} is a configuration {error}; nothing in it was run") from None
    if not isinstance(values.get("model"), dict):
        raise ValueError(f"{path} describes no model; give the configuration of a detector or segmentor")
    return ConfigFile(values, frozenset(reader.helpers), tuple(reader.statements))


@dataclass
class _Reader:
    top: Path
    folders: Sequence[Path] = ()
    budget: Budget = field(default_factory=Budget)
    files: int = 0
    helpers: set[str] = field(default_factory=set)
    statements: list[str] = field(default_factory=list)

    def merged(self, path: Path, above: tuple[Path, ...], *, lazy: bool = False) -> dict[str, Any]:
        """Return the values of a file over those of its bases.

        Args:
            above: the files that led here.
            lazy: whether it is in pure Python even without `read_base`, as the bases of such a file are.
        """
        real = real_path(path)
        if real in above:
            chain = " -> ".join(one.name for one in (*above[above.index(real) :], real))
            raise ValueError(f"{self.top}: the base files {chain} form a cycle; leave one of them out")
        self.files += 1
        if self.files > MOST_FILES:
            raise ValueError(f"{self.top} needs more than {MOST_FILES} base files; merge some of them")
        tree = self._parsed(path, bool(above))
        if lazy or has_read_base(tree):
            return self._of_read_base(tree, path, (*above, real))
        base: dict[str, Any] = {}
        for name in _bases(tree, path):
            for key, value in self.merged(base_file(path, name, self.folders), (*above, real)).items():
                base[key] = merged_value(base[key], value, path, key) if key in base else value
        evaluator = Evaluator(path.name, {}, base, _texts(path), self.budget)
        for key, value in self._own_values(tree, path, evaluator).items():
            self.helpers.discard(key)
            base[key] = merged_value(base[key], value, path, key) if key in base else without_marks(value)
        self.helpers |= evaluator.used | evaluator.used_of_base
        return base

    def _parsed(self, path: Path, is_base: bool) -> ast.Module:
        text = read_text(path, 4 * LONGEST).removeprefix("\ufeff")  # the mark that Windows' editors write
        if len(text) > limit(LONGEST):
            raise ValueError(f"{path} has {len(text):,} characters, and at most {limit(LONGEST):,} are read")
        try:
            with plain_errors():
                _check_nesting(text)
                tree = ast.parse(text)
        except (NotPlainError, tokenize.TokenError) as error:
            what = error if isinstance(error, NotPlainError) else "that is not valid Python"
            raise ValueError(f"{path} is a configuration {what}; nothing in it was run") from None
        if not KEYS & set(_assigned(tree)) and not has_read_base(tree):
            what = f"{self.top} is based on {path}, which" if is_base else f"{path}"
            raise ValueError(f"{what} sets none of the keys of an OpenMMLab configuration, such as model")
        return tree

    def _of_read_base(self, tree: ast.Module, path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
        """Return the values of a configuration in pure Python, which replace those of its base files."""
        names: dict[str, Any] = {}
        for statement in tree.body:
            for one in read_base_imports(statement) or ():
                base = self.merged(imported_file(path, one, self.folders), above, lazy=True)
                for alias in one.names:
                    if alias.name != "*" and alias.name not in base:
                        raise ValueError(f"{path} imports {alias.name} (line {one.lineno}), which its base file lacks")
                    names |= base if alias.name == "*" else {alias.asname or alias.name: base[alias.name]}
        classes = {name: value for statement in tree.body for name, value in imported_names(statement)}
        evaluator = Evaluator(path.name, {**classes, **names}, {}, _texts(path), self.budget)
        kept = [one for one in tree.body if not isinstance(one, ast.Import | ast.ImportFrom)]
        body = [one for one in kept if read_base_imports(one) is None]
        values = self._own_values(ast.Module([*body], []), path, evaluator, lazy=True)
        self.helpers |= evaluator.used
        return {key: value for key, value in values.items() if key not in classes or value != classes[key]}

    def _own_values(self, tree: ast.Module, path: Path, evaluator: Evaluator, *, lazy: bool = False) -> dict[str, Any]:
        """Return what the statements of a file assign; in pure Python (`lazy`) they also change values."""
        values = evaluator.names
        assert values is not None, "the evaluator of a file has names"
        try:
            for statement in tree.body:
                if lazy and change_value(statement, evaluator, values, path):
                    continue
                if (left_out := _execute(statement, evaluator, values)) is not None:
                    self.statements.append(f"{path.name}, line {statement.lineno}: {left_out}")
        except NotPlainError as error:
            raise ValueError(f"{path} is a configuration {error}; nothing in it was run") from None
        except RecursionError:
            raise ValueError(f"{path} is a configuration that is nested too deeply; nothing in it was run") from None
        return {key: value for key, value in values.items() if key != BASE and not key.startswith("__")}


def _execute(statement: ast.stmt, evaluator: Evaluator, names: dict[str, Any]) -> str | None:
    """Carry out an assignment. Return the code of a statement that is left out because it changes no value."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            assert statement.value is not None, "matched"
            names[name] = evaluator.value(statement.value)
        case ast.Assign(targets=[ast.Subscript() as target]):
            _assign_entry(target, evaluator.value(statement.value), names, statement)
        case ast.AugAssign(target=ast.Name(id=name)) if name in names:
            left = ast.copy_location(ast.Name(name, ast.Load()), statement)
            sum_of = ast.copy_location(ast.BinOp(left, statement.op, statement.value), statement)
            names[name] = evaluator.value(sum_of)
        case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.Assert():
            return None
        case ast.Delete(targets=targets) if all(isinstance(target, ast.Name) for target in targets):
            for target in targets:
                names.pop(target.id, None)  # pyright: ignore[reportAttributeAccessIssue]
        case ast.Import() | ast.ImportFrom() | ast.FunctionDef() | ast.ClassDef():
            return ast.unparse(statement).splitlines()[0][:60]
        case ast.With():
            raise NotPlainError(f"with a `with` statement (line {statement.lineno}); {WRITTEN_OUT}")
        case _:
            raise NotPlainError(
                f"that does more than assign values ({type(statement).__name__.lower()} in line {statement.lineno}); "
                "write out what it computes"
            )
    return None


def _assign_entry(target: ast.Subscript, value: Any, names: dict[str, Any], statement: ast.stmt) -> None:
    """Assign `name["a"]["b"] = value`."""
    keys: list[Any] = []
    top: ast.expr = target
    while isinstance(top, ast.Subscript) and isinstance(top.slice, ast.Constant):
        keys.append(top.slice.value)
        top = top.value
    found = names.get(top.id) if isinstance(top, ast.Name) else None
    *before, last = [*reversed(keys)] or [None]
    for key in before:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(last, str | int | float):
        raise NotPlainError(
            f"that assigns to what is not known (line {statement.lineno}); write it into the dictionary"
        )
    found[last] = value


def _bases(tree: ast.Module, path: Path) -> list[str]:
    """Return the texts of `_base_`, which is known before anything else is."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            if statement.targets[0].id != BASE:
                continue
            found = Evaluator(path.name, {}).value(statement.value)
            listed = list(found) if isinstance(found, list | tuple) else [found]
            if not all(isinstance(one, str) for one in listed):
                wrong = next(one for one in listed if not isinstance(one, str))
                raise ValueError(f"{path}: _base_ is one path or a list of paths as text; got {wrong!r:.80}")
            return listed
    return []


def _check_nesting(text: str) -> None:
    """Raise NotPlainError where Python's own parser would have to nest deeply."""
    depth = operators = 0
    for word in tokenize.generate_tokens(io.StringIO(text).readline):
        if word.type == tokenize.NEWLINE:
            operators = 0
        elif word.type == tokenize.OP:
            depth += (word.string in "([{") - (word.string in ")]}")
            operators += word.string not in "()[]{},:="
        elif word.type == tokenize.NAME:
            operators += word.string in ("not", "if", "else", "for", "lambda", "and", "or", "await", "yield")
        if depth > DEEPEST:
            raise NotPlainError(f"with brackets nested more than {DEEPEST} deep (line {word.start[0]})")
        if operators > MOST_OPERATORS:
            raise NotPlainError(f"with more than {MOST_OPERATORS} operators in one statement (line {word.start[0]})")


def _assigned(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else ()
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _texts(path: Path) -> dict[str, str]:
    """Return the words that MMCV replaces in text."""
    return {
        "fileDirname": str(path.parent),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }


def unread_values(value: Any, path: str = "") -> Iterator[tuple[str, Unread]]:
    """Yield the path of every value that is code, with it."""
    if isinstance(value, Unread):
        yield path, value
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from unread_values(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            yield from unread_values(one, f"{path}.{i}")
