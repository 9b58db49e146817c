"""The command line from end to end: what a newcomer types, and what they get wrong."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fourstage
from fourstage import doctor
from fourstage.cli import main
from fourstage.data.embedded.digits import Digits

FAST = ["length=10it", "batch_size=16", "warmup=0it", "workers=0", "evaluate_every=5it"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(typed: Run) -> Run:
    return typed


def image_folder(root: Path, train: int = 60, val: int = 30) -> Path:
    """Real scans as train/<digit>/*.png and val/<digit>/*.png."""
    for split, count in (("train", train), ("val", val)):
        digits = Digits("train" if split == "train" else "val")
        for index in range(count):
            sample = digits.sample(index)
            folder = root / split / f"digit {sample.label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(sample.image)).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of images, and a short finished run on it."""
    root = tmp_path_factory.mktemp("trained")
    data = image_folder(root / "images")
    assert main(["train", "digits_visformer", "--data", str(data), "--out", str(root / "run"), *FAST]) == 0
    return data, root / "run"


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one line on stderr that holds the words, and no traceback."""
    code, _, err = result
    line = err.strip().splitlines()[-1]
    assert code == 2, err
    assert line.startswith("fourstage: ")
    assert "Traceback" not in err
    for word in words:
        assert word in line, line


# ----------------------------------------------------------------------------------------------------- what works


def test_a_run_folder_holds_all_that_is_promised(trained: tuple[Path, Path]) -> None:
    _, out = trained
    for name in ("recipe.yaml", "changes.json", "computation.json", "environment.json", "log.jsonl", "evaluation.json",
                 "records.jsonl", "report.html", "checkpoints/last.pt", "checkpoints/best.pt",
                 "samples/index.json"):  # fmt: skip
        assert (out / name).stat().st_size, name
    changes = json.loads((out / "changes.json").read_text())
    assert changes["recipe"] == "digits_visformer"
    assert changes["changes"]["optimisation.length"] == ["30ep", "10it"]
    assert list((out / "tensorboard").glob("events.*"))
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert len(records) == 30
    kinds = [json.loads(line)["kind"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert kinds.count("evaluation") == 4


def test_checkpoints_keep_the_keys_of_earlier_versions(trained: tuple[Path, Path]) -> None:
    """Runs that an earlier version started continue by these names, so none may change; `logged` may be missing."""
    last, best = (torch.load(trained[1] / f"checkpoints/{name}.pt", weights_only=True) for name in ("last", "best"))
    common = {"about", "classes", "computation", "conditions", "fourstage", "model", "recipe", "step"}
    training = {"best", "ema", "evaluated", "finished", "log", "logged", "optimizer", "scaler", "seconds", "windows"}
    assert last.keys() == common | training
    assert best.keys() == common | {"metrics", "value", "which"}
    machine = {"device", "processes", "products", "threads", "torch", "torchvision", "timm", "numpy", "pillow"}
    assert last["conditions"].keys() == machine | {"data", "imports", "training images", "validation images"}


def test_a_finished_run_says_so_and_stays_as_it_is(trained: tuple[Path, Path], run: Run) -> None:
    data, out = trained
    before = (out / "checkpoints" / "last.pt").stat().st_mtime_ns
    code, printed, _ = run("train", "digits_visformer", "--data", data, "--out", out, *FAST)
    assert code == 0
    assert "is finished" in printed
    assert "--fresh" in printed
    assert (out / "checkpoints" / "last.pt").stat().st_mtime_ns == before


def test_evaluate_gives_the_numbers_of_the_run(trained: tuple[Path, Path], run: Run) -> None:
    _, out = trained
    wanted = json.loads((out / "evaluation.json").read_text())["metrics"]
    code, printed, _ = run("evaluate", out, "--json")
    assert code == 0
    assert json.loads(printed)["metrics"] == pytest.approx(wanted)
    code, printed, _ = run("evaluate", out, "evaluation_batch_size=7")
    assert code == 0
    assert f"{wanted['top1']:.2f}" in printed
    named = run(
        "evaluate", "digits_visformer", "--data", trained[0], "--weights", out / "checkpoints/best.pt", "--json"
    )
    assert json.loads(named[1])["metrics"] == pytest.approx(wanted)


def test_predict_names_and_draws(trained: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    data, out = trained
    images = sorted((data / "val" / "digit 3").glob("*.png"))[:2]
    code, printed, _ = run("predict", out, *images, "--out", tmp_path / "pictures", "--json")
    assert code == 0
    found = json.loads(printed)
    assert [Path(one["image"]) for one in found] == images
    for one in found:
        assert len(one["top"]) == 5
        assert one["top"][0]["class"].startswith("digit ")
        assert one["top"][0]["probability"] >= one["top"][4]["probability"]
        with Image.open(one["picture"]) as picture:
            assert picture.size[0] > 100
    code, printed, _ = run("predict", out / "checkpoints/best.pt", data / "val/digit 3", "--out", tmp_path / "more")
    assert code == 0
    assert "%" in printed


def test_a_dry_run_writes_nothing(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, printed, _ = run("train", "digits_visformer", "--out", out, "--dry-run", *FAST)
    assert code == 0
    assert "nothing was written" in printed
    assert not out.exists()


def test_models_recipes_and_doctor_answer(run: Run) -> None:
    code, printed, _ = run("models", "visformer*")
    assert code == 0
    assert "visformer_tiny" in printed
    assert "10.32" in printed
    assert "swin" not in printed
    assert "digits_visformer" in run("recipes")[1]
    assert "torch" in run("doctor")[1]


@pytest.mark.parametrize(
    ("module", "package"),
    [("scipy", "scipy"), ("cv2", "opencv-python-headless"), ("yaml", "pyyaml"), ("sklearn", "scikit-learn")],
)
def test_doctor_reports_a_module_that_cannot_be_imported(
    run: Run, monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    code, printed, _ = run("doctor")
    assert code != 0
    text = " ".join(printed.split())
    assert f"! {package} not installed; needed for" in text
    assert "No problem found" not in text
    assert f"{package} -" in text


def test_doctor_takes_any_package_that_has_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"opencv-python": "4.10.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    monkeypatch.setattr(doctor, "find_spec", lambda _: ModuleSpec("cv2", None))
    owners = {"cv2": ["opencv-python"]}
    assert doctor._found("opencv-python-headless", "cv2", owners) == "opencv-python 4.10.0"
    assert doctor._found("opencv-python-headless", "cv2", {}) == "opencv-python-headless of an unknown version"


def test_doctor_looks_for_all_that_is_required_and_all_that_training_imports() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = {"core": project["dependencies"], **project["optional-dependencies"]}
    for extra, packages in doctor.NEEDED.items():
        listed = {re.split(r"[>=<]", line)[0] for line in extras[extra]} - {"matplotlib"}  # which no code imports
        assert set(packages) == listed


def test_a_count_of_one_is_singular(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert "torch uses 1 thread; threads wait as" in " ".join(run("doctor")[1].split())
    printed = run("bench", "visformer_digits", "--batch-size", 1, "--seconds", 0.01)[1]
    assert ", 1 thread, torch " in " ".join(printed.split())


@pytest.mark.parametrize(
    ("name", "value", "fix"),
    [
        ("FOURSTAGE_OPS", "slow", "set it to plain"),
        ("FOURSTAGE_PRODUCTS", "blas", "such as blas,blas,fused"),
        ("FOURSTAGE_SAMPLING", "gathr", "grid_sample, grid_sample_twice, gather, embedding_bag, triton"),
    ],
)
def test_doctor_reports_environment_variables_that_networks_refuse(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, fix: str
) -> None:
    monkeypatch.setenv(name, value)
    code, printed, _ = run("doctor")
    assert code != 0
    text = " ".join(printed.split())
    assert f"! {name}" in text
    assert fix in text


def test_another_recipe_in_the_folder_is_refused_and_fresh_sets_it_aside(run: Run, tmp_path: Path) -> None:
    out, data = tmp_path / "run", image_folder(tmp_path / "images", 40, 20)
    words = ["train", "digits_visformer", "--data", data, "--out", out, *FAST, "length=2it"]
    assert run(*words)[0] == 0
    refused(run(*words, "lr=0.5"), "optimisation.lr 0.00075 there and 0.5 here", "--fresh")
    code, printed, _ = run(*words, "lr=0.5", "--fresh")
    assert code == 0
    assert "run-before-1" in printed
    assert (tmp_path / "run-before-1" / "report.html").exists()


BACKBONE = """
import torch
from torch import nn
from fourstage import register

class Plain(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, width, 7, 7), nn.Linear(width, num_classes)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))

@register
def my_backbone(num_classes=10, img_size=32, width=8):
    return Plain(num_classes, width)
"""


def test_a_backbone_of_ones_own_trains_by_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BACKBONE)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: digits_visformer\nimports: [mine.py]\nmodel: my_backbone\nmodel_args: {width: 16}\n")
    code, printed, err = run("train", recipe, "--out", tmp_path / "run", *FAST, "length=2it")
    assert code == 0, err
    assert "my_backbone" in printed
    assert run("evaluate", tmp_path / "run")[0] == 0


def test_a_checkpoint_does_not_run_the_files_that_its_recipe_imports(
    trained: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    data, out = trained
    image, mark, hostile = next((data / "val/digit 1").glob("*.png")), tmp_path / "MARK", tmp_path / "hostile.py"
    hostile.write_text(f"with open({str(mark)!r}, 'a') as file:\n    file.write('x')\n")
    content = torch.load(out / "checkpoints/best.pt", weights_only=True)
    content["recipe"]["imports"] = [str(hostile)]
    file = tmp_path / "best.pt"
    torch.save(content, file)
    fourstage.from_checkpoint(file)
    for words in (
        ("predict", file, image, "--out", tmp_path / "pictures"),
        ("evaluate", "digits_visformer", "--data", data, "--weights", file),
        ("evaluate", out, "--weights", file),
        ("predict", out, image, "--weights", file, "--out", tmp_path / "pictures"),
        ("convert", file, "--model", "visformer_digits", "--out", tmp_path / "best.safetensors"),
        (
            "train",
            "digits_visformer",
            "--data",
            data,
            f"weights={file}",
            "--out",
            tmp_path / "run",
            *FAST,
            "length=1it",
        ),
    ):
        code, _, err = run(*words)
        assert code == 0, err
    assert not mark.exists()
    assert run("predict", file, image, "--out", tmp_path / "pictures", "--imports", hostile)[0] == 0
    assert mark.read_text() == "x"


def test_a_checkpoint_of_ones_own_network_says_which_files_it_wants(run: Run, tmp_path: Path) -> None:
    mine, recipe = tmp_path / "mine.py", tmp_path / "mine.yaml"
    mine.write_text(BACKBONE.replace("my_backbone", "wanted_backbone"))
    recipe.write_text("base: digits_visformer\nimports: mine.py\nmodel: wanted_backbone\nmodel_args: {width: 16}\n")
    assert run("train", recipe, "--out", tmp_path / "run", *FAST, "length=1it")[0] == 0
    file, image = tmp_path / "run/checkpoints/best.pt", tmp_path / "a.png"
    Image.new("RGB", (32, 32)).save(image)
    words = [sys.executable, "-m", "fourstage", "predict", str(file), str(image), "--out", str(tmp_path / "out")]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "no model is called 'wanted_backbone'" in refused.stderr
    assert f"if you trust them, add --imports {mine}" in refused.stderr
    subprocess.run([*words, "--imports", str(mine)], check=True, capture_output=True)
    for words in (
        ["predict", str(tmp_path / "run"), str(image), "--out", str(tmp_path / "out")],
        ["evaluate", str(tmp_path / "run")],
        ["train", str(tmp_path / "run/recipe.yaml"), "--out", str(tmp_path / "run")],
    ):  # a run folder may come from anyone
        words[:0] = [sys.executable, "-m", "fourstage"]
        refused = subprocess.run(words, capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert f"if you trust them, add --imports {mine}" in refused.stderr
        subprocess.run([*words, "--imports", str(mine)], check=True, capture_output=True)


def test_what_breaks_inside_a_run_ends_the_process(tmp_path: Path) -> None:
    """An error that nobody foresaw ends with its traceback, and does not wait for loader workers for ever."""
    (tmp_path / "mine.py").write_text(
        BACKBONE.replace("return self.head", "assert not self.training\n        return self.head")
    )
    (tmp_path / "mine.yaml").write_text("base: digits_visformer\nimports: [mine.py]\nmodel: my_backbone\n")
    command = ["train", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run"), "workers=2"]
    done = subprocess.run(
        [sys.executable, "-m", "fourstage", *command], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_python_dash_m_works() -> None:
    done = subprocess.run([sys.executable, "-m", "fourstage", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fourstage ")


def test_predict_never_overwrites_what_it_was_given(trained: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    image = tmp_path / "mine.png"
    image.write_bytes(next((trained[0] / "val/digit 1").glob("*.png")).read_bytes())
    before = image.read_bytes()
    assert run("predict", trained[1], image, "--out", tmp_path)[0] == 0
    assert image.read_bytes() == before
    assert (tmp_path / "mine-2.png").exists()


def test_python_functions_take_one_image(trained: tuple[Path, Path]) -> None:
    from fourstage.run import evaluate, predict

    [found] = predict(trained[1], next((trained[0] / "val/digit 1").glob("*.png")), show=False)
    assert found.picture is None
    assert found.values["top"][0]["probability"] > 0
    assert evaluate(trained[1], show=False).images == 30
    with pytest.raises(ValueError, match="choose auto, cpu or cuda"):
        predict(trained[1], "a.png", device="gpu")


def test_evaluate_says_what_is_unusual_about_its_data(trained: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    image_folder(tmp_path, 60, 0)
    code, printed, err = run("evaluate", trained[1], "--data", tmp_path)
    assert code == 0, err
    assert "held out" in printed


# ------------------------------------------------------------------------------------------- what users get wrong


def test_a_bad_image_is_named_and_skipped_only_on_request(run: Run, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 40, 20)
    good = sorted((data / "train/digit 1").glob("*.png"))[0]
    (data / "train/digit 1/cut.png").write_bytes(good.read_bytes()[:-60])
    (data / "train/digit 2/text.jpg").write_text("not an image")
    words = ["train", "digits_visformer", "--data", data, "--out", tmp_path / "run", *FAST]
    refused(run(*words), "2 of 42 images in train cannot be read", "cut.png", "skip_bad_images=true")
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()
    code, printed, _ = run(*words, "skip_bad_images=true")
    assert code == 0
    assert "skipped: 2 of 42 images" in printed
    assert "cut.png" in printed


def test_class_folders_that_do_not_fit_are_named(run: Run, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 40, 20)
    words = ["train", "digits_visformer", "--data", data, "--out", tmp_path / "run"]
    (data / "train" / "digit 99").mkdir()
    refused(run(*words), "digit 99")
    (data / "train" / "digit 99").rename(data / "val" / "digit 99")
    Image.new("RGB", (8, 8)).save(data / "val" / "digit 99" / "a.png")
    refused(run(*words), "digit 99", "train")


def test_data_check_finds_them_too(run: Run, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 40, 20)
    code, printed, _ = run("data", "check", data)
    assert code == 0, printed
    (data / "train/digit 2/text.jpg").write_text("not an image")
    code, printed, _ = run("data", "check", data)
    assert code == 1
    assert "text.jpg" in printed


def test_things_that_are_not_there_are_named(run: Run, tmp_path: Path) -> None:
    refused(run("train", "digits_visformer", "--data", tmp_path / "nowhere"), "nowhere")
    refused(run("train", "digits_visformr"), "did you mean digits_visformer")
    refused(run("evaluate", "digits_visformer"), "--weights")
    refused(run("evaluate", "digits_visformer", "--weights", tmp_path / "gone.pth"), "gone.pth")
    refused(run("predict", tmp_path / "nowhere", "a.png"), "nowhere")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("base: digits_visformer\nimports: [gone.py]\n")
    refused(run("train", recipe, "--out", tmp_path / "run"), "gone.py")
    refused(run("train", "digits_visformer", "model=visformer_tinny", "--dry-run"), "did you mean", "visformer_tiny")
    refused(run("train", "digits_visformer", "model_args={drop_pth_rate: 0.1}", "--dry-run"), "drop_path_rate")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_here", "line 1: ModuleNotFoundError"),
        ("def broken(:\n    pass", "SyntaxError"),
        ("x = 1\n{}['key']", "line 2: KeyError"),
        (BACKBONE.replace("my_backbone", "swin_tiny"), "two models are called 'swin_tiny'"),
    ],
)
def test_a_module_of_ones_own_that_does_not_run_is_named(run: Run, tmp_path: Path, code: str, words: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "mine.yaml").write_text("base: digits_visformer\nimports: [mine.py]\n")
    refused(run("train", tmp_path / "mine.yaml", "--dry-run"), str(tmp_path / "mine.py"), words)


def test_a_network_that_gives_no_logits_is_refused(run: Run, tmp_path: Path) -> None:
    listed = BACKBONE.replace("self.head(self.body(images).mean((2, 3)))", "[self.body(images)]")
    (tmp_path / "mine.py").write_text(listed.replace("my_backbone", "my_maps"))
    (tmp_path / "mine.yaml").write_text("base: digits_visformer\nimports: [mine.py]\nmodel: my_maps\n")
    refused(run("train", tmp_path / "mine.yaml", "--dry-run"), "needs logits of shape (1, 10)", "a list")


def test_a_run_without_an_evaluation_has_no_best(run: Run, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 40, 20)
    words = ["train", "digits_visformer", "--data", data, "--out", tmp_path / "run", *FAST, "length=2it"]
    assert run(*words)[0] == 0
    (tmp_path / "run" / "checkpoints" / "best.pt").unlink()
    refused(run("evaluate", tmp_path / "run"), "no best checkpoint yet", "--weights")
    refused(run("predict", tmp_path / "run", data / "val/digit 1"), "no best checkpoint yet")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(run: Run) -> None:
    refused(run("train", "digits_visformer", "device=cuda"), "no GPU", "device=cpu", "fourstage doctor")


def test_pictures_that_cannot_be_predicted_are_named(trained: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    data, out = trained
    (tmp_path / "text.png").write_text("not an image")
    good = next((data / "val/digit 1").glob("*.png"))
    refused(run("predict", out, tmp_path / "text.png", "--out", tmp_path / "pictures"), "text.png")
    assert not (tmp_path / "pictures").exists()
    code, _, err = run("predict", out, good, tmp_path / "text.png", "--out", tmp_path / "pictures")
    assert code == 1
    assert f"fourstage: {tmp_path / 'text.png'} cannot be read as an image" in err
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {f"{good.stem}.png", "results.csv"}
    refused(run("predict", out, tmp_path / "gone.png"), "gone.png")
    (tmp_path / "empty").mkdir()
    refused(run("predict", out, tmp_path / "empty"), "empty", "no images")


class _Attack:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call, self.arguments


@pytest.mark.parametrize("attack", ["os.system", "eval", "importlib", "getattr", "numpy", "torch"])
def test_a_checkpoint_that_wants_to_run_code_is_refused(
    trained: tuple[Path, Path], run: Run, tmp_path: Path, attack: str
) -> None:
    marker = tmp_path / "executed"
    np.save(tmp_path / "x.npy", np.zeros(1))
    payload = {
        "os.system": _Attack(os.system, f"touch {marker}"),
        "eval": _Attack(eval, f"open({str(marker)!r}, 'w')"),
        "importlib": _Attack(__import__("importlib").import_module, "antigravity"),
        "getattr": _Attack(getattr, _Attack(__import__, "os"), "system"),
        "numpy": _Attack(np.ndarray.tofile, np.zeros(1), str(marker)),
        "torch": _Attack(torch.save, torch.zeros(1), str(marker)),
    }[attack]
    path = tmp_path / "model.pth"
    with path.open("wb") as file:
        pickle.dump({"model": {"stem.0.weight": payload}}, file)
    for words in (["evaluate", trained[1], "--weights", path], ["predict", path, trained[0] / "val/digit 1"]):
        refused(run(*words), "model.pth")
    assert not marker.exists()
    torch.save({"model": payload}, path)
    refused(run("evaluate", trained[1], "--weights", path), "model.pth")
    assert not marker.exists()


def test_checkpoints_that_do_not_fit_are_refused(trained: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    from fourstage import create_model

    data, out = trained
    (tmp_path / "notes.pth").write_text("dear diary")
    refused(run("evaluate", out, "--weights", tmp_path / "notes.pth"), "notes.pth", "text")
    torch.save({"model": create_model("visformer_tiny").state_dict()}, tmp_path / "tiny.pth")
    refused(run("evaluate", out, "--weights", tmp_path / "tiny.pth"), "visformer_tiny")
    torch.save({"model": create_model("visformer_digits", num_classes=7).state_dict()}, tmp_path / "seven.pth")
    refused(run("evaluate", out, "--weights", tmp_path / "seven.pth"), "7", "10")
    code, printed, err = run(
        "train",
        "digits_visformer",
        "--data",
        data,
        "--out",
        tmp_path / "tuned",
        *FAST,
        f"weights={tmp_path / 'seven.pth'}",
    )
    assert code == 0, err
    assert "7 to 10 classes" in printed


def test_other_classes_of_the_same_count_are_refused(trained: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 40, 20)
    for split in ("train", "val"):
        (data / split / "digit 3").rename(data / split / "digit three")
    refused(run("evaluate", trained[1], "--data", data), "'digit three'", "correct the name")


def test_a_run_does_not_go_on_with_other_classes(run: Run, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 40, 20)
    words = ["train", "digits_visformer", "--data", data, "--out", tmp_path / "run", *FAST, "length=2it"]
    assert run(*words)[0] == 0
    (tmp_path / "run" / "report.html").unlink()  # as if it had been killed just before
    (data / "train" / "digit 3" / "more.png").write_bytes(next((data / "train/digit 1").glob("*.png")).read_bytes())
    code, printed, _ = run(*words)
    assert code == 0
    assert "training images 40 before, 41 now" in printed
    (tmp_path / "run" / "report.html").unlink()
    for split in ("train", "val"):
        (data / split / "digit 3").rename(data / split / "digit three")
    refused(run(*words), "classes", "--out")


def test_data_without_classes_is_refused(run: Run, tmp_path: Path) -> None:
    from fourstage.data.embedded.digit_scenes import write_digit_scenes

    write_digit_scenes(tmp_path / "scenes", train=4, val=2, size=64)
    refused(
        run("train", "digits_visformer", "--data", tmp_path / "scenes", "--out", tmp_path / "run"), "no class for each"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("length=0.001ep", "less than one step"),
        ("warmup=9ep", "type: fourstage train digits_visformer --dry-run length=3ep warmup=6it"),
        ("lr_multipliers={netwrok.head: 10}", "did you mean network.head"),
        ("no_decay=[typo_name]", "'typo_name'"),
    ],
)
def test_a_recipe_that_contradicts_its_data_or_model_is_refused(run: Run, change: str, words: str) -> None:
    refused(run("train", "digits_visformer", "--dry-run", "length=3ep", change), words)


def test_one_folder_is_for_one_process(run: Run, tmp_path: Path) -> None:
    """Neither the same command nor --fresh may touch the folder of a living run."""
    words = ["train", "digits_visformer", "--out", str(tmp_path / "run"), *FAST, "length=4000it"]
    first = subprocess.Popen(
        [sys.executable, "-m", "fourstage", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        while not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
            assert first.poll() is None
            time.sleep(0.05)
        refused(run(*words), "another process is training")
        refused(run(*words, "--fresh"), "another process is training")
        assert first.poll() is None
        assert (tmp_path / "run" / "recipe.yaml").exists()
    finally:
        first.kill()
        first.wait()
    assert not (tmp_path / "run-before-1").exists()


def test_what_a_killed_process_left_half_written_is_removed(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    for name in (".recipe.yaml.7.partial", "checkpoints/.last.pt.7.partial"):
        (out / name).write_text("half")
    assert run("train", "digits_visformer", "--out", out, *FAST, "length=2it")[0] == 0
    assert not list(out.rglob("*.partial"))


def test_data_may_move_but_not_change(run: Run, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 40, 20)
    words = ["train", "digits_visformer", "--out", tmp_path / "run", *FAST, "length=2it"]
    assert run(*words, "--data", data)[0] == 0
    (tmp_path / "run" / "report.html").unlink()
    moved = data.rename(tmp_path / "elsewhere")
    code, printed, err = run(*words, "--data", moved)
    assert code == 0, err
    assert "not bit for bit" not in printed
    assert run("evaluate", tmp_path / "run")[0] == 0  # the run knows the new place
    (tmp_path / "run" / "report.html").unlink()
    refused(run(*words, "--data", image_folder(tmp_path / "others", 41, 20)), "holds other images")


def test_damage_is_reported_when_a_run_continues_not_at_its_end(run: Run, tmp_path: Path) -> None:
    data, out = image_folder(tmp_path / "images", 40, 20), tmp_path / "run"
    words = ["train", "digits_visformer", "--data", data, "--out", out, *FAST, "length=4it", "evaluate_every=2it"]
    assert run(*words)[0] == 0
    (out / "report.html").unlink()
    (out / "checkpoints/best.pt").unlink()
    (out / "log.jsonl").write_text((out / "log.jsonl").read_text()[:150])
    code, printed, err = run(*words)
    assert code == 0, err
    assert "best.pt is missing" in printed
    assert "lacks lines" in printed
    assert (out / "checkpoints/best.pt").exists()
    assert (out / "report.html").exists()
    (out / "report.html").unlink()
    (out / "checkpoints/last.pt").unlink()
    code, printed, err = run(*words)
    assert code == 0, err
    assert "last.pt is missing; continuing from previous.pt" in printed
    (out / "report.html").unlink()
    for name in ("last.pt", "previous.pt"):
        (out / "checkpoints" / name).unlink()
    refused(run(*words), "last.pt is missing", "--fresh")


def test_fresh_moves_nothing_before_all_is_checked(run: Run, tmp_path: Path) -> None:
    words = ["train", "digits_visformer", "--out", tmp_path / "run", *FAST, "length=2it", "--fresh"]
    assert run(*words)[0] == 0
    refused(run(*words, "--data", tmp_path / "nowhere"), "nowhere")
    assert (tmp_path / "run" / "report.html").exists()


def test_a_dry_run_sees_what_the_run_would_meet(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("train", "digits_visformer", "--out", tmp_path / "file" / "run", "--dry-run"), "choose another --out")
    for change, words in (
        ("model_args={num_classes: 3}", "write num_classes"),
        ("model_args={drop_path_rate: a}", "wrong type"),
        ("betas=[1, 2]", "betas must be at least 0"),
        ("auto_augment=foo", "foo"),
        ("batch_size=true", "not a yes-or-no value"),
        ("name=other", "--out"),
    ):
        refused(run("train", "digits_visformer", "--dry-run", change), words)


def test_one_class_or_no_validation_image_is_an_error(run: Run, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "two" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "two" / "train" / name / "a.png")
    words = ["train", "digits_visformer", "batch_size=2", "--out", tmp_path / "run", "--data"]
    refused(run(*words, tmp_path / "two"), "no images for val")
    (tmp_path / "two" / "train" / "dog" / "a.png").unlink()
    (tmp_path / "two" / "train" / "dog").rmdir()
    refused(run(*words, tmp_path / "two"), "one class")


def test_a_hostile_file_for_predict_is_refused_in_our_words(
    trained: tuple[Path, Path], run: Run, tmp_path: Path
) -> None:
    torch.save({"model": _Attack(os.system, f"touch {tmp_path / 'executed'}")}, tmp_path / "evil.pth")
    result = run("predict", tmp_path / "evil.pth", trained[0] / "val/digit 1")
    refused(result, "evil.pth", "system")
    assert "weights_only" not in result[2]
    assert not (tmp_path / "executed").exists()


def test_paths_in_a_recipe_file_lie_beside_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_folder(tmp_path / "recipes" / "images", 40, 20)
    (tmp_path / "recipes" / "mine.yaml").write_text("base: digits_visformer\ndata: images\nworkers: 0\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = run("train", "recipes/mine.yaml", "--out", "run", *FAST, "length=2it")
    assert code == 0, err
    monkeypatch.chdir(tmp_path / "recipes")
    assert run("evaluate", "../run")[0] == 0


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep to find the loader process")
def test_a_killed_loader_process_is_reported_and_costs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [
        "train",
        "digits_visformer",
        "--out",
        str(out),
        *FAST,
        "length=4000it",
        "workers=1",
        "evaluate_every=4000it",
    ]
    process = subprocess.Popen([sys.executable, "-m", "fourstage", *words], stderr=subprocess.PIPE, text=True)
    while not (out / "log.jsonl").exists() or not (out / "log.jsonl").stat().st_size:
        assert process.poll() is None
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    for worker in found:
        os.kill(int(worker), 9)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "a loader process was killed" in errors
    assert (out / "checkpoints" / "last.pt").exists()


def test_nothing_left_to_skip_to_is_an_error(run: Run, tmp_path: Path) -> None:
    data = image_folder(tmp_path / "images", 40, 20)
    for path in (data / "val").rglob("*.png"):
        path.write_text("broken")
    words = ["train", "digits_visformer", "--data", data, "--out", tmp_path / "run", *FAST, "skip_bad_images=true"]
    refused(run(*words), "20 of 20 images in val")


def test_folders_that_cannot_be_written_get_a_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run("train", "digits_visformer", "--out", tmp_path / "file", *FAST), "is a file", "--out")
    refused(run("train", "digits_visformer", "--out", tmp_path / "file" / "run", *FAST), "choose another --out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    refused(run("train", "digits_visformer", "--out", tmp_path / "mine", *FAST), "do not belong to a run")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"


def test_suggested_options_are_those_of_the_parser(run: Run) -> None:
    from fourstage.cli.entry import parser
    from fourstage.cli.parsing import options_of, verbs_of

    verbs = verbs_of(parser())
    shard = verbs_of(verbs["data"])["shard"]
    options = {*options_of(parser()), *options_of(shard), *(x for verb in verbs.values() for x in options_of(verb))}
    assert {"--data", "--max-size", "--keys", "--sbatch-args", "--cpu-time", "--debug"} <= options
    refused(run("slurm", "train", "digits_visformer", "--gpus-per-noode=2"), "did you mean --gpus-per-node 2")
    assert "--gpus-per-node" not in run("train", "digits_visformer", "--gpus-per-noode=2")[2]
    refused(run("data", "shard", "--max-sizes", "3"), "did you mean --max-size 3")
    refused(run("bench", "swin_tiny", "--cpu-tyme"), "did you mean --cpu-time")


def test_words_in_the_wrong_place_are_answered(run: Run) -> None:
    refused(run("train", "digits_visformer", "--datta", "x"), "did you mean --data")
    refused(run("train", "digits_visformer", "--lr", "3"), "write optimisation.lr=3")
    refused(run("train", "digits_visformer", "--data", "digits", "data=digits"), "same value twice")
    refused(run("train", "digits_visformer", "--data", ""), "--data is empty")
    refused(run("trian", "digits_visformer"), "did you mean train")
    refused(run("train", "digits_visformer", "out"), "did you mean --out")
    refused(run("train"), "RECIPE", "`fourstage train --help`")
    refused(run("models", "--json"), "there is no option --json here; see `fourstage models --help`")
    refused(run("doctor", "--verbos"), "there is no option --verbos here; see")
    refused(
        run("convert", "--outt", "x"), "no option --outt here, did you mean --out x; see `fourstage convert --help`"
    )
    refused(run("data", "shard", "--max-sise=3"), "did you mean --max-size 3; see `fourstage data shard --help`")
    refused(run("bench", "swin_tiny", "--batch_size", "2"), "there is no option --batch_size here")
    for words in (("bench", "swin_tiny", "--batch_size", "2"), ("convert", "a.pth", "--batch_size", "2")):
        assert "a value of a recipe" not in run(*words)[2]
    refused(run("evaluate", "digits_visformer", "--which", "emma"), "no 'emma' for --which, did you mean ema")
    refused(run("models", "nothing*"), "nothing*")


def test_options_are_answered_first_and_all_keys_then(run: Run) -> None:
    words = ("train", "digits_visformer", "--data", "digits", "lenght=60ep", "epochs=3")
    refused(run(*words), "did you mean optimisation.length=60ep", "write optimisation.length=3ep")
    _, _, error = run(*words, "--lr", "1e-3", "--bogus", "3")
    assert "write optimisation.lr=1e-3" in error
    assert "no option --bogus" in error
    assert "lenght" not in error
