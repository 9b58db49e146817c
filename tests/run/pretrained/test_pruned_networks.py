"""Networks whose weights torch.nn.utils keeps under other names: what to call is named, and it is enough."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune

import fourstage

REPLACE: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "parametrised": parametrizations.weight_norm,
    "kept as a norm and a direction": utils.weight_norm,
    "divided by its spectral norm": utils.spectral_norm,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")


def replaced(how: str) -> nn.Module:
    network = fourstage.create_model("visformer_digits").eval()
    REPLACE[how](network.get_submodule("head"))
    return network


def call_in(message: str) -> str:
    found = re.search(r"call (torch\S+\(.*?, '\w+'\))", message)
    assert found is not None, message
    return found[1]


@pytest.mark.parametrize("how", REPLACE)
def test_the_call_that_saving_names_is_enough(how: str, tmp_path: Path) -> None:
    network: Any = replaced(how)
    with pytest.raises(ValueError, match=rf"changed after it was built: head\.weight is {how}; call torch") as error:
        fourstage.save_pretrained(network, tmp_path / "saved")
    eval(call_in(str(error.value)), {"torch": torch, "network": network})
    fourstage.save_pretrained(network, tmp_path / "saved")
    again: Any = fourstage.from_checkpoint(tmp_path / "saved")
    torch.testing.assert_close(again.head.weight, network.head.weight, rtol=0, atol=0)


@pytest.mark.parametrize("how", REPLACE)
def test_a_file_of_such_a_network_is_refused_with_the_call(how: str, tmp_path: Path) -> None:
    network = replaced(how)
    torch.save(network.state_dict(), tmp_path / "a.pth")
    plain = fourstage.create_model("visformer_digits")
    with pytest.raises(ValueError, match=rf"a\.pth does not fit visformer_digits: head\.weight is {how}") as error:
        fourstage.load_checkpoint(plain, tmp_path / "a.pth")
    eval(call_in(str(error.value)), {"torch": torch, "network": network})
    torch.save(network.state_dict(), tmp_path / "b.pth")
    assert fourstage.load_checkpoint(plain, tmp_path / "b.pth").fresh == ()


def test_such_a_network_is_filled_only_before_it_is_pruned(tmp_path: Path) -> None:
    torch.save(fourstage.create_model("visformer_digits").state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"does not fit this network: its head\.weight is pruned; call .* before"):
        fourstage.load_checkpoint(replaced("pruned"), tmp_path / "a.pth")


def test_several_tensors_are_counted(tmp_path: Path) -> None:
    network = fourstage.create_model("visformer_digits")
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)][:3]
    for layer in layers:
        prune.random_unstructured(layer, "weight", 0.5)
    with pytest.raises(ValueError, match=r"weight is pruned, as 2 more are; call .* for each of them, and save"):
        fourstage.save_pretrained(network, tmp_path / "saved")
