"""A trained network by its checkpoint, by its saved folder and by the recipe: every verb reads all of them alike."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fourstage
from fourstage import user_files
from fourstage.analysis.networks import load_network
from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.engine.state import save_state
from fourstage.recipe import resolve
from fourstage.run import evaluate
from fourstage.run.splits import open_split
from fourstage.run.task_protocol import protocol_of

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]  # not those of the network
CHANGES = [f"mean={MEAN}", f"std={STD}", "ema=0.5", "workers=0"]
DENSE = ["evaluation.scale=[64,64]"]
RECIPES = {  # with changes that make it small
    "digits_visformer": [],
    "digit_scenes_mask_rcnn": ["method_args={channels: 16, fc_channels: 32, mask_channels: 16}", *DENSE],
    "digit_scenes_upernet": ["method_args={channels: 16, auxiliary_channels: 16}"],
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp("scenes") / "data", train=2, val=3, size=64)


def best_of_run(folder: Path, name: str, scenes: Path, which: str = "model") -> tuple[Path, str]:
    """Write the best checkpoint of a run, whose weights are random; return it and the data."""
    data = "digits" if name == "digits_visformer" else str(scenes)
    recipe = resolve(name, [*CHANGES, *RECIPES[name]], {"data": data}).recipe
    protocol = protocol_of(recipe)
    dataset = open_split(protocol, "val", show=False)
    about = protocol.dataset_metadata(dataset)
    task = protocol.build_task(dataset.classes, about)
    values = {"fourstage": 1, "recipe": recipe.model_dump(mode="json"), "classes": list(dataset.classes)}
    save_state(folder / "best.pt", {**values, "about": about, "which": which, "model": task.state_dict()})
    return folder / "best.pt", data


@pytest.mark.parametrize("name", RECIPES)
def test_evaluate_takes_a_checkpoint_and_a_saved_network_as_it_takes_their_recipe(
    name: str, scenes: Path, tmp_path: Path
) -> None:
    file, data = best_of_run(tmp_path, name, scenes)
    folder = fourstage.load(file, show=False).save_pretrained(tmp_path / "saved")
    by_recipe = evaluate(name, weights=file, data=data, changes=[*CHANGES, *RECIPES[name]], show=False)
    assert evaluate(file, show=False).records == by_recipe.records  # the recipe in the file names the data
    for source in (folder, folder / "model.safetensors"):
        assert evaluate(source, data=data, show=False).records == by_recipe.records
    if name == "digits_visformer":  # others hardly predict anything with random weights
        assert evaluate(file, changes=["mean=[0, 0, 0]"], show=False).metrics != by_recipe.metrics


@pytest.mark.parametrize("saved", [False, True])
def test_evaluate_builds_the_network_that_suited_the_data_of_its_training(
    saved: bool, scenes: Path, tmp_path: Path
) -> None:
    method = "{queries: auto, channels: 16, encoder_layers: 1, decoder_layers: 1, hidden: 16}"
    recipe = resolve("digit_scenes_dino", [f"method_args={method}", "workers=0", *DENSE], {"data": str(scenes)}).recipe
    protocol, about = protocol_of(recipe), {"queries": 17, "masks": False}
    classes = open_split(protocol, "val", show=False).classes
    assert protocol.dataset_metadata(open_split(protocol, "val", show=False))["queries"] != about["queries"]
    values = {"fourstage": 1, "recipe": recipe.model_dump(mode="json"), "classes": list(classes), "about": about}
    file: Path = tmp_path / "best.pt"
    save_state(file, {**values, "which": "model", "model": protocol.build_task(classes, about).state_dict()})
    source = fourstage.load(file, show=False).save_pretrained(tmp_path / "saved") if saved else file
    assert evaluate(source, data=str(scenes), show=False).images == 3
    network: Any = fourstage.from_checkpoint(source)
    assert network.queries == about["queries"]


def test_what_evaluate_cannot_do_with_a_checkpoint_is_one_sentence(scenes: Path, tmp_path: Path) -> None:
    file, _ = best_of_run(tmp_path, "digit_scenes_upernet", scenes)
    folder = fourstage.load(file, show=False).save_pretrained(tmp_path / "saved")
    network = fourstage.create_model("visformer_digits", num_classes=10)
    alone = fourstage.save_pretrained(network, tmp_path / "alone")
    with pytest.raises(ValueError, match="has its own weights; leave the other ones out"):
        evaluate(file, weights=folder)
    with pytest.raises(ValueError, match="the recipe names no data; add --data"):
        evaluate(folder)
    with pytest.raises(ValueError, match=r"has no recipe that .*; type fourstage evaluate RECIPE --weights .*alone"):
        evaluate(alone, data="digits")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        evaluate(tmp_path / "none.pt")


@pytest.mark.parametrize("name", RECIPES)
def test_analyses_prepare_images_for_a_saved_network_as_for_its_run(name: str, scenes: Path, tmp_path: Path) -> None:
    file, _ = best_of_run(tmp_path, name, scenes)
    folder = fourstage.load(file, show=False).save_pretrained(tmp_path / "saved")
    of_run = load_network(file)
    assert (of_run.preparation.mean, of_run.preparation.std) == (tuple(MEAN), tuple(STD))
    for source in (folder, folder / "model.safetensors"):
        loaded = load_network(source)
        assert (loaded.preparation, loaded.classes) == (of_run.preparation, of_run.classes)
        expected, state = of_run.network.state_dict(), loaded.network.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in expected.items())


def test_a_best_checkpoint_that_is_the_average_is_read_as_such_everywhere(scenes: Path, tmp_path: Path) -> None:
    file, _ = best_of_run(tmp_path, "digits_visformer", scenes, which="ema")
    (tmp_path / "plain").mkdir()
    plain, _ = best_of_run(tmp_path / "plain", "digits_visformer", scenes)
    networks: list[Any] = [
        fourstage.from_checkpoint(file),
        fourstage.from_checkpoint(file, which="ema"),
        fourstage.load(file, which="ema", show=False).network,
        load_network(file, which="ema").network,
    ]
    first, *others = (network.state_dict() for network in networks)
    assert all(torch.equal(value, other[key]) for other in others for key, value in first.items())
    assert evaluate(file, which="ema", show=False).metrics == evaluate(file, show=False).metrics
    with pytest.raises(ValueError, match="holds no EMA weights"):
        fourstage.from_checkpoint(plain, which="ema")


@pytest.mark.parametrize("verb", ["evaluate", "erf", "cka", "invariance", "cam", "bench"])
def test_a_checkpoint_runs_no_file_that_its_recipe_imports(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mark, file = tmp_path / "executed", tmp_path / "evil.py"
    file.write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    recipe = resolve("digits_visformer", ["workers=0"], {"data": "digits"}).recipe
    recipe = recipe.model_copy(update={"imports": (str(file),)})
    task = protocol_of(recipe).build_task(tuple("0123456789"), {})
    values = {"fourstage": 1, "recipe": recipe.model_dump(mode="json"), "classes": list("0123456789"), "about": {}}
    Path("run/checkpoints").mkdir(parents=True)
    save_state(Path("run/checkpoints/best.pt"), {**values, "which": "model", "model": task.state_dict()})
    Path("run/recipe.yaml").write_text(yaml.safe_dump(values["recipe"]))
    saved = fourstage.load("run/checkpoints/best.pt", show=False).save_pretrained("saved")
    for source in ("run/checkpoints/best.pt", str(saved), "run/recipe.yaml" if verb == "bench" else "run"):
        if verb == "evaluate":
            words = ["evaluate", source, "--data", "digits"]
        elif verb == "bench":
            words = ["bench", source, "--batch-size", "1", "--seconds", "0.01"]
        else:
            words = ["analyze", verb, source, "--data", "digits", "--images", "4", "--size", "32", "--out", "out"]
        main(words)  # it may end with a message
        assert not mark.exists(), source
        main([*words, "--imports", str(file)])
        assert mark.exists(), source
        mark.unlink()
        sys.modules.pop(user_files.module_name(file), None)
