"""The tests of `make gpu`: on the device that `FOURSTAGE_TEST_DEVICE` names, one JSON line for each in a log."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("FOURSTAGE_TEST_DEVICE", "cuda")
TINY = os.environ.get("FOURSTAGE_TEST_TINY") == "1"  # the first case of each test
LOG = os.environ.get("FOURSTAGE_TEST_LOG")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic products; read by the first product


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    for item in here:
        item.add_marker(pytest.mark.gpu)
    rounds: Counter[str] = Counter()
    turn: dict[pytest.Item, int] = {}
    for item in here:
        test = item.nodeid.partition("[")[0]
        turn[item] = rounds[test]
        rounds[test] += 1
    # the first case of every test, then the second of every test: time that runs out costs cases and no test
    here.sort(key=turn.__getitem__)
    others = [item for item in items if item not in turn]
    items[:] = [*others, *(item for item in here if not (TINY and turn[item]))]


def pytest_collection_finish(session: pytest.Session) -> None:
    _write({"test": "", "outcome": "planned", "count": len(session.items)})


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note a test that begins: one that crashes its process or is cut short has no other line."""
    _write({"test": nodeid, "outcome": "begun"})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test ended."""
    if report.when != "call" and report.passed:
        return
    why = "" if report.passed else _reason(report)
    _write({"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2), "reason": why})


def _write(line: dict[str, object]) -> None:
    """Append a line to the log. A line that is written stays, whatever happens to the process later."""
    if LOG is not None:
        with Path(LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (getattr(crash, "message", "") or str(report.longrepr)).strip().splitlines()[0]


@pytest.fixture
def device() -> torch.device:
    """Return the device, with float32 products in float32."""
    if DEVICE.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no GPU is available")
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    return torch.device(DEVICE)
