"""Two processes make the losses of one in a few steps; `test_distributed.py` has the long form, with launchers."""

from pathlib import Path

from run.exact import assert_same, metrics, start, totals, wait, write_recipe


def test_two_processes_make_the_losses_of_one(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, steps=6, save=6)
    alone, divided = tmp_path / "one", tmp_path / "two"
    words = ["train", str(recipe), "--out"]
    wait([*start([*words, str(alone)], 1), *start([*words, str(divided)], 2)])
    assert len(totals(alone)) == 6
    assert totals(alone)[0] > totals(alone)[-1]
    assert len(metrics(alone)) == 2  # the network and its average
    assert_same(divided, alone)
