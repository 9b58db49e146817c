"""How a stopped training continues; the files and bits are tested in test_damage.py and test_kill.py."""

import torch

from fourstage.engine.devices import Ranks
from fourstage.run.resume import window_of


def test_sums_since_the_last_log_line_are_each_process_s_own_or_the_mean_of_all() -> None:
    windows = {"0": {"loss": torch.tensor(2.0)}, "1": {"loss": torch.tensor(4.0)}}
    assert window_of(windows, Ranks(1, 2))["loss"] == 4
    assert window_of(windows, Ranks(0, 1))["loss"] == 3
    assert window_of(windows, Ranks(2, 3))["loss"] == 3
