"""docs/architecture.md names every package and only files that exist, and docstrings name the errors of functions.

test_import_map.py has the table of imports.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMES_ERRORS = re.compile(r"\b[Rr]aise[sd]?\b|\berrors as\b")
METHODS_RAISE = "Methods raise "  # in the docstring of a class, for all its methods


def section(heading: str) -> str:
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_every_package_is_in_the_tree() -> None:
    tree = section("Packages")
    packages = {
        path.name for path in (ROOT / "fourstage").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    missing = [package for package in packages - {"__main__.py"} if package not in tree]
    assert not missing, f"docs/architecture.md lacks {sorted(missing)}"


def test_files_on_the_page_exist() -> None:
    names = set(re.findall(r"`((?:\w+/)*\w+\.py)`", PAGE))
    assert len(names) > 15
    missing = [name for name in names if not any((ROOT / base / name).is_file() for base in ("", "fourstage"))]
    assert not missing, f"docs/architecture.md names {sorted(missing)}, which do not exist"


def test_every_operation_is_on_the_page() -> None:
    named = set(re.findall(r"`ops/(\w+\.py)`", section("Fast paths")))
    there = {path.name for path in (ROOT / "fourstage" / "ops").glob("[!_]*.py")}
    assert not there - named, f"docs/architecture.md lacks {sorted(there - named)}"


def test_pages_state_the_number_of_test_processes() -> None:
    assert "--maxprocesses=8 " in (ROOT / "Makefile").read_text()
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        said = re.findall(r"`make test` runs [^.;]*", (ROOT / name).read_text())
        assert said, name
        assert all(one.endswith("core, at most eight") for one in said), said


def test_every_test_file_has_a_name_of_its_own() -> None:
    """The test runner imports test files by their names alone and collects only the first of two."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]


def test_paths_of_users_are_resolved_in_one_way() -> None:
    """`Path.resolve` raises RuntimeError for a link that leads to itself, up to Python 3.12."""
    files = (path for path in (ROOT / "fourstage").rglob("*.py") if ".resolve()" in path.read_text())
    assert not [path.name for path in files], "use fourstage.files.real_path"


def test_docstrings_of_public_functions_name_their_errors() -> None:
    """A function without a docstring says all with its name, or inherits one."""
    silent = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in (ROOT / "fourstage").rglob("*.py")
        for line, name, docstring in raising(ast.parse(path.read_text()))
        if docstring and not NAMES_ERRORS.search(docstring)
    ]
    assert not silent, "add `Raises:` to the docstrings of\n" + "\n".join(silent)


def test_raising_functions_are_found_with_their_docstrings() -> None:
    source = '''
def function(values):
    """One."""
    for _ in values:
        raise ValueError("no")

def outer():
    """Two."""
    def inner():
        raise ValueError("no")

def invariant():
    """Three."""
    raise AssertionError("no")

def _private():
    """Four."""
    raise ValueError("no")

class Public:
    """Five."""
    def __post_init__(self):
        raise self.error("no")
    def method(self):
        """Six."""
        raise KeyError("no")
    def _own(self):
        raise KeyError("no")
'''
    found = [(name, docstring) for _, name, docstring in raising(ast.parse(source))]
    assert found == [("function", "One."), ("Public", "Five."), ("Public.method", "Six.")]


def raising(tree: ast.AST, owner: str = "") -> Iterator[tuple[int, str, str]]:
    """Yield line, name and docstring of each public function that raises; a constructor has that of its class.

    AssertionError is for what a user cannot cause, AttributeError for the protocol of attributes.
    """
    about = ast.get_docstring(tree) or "" if isinstance(tree, ast.ClassDef) else ""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from raising(node, f"{owner}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and any(errors_in(node.body)):
            own = ast.get_docstring(node) or ""
            if node.name in ("__init__", "__post_init__"):
                yield node.lineno, owner.removesuffix("."), own + about
            elif not node.name.startswith("_"):
                yield node.lineno, f"{owner}{node.name}", own + about * (METHODS_RAISE in about)


def errors_in(body: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the errors that a body raises itself, not through a function inside."""
    for node in body:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            if name not in ("AssertionError", "AttributeError"):
                yield name
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            yield from errors_in(ast.iter_child_nodes(node))
