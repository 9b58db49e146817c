"""docs/architecture.md names every package, and only files that exist; test_import_map.py has its table of imports."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


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
