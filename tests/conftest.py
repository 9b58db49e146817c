"""What every test shares: few threads, and no test that leaves the global random state to the next."""

import os

import pytest
import torch

os.environ.setdefault("PYTHONWARNINGS", "default")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
