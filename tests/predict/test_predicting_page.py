"""The Python lines of docs/predicting.md run, in the order of the page."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run.test_predict_dense import film

from fourstage.engine.state import save_state
from fourstage.recipe import resolve
from fourstage.run.task_protocol import protocol_of

PAGE = Path(__file__).parents[2] / "docs" / "predicting.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the page names."""
    folder = tmp_path_factory.mktemp("page")
    recipe = resolve("digit_scenes_retinanet").recipe
    torch.manual_seed(0)
    task = protocol_of(recipe).build_task(tuple("abc"))
    checkpoints = folder / "runs" / "mine" / "checkpoints"
    checkpoints.mkdir(parents=True)
    values: dict[str, Any] = {"fourstage": 1, "classes": [*"abc"], "recipe": recipe.model_dump(mode="json")}
    save_state(checkpoints / "best.pt", {**values, "which": "model", "model": task.state_dict()})
    (folder / "runs" / "mine" / "recipe.yaml").write_text(recipe.model_dump_json())
    for name, size in (("photo.jpg", (60, 80, 3)), ("aerial.jpg", (700, 900, 3))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)).save(folder / name)
    film(folder / "clip.mp4", frames=2)
    return folder


@pytest.mark.filterwarnings("default")  # of libraries that are not ours
def test_the_lines_of_the_page_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert len(BLOCKS) >= 4
    names: dict[str, Any] = {}
    for block in BLOCKS:
        if "import trackers" in block and find_spec("trackers") is None:
            continue
        exec(compile(block, str(PAGE), "exec"), names)
    assert (place / "out.png").is_file()
