"""Files of timm's classifiers for another image size: position tables are resized as timm's own loader does it."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fourstage

timm = pytest.importorskip("timm")
SMALL_SWIN = {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 3)}
CASES: list[tuple[str, dict[str, Any], dict[str, Any], str, int]] = [
    ("vit_tiny_patch16_224", {}, {"img_size": 160}, "pos_embed", 1),
    ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, {"img_size": (96, 160)}, "pos_embed", 1),
    ("eva02_tiny_patch14_224", {}, {"img_size": 112}, "pos_embed", 1),
    (
        "swin_tiny_patch4_window7_224",
        SMALL_SWIN | {"img_size": 96, "window_size": 6},
        SMALL_SWIN | {"img_size": 128, "window_size": 8},
        "layers.0.blocks.0.attn.relative_position_bias_table",
        2,
    ),
]


def saved(name: str, arguments: dict[str, Any], path: Path) -> Path:
    network = timm.create_model(name, num_classes=5, **arguments)
    for value in network.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.normal_(value, std=0.02)
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.filterwarnings("ignore:(torch.searchsorted|Using a non-tuple sequence):UserWarning")  # timm's own
@pytest.mark.parametrize(("name", "theirs", "ours", "key", "count"), CASES)
def test_positions_of_another_image_size_are_timms(
    name: str, theirs: dict[str, Any], ours: dict[str, Any], key: str, count: int, tmp_path: Path
) -> None:
    path = saved(name, theirs, tmp_path / "a.pth")
    shared = {k: v for k, v in theirs.items() if k not in ("img_size", "window_size")}
    backbone = fourstage.create_backbone(f"timm/{name}", **shared | ours)
    report = fourstage.load_checkpoint(backbone, path)
    assert len(report.resized) == count
    assert f"{count} resized" in str(report)
    expected = timm.create_model(name, num_classes=5, **shared | ours)
    module = __import__(type(expected).__module__, fromlist=["checkpoint_filter_fn"])
    timm.models.load_checkpoint(expected, str(path), filter_fn=module.checkpoint_filter_fn)
    [at] = [one for one in report.resized if one.replace("layers_0", "layers.0").endswith(key)][:1]
    got, wanted = backbone.state_dict()[at], expected.state_dict()[key]
    assert got.shape != torch.load(path)[key].shape
    assert torch.equal(got, wanted)


def test_a_file_of_another_width_is_refused_as_before(tmp_path: Path) -> None:
    path = saved("vit_small_patch16_224", {"depth": 12}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"does not fit timm/vit_tiny_patch16_224 \(.*in the file and"):
        fourstage.load_checkpoint(fourstage.create_backbone("timm/vit_tiny_patch16_224", img_size=160), path)
