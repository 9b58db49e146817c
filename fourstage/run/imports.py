"""A user's own modules, which a recipe names and a run executes."""

import importlib.util
import sys
import traceback
from pathlib import Path

from fourstage.recipe import Recipe


def run_imports(recipe: Recipe) -> None:
    """Execute the Python files that a recipe imports, so that the models they register can be built.

    Raises:
        ValueError: a file fails; names the file, the line and the error.
        FileNotFoundError: there is no such file.
    """
    for i, name in enumerate(recipe.imports):
        path = Path(name)
        if not path.is_file() or path.suffix != ".py":
            raise FileNotFoundError(
                f"the recipe imports {name}, but there is no such Python file; paths are relative to the recipe's "
                f"folder"
            )
        title = f"fourstage_import_{i}_{path.stem}"
        if title in sys.modules and sys.modules[title].__file__ == str(path):
            continue
        _execute(title, path)


def _execute(title: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(title, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[title] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[title]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", None) or 1
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}; correct the file") from error
