"""What a run prints: no line is longer than 80 columns, numbers are short, and a short log has enough points."""

import re
from pathlib import Path

import pytest
from run.runs import logged, run_setup, stop_before
from run.test_dense_runs import SMALL

from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.engine.log import epoch_text
from fourstage.engine.state import load_state
from fourstage.report.number_format import brief_text, short_value

SHORT = ["length=40it", "batch_size=2", "warmup=3it", "workers=0", "evaluate_every=30it", "ema=0.9", "log_every=20"]
SHORT += ["optimisation.min_lr=5.078124999999999e-09", "device=cpu"]
COLUMNS = 80


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminal") / "scenes"
    write_digit_scenes(root, train=80, val=4, size=64)
    return root


@pytest.mark.parametrize("recipe", ["digits_visformer", "digit_scenes_mask_rcnn", "digit_scenes_upernet"])
def test_all_lines_of_a_short_run_fit_the_terminal(
    recipe: str, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    Path("data").symlink_to(scenes)
    scale = ["augmentation.scale=[64,64]", "evaluation.scale=[64,64]"] if "rcnn" in recipe else []
    data = [] if recipe == "digits_visformer" else ["--data", "data"]
    words = ["train", recipe, *data, "--out", "runs/a", *SHORT, *scale, *SMALL.get(recipe, ())]
    if recipe == "digits_visformer":
        words = [word for word in words if "batch_size" not in word] + ["batch_size=16"]
    with monkeypatch.context() as patch:
        stop_before(27, patch)
        assert main(words) == 143
    assert main(words) == 0
    assert main(words) == 0  # it is finished already
    assert main(["evaluate", "runs/a"]) == 0
    image = next(scenes.rglob("*.png"))
    Path("image.png").write_bytes(image.read_bytes())
    assert main(["predict", "runs/a", "image.png"]) == 0
    assert main(["report", "runs/a"]) == 0
    printed = "".join(capfd.readouterr())
    lines = [line.rpartition("\r")[2] for line in printed.splitlines()]
    assert len(lines) > 25
    assert [line for line in lines if len(line.rstrip()) > COLUMNS] == []
    assert re.findall(r"\.0*[1-9]\d{4,}", printed) == []
    assert "Continuing runs/a at step 28 of 40." in lines
    assert len(logged(Path("runs/a"), "train")) == 20  # 40 // 20 steps a line


def test_an_interrupted_line_of_the_log_is_the_mean_of_all_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the run continues with another `log_every`, or was stopped by an older version."""
    words = ["train", "digits_visformer", *SHORT, "length=8it", "batch_size=64", "evaluate_every=8it"]
    totals = {}
    for every in (1, 4):
        monkeypatch.setattr(run_setup, "CURVE_POINTS", 8 // every)
        assert main([*words, f"log_every={every}", "--out", str(tmp_path / f"every{every}")]) == 0
        totals[every] = {line["step"]: line["total"] for line in logged(tmp_path / f"every{every}", "train")}
    each = [totals[1][step] for step in range(1, 9)]
    assert totals[4] == pytest.approx({4: sum(each[:4]) / 4, 8: sum(each[4:]) / 4}, rel=1e-6)
    monkeypatch.setattr(run_setup, "CURVE_POINTS", 2)
    with monkeypatch.context() as patch:
        stop_before(5, patch)
        main([*words, "log_every=4", "--out", str(tmp_path / "parts")])
    assert load_state(tmp_path / "parts" / "checkpoints" / "last.pt")["logged"] == 4
    monkeypatch.setattr(run_setup, "CURVE_POINTS", 8)
    assert main([*words, "log_every=4", "--out", str(tmp_path / "parts")]) == 0
    lines = {line["step"]: line["total"] for line in logged(tmp_path / "parts", "train")}
    assert lines == pytest.approx({4: sum(each[:4]) / 4, 7: sum(each[4:7]) / 3, 8: each[7]}, rel=1e-6)


@pytest.mark.parametrize(
    ("epoch", "text"), [(3.0, "3"), (0.2727, "0.27"), (2.5, "2.5"), (0.0042, "0.0042"), (0.0, "0"), (299.999, "300")]
)
def test_an_epoch_is_short(epoch: float, text: str) -> None:
    assert epoch_text(epoch) == text


def test_numbers_of_a_recipe_are_rounded_and_other_values_stay() -> None:
    assert short_value(5.078124999999999e-09) == "5.078e-9"
    assert [short_value(value) for value in (0.001, 1e-5, 3, True, None, "5ep")] == [
        "0.001", "1e-5", "3", "True", "none", "5ep"
    ]  # fmt: skip


def test_a_line_names_the_metrics_that_matter_and_no_top5_of_five_classes() -> None:
    metrics = {"top1": 50.0, "top5": 100.0, "loss": 1.25}
    assert brief_text(metrics, 5) == "top1 50.00  loss 1.25"
    assert brief_text(metrics, 6) == "top1 50.00  top5 100.00  loss 1.25"
    many = {f"box_{name}": 1.0 for name in ("map", "map50", "map75", "recall1", "recall10")}
    assert brief_text({**many, "mask_map": 2.0}, 10) == "box_map 1.00  mask_map 2.00  box_map50 1.00"
    assert brief_text({"own": 1.0, "other": 2.0, "third": 3.0, "fourth": 4.0}) == "own 1.00  other 2.00  third 3.00"
