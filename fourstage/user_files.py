"""A user's own Python files: a recipe imports them, and what they register is known from then on.

Any room may import this module.
"""

import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

PREFIX = "fourstage_import_"  # of the names of their modules


def import_files(files: Iterable[str | Path]) -> None:
    """Run Python files that have not run yet.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file fails; the message names the file, the line and the error.
    """
    for position, file in enumerate(files):
        path = Path(file)
        if not path.is_file() or path.suffix != ".py":
            raise FileNotFoundError(
                f"there is no Python file {file} to import; the paths of a recipe's imports start at its folder"
            )
        name = f"{PREFIX}{position}_{path.stem}"
        if name not in sys.modules or sys.modules[name].__file__ != str(path):
            _run(name, path)


def imported_files() -> tuple[tuple[str, str], ...]:
    """Return the name of the module and the path of every file that has run, in their order."""
    modules = [(name, module) for name, module in sys.modules.items() if name.startswith(PREFIX)]
    return tuple((name, str(module.__file__)) for name, module in modules)


def import_again(files: Iterable[tuple[str, str]]) -> None:
    """Run the files of `imported_files` in another process, under the same names of modules."""
    for name, path in files:
        if name not in sys.modules:
            _run(name, Path(path))


def _run(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = lines[-1] if lines else getattr(error, "lineno", None) or 1
        raise ValueError(f"{path}, line {line}: {type(error).__name__}: {error}; correct the file") from error
