"""Small pictures and folders for the tests of this room."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a picture of noise below the test's folder; every call gives another one."""
    rng = np.random.default_rng(0)

    def write(path: str, height: int = 40, width: int = 48, format: str | None = None) -> Path:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(target, format)
        return target

    return write
