"""The table of `fourstage models`: its kept counts are the counts, and a user's network is counted when it is named."""

import subprocess
import sys
from pathlib import Path

import pytest

from fourstage import list_models
from fourstage.bench.model_table import COMMAND, HEAD, Cost, count_all, counted, kept_costs, model_rows, written
from fourstage.cli import main
from fourstage.registry import find

NETWORK = """
from functools import partial
from fourstage import registry
from fourstage.backbones.swin import DESIGNS, classifier, dense
from dataclasses import replace
design = replace(DESIGNS["swin_tiny"], width=24, depths=(1, 1, 1, 1), heads=(1, 2, 4, 8))
registry.add("my_small_swin", classifier=partial(classifier, design), dense=partial(dense, design))
"""


def test_every_network_and_alias_is_in_the_file() -> None:
    names: dict[str, set[str]] = {}
    for name in list_models():
        names.setdefault(find(name).name, set()).add(name)
    assert {name: {name, *cost.aliases} for name, cost in kept_costs().items()} == names, f"run {COMMAND}"


@pytest.mark.parametrize("name", ["visformer_net1", "unified_pvt_v2_micro", "scalable_vit_small_0", "smt_tiny"])
def test_the_kept_counts_are_the_counts(name: str) -> None:
    assert kept_costs()[name] == counted(name), f"the network has changed; run {COMMAND}"


@pytest.mark.torture
def test_all_kept_counts_are_the_counts() -> None:
    assert kept_costs() == count_all(), f"run {COMMAND}"


def test_the_file_is_the_one_that_the_command_writes() -> None:
    path = Path(__file__).parents[2] / "fourstage" / "bench" / "model_counts.json"
    assert path.read_text(encoding="utf-8") == written(kept_costs())


def test_aliases_are_in_the_row_of_their_network() -> None:
    rows = model_rows("swin_tiny*")
    assert rows == [["swin_tiny\n  = swin_tiny_patch4_window7_224", "28.29", "4.49", "4.35", "224", "81.2"]]
    assert model_rows("swin_tiny_patch4*") == rows
    assert len(rows[0]) == len(HEAD)


def test_a_network_of_the_user_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(NETWORK)
    assert main(["models", "*_swin", "--imports", str(tmp_path / "mine.py")]) == 0
    printed = capsys.readouterr().out
    assert "my_small_swin" in printed
    cost = counted("my_small_swin")
    assert isinstance(cost, Cost)
    assert f"{cost.parameters / 1e6:.2f}" in printed
    assert cost.parameters < kept_costs()["swin_tiny"].parameters / 8


def test_the_command_needs_no_torch_and_fits_80_columns() -> None:
    code = "import sys; from fourstage.cli import main; main(['models']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) > len(kept_costs())
