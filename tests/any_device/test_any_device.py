"""Every network, head, loss and training step runs on a device that is not the CPU; see `cases`."""

import os
import subprocess
import sys
from pathlib import Path


def test_nothing_is_left_on_the_cpu() -> None:
    """In a process of its own: autograd must not have run before the device is set up."""
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).with_name("cases.py"))]
    done = subprocess.run(words, capture_output=True, text=True, env={**alone, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100%" in done.stdout  # tests ran
