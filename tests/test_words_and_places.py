"""Words of a command that name places: addresses, repositories, long changes, folders with spaces and dots."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourstage.api import create_model
from fourstage.check import card
from fourstage.cli.analyze import _box
from fourstage.cli.compare import _out
from fourstage.cli.entry import parse
from fourstage.data.embedded.digits import Digits
from fourstage.predict.files import find_inputs
from fourstage.recipe import resolve
from fourstage.run.compare.grid import plan
from fourstage.run.export import default_out
from fourstage.weights.reading import hub

SHARDS = "s3://bucket/{train-{00..07},val-0}.tar"
LONG = f"model_args={{a: {'b' * 300}}}"
WHERE = ["--partition", "gpu", "--gpus", "1", "--cpus-per-task", "3", "--dry-run"]

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(typed: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return typed


def test_addresses_of_data_and_names_of_repositories_are_no_paths(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"base: digits_visformer\ndata: '{SHARDS}'\nweights: hf-hub:user/name\n")
    recipe = resolve(file).recipe
    assert (recipe.data, recipe.weights) == (SHARDS, "hf-hub:user/name")
    recipe = resolve("digits_visformer", ["data=s3://bucket/data", "weights=hf-hub:user/name@v1"]).recipe
    assert (recipe.data, recipe.weights) == ("s3://bucket/data", "hf-hub:user/name@v1")


def test_arms_of_a_comparison_have_the_data_that_was_typed(tmp_path: Path) -> None:
    for data in ("s3://bucket/data", str(tmp_path / "my: {data: #2")):
        grid = plan(["digits_visformer"], ["lr=1e-3,2e-3"], 2, tmp_path / "out", data=data)
        for arm in grid.arms:
            assert resolve(arm.source, arm.changes).recipe.data == data


def test_a_job_reads_addresses_published_weights_and_repositories(run: Run) -> None:
    code, script, err = run("slurm", "train", "digits_visformer", *WHERE, "--data", SHARDS, "weights=hf-hub:user/name")
    assert (code, err) == (0, "")
    assert shlex.quote(SHARDS) in script
    _, _, err = run("slurm", "train", "digits_visformer", *WHERE, "--data", "train-{00..07}.tar")
    assert err == ""
    for weights in ("pretrained", "smt_tiny.in1k"):
        _, _, err = run("slurm", "train", "finetune", *WHERE, "--data", "digits", f"weights={weights}", "batch_size=8")
        assert err == ""


def test_a_recipe_with_weights_of_its_own_is_evaluated_in_a_job(run: Run) -> None:
    words = ("slurm", "evaluate", "digits_visformer", *WHERE)
    assert "add --weights FILE" in run(*words)[2]
    assert run(*words, "weights=hf-hub:user/name")[0] == 0


def test_a_job_takes_the_files_that_a_run_was_trained_with(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("")
    (tmp_path / "mine.yaml").write_text("base: digits_visformer\nimports: [mine.py]\n")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    recipe = resolve(tmp_path / "mine.yaml").recipe
    (tmp_path / "run" / "recipe.yaml").write_text(recipe.model_dump_json())
    code, _, err = run("slurm", "evaluate", "run", *WHERE)
    assert code == 2
    advice = shlex.split(err.strip().partition("add ")[2])
    code, script, err = run("slurm", "evaluate", "run", *WHERE, *advice)
    assert code == 0, err
    assert f"--imports={advice[1]}" in script


def test_a_change_may_be_longer_than_the_name_of_a_file(run: Run) -> None:
    assert "no option --epochs" in run("train", "digits_visformer", LONG, "--epochs", "3")[2]
    assert "is not expected here" in run("train", "digits_visformer", "a" * 300)[2]
    _, _, err = run("compare", "digits_visformer", LONG, "--vary", "lr=1e-3,2e-3", "--dry-run")
    assert "File name too long" not in err
    assert "no argument a" in err


def test_a_word_after_an_option_is_not_sent_before_it(run: Run) -> None:
    assert "'nonsense' is not expected here" in run("train", "--out=x", "digits_visformer", "nonsense")[2]
    _, _, err = run("train", "--out=x", "digits_visformer", "nonsense")
    assert "comes after" not in err
    assert "write digits_visformer lr=1" in run("train", "lr=1", "digits_visformer")[2]


def test_runs_may_follow_an_option() -> None:
    assert parse(["report", "runs/a", "--out", "both.html", "runs/b"]).runs == ["runs/a", "runs/b"]


def test_an_empty_word_is_named(run: Run) -> None:
    assert "fourstage: the source is empty" in run("predict", "", "a.png")[2]
    assert "one of the images is empty" in run("predict", "visformer_tiny", "")[2]


def test_names_by_folders_have_their_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "lr=0.1"
    folder.mkdir()
    arguments = parse(["compare", str(folder)])
    assert _out(arguments, [str(folder)]) == Path("runs/compare-lr=0.1")
    monkeypatch.chdir(folder)
    assert default_out(".", "onnx") == "lr=0.1.onnx"


def test_a_pattern_gives_each_image_once(tmp_path: Path) -> None:
    for name in ("1.png", "sub/2.png", "sub/deep/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for pattern in ("**", "*", "**/*"):
        assert [one.path.name for one in find_inputs([str(tmp_path / pattern)])] == ["1.png", "2.png", "3.png"]


def test_json_is_alone_whatever_the_users_files_print(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer = (
        "from torch import nn\nclass Mine(nn.Linear):\n    def __init__(self, dim):\n        super().__init__(dim, 1)\n"
    )
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(f"print('loud')\n{mixer}")
    torch.manual_seed(0)
    state = create_model("visformer_digits", num_classes=10, img_size=32).state_dict()
    torch.save({"fourstage": 1, "model": state}, tmp_path / "ten.pth")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr(card, "check", lambda candidate, *_: card.Card(candidate.name, candidate.kind))
    predict = ("predict", "visformer_digits", "a.png", "--weights", "ten.pth", "--imports", "one.py")
    for words in (predict, ("check", "two.py")):
        code, out, err = run(*words, "--json")
        assert code == 0, err
        assert json.loads(out)
        assert "loud" in err


@pytest.mark.parametrize("text", ["0,0,inf,inf", "-inf,0,3,4", "nan,0,1,1"])
def test_a_box_has_finite_sides(text: str) -> None:
    with pytest.raises(ValueError, match="--box is X1,Y1,X2,Y2"):
        _box(text)


def test_commands_that_are_offered_name_folders_with_spaces(run: Run, tmp_path: Path) -> None:
    data = Digits("val")
    for index in range(12):
        sample = data.sample(index)
        path = tmp_path / "my images" / ("train" if index % 2 else "val") / str(index % 3) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(sample.image)).save(path)
    words = ("data", "shard", "my images", "my shards")
    _, out, _ = run(*words)
    *_, offered = shlex.split(out.strip().splitlines()[-1].partition("train on it with ")[2])
    assert offered == "my shards"
    command = run(*words)[2].split("`")[1]
    assert run(*shlex.split(command)[1:])[0] == 0


def test_a_path_as_a_change_is_no_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("{train-{0..3},val-0}.tar", "my: data #2", "'quoted'"):
        assert resolve("digits_visformer", [f"data={word}"]).recipe.data == str(tmp_path / word)
    assert resolve("digits_visformer", ["data="]).recipe.data is None


def test_a_recipe_that_is_none_is_answered_by_what_is_near(run: Run, tmp_path: Path) -> None:
    assert "did you mean digits_visformer?" in run("train", "digit_visformer")[2]
    assert "did you mean" not in run("train", "zzz")[2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.yaml").write_text("base: digits_visformer\n")
    assert "the folder of a run is given with --out" in run("train", "mine")[2]


@pytest.mark.parametrize(
    "words",
    [
        "evaluate hf-hub:user/name",
        "evaluate digits_visformer --weights hf-hub:user/name",
        "predict hf-hub:user/name a.png",
        "predict visformer_digits a.png --weights hf-hub:user/name",
        "verify hf-hub:user/name",
        "export hf-hub:user/name",
        "analyze erf hf-hub:user/name --data digits",
        "train digits_visformer --dry-run weights=hf-hub:user/name",
    ],
)
def test_every_command_fetches_from_the_hub(
    words: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> list[str]:
        raise OSError("the hub was asked")

    monkeypatch.setattr(hub, "_listed", asked)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert "the hub was asked" in run(*words.split())[2]


def test_a_name_of_the_hub_is_no_name_of_published_weights(run: Run) -> None:
    assert "hf-hub:USER/NAME" in run("train", "digits_visformer", "--dry-run", "weights=hf-hub:name")[2]


@pytest.mark.parametrize("source", ["runs/a/best.pt", "hf-hub:user/name"])
def test_a_job_offers_the_option_for_a_checkpoint(source: str, run: Run) -> None:
    _, _, err = run("slurm", "evaluate", source, *WHERE)
    assert "--out" not in err
    offered = shlex.split(err.strip().partition("with ")[2])
    assert run("slurm", "evaluate", "digits_visformer", *WHERE, *offered)[0] == 0
