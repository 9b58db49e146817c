"""What every test shares: one seed, one thread in each of several test processes, and slow files first."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch starts its threads; programs that tests start inherit it
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

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


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
