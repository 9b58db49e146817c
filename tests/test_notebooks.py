"""The notebooks run from the first cell to the last, with small settings, and hold the outputs of a run."""

import json
from pathlib import Path

import pytest
from notebook_cells import SETTINGS, read_cells, run_cells

FOLDER = Path(__file__).parents[1] / "docs/notebooks"
FEW = ["length=2it", "warmup=0it", "batch_size=8", "workers=0"]
SMALL: dict[str, dict[str, object]] = {
    "compare_mixers": {"CHANGES": "length=1it warmup=0it batch_size=8 workers=0", "SEEDS": 1},
    "own_boxes": {"SCENES": 10, "CHANGES": [*FEW, "batch_size=2"]},
    "own_images": {"CHANGES": FEW},
}
LARGEST = 60_000  # bytes of a notebook with its outputs


def test_each_notebook_is_run() -> None:
    assert sorted(SMALL) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = FOLDER / f"{name}.ipynb"
    outputs = run_cells(path, SMALL[name])
    kept = [cell["outputs"] for cell in read_cells(path)]
    kinds = [[one["output_type"] for one in some] for some in outputs]
    assert kinds == [[one["output_type"] for one in some] for some in kept]
    assert any(kinds)


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_is_small_and_names_its_settings(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < LARGEST
    assert "/tmp/" not in path.read_text("utf-8")
    settings = [cell for cell in read_cells(path) if SETTINGS in cell["metadata"].get("tags", ())]
    assert len(settings) == 1
    numbers = [cell["execution_count"] for cell in read_cells(path)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert json.loads(path.read_text("utf-8"))["nbformat"] == 4
