"""Feature maps of every kind of network, and networks by name, file, run and module."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fourstage import create_backbone, create_detector, create_model, create_segmentor
from fourstage.analysis.networks import load_network, untrained_twin
from fourstage.analysis.taps import as_map, block_taps, features, find_module, stage_maps
from fourstage.backbones.layers import Level

IMAGES = torch.randn(2, 3, 64, 96)


class Own(nn.Module):
    """A user's own backbone."""

    levels = (Level(4, 4), Level(6, 8))

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 6, 2, stride=2)

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        x_BCHW = self.first(x_BCHW)
        return [x_BCHW, self.second(x_BCHW)]


def of_timm(name: str, **arguments: Any) -> nn.Module:
    import timm

    return timm.create_model(name, **arguments)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: create_model("smt_tiny"),
    "features only": lambda: create_model("visformer_tiny", features_only=True),
    "dense": lambda: create_backbone("swin_tiny"),
    "timm backbone": lambda: create_backbone("timm/resnet18"),
    "timm classifier": lambda: of_timm("resnet18"),
    "timm swin": lambda: of_timm("swin_tiny_patch4_window7_224", img_size=(64, 96)),
    "detector": lambda: create_detector("retinanet", "visformer_digits", num_classes=2),
    "segmentor": lambda: create_segmentor("semantic_fpn", "visformer_digits", 3),
    "own": Own,
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_stages_of_every_network_are_maps_of_falling_resolution(name: str) -> None:
    network = NETWORKS[name]().eval()
    with torch.no_grad():
        maps = stage_maps(network, IMAGES)
        [last, first] = features(network, IMAGES, ["last", "stage1"])
    assert all(x.shape[0] == 2 and x.ndim == 4 for x in maps)
    heights = [x.shape[2] for x in maps]
    assert heights == sorted(heights, reverse=True)
    assert all(x.shape[3] * 64 == x.shape[2] * 96 for x in maps)
    torch.testing.assert_close(last, maps[-1])
    torch.testing.assert_close(first, maps[0])


@pytest.mark.parametrize("name", ["classifier", "dense", "timm backbone", "detector", "own"])
def test_layers_have_maps_and_the_forward_pass_is_unchanged(name: str) -> None:
    network = NETWORKS[name]().eval()
    layer = "second" if name == "own" else block_taps(network)[-1]
    with torch.no_grad():
        [x_BCHW] = features(network, IMAGES, [layer])
    assert x_BCHW.shape[0] == 2
    assert x_BCHW.shape[3] * 64 == x_BCHW.shape[2] * 96
    assert not any(module._forward_hooks for module in network.modules())


class OneByOne(nn.Module):
    """A network that runs its layer for one image at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 4, stride=4)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([self.conv(one_BCHW) for one_BCHW in x_BCHW.split(1)]).mean(dim=(2, 3))


def test_layers_that_are_called_for_some_images_at_a_time_are_joined() -> None:
    network = OneByOne().eval()
    with torch.no_grad():
        [x_BCHW] = features(network, IMAGES, ["conv"])
        torch.testing.assert_close(x_BCHW, network.conv(IMAGES))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 8, 4, 6), (8, 4, 6)), ((1, 4, 6, 8), (8, 4, 6)), ((1, 24, 8), (8, 4, 6)), ((1, 25, 8), (8, 4, 6))],
)
def test_layouts_become_channels_first(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert tuple(as_map(torch.zeros(shape), torch.zeros(1, 3, 64, 96)).shape[1:]) == expected


def test_networks_come_by_name_file_run_and_module(tmp_path: Path) -> None:
    network = create_model("visformer_digits", num_classes=10)
    path = tmp_path / "weights.pth"
    torch.save({"model": network.state_dict()}, path)
    named = load_network(f"visformer_digits={path}", form="logits")
    assert (named.trained, named.weights, named.name) == (True, "trained", "visformer_digits=weights.pth")
    torch.testing.assert_close(named.network.state_dict(), network.state_dict())
    fresh, again, other = (load_network("visformer_digits", seed=seed) for seed in (0, 0, 1))
    assert not fresh.trained
    torch.testing.assert_close(fresh.network.state_dict(), again.network.state_dict())
    assert any((a != b).any() for a, b in zip(fresh.network.parameters(), other.network.parameters(), strict=True))
    few = create_model("visformer_digits", num_classes=3)
    torch.save({"model": few.state_dict()}, tmp_path / "few.pth")
    of_three = load_network(f"visformer_digits={tmp_path / 'few.pth'}", form="logits")
    assert len(of_three.classes) == 3
    torch.testing.assert_close(of_three.network.state_dict(), few.state_dict())
    twin = untrained_twin(named)
    assert (twin.trained, twin.name) == (False, named.name)
    assert load_network("timm/resnet18", form="logits").classes[:2] == ("class 0", "class 1")
    assert load_network(network, name="mine").name == "mine"
    with pytest.raises(ValueError, match="was given as a module, which cannot be built again"):
        untrained_twin(load_network(network))


def test_files_of_timms_classifiers_fill_them_or_are_refused_in_one_sentence(tmp_path: Path) -> None:
    network, path = of_timm("resnet18"), tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), path)
    filled = load_network(f"timm/resnet18={path}", form="logits")
    torch.testing.assert_close(filled.network.state_dict(), network.state_dict())
    torch.save(of_timm("resnet18", num_classes=7).state_dict(), path)
    with pytest.raises(ValueError, match=r"fc.weight is \(7, 512\) there and \(1000, 512\) here"):
        load_network(f"timm/resnet18={path}", form="logits")
    with pytest.raises(ValueError, match="does not fit timm/resnet34: "):
        load_network(f"timm/resnet34={path}", form="logits")


def test_what_is_no_network_is_one_sentence(tmp_path: Path) -> None:
    for source, words in {
        "swin_tinny": "did you mean swin_tiny",
        "timm/resnett18": "timm has no model called",
        str(tmp_path): "has no checkpoints/best.pt",
        "none.pth": "there is no checkpoint or run folder none.pth",
        "swin_tiny=none.pth": "there is no file none.pth",
    }.items():
        with pytest.raises(ValueError, match=words):
            load_network(source)
    with pytest.raises(ValueError, match="has no `levels`, so its stages are not known; name a layer of it, such as 0"):
        stage_maps(nn.Sequential(nn.Conv2d(3, 4, 3)), IMAGES)


@pytest.mark.parametrize("name", ["visformer_digits", "timm/resnet18", "own", "detector"])
def test_an_unknown_layer_names_stages_where_there_are_some(name: str) -> None:
    own = name == "own"
    if name == "detector":
        network = create_detector("retinanet", "visformer_digits", 3)
    else:
        network = nn.Sequential(nn.Conv2d(3, 4, 3)) if own else load_network(name, form="logits").network
    with pytest.raises(ValueError, match="has no layer 'nothing'") as error:
        find_module(network, "nothing")
    assert ("its stages are stage1" in str(error.value)) is not own
