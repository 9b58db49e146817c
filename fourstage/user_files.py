"""A user's own Python files: a recipe imports them, and what they register is known from then on.

Any room may import this module.
"""

import importlib.util
import shlex
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from fourstage.files import real_path

PREFIX = "fourstage_import_"  # of the names of their modules
Place: TypeAlias = tuple[str, str]  # a file, or a module without one, and a name in it
OWN = "if it is your own, add --imports FILE.py, name the file under imports: in the recipe, or import it"
BUILT_IN: Place = ("fourstage", "")  # of what no file of a user may replace


def import_files(files: str | Path | Iterable[str | Path]) -> None:
    """Run Python files that have not run yet; one file may be given alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file fails; the message names the file, the line and the error.
    """
    for file in as_files(files):
        path = real_path(file)
        if not path.is_file() or path.suffix != ".py":
            raise FileNotFoundError(
                f"there is no Python file {file} to import; correct the path: of --imports, or under imports: in the "
                f"recipe, where paths start at the recipe's folder; where the file has moved, add "
                f"--imports {shlex.quote(f'FOLDER/{path.name}')}"
            )
        if (name := module_name(path)) not in sys.modules:
            _run(name, path)


def as_files(files: str | Path | Iterable[str | Path]) -> tuple[str | Path, ...]:
    """Return files as a tuple; one file may be given alone."""
    return (files,) if isinstance(files, str | Path) else tuple(files)


def module_name(path: str | Path) -> str:
    """Return the name of the module that a file becomes; it follows from its path alone."""
    path = real_path(path)
    return f"{PREFIX}{sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"


def imported_files() -> tuple[tuple[str, str], ...]:
    """Return the name of the module and the path of every file that has run, in their order."""
    modules = [(name, module) for name, module in sys.modules.items() if name.startswith(PREFIX)]
    return tuple((name, str(module.__file__)) for name, module in modules)


def modules_by_name() -> Mapping[str, ModuleType]:
    """Return the modules of the files that have run."""
    return {name: module for name, module in sys.modules.items() if name.startswith(PREFIX)}


def files_to_run(recorded: Iterable[str], given: Iterable[str | Path], where: str) -> list[str]:
    """Return the files to run for a recipe that a run folder or a checkpoint has recorded.

    Such a recipe may come from anyone, so that it runs nothing by itself: the user names the files, or has run files
    of these names in this process.

    Args:
        recorded: the imports of that recipe.
        given: files that the user names; they take the place of all recorded ones.
        where: the folder or file, for the message.

    Raises:
        ValueError: files are recorded, and the user named none.
    """
    if files := [str(real_path(file)) for file in given]:
        return files
    ran = {Path(path).name: path for _, path in imported_files()}
    recorded = list(recorded)
    if any(Path(file).name not in ran for file in recorded):
        raise ValueError(
            f"{where} was trained with Python files, which a run folder or a checkpoint alone does not run: if you "
            f"trust them, add {imports_option(recorded)}"
        )
    return [ran[Path(file).name] for file in recorded]


def files_of_recipe(written: Sequence[str], given: Iterable[str | Path]) -> list[str]:
    """Return the files to run for a user's own recipe: those that it names, and those that the user names beside it.

    A file that is missing is left out where the user names one of its name, and replaced by one that has run.

    Args:
        written: the imports of that recipe.
    """
    added = [str(real_path(file)) for file in given]
    ran = {Path(path).name: path for _, path in imported_files()} | {Path(path).name: path for path in added}
    found = [file if Path(file).is_file() else ran.get(Path(file).name, file) for file in written]
    return list(dict.fromkeys((*found, *added)))


def imports_option(files: Iterable[str]) -> str:
    """Return the words of the command line that name these files, and which of them are not where they were."""
    files = list(files)
    gone = [file for file in files if not Path(file).is_file()]
    shown = [f"FOLDER/{Path(file).name}" if file in gone else file for file in files]
    words = " ".join(f"--imports {shlex.quote(file)}" for file in shown)
    if not gone:
        return words
    why = f"there is no {gone[0]}" if Path(gone[0]).is_absolute() else f"it is not known where {gone[0]} is"
    return f"{words} with the folder that {Path(gone[0]).name} is in now: {why}"


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


def name_of(build: object, what: str) -> str:
    """Return the name of a class or function. Raises ValueError for another object, and for a lambda."""
    name = getattr(build, "__name__", "")
    if not callable(build) or not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"a {what} is registered by the name of its class or function; {build!r:.200} has none")
    return name


def place_of(build: Callable[..., Any]) -> Place:
    """Return where a class or function is defined. It is kept at once, as a module that fails is forgotten."""
    while isinstance(build, partial):
        build = build.func
    module = getattr(build, "__module__", None) or ""
    file = getattr(sys.modules.get(module), "__file__", None)
    return (str(real_path(file)) if file else module), getattr(build, "__qualname__", "")


def place_of_caller(globals_of_caller: Mapping[str, Any], name: str) -> Place:
    """Return the file, or the module without one, whose globals these are, and a name that it registers."""
    file = globals_of_caller.get("__file__")
    return (str(real_path(file)) if file else str(globals_of_caller.get("__name__", ""))), name


def check_name(name: str, what: str, place: Place, taken: Place | None) -> None:
    """Check that `place` may register a name: the same place may do so again, as a file that is corrected does.

    Args:
        what: in the plural, for the message.
        taken: the place that has registered the name; None: there is none.

    Raises:
        ValueError: another place has registered it.
    """
    if taken not in (None, place):
        raise ValueError(f"two {what} are called {name!r}; give the new one another name")


def where_raised(error: BaseException) -> str:
    """Return the file and the line where an error was raised: in the user's own code where that took part."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent)
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith(ours)]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"
