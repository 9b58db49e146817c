"""Hostile data sets: each command ends within a clock and a memory limit, with a verdict in words.

`make test` runs some cases through `data check` and a dry run; `make torture` runs all of them through every command
that reads data, and keeps a table in runs/torture/.
"""

import json
import os
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from data.hostile.cases import Case, all_cases
from data.hostile.runner import Ended, Server
from data.hostile.sound import SOUND

from fourstage.data.images import is_image_name
from fourstage.data.limits import FOLDERS

CASES = all_cases()
TABLE = Path(__file__).parents[2] / "runs" / "torture" / "hostile_data.jsonl"
QUICK = (
    "imagefolder/pipe.jpg", "imagefolder/server.jpg", "imagefolder/device.png", "imagefolder/sparse.png",
    "imagefolder/huge.png", "imagefolder/postscript.jpg", "imagefolder/scans.jpg", "imagefolder/link to the top",
    "imagefolder/deep", "imagefolder/pipes beside", "lists/label of 100 million", "lists/label of 308 digits",
    "lists/path of a megabyte", "lists/path above", "lists/of a terabyte", "zips/declared size", "zips/version 99",
    "fall/infinite label", "inaturalist/id a mapping", "inaturalist/ids of two types", "cifar/code",
    "cifar/memo growing",
    "cifar/pipe", "shards/json infinite", "shards/json deep", "shards/pax heads in a row", "shards/size negative",
    "shards/index with large sizes", "parquet/label infinite", "parquet/image path outside",
    "huggingface/compressed bomb", "huggingface/file above", "coco/box 400 digits", "coco/polygon 1e9",
    "coco/run lengths size number", "coco/id a mapping", "coco/ids of two types", "coco/size 1e30",
    "coco/name from the top", "coco/json a pipe", "coco/ten thousand masks",
    "coco/ids that collide",
    "coco/box negative", "yolo/ten thousand polygons", "yolo/class infinite", "yolo/yaml laughs",
    "yolo/yaml object", "yolo/names collide", "yolo/train above", "voc/laughs", "voc/external", "voc/encoding",
    "voc/edge infinite", "voc/size infinite", "voc/listed above", "label_maps/classes 300", "label_maps/a pipe",
    "labelme/points infinite", "labelme/json nested", "labelme/json a pipe", "labelme_apart/path above",
    "roboflow_masks/table quoted",
)  # fmt: skip
RECIPES = {
    "classification": ("digits_visformer",),
    "detection": ("digit_scenes_mask_rcnn",),
    "segmentation": ("digit_scenes_upernet", "method_args={channels: 64, auxiliary_channels: 32}"),
}
SETTINGS = ("num_classes=null", "warmup=0it", "length=1it", "batch_size=2", "workers=0")
OUTSIDE = (  # files that the data names and that are not its own
    "lists/path above", "lists/path from the top", "fall/name above", "coco/name above", "coco/name from the top",
    "yolo/train above", "yolo/train from the top", "yolo/path above", "yolo/list above", "voc/listed above",
    "voc/listed from the top", "huggingface/file above", "huggingface/file from the top", "huggingface/splits above",
    "inaturalist/name above",
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Generator[Server]:
    with Server() as running:
        yield running


def training(case: Case, top: Path, *more: str) -> list[str]:
    recipe, *changes = RECIPES[case.task]
    return ["train", recipe, "--data", str(top / "data"), *more, *changes, *SETTINGS]


def written(top: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file that no command may touch."""
    status = {
        path: path.lstat()
        for folder in ("data", "outside")
        for parent, _, names in os.walk(top / folder)
        for path in (Path(parent) / name for name in names)
        if ".fourstage" not in path.parts  # indices of shards
    }
    return {str(path): (one.st_size, one.st_mtime_ns) for path, one in status.items()}


def fault_of(ended: Ended, top: Path, before: dict[str, tuple[int, int]]) -> str:
    """Return what no data set may bring about, or nothing."""
    if ended.fault():
        return ended.fault()
    if written(top) != before:
        return "wrote where it must not"
    if list(top.rglob("EXECUTED")):
        return "ran code of the data set"
    return "" if ended.code == 0 or ended.output.strip() else "no word"


def assert_harmless(name: str, verb: str, ended: Ended, top: Path, before: dict[str, tuple[int, int]]) -> None:
    assert not fault_of(ended, top, before), f"{name}, {verb}: {ended.output[-3000:]}"


def make(case: Case, top: Path) -> dict[str, tuple[int, int]]:
    (top / "outside").mkdir(parents=True)
    case.build(top / "data")
    return written(top)


@pytest.mark.parametrize("name", [*(f"{format}/sound" for format in SOUND), *QUICK])
def test_check_and_training_end_in_words(name: str, server: Server, tmp_path: Path) -> None:
    case = CASES[name]
    before = make(case, tmp_path)
    check = server.run("data", "check", tmp_path / "data", folder=tmp_path)
    assert_harmless(name, "data check", check, tmp_path, before)
    trained = server.run(*training(case, tmp_path, "--dry-run"), folder=tmp_path)
    assert_harmless(name, "train", trained, tmp_path, before)
    assert (check.code == 0) == (trained.code == 0), f"{check.output[-1000:]}\n{trained.output[-1000:]}"
    if name.endswith("/sound"):
        assert check.code == 0, check.output
    if name in OUTSIDE:
        assert check.code == 1
        assert trained.code == 2
        assert FOLDERS in trained.output


def test_a_user_allows_other_folders(server: Server, tmp_path: Path) -> None:
    before = make(CASES["coco/name from the top"], tmp_path)
    allowed = {FOLDERS: str(tmp_path / "outside")}
    ended = server.run("data", "check", tmp_path / "data", folder=tmp_path, **allowed)
    assert_harmless("allowed", "data check", ended, tmp_path, before)
    assert FOLDERS not in ended.output
    assert "secret.png" not in ended.output or "cannot be read" not in ended.output


@pytest.mark.parametrize(
    "change",
    [
        "num_classes=1e12", "image_size=1e9", "batch_size=1e18", "lr=.nan", "lr=.inf", "length=1e400ep", "length=-1ep",
        "workers=100000", "seed=1e30", "augmentation.ratio=[1e300,1e308]", "augmentation.repeats=1e12", "std=[0,0,0]",
        "lr_multipliers={a: .nan}", "evaluation_batch_size=1e18", "length=" + "9" * 400 + "it",
        "evaluation.crop_pct=1e-320", "augmentation.cutmix=1e-320", "augmentation.mixup=1e308",
        "augmentation.auto_augment=rand-m9-n1000000000", "augmentation.auto_augment=augmix-m3-w1_000_000_000",
        "augmentation.auto_augment=" + "x" * 100_000,
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change: str, server: Server, tmp_path: Path) -> None:
    SOUND["imagefolder"](tmp_path / "data")
    key = change.partition("=")[0]
    rest = [setting for setting in SETTINGS if not setting.startswith(f"{key}=")]
    argv = ["train", "digits_visformer", "--data", str(tmp_path / "data"), "--dry-run", *rest, change]
    ended = server.run(*argv, folder=tmp_path)
    assert not ended.fault(), ended.output
    assert ended.code == 2
    assert len(ended.output.strip().splitlines()) == 1
    assert len(ended.output) < 600


@pytest.mark.torture
@pytest.mark.timeout(14400)
def test_every_hostile_data_set_through_every_command(server: Server, tmp_path: Path) -> None:
    """Each command is a row of runs/torture/hostile_data.jsonl; FOURSTAGE_HOSTILE=20 takes each 20th data set."""
    runs = {task: tmp_path / "runs" / task for task in RECIPES}
    for task, format in (("classification", "imagefolder"), ("detection", "coco"), ("segmentation", "label_maps")):
        top = tmp_path / f"sound_{task}"
        make(CASES[f"{format}/sound"], top)
        ended = server.run(*training(CASES[f"{format}/sound"], top, "--out", str(runs[task])), folder=top)
        assert ended.code == 0, ended.output
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    faults: list[str] = []
    for number, case in enumerate(list(CASES.values())[:: int(os.environ.get("FOURSTAGE_HOSTILE", "1"))]):
        top = tmp_path / str(number)
        before = make(case, top)
        for verb, argv in commands(case, top, runs[case.task]).items():
            ended = server.run(*argv, folder=top)
            fault = fault_of(ended, top, before)
            faults += [f"{case.name}, {verb}: {fault}\n{ended.output[-1000:]}"] if fault else []
            row = {
                "case": case.name, "verb": verb, "code": ended.code, "seconds": round(ended.seconds, 1),
                "gigabytes": round(ended.peak / 2**30, 2), "fault": fault,
            }  # fmt: skip
            with TABLE.open("a") as file:
                file.write(json.dumps(row) + "\n")
        subprocess.run(["rm", "-rf", top], check=True)  # shutil fails on paths that are too long
    assert not faults, f"{len(faults)} faults\n" + "\n\n".join(faults)


def commands(case: Case, top: Path, run: Path) -> dict[str, list[str]]:
    """Return the commands that read a data set, by their verb."""
    data = str(top / "data")
    found = {
        "data check": ["data", "check", data],
        "train --dry-run": training(case, top, "--dry-run"),
        "train": training(case, top, "--out", str(top / "run")),
        "evaluate": ["evaluate", str(run), "--data", data, "workers=0"],
        "predict": ["predict", str(run), folder_of_images(top / "data"), "--out", str(top / "predictions")],
        "data show": ["data", "show", data, "--recipe", RECIPES[case.task][0], "--out", str(top / "sheet.png")],
    }
    if case.task == "classification":
        found["data shard"] = ["data", "shard", data, str(top / "shards")]
    return found


def folder_of_images(data: Path) -> str:
    """Return the folder below a data set that has most entries with the names of images."""
    folders = [(sum(map(is_image_name, [*folders, *names])), parent) for parent, folders, names in os.walk(data)]
    return max(folders)[1]
