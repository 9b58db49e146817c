"""MMEngine's configurations in pure Python, and base files of packages: read as text, equal to the others."""

import sys
from pathlib import Path
from typing import Any

import pytest
from weights.openmmlab.config_files import write
from weights.openmmlab.source_configs import ENGINE_MASK_RCNN

from fourstage.cli import main
from fourstage.run.import_config import imported_recipe
from fourstage.weights.openmmlab.config_files import read_config_file

READ_BASE = "from mmengine.config import read_base\n\nwith read_base():\n"
MODEL = (
    "from mmdet.models import MaskRCNN, ResNet as Trunk\nfrom torch.nn import BatchNorm2d\n"
    "widths = [64, 128]\n"
    "model = dict(type=MaskRCNN, backbone=dict(type=Trunk, depth=50, norm_cfg=dict(type=BatchNorm2d)), widths=widths)\n"
)
RAN = "import pathlib\npathlib.Path('ran').touch()\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(root: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def package(name: str, root: Path, monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> None:
    """Install a package whose import would write a file."""
    files(root / name, {"__init__": RAN, **texts})
    monkeypatch.syspath_prepend(str(root))


def values(path: Path, *folders: Path) -> dict[str, Any]:
    found = read_config_file(path, folders).values
    assert not Path("ran").exists()
    return found


def test_values_of_base_files_are_names_that_the_file_changes(tmp_path: Path) -> None:
    schedule = "train_cfg = dict(max_epochs=12)\noptim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))\n"
    files(tmp_path, {"_base_/model": MODEL, "_base_/schedule": schedule, "other": "lr = 0.5\nmodel = 3\n"})
    text = (
        f"{READ_BASE}    from .._base_.model import *\n    from .._base_.schedule import *\n"
        "    from ..other import lr as rate\n"
        "from mmdet.models import FPN\nfrom torch.optim import AdamW\n"
        "model.merge(dict(backbone=dict(depth=101), neck=dict(type=FPN, ins=widths)))\n"
        "model.backbone.update(frozen=1)\n"
        "model['backbone']['norm_cfg'].merge(dict(_delete_=True, type='GN'))\n"
        "train_cfg = dict(epochs=3)\noptim_wrapper.optimizer = dict(type=AdamW, lr=rate)\n"
    )
    files(tmp_path, {"mine/config": text})
    assert values(tmp_path / "mine/config.py") == {
        "model": {
            "type": "MaskRCNN",
            "backbone": {"type": "ResNet", "depth": 101, "norm_cfg": {"type": "GN"}, "frozen": 1},
            "widths": [64, 128],
            "neck": {"type": "FPN", "ins": [64, 128]},
        },
        "widths": [64, 128],
        "train_cfg": {"epochs": 3},
        "optim_wrapper": {"optimizer": {"type": "AdamW", "lr": 0.5}},
        "rate": 0.5,
    }


def test_a_complete_configuration_in_pure_python_gives_the_recipe_of_the_other_form(tmp_path: Path) -> None:
    config = write(tmp_path / "a", ENGINE_MASK_RCNN)
    merged = read_config_file(config).values
    files(tmp_path / "b", {"base": "".join(f"{key} = {value!r}\n" for key, value in merged.items())})
    files(tmp_path / "b", {config.stem: f"{READ_BASE}    from .base import *\n"})
    ours, theirs = imported_recipe(tmp_path / "b" / config.name), imported_recipe(config)
    assert ours.recipe == theirs.recipe
    assert ours.base == theirs.base


@pytest.mark.parametrize("place", [".mim/configs", "../configs"])
def test_a_base_of_an_installed_package_is_found_and_nothing_is_imported(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package("mmlike", tmp_path / "site", monkeypatch, {})
    files(tmp_path / "site/mmlike" / place, {"_base_/model": MODEL})
    (tmp_path / "c.py").write_text("_base_ = 'mmlike::_base_/model.py'\nmodel = dict(neck=1)\n")
    assert values(tmp_path / "c.py")["model"]["neck"] == 1
    assert "mmlike" not in sys.modules


def test_a_module_of_an_installed_package_is_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package("mmlike2", tmp_path / "site", monkeypatch, {"configs/_base_/model": MODEL})
    (tmp_path / "c.py").write_text(f"{READ_BASE}    from mmlike2.configs._base_.model import model\n")
    assert values(tmp_path / "c.py")["model"]["type"] == "MaskRCNN"
    assert "mmlike2" not in sys.modules


@pytest.mark.parametrize("inside", ["", "configs", "absent_pkg/.mim/configs"])
@pytest.mark.parametrize("module", [True, False])
def test_a_base_of_a_package_is_found_in_a_named_folder(inside: str, module: bool, tmp_path: Path) -> None:
    files(tmp_path / "checkout" / inside, {"_base_/model": MODEL})
    text = f"{READ_BASE}    from absent_pkg.configs._base_.model import *\n"
    (tmp_path / "c.py").write_text(text if module else "_base_ = ['absent_pkg::_base_/model.py']\n")
    below = "absent_pkg/.mim" if module and inside.startswith("absent_pkg") else ""
    assert values(tmp_path / "c.py", tmp_path / "checkout" / below)["widths"] == [64, 128]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("_base_ = 'absent_pkg::a.py'\n", "absent_pkg, which is not installed, and no folder is given with --configs"),
        ("_base_ = 'absent_pkg::../../a.py'\n", "a base of a package is such as 'mmdet::_base_/a.py'"),
        ("_base_ = 'os.path::a.py'\n", "a base of a package is such as"),
        (f"{READ_BASE}    from absent_pkg.configs.a import *\n", "give the folder with its configurations, as --conf"),
        (f"{READ_BASE}    from .gone import *\n", r"gone\.py \(line 4\), which is missing; put it there"),
        (f"{READ_BASE}    from .base import nothing\n", r"imports nothing \(line 4\), which its base file lacks"),
        (f"{READ_BASE}    from .c import *\n", "form a cycle"),
        (f"{READ_BASE}    print(1)\n", "may hold imports of base files alone; write out what else it does"),
        (f"{READ_BASE}    from .base import *\nmodel.pop('a')\n", "does more than assign values"),
        (f"{READ_BASE}    from .base import *\nfor i in model:\n    x = i\n", "does more than assign values"),
        (f"{READ_BASE}    from .base import *\nunknown.update(a=1)\n", "changes what is not known"),
        (f"{READ_BASE}    from .base import *\nmodel.x.y = 1\n", "changes what is not known"),
        (f"{READ_BASE}    from .base import *\nmodel.update(open('f'))\n", "changes what is not known"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    text: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files(tmp_path, {"base": MODEL, "c": text})
    with pytest.raises((ValueError, OSError), match=sentence):
        read_config_file(tmp_path / "c.py")
    assert main(["import-config", str(tmp_path / "c.py")]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert not Path("ran").exists()


def test_the_command_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.py").write_text("_base_ = 'absent_pkg::model.py'\n")
    assert main(["import-config", "c.py", "--configs", "nowhere"]) == 2
    assert "--configs is a folder of configurations" in capsys.readouterr().err
    merged = read_config_file(write(tmp_path / "a", ENGINE_MASK_RCNN)).values
    files(tmp_path / "theirs", {"model": "".join(f"{key} = {value!r}\n" for key, value in merged.items())})
    assert main(["import-config", "c.py", "--configs", "theirs"]) == 0
    assert "base: mask_rcnn" in capsys.readouterr().out
