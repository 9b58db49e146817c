"""Every command in docs/coming-from.md and docs/clusters.md is parsed and resolved, and runs where it is light."""

import json
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from weights.openmmlab.config_files import write
from weights.openmmlab.source_configs import CONFIGS

from fourstage import cli, create_backbone, create_detector, create_model, create_segmentor, list_models
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.recipe import Classification, Detection, Recipe, Segmentation, list_recipes, resolve

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "coming-from.md"
FLAGS: dict[str, list[str]] = json.loads((Path(__file__).parent / "golden" / "flags.json").read_text())
LIGHT = ("smt_tiny", "swin_tiny", "visformer_tiny", "swin_visformer_tiny_v2", "unified_halo_tiny", "visformer_digits")
SMALL = ["image_size=64", "workers=0", "device=cpu"]
DENSE = {  # what makes a recipe of boxes or label maps small
    "detection": ["augmentation.scale=[64,64]", "evaluation.scale=[64,64]", "num_classes=10"],
    "segmentation": ["augmentation.crop=[64,64]", "augmentation.scale=[64,64]", "evaluation.scale=[64,64]"]
    + ["num_classes=11"],
}
CLASSES = ("cat", "dog", "eel")


def commands(page: Path) -> Iterator[str]:
    """Yield our lines in fenced blocks; a line that ends in a backslash is joined with the next."""
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        lines = [line for line in block.replace("\\\n", " ").splitlines() if not line.startswith("#")]
        yield from (line.partition("  #")[0].strip() for line in lines if "fourstage " in line)


COMMANDS = sorted({*commands(PAGE), *commands(DOCS / "clusters.md")})


def words_of(command: str) -> list[str]:
    """Return the words after `fourstage`, whatever starts its processes."""
    words = shlex.split(command)
    return words[words.index("fourstage") + 1 :]


def parsed(command: str) -> Namespace:
    return cli.parse(words_of(command))


def recipe_of(args: Namespace) -> Recipe:
    values = {"data": args.data} if args.data is not None else {}
    return resolve(args.recipe, args.changes, values).recipe


def is_light(command: str) -> bool:
    """Return whether a line runs in seconds."""
    args = parsed(command)
    if args.verb == "bench":
        return args.dtype != "float32"  # one measurement is enough
    if not hasattr(args, "recipe"):
        return True
    recipe = recipe_of(args)
    return isinstance(recipe, Classification) and recipe.model in LIGHT


HEAVY = [command for command in COMMANDS if not is_light(command)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny data set in the place of ImageNet."""
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("val", 1)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((72, 80, 3), 40 + 60 * label + i, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


def run(command: str, data: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a line on small data and networks: trainings as a dry run, all others completely."""
    args = parsed(command)
    dense = hasattr(args, "recipe") and args.verb in ("train", "evaluate") and recipe_of(args).task in DENSE
    place, small = (
        (data / "scenes", ["workers=0", "device=cpu", *DENSE[recipe_of(args).task]]) if dense else (data, SMALL)
    )
    if dense and not place.exists():
        write_digit_scenes(place, train=24, val=4)
    words = [re.sub(r"^/data/\w+", str(place), word) for word in words_of(command)]
    if args.verb == "train":
        words += ["--dry-run", *([] if dense else fewer(args)), *small]
        for change in args.changes:
            if change.startswith("weights="):
                checkpoint(folder / change.partition("=")[2], recipe_of(args))
    elif args.verb == "slurm":
        words.append("--dry-run")
    elif args.verb == "evaluate":
        words += small
        checkpoint(folder / args.weights, recipe_of(args), complete=True)
    elif args.verb == "bench":
        assert set(args.networks) <= set(list_models())
        small = "visformer_digits"  # measuring the named model takes too long
        words = [small if word in args.networks else word for word in words]
        words += ["--device", "cpu", "--seconds", "0.01", "--batch-size", "1", "--img-size", "32"]
    elif args.verb == "analyze":
        for model, _, file in (network.partition("=") for network in args.networks):
            torch.save({"model": create_model(model).state_dict()}, folder / file)
        words += ["--images", "2", "--size", "64", "--out", str(folder / "analysis")]
    elif args.verb == "import-config":
        config = write(folder, CONFIGS["mask_rcnn_swin_tiny_coco_1x"], Path(args.config).stem)
        assert config == folder / args.config
    elif args.verb == "convert":
        torch.save({"model": create_model(args.model).state_dict()}, folder / args.file)
    elif args.verb == "predict":
        torch.save({"model": create_model(args.source).state_dict()}, folder / args.weights)
        Image.new("RGB", (64, 64)).save(folder / args.images[0])
    assert cli.main(words) == 0, (command, capsys.readouterr())


def fewer(args: Namespace) -> list[str]:
    """Return changes with which a training of any length starts on a dozen images."""
    if args.verb != "train":
        return []
    classes = ["num_classes=3"] if getattr(recipe_of(args), "num_classes", None) else []
    return ["batch_size=4", "accumulation=1", "warmup=0it", "length=20ep", "lr=1e-3", *classes]


def checkpoint(path: Path, recipe: Recipe, *, complete: bool = False) -> None:
    """Save weights of the recipe's network at the test's image size; of its backbone alone unless `complete`."""
    if isinstance(recipe, Classification):
        network = create_model(recipe.model, num_classes=len(CLASSES), img_size=64, **recipe.model_args)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": network.state_dict()}, path)
        return
    assert isinstance(recipe, Detection | Segmentation)
    if not complete:
        network = create_model(recipe.backbone)
    else:
        create, classes = (create_detector, 10) if recipe.task == "detection" else (create_segmentor, 11)
        backbone = create_backbone(recipe.backbone, **recipe.backbone_args)
        network = create(recipe.method, backbone=backbone, num_classes=classes, **recipe.method_args)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": network.state_dict()}, path)


def test_the_page_has_lines_of_every_verb() -> None:
    assert len(COMMANDS) > 35
    verbs = {parsed(command).verb for command in COMMANDS}
    assert verbs >= {"train", "evaluate", "slurm", "bench", "convert", "predict", "data", "import-config"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_line_is_understood(command: str) -> None:
    args = parsed(command)
    if hasattr(args, "recipe"):
        recipe_of(args)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in HEAVY])
def test_a_line_runs(
    command: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(command, data, tmp_path, capsys)


@pytest.mark.torture
@pytest.mark.parametrize("command", HEAVY)
def test_a_line_with_a_large_network_runs(
    command: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(command, data, tmp_path, capsys)


@pytest.mark.parametrize("flag", FLAGS)
def test_every_flag_of_the_sources_is_on_the_page(flag: str) -> None:
    named = set(re.findall(r"`(--[\w-]+)`", PAGE.read_text()))
    assert set(flag.split(", ")) <= named


@pytest.mark.parametrize(
    "changes",
    sorted(
        {
            code
            for row in re.findall(r"^\| `--.*$", PAGE.read_text(), flags=re.MULTILINE)
            for code in re.findall(r"`(\w[\w.]*=[^`]*)`", row.split("|")[3])
        }
    ),
)
def test_a_change_in_the_table_is_one(changes: str) -> None:
    words = re.findall(r"[\w.]+=(?:\[[^\]]*\]|\S+)", changes)
    assert " ".join(words) == changes
    changed = resolve("smt_tiny_in1k", words).recipe
    assert isinstance(changed, Classification)
    plain = resolve("smt_tiny_in1k").recipe
    assert isinstance(plain, Classification)
    added = {key: value for key, value in changed.model_args.items() if value != plain.model_args.get(key)}
    if "model_args" not in changes:
        return
    taken = 0
    for model in ("smt_tiny", "visformer_tiny", "unified_swin_micro"):
        with torch.device("meta"):
            try:
                create_model(model, **added)
                taken += 1
            except ValueError:
                continue
    assert taken


def test_recipes_that_the_text_abbreviates_exist() -> None:
    names = set(re.findall(r"`((?:smt|swin|scalable_vit|visformer|unified)_\w+_in(?:1k|22k)\w*)`", PAGE.read_text()))
    assert {"smt_large_in22k", "smt_large_in22k_ft_in1k", "smt_large_384_in22k_ft_in1k"} <= names
    assert {name for name in names if "X" not in name} <= set(list_recipes())
    for end in ("in1k", "in22k", "in22k_ft_in1k"):
        assert {f"swin_{size}_{end}" for size in ("tiny", "small", "base")} <= set(list_recipes())
