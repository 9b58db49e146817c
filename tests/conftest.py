"""What every test shares: one seed, one thread in each of several test processes, and slow files first."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch starts its threads; programs that tests start inherit it
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.pop("COLUMNS", None)  # which test processes have and no pipe: lines are broken at it

import pytest
import torch

from fourstage import methods, registry, user_files
from fourstage.cli import main
from fourstage.data import formats

PACKAGE = Path(registry.__file__).parent
SLOW_FILES = (  # the longest first, so that no process works alone at the end
    "backbones/test_export.py",
    "run/test_kill.py",
    "run/test_processes.py",
    "run/test_dense_processes.py",
    "test_cli.py",
    "run/test_two_processes.py",
    "tasks/detection/test_golden_detectors.py",
    "run/test_dense_bad_input.py",
    "tasks/segmentation/test_golden_heads.py",
    "backbones/test_timm_suite.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of slow files in front and leave the order as it is otherwise."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    for rank, name in enumerate(SLOW_FILES):
        if item.path.match(f"tests/{name}"):
            return rank
    return len(SLOW_FILES)


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process: from its words to the exit code, the output and the errors."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:  # argparse leaves this way
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_registrations() -> Iterator[None]:
    """Forget what a test registers, so that no test depends on the ones that ran before it in its process."""
    tables = (registry._entries, registry._mixers, methods._registered, formats._registered)
    before = [set(table) for table in tables]
    modules = set(user_files.imported_files())
    yield
    for table, known in zip(tables, before, strict=True):
        for name in set(table) - known:
            if not _built_in(table[name]):
                del table[name]
    for name, _ in set(user_files.imported_files()) - modules:
        del sys.modules[name]


def _built_in(row: object) -> bool:
    """Whether a table's row comes from the package: its families are imported when a test asks for the first one."""
    return isinstance(row, registry.Entry) and Path(row.place[0]).is_relative_to(PACKAGE)
