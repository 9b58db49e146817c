"""The state of a training is saved completely or not at all, and read without running code."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fourstage.engine.state import load_state, save_state


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    state = {"fourstage": 1, "step": 3, "model": {"w": torch.randn(3)}, "best": {}, "list": [1.5, None, "x"]}
    save_state(tmp_path / "last.pt", state)
    back = load_state(tmp_path / "last.pt")
    assert back["step"] == 3
    assert back["list"] == state["list"]
    torch.testing.assert_close(back["model"]["w"], state["model"]["w"], rtol=0, atol=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_state_that_could_not_be_read_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"state\.conditions\.torch is a TorchVersion"):
        save_state(tmp_path / "last.pt", {"fourstage": 1, "conditions": {"torch": torch.__version__}})
    assert not (tmp_path / "last.pt").exists()


FULL_DISK = """
import sys, torch, resource
from pathlib import Path
from fourstage.engine.state import save_state, load_state
path = Path(sys.argv[1])
save_state(path, {"fourstage": 1, "step": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_state(path, {"fourstage": 1, "step": 2, "w": torch.zeros(1_000_000)})
except OSError as error:
    print(error)
assert load_state(path)["step"] == 1
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_full_disk_costs_a_sentence_and_no_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert "could not be written" in done.stdout
    assert "last good one" in done.stdout
    assert done.stdout.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("not a checkpoint")
    with pytest.raises(ValueError, match="is damaged, or is not a checkpoint"):
        load_state(tmp_path / "notes.pt")
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    with pytest.raises(ValueError, match="not a checkpoint of a run"):
        load_state(tmp_path / "foreign.pt")
