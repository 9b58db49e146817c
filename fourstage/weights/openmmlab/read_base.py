"""MMEngine's configurations in pure Python: `with read_base(): from .a import *`. Imports are read as text, never run.

A class that such a file imports is the text of its name, as `type="RetinaNet"` is in other configurations.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fourstage.weights.openmmlab.base_files import of_package
from fourstage.weights.openmmlab.expressions import Evaluator, NotPlainError
from fourstage.weights.openmmlab.merging import merged, without_marks

# layers of torch -> their names there
LAYERS = {"BatchNorm2d": "BN", "SyncBatchNorm": "SyncBN", "GroupNorm": "GN", "LayerNorm": "LN"}


def imported_file(path: Path, statement: ast.ImportFrom, folders: Sequence[Path]) -> Path:
    """Return the file of `from MODULE import ...` in a configuration; errors as those of `base_file`."""
    module = statement.module or "__init__"
    below = Path(*module.split(".")).with_suffix(".py")
    if not statement.level:
        package, _, rest = module.partition(".")
        inner = Path(*rest.split(".")).with_suffix(".py") if rest else Path("__init__.py")
        return of_package(path, module, package, [inner, *_without_first(inner)], folders)
    folder = path.parent
    for _ in range(statement.level - 1):
        folder = folder.parent
    if not (folder / below).is_file():
        raise FileNotFoundError(
            f"{path} is based on {folder / below} (line {statement.lineno}), which is missing; put it there"
        )
    return folder / below


def _without_first(path: Path) -> list[Path]:
    """`configs/_base_/a.py` of a package is `_base_/a.py` of its folder of configurations."""
    return [Path(*path.parts[1:])] if len(path.parts) > 1 else []


def read_base_imports(statement: ast.stmt) -> list[ast.ImportFrom] | None:
    """Return the imports of `with read_base():`; None for another statement, or one that holds more than imports."""
    if not isinstance(statement, ast.With) or len(statement.items) != 1:
        return None
    match statement.items[0].context_expr:
        case ast.Call(func=ast.Name(id="read_base"), args=[], keywords=[]):
            plain = [one for one in statement.body if not isinstance(one, ast.Pass)]
            imports = [one for one in plain if isinstance(one, ast.ImportFrom)]
            return imports if len(imports) == len(plain) else None
        case _:
            return None


def has_read_base(tree: ast.Module) -> bool:
    """Return whether a file is one of MMEngine's configurations in pure Python."""
    imports = (one for one in tree.body if isinstance(one, ast.ImportFrom))
    named = any(alias.name == "read_base" for one in imports for alias in one.names)
    return named or any(read_base_imports(one) is not None for one in tree.body)


def imported_names(statement: ast.stmt) -> Iterator[tuple[str, str]]:
    """Yield what an import outside of `read_base` calls a class, and its registered name: `type=RetinaNet` is text."""
    if isinstance(statement, ast.ImportFrom):
        for alias in statement.names:
            yield alias.asname or alias.name, LAYERS.get(alias.name, alias.name)


def change_value(statement: ast.stmt, evaluator: Evaluator, names: dict[str, Any], path: Path) -> bool:
    """Carry out `a.b.update(...)`, `a.b.merge(...)` or `a.b = value`; return False for another statement.

    Raises:
        NotPlainError: what is changed is not known, or is no dictionary.
    """
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=target, attr="update" | "merge" as verb)) as call):
            found = _found(target, evaluator, names)
            plain = ast.copy_location(ast.Call(ast.Name("dict", ast.Load()), call.args, call.keywords), call)
            change = evaluator.value(plain)
            if not isinstance(found, dict) or not isinstance(change, dict):
                raise NotPlainError(f"that changes what is not known (line {statement.lineno}); write it out")
            new = merged(found, change, path, ast.unparse(target)[:60]) if verb == "merge" else without_marks(change)
            if verb == "merge":
                found.clear()  # keys that `_delete_` takes away
            found |= new
            return True
        case ast.Assign(targets=[ast.Attribute(value=target, attr=key)]):
            found = _found(target, evaluator, names)
            if not isinstance(found, dict):
                raise NotPlainError(f"that changes what is not known (line {statement.lineno}); write it out")
            found[key] = evaluator.value(statement.value)
            return True
        case _:
            return False


def _found(node: ast.expr, evaluator: Evaluator, names: dict[str, Any]) -> Any:
    """Return the value itself, not a copy, that `a.b["c"][0]` stands for; None where it is not known."""
    match node:
        case ast.Name(id=name):
            return names.get(name)
        case ast.Attribute(value=above, attr=key):
            found = _found(above, evaluator, names)
            return found.get(key) if isinstance(found, dict) else None
        case ast.Subscript(value=above, slice=place):
            found, key = _found(above, evaluator, names), evaluator.value(place)
            if isinstance(found, dict) and isinstance(key, str | int | float):
                return found.get(key)
            if isinstance(found, list) and isinstance(key, int) and -len(found) <= key < len(found):
                return found[key]
            return None
        case _:
            return None
