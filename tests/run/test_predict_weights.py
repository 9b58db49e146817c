"""Which weights `predict` takes: published ones of whole networks, and of a run the network's own or their average."""

import io
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run.runs import refused
from tiny_networks import SWIN, tiny
from weights.server import Server, serving

import fourstage
from fourstage import registry
from fourstage.backbones import swin
from fourstage.cli import main
from fourstage.engine.state import save_state
from fourstage.recipe import list_recipes, resolve
from fourstage.recipe.resolve import named_recipes
from fourstage.run import evaluate, predict
from fourstage.run.task_protocol import protocol_of
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight
from fourstage.weights.reading import download

NAME = "retinanet_swin_mini_tests_1x"
SMALL = {"channels": 16, "convs": 1, "score_threshold": 0.0, "per_image": 5}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    image_HW3 = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(image_HW3).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


# ------------------------------------------------------------------------------------------------------------ published


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(download, "PAUSE", 0)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def row(server: Server, monkeypatch: pytest.MonkeyPatch) -> Weight:
    """A published RetinaNet over a small network, with a recipe; the server has its file."""
    registry.list_models()
    build = partial(swin.dense, SWIN)
    monkeypatch.setitem(registry._entries, "swin_mini", registry.Entry("swin_mini", partial(tiny, "swin"), build))
    torch.manual_seed(0)
    content = io.BytesIO()
    torch.save(fourstage.create_detector("retinanet", "swin_mini", 80, **SMALL).state_dict(), content)
    server.content = content.getvalue()
    recipe = {"base": "_coco_1x", "method": "retinanet", "backbone": "swin_mini", "method_args": SMALL}
    monkeypatch.setitem(named_recipes(), NAME, {**recipe, "evaluation": {"scale": [64, 64]}})
    weight = Weight(
        model="swin_mini",
        tag="retinanet_tests_1x",
        file="published.pth",
        address=server.address,
        page="https://example.org/weights",
        origin="https://example.org",
        data="coco",
        metrics={"box_map": 1.0},
        method="retinanet",
    )
    monkeypatch.setattr(catalog, "WEIGHTS", (*catalog.WEIGHTS, weight))
    return weight


def test_every_published_detector_and_segmentor_has_its_recipe() -> None:
    published = [weight for weight in catalog.WEIGHTS if weight.method]
    assert len(published) > 20
    for weight in published:
        assert weight.recipe in list_recipes()
        recipe: Any = resolve(weight.recipe).recipe
        assert (recipe.method, recipe.backbone, recipe.num_classes) == (weight.method, weight.model, weight.num_classes)
        assert catalog.of_recipe(weight.recipe) is weight
        assert all(recipe.expect.get(name, value) == value for name, value in weight.metrics.items())
    assert not [weight.name for weight in catalog.WEIGHTS if not weight.method and weight.recipe]


def test_published_weights_of_a_recipe_are_fetched_once(
    row: Weight, server: Server, photo: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", NAME, str(photo), "--out", str(photo.parent / "out")]) == 0, capsys.readouterr().err
    assert (cache / "published.pth").read_bytes() == server.content
    assert (photo.parent / "out" / "photo.png").is_file()
    [fetched] = predict(NAME, photo, show=False)
    [tagged] = predict(row.name, photo, show=False)  # as the catalogue names it
    [by_hand] = predict(NAME, photo, weights=cache / "published.pth", show=False)
    assert len(server.asked) == 1
    assert len(fetched.values["objects"]) == 5
    assert fetched.values == tagged.values == by_hand.values


def test_what_cannot_be_fetched_says_what_to_type(
    row: Weight, server: Server, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = str(photo)
    server.codes = [404]
    by_hand = (row.page, f"fourstage predict {NAME} IMAGE --weights published.pth")
    refused(main(["predict", NAME, image]), capsys, "HTTP 404", "download it in a browser from", *by_hand)
    here = catalog.WEIGHTS
    other = Weight(**{**vars(row), "sha256": "0123"})
    monkeypatch.setattr(catalog, "WEIGHTS", (*here[:-1], other))
    refused(main(["predict", NAME, image]), capsys, "is not the published file", *by_hand)
    monkeypatch.setattr(catalog, "WEIGHTS", here[:-1])
    refused(main(["predict", NAME, image]), capsys, "no weights of", NAME, "are published", "--weights FILE")
    promised = "upernet_swin_tiny_ade20k_160k"
    words = "no file of swin_tiny.upernet_ade20k_160k is published", f"fourstage predict {promised} IMAGE --weights"
    refused(main(["predict", promised, image]), capsys, *words)
    refused(main(["predict", "digits_visformer", image]), capsys, "name its model: predict visformer_digits")
    refused(main(["predict", NAME, image, "--which", "ema"]), capsys, "published weights have no separate average")
    assert not (photo.parent / "predictions").exists()


# ----------------------------------------------------------------------------------------------------------- of a run


def run_folder(path: Path, *changes: str, best: str = "model", average: bool = True) -> Path:
    """A run whose network says class 1 of any image, and the average of its weights class 2; `best` was best."""
    recipe = resolve("digits_visformer", changes).recipe
    task = protocol_of(recipe).build_task(tuple("abcde"))
    states: dict[str, dict[str, torch.Tensor]] = {}
    for label, name in enumerate(("model", "ema"), 1):
        states[name] = {key: value.clone() for key, value in task.state_dict().items()}
        states[name]["network.head.bias"] = 50 * torch.eye(5)[label]
    known = {"fourstage": 1, "classes": ["a", "b", "c", "d", "e"], "recipe": recipe.model_dump(mode="json")}
    (path / "checkpoints").mkdir(parents=True)
    (path / "recipe.yaml").write_text(recipe.model_dump_json())
    save_state(path / "checkpoints" / "best.pt", {**known, "which": best, "model": states[best]})
    own = states["ema"] if average else None
    save_state(path / "checkpoints" / "last.pt", {**known, "model": states["model"], "ema": own})
    return path


@pytest.mark.parametrize(
    ("best", "which", "found"), [("model", "model", "b"), ("model", "ema", "c"), ("ema", "ema", "c")]
)
def test_a_run_predicts_with_its_average_where_that_is_asked_for(
    best: str, which: str, found: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", "ema=0.9", best=best)
    words = ["predict", str(run), str(photo), "--which", which, "--out", str(tmp_path / "out")]
    assert main(words) == 0, capsys.readouterr().err
    assert f"photo.png: {found} 100.0%" in capsys.readouterr().out
    if best == "ema":
        (run / "checkpoints" / "last.pt").unlink()  # the best one is the average
        assert main(words) == 0


def test_a_checkpoint_predicts_with_its_average_where_that_is_asked_for(photo: Path, tmp_path: Path) -> None:
    last = run_folder(tmp_path / "run", "ema=0.9") / "checkpoints" / "last.pt"
    for source, weights in ((last, None), (tmp_path / "run", last)):
        for which, label in (("model", "b"), ("ema", "c")):
            [found] = predict(source, photo, weights=weights, which=which, show=False)
            assert found.values["top"][0]["class"] == label
    own = fourstage.create_model("visformer_digits").state_dict()
    states = {name: {**own, "head.bias": 50 * torch.eye(10)[label]} for name, label in (("model", 3), ("model_ema", 6))}
    torch.save(states, tmp_path / "both.pth")
    for which, label in (("model", "class 3"), ("ema", "class 6")):
        [found] = predict("visformer_digits", photo, weights=tmp_path / "both.pth", which=which, show=False)
        assert found.values["top"][0]["class"] == label


def test_a_run_without_an_average_says_so(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_folder(tmp_path / "run", "ema=null", average=False)
    refused(
        main(["predict", str(run), str(photo), "--which", "ema"]), capsys, "no averaged weights", "leave --which out"
    )
    best = run / "checkpoints" / "best.pt"
    refused(main(["predict", str(best), str(photo), "--which", "ema"]), capsys, "best.pt", "holds no EMA weights")


def test_a_run_is_evaluated_with_its_average_where_that_is_asked_for(photo: Path, tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", "ema=0.9")
    for split in ("train", "val"):
        for name in "abcde":
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(2):
                shutil.copy(photo, tmp_path / "data" / split / name / f"{i}.png")
    right = {
        which: evaluate(run, data=tmp_path / "data", which=which, changes=["workers=0"], show=False).tables["per_class"]
        for which in ("model", "ema")
    }
    assert [row["top1"] for row in right["model"]] == [0, 100, 0, 0, 0]
    assert [row["top1"] for row in right["ema"]] == [0, 0, 100, 0, 0]
