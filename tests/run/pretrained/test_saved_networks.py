"""`save_pretrained`: networks of every kind come back bit for bit, and what cannot come back is one sentence."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from predict.networks import TASKS
from predict.networks import predictor as unkept
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_from_checkpoint import RUNS, run_checkpoint
from torch import nn

import fourstage
from fourstage.backbones.layers import Level
from fourstage.engine.state import save_state
from fourstage.recipe import resolve
from fourstage.run.pretrained import card, facts
from fourstage.run.pretrained.facts import Facts
from fourstage.run.task_protocol import protocol_of
from fourstage.weights import catalog

PHOTO = np.random.default_rng(0).integers(0, 255, (50, 66, 3), dtype=np.uint8)
SMALL: dict[str, Any] = {"channels": 16, "fc_channels": 32, "mask_channels": 16}
DINO: dict[str, Any] = {
    "queries": 12,
    "channels": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "heads": 8,
    "points": 4,
    "hidden": 24,
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: fourstage.create_model("visformer_digits", num_classes=3, img_size=64, qk_scale_factor=-0.5),
    "pooled": lambda: fourstage.create_model("visformer_digits", num_classes=0),
    "grey": lambda: fourstage.create_model("unified_swin_micro", num_classes=2, in_chans=1, img_size=64),
    "dense": lambda: fourstage.create_backbone("unified_pvt_micro", out_indices=(1, 2, 3), drop_path_rate=0.2),
    "mask_rcnn": lambda: fourstage.create_detector("mask_rcnn", "visformer_digits", 3, **SMALL),
    "boxes": lambda: fourstage.create_detector("mask_rcnn", "visformer_digits", 3, masks=False, **SMALL),
    "built": lambda: fourstage.create_detector("retinanet", fourstage.create_backbone("visformer_digits"), 3, convs=1),
    "dino": lambda: fourstage.create_detector(
        "dino", "unified_swin_micro", 4, backbone_args={"out_indices": (1, 2, 3)}, **DINO
    ),
    "upernet": lambda: fourstage.create_segmentor("upernet", "visformer_digits", 4, channels=16, auxiliary_channels=8),
    "timm": lambda: fourstage.create_segmentor("semantic_fpn", "timm/resnet18", 4, channels=16),
}


def equal(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return [*one] == [*two] and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


def noisy(network: nn.Module) -> nn.Module:
    """Other values than those of a new network, in every tensor."""
    for tensor in network.state_dict().values():
        tensor.add_(torch.randn_like(tensor) * 0.05 if tensor.is_floating_point() else 3)
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    network: Any = noisy(NETWORKS[name]())
    folder = fourstage.save_pretrained(network, tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for source in (folder, str(folder), folder / "model.safetensors"):
        again: Any = fourstage.from_checkpoint(source)
        assert equal(network, again)
        assert type(again) is type(network)
        assert not again.training
    (folder / "config.json").unlink()  # the file alone describes its network
    assert equal(network, fourstage.from_checkpoint(folder))
    fourstage.save_pretrained(again, tmp_path / "twice")
    ours = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("saved", "twice")]
    assert name not in ("dense", "pooled") or ours[0] == ours[1]  # others have got names of classes


@pytest.mark.parametrize("name", ["classifier", "mask_rcnn", "upernet"])
def test_a_saved_network_predicts_the_same(name: str, tmp_path: Path) -> None:
    network: Any = noisy(NETWORKS[name]())
    names = ("one", "two", "thr|ee", "<b>")[: network.num_classes]
    fourstage.save_pretrained(network, tmp_path / "saved", class_names=names, licence="MIT")
    predictor: Any = fourstage.load(tmp_path / "saved")
    assert predictor.class_names == names
    assert equal(predictor.network, network)
    predictor.save_pretrained(tmp_path / "again")
    again: Any = fourstage.load(tmp_path / "again")
    assert again.class_names == names
    if name != "mask_rcnn":  # whose images are large; the runs below predict
        assert json.dumps(again(PHOTO).to_dict()) == json.dumps(predictor(PHOTO).to_dict())
    front = (tmp_path / "saved" / "README.md").read_text().split("---")
    assert "license: mit" in front[1]
    assert "thr\\|ee" in front[2] or len(names) < 3
    assert "<b>" not in front[2]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_back_with_its_preprocessing(name: str, tmp_path: Path) -> None:
    about = {**RUNS[name][2], "category_ids": [4, 7, 9], "palette": [[i, 2, 3] for i in range(4)]}
    changed = {"imports": [], "data": "/home/zoe/secret", "mean": [0.1, 0.2, 0.3]}
    path, _ = run_checkpoint(tmp_path / "best.pt", name, about=about, **changed)
    before: Any = fourstage.load(path)
    before.save_pretrained(tmp_path / "saved")
    after: Any = fourstage.load(str(tmp_path / "saved"))
    assert equal(before.network, after.network)
    assert after.class_names == before.class_names == tuple(RUNS[name][1])
    assert json.dumps(after(PHOTO).to_dict()) == json.dumps(before(PHOTO).to_dict())
    for key in ("category_ids", "palette"):
        assert getattr(after.task.module, key, None) == getattr(before.task.module, key, None)
    content = b"".join(file.read_bytes() for file in (tmp_path / "saved").iterdir())
    assert b"zoe" not in content  # paths of this machine are nobody's business
    assert b"secret" not in content.replace(b'"data": "secret"', b"").replace(b'\\"data\\": \\"secret\\"', b"")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["fourstage"]["input"]["mean"] == [0.1, 0.2, 0.3]
    assert config["fourstage"]["recipe"]["name"] == name


def test_the_number_of_queries_that_suited_the_data_stays(tmp_path: Path) -> None:
    recipe = resolve("digit_scenes_dino", [f"method_args={json.dumps({**DINO, 'queries': 'auto'})}"]).recipe
    task: Any = protocol_of(recipe).build_task(tuple("abc"), {"queries": 17})
    values = {"recipe": recipe.model_dump(mode="json"), "classes": [*"abc"], "about": {"queries": 17}}
    save_state(tmp_path / "best.pt", {"fourstage": 1, **values, "model": task.state_dict()})
    predictor: Any = fourstage.load(tmp_path / "best.pt")
    predictor.save_pretrained(tmp_path / "saved")
    again: Any = fourstage.load(tmp_path / "saved")
    assert equal(again.network, task.network)


def test_another_head_is_saved_as_it_is(tmp_path: Path) -> None:
    network: Any = fourstage.create_model("visformer_digits")
    network.reset_classifier(7)
    compiled: Any = torch.compile(network)  # on the first call, which never comes
    fourstage.save_pretrained(compiled, tmp_path / "a")
    fourstage.save_pretrained(nn.DataParallel(network), tmp_path / "b")
    for name in "ab":
        assert equal(fourstage.from_checkpoint(tmp_path / name), network)


def test_other_functions_take_a_saved_folder(tmp_path: Path) -> None:
    detector: Any = noisy(NETWORKS["mask_rcnn"]())
    classifier = noisy(fourstage.create_model("visformer_digits", num_classes=5, img_size=64))
    fourstage.save_pretrained(detector, tmp_path / "detector")
    fourstage.save_pretrained(classifier, tmp_path / "classifier")
    same = fourstage.create_detector("mask_rcnn", "visformer_digits", 3, checkpoint_path=tmp_path / "detector", **SMALL)
    assert equal(same, detector)
    assert equal(
        fourstage.create_backbone("visformer_digits", checkpoint_path=tmp_path / "detector"), detector.backbone
    )
    assert equal(fourstage.create_model("visformer_digits", checkpoint_path=str(tmp_path / "classifier")), classifier)


@pytest.mark.parametrize("architecture", ["unified_swin_micro", "visformer_small"])
def test_timm_builds_a_saved_classifier(architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")
    import fourstage.timm as there
    from fourstage.run.pretrained.config import KNOWN_TO_TIMM, name_in_timm

    assert {ours for name, ours in there.NAMES.items() if name != ours} <= KNOWN_TO_TIMM
    assert all(timm.is_model(name) for name in KNOWN_TO_TIMM)
    assert there.NAMES[name_in_timm(architecture)] == architecture
    if architecture == "visformer_small":
        return  # large, and the name is what differs
    network = noisy(fourstage.create_model(architecture, num_classes=6, img_size=64, drop_path_rate=0.1))
    fourstage.save_pretrained(network, tmp_path, class_names=list("abcdef"))
    model: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert equal(model, network)
    assert model.pretrained_cfg["label_names"] == list("abcdef")
    assert timm.data.resolve_model_data_config(model)["input_size"] == [3, 64, 64]


# ----------------------------------------------------------------------------------------------------------- mistakes


class Own(nn.Module):
    """A user's own backbone."""

    levels = (Level(8, 4), Level(8, 8), Level(8, 16), Level(8, 32))


def test_what_nobody_could_build_again_is_refused(tmp_path: Path) -> None:
    changed: Any = fourstage.create_model("visformer_digits")
    changed.stages[0] = nn.Identity()
    mixed: Any = fourstage.create_model("unified_swin_micro", mixer=lambda dim: nn.Linear(dim, dim))
    own: Any = fourstage.create_segmentor("semantic_fpn", Own(), 4, channels=16)
    cases: list[tuple[Any, str]] = [
        (nn.Linear(1, 1), "did not build it by a name"),
        (own, "did not build it by a name"),
        (changed, r"was changed after it was built \(stages\.0\..* and \d+ more\)"),
        (mixed, r"mixer=<function .* cannot be written into a file; register it by a name"),
        (fourstage.create_model("visformer_digits", features_only=True), "build the network without features_only"),
    ]
    for network, message in cases:
        with pytest.raises(ValueError, match=message):
            fourstage.save_pretrained(network, tmp_path / "saved")
    with pytest.raises(ValueError, match="class_names has 2 names, and the network 10 classes"):
        fourstage.save_pretrained(fourstage.create_model("visformer_digits"), tmp_path / "saved", class_names="ab")
    mistakes: list[tuple[Any, str]] = [
        ({"class_names": range(10)}, "class_names are texts; got 0, write it as '0'"),
        ({"class_names": "abcdefghib"}, "class_names has 'b' twice; give each class its own name"),
        ({"licence": 3}, 'licence is a text, such as "mit"; got 3'),
    ]
    for wrong, message in mistakes:
        with pytest.raises(ValueError, match=message):
            fourstage.save_pretrained(fourstage.create_model("visformer_digits"), tmp_path / "saved", **wrong)
    with torch.device("meta"):
        empty = fourstage.create_model("visformer_digits")
    with pytest.raises(ValueError, match="is on the meta device and has no weights to save"):
        fourstage.save_pretrained(empty, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"load a run or a checkpoint with fourstage\.load"):
        unkept(TASKS[0]).save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_a_users_function_returns_by_mistake_is_returned() -> None:
    @fourstage.register
    def returns_text(num_classes: int = 10) -> Any:
        return "no network"

    assert fourstage.create_model(returns_text.__name__) == "no network"


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    network = fourstage.create_model("visformer_digits")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "README.md").symlink_to(tmp_path / "file")
    for name, message in (
        ("other", r"has other files \(mine\.txt\); choose a folder of its own"),
        ("file", "is a file, and a network is saved as a folder"),
        ("linked", "README.md is a symbolic link"),
    ):
        with pytest.raises(ValueError, match=message):
            fourstage.save_pretrained(network, tmp_path / name, overwrite=True)
    assert (tmp_path / "file").read_text() == ""
    fourstage.save_pretrained(network, tmp_path / "saved")
    with pytest.raises(ValueError, match="has a saved network already; add overwrite=True"):
        fourstage.save_pretrained(network, tmp_path / "saved")
    other = noisy(fourstage.create_model("visformer_digits", num_classes=3))
    fourstage.save_pretrained(other, tmp_path / "saved", overwrite=True)
    assert equal(fourstage.from_checkpoint(tmp_path / "saved"), other)


def test_a_save_that_was_stopped_is_finished_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fourstage.run.pretrained import save

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    network = fourstage.create_model("visformer_digits")
    with monkeypatch.context() as patch:
        patch.setattr(save, "write_safetensors", fail)
        with pytest.raises(OSError, match="could not be written"):
            fourstage.save_pretrained(network, tmp_path)
    with pytest.raises(ValueError, match="is a folder, not a file"):
        fourstage.from_checkpoint(tmp_path)
    fourstage.save_pretrained(network, tmp_path)
    assert equal(fourstage.from_checkpoint(tmp_path), network)


@pytest.mark.parametrize("change", ["class_names", "backbone_args"])
def test_a_description_that_was_changed_is_noticed(change: str, tmp_path: Path) -> None:
    network = fourstage.create_model("visformer_digits", num_classes=2)
    fourstage.save_pretrained(network, tmp_path, class_names="ab")
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    if change == "class_names":
        content["fourstage"]["class_names"] = ["b", "a"]
    else:
        content["fourstage"]["network"]["backbone_args"]["qk_scale_factor"] = -0.5
    path.write_text(json.dumps(content))
    for read in (fourstage.from_checkpoint, fourstage.load):
        with pytest.raises(ValueError, match=r"config\.json and model\.safetensors describe different networks"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("network", "[]", "network is incomplete"),
        ("network", {"task": "os"}, "network.task is 'os'"),
        ("network", {"method": 3}, "network.method is 3"),
        ("network", {"mean": [1, "a", 2]}, "network.mean has"),
        ("network", {"backbone_args": {"img_size": 10**9}}, "cannot be built here"),
        ("network", {"backbone_args": {"checkpoint_path": "/etc/passwd"}}, None),  # never read
        ("network", {"backbone_args": {"device": "meta", "dtype": "x"}}, None),  # the caller's choice
        ("network", {"num_classes": 4}, "classes has 2 names, and num_classes is 4"),
        ("classes", "[1]", None),
        ("fourstage_format", "99", r"a newer fourstage wrote .* \(format 99, this one knows 2\)"),
    ],
)
def test_a_foreign_description_is_read_with_care(entry: str, value: Any, message: str | None, tmp_path: Path) -> None:
    fourstage.save_pretrained(fourstage.create_model("visformer_digits", num_classes=2), tmp_path, class_names="ab")
    path = tmp_path / "model.safetensors"
    with safe_open(path, "pt") as file:
        entries = {key: text for key, text in file.metadata().items() if key != "fourstage_crc32"}
    if isinstance(value, dict):
        value = json.dumps({**json.loads(entries["network"]), **value})
    save_file(load_file(path), path, {**entries, entry: value})
    (tmp_path / "config.json").unlink()
    if message is None:
        assert isinstance(fourstage.from_checkpoint(tmp_path), nn.Module)
        return
    for read in (fourstage.from_checkpoint, lambda folder: fourstage.create_model(f"local-dir:{folder}")):
        with pytest.raises(ValueError, match=message):
            read(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- facts


def test_facts_come_from_the_run_and_from_the_catalogue(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    path, _ = run_checkpoint(folder / "checkpoints" / "best.pt", "digits_visformer", weights="smt_tiny.in1k")
    recipe = json.loads(json.dumps(torch.load(path)["recipe"]))
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    metrics = {"metrics": {"top1": 91.25, "top5": 99.0}, "intervals": {"top1": [88.0, 94.0]}}
    evaluated = {**metrics, "images": 360, "main_metric": "top1"}
    (folder / "evaluation.json").write_text(json.dumps(evaluated))
    predictor: Any = fourstage.load(folder)
    predictor.save_pretrained(tmp_path / "saved", licence="My own\n licence")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "| top-1 accuracy (`top1`) | 91.25 | 88.00 to 94.00 | " in card
    assert "360 images of digits" in card
    assert "license_name: My own licence" in card
    assert "`smt_tiny.in1k` of https://github.com/AFeng-x/SMT, which states no licence" in card
    assert "value: 91.25" in card
    again: Any = fourstage.load(tmp_path / "saved")
    again.save_pretrained(tmp_path / "again")  # numbers and licence travel along
    assert (tmp_path / "again" / "README.md").read_text().replace("again", "saved") == card
    weight = catalog.find("swin_tiny", "in1k")
    assert facts.of_weight(weight) == Facts(
        published_as="swin_tiny.in1k",
        expected={"top1": 81.2, "top5": 95.5},
        data="in1k",
        licence="MIT",
        origin=catalog.SWIN,
    )
    (folder / "evaluation.json").write_text('{"metrics": 3}')
    with pytest.raises(ValueError, match=r"evaluation\.json is damaged; remove it"):
        predictor.save_pretrained(tmp_path / "third")


def test_a_start_that_this_version_does_not_know_is_left_out_of_the_card() -> None:
    text = card._licence(Facts(started_from="smt_tiny.of_a_later_version", licence="mit", origin="here"))
    assert text == "## Licence\n\nThe weights have the licence mit. They come from here."
