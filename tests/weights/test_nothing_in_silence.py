"""Files and networks that do not fit each other in ways that PyTorch takes in silence, or with a traceback."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fourstage
from fourstage.weights.load import head_classes


def saved(folder: Path, network: torch.nn.Module, **changed: Tensor) -> Path:
    torch.save({**network.state_dict(), **changed}, folder / "w.pth")
    return folder / "w.pth"


def test_a_detector_on_the_meta_device_is_not_reported_as_filled(tmp_path: Path) -> None:
    """Copies into tensors without memory do nothing."""
    path = saved(tmp_path, fourstage.create_detector("retinanet", "unified_pico", 3))
    with torch.device("meta"):
        network = fourstage.create_detector("retinanet", "unified_pico", 3)
    with pytest.raises(ValueError, match=r"w\.pth cannot fill a network on the meta device; call network\.to_empty"):
        fourstage.load_checkpoint(network, path)
    network.to_empty(device="cpu")
    fourstage.load_checkpoint(network, path)
    expected = torch.load(path)
    assert all(torch.equal(value, expected[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("rows", [(), (7,)])
def test_a_bias_for_other_classes_than_its_weight_is_a_misfit(rows: tuple[int, ...], tmp_path: Path) -> None:
    network = fourstage.create_model("visformer_digits")
    path = saved(tmp_path, network, **{"head.bias": torch.zeros(rows)})
    for fresh_head in (False, True):
        with pytest.raises(ValueError, match=r"does not fit visformer_digits.*head\.bias is \("):
            fourstage.load_checkpoint(network, path, fresh_head=fresh_head)


def test_a_head_that_is_a_number_has_no_classes() -> None:
    network = fourstage.create_model("visformer_digits")
    assert head_classes(network, {**network.state_dict(), "head.weight": torch.tensor(1.0)}) == 0
