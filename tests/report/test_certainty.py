"""The lines below the headline: images, interval, chance level, and how many evaluations the best was chosen from."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import digits_run, large_run
from fake_task_runs import detection_run, segmentation_run
from test_page import plain, report


def rewrite(run: Path, **values: Any) -> dict[str, Any]:
    evaluation = json.loads((run / "evaluation.json").read_text()) | values
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    return evaluation


def sure(run: Path) -> list[str]:
    return [plain(line) for line in report(run).all("p", "sure")]


def test_images_interval_chance_and_choice_of_a_classifier(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    rewrite(run, images=360, intervals={"top1": [93.77, 97.77]}, interval_method="Wilson")
    assert sure(run)[:2] == [
        "360 images. 95 % interval: 93.8 to 97.8 % (Wilson).", "Chance level: 10.0 % (10 classes)."
    ]  # fmt: skip


def test_an_older_run_shows_its_images_without_an_interval(tmp_path: Path) -> None:
    assert sure(digits_run(tmp_path / "run"))[0] == "360 images"
    assert not any("images" in line for line in sure(detection_run(tmp_path / "other")) if "evaluations" not in line)


def test_the_most_frequent_class_is_named_where_classes_are_unequal(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    evaluation = rewrite(run)
    evaluation["tables"]["per_class"][3]["count"] = 216  # 36 of 360 before: 216 of 540 now
    rewrite(run, tables=evaluation["tables"])
    assert "Chance level: 10.0 % (10 classes); the most frequent class has 40.0 %." in sure(run)


def test_chance_of_segmentation_is_the_miou_of_one_class_everywhere(tmp_path: Path) -> None:
    run = segmentation_run(tmp_path / "run")
    rows = rewrite(run)["tables"]["per_class"]
    for row, pixels in zip(rows, (600, 100, 100, 200), strict=True):
        row["pixels"] = pixels
    tables = rewrite(run)["tables"] | {"per_class": rows}
    rewrite(run, tables=tables, images=12, intervals={"miou_ss": [70.0, 80.0]}, interval_method="bootstrap over images")
    text = sure(run)
    # class 0 everywhere: IoU 600 / 1000 of it, 0 of the three others
    assert "Chance level: 15.0 %, if every pixel is of the most frequent class." in text
    assert text[0].endswith("With so few images, the true uncertainty is larger.")


def test_detection_has_no_chance_level(tmp_path: Path) -> None:
    run = detection_run(tmp_path / "run")
    method = "bootstrap over images, 200 resamples"
    rewrite(run, images=30, intervals={"box_map": [20.04, 31.26]}, interval_method=method)
    assert sure(run)[0] == f"30 images. 95 % interval: 20.0 to 31.3 % ({method})."
    assert not any("Chance" in line for line in sure(run))


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (lambda line: True, "Best of 90 evaluations (45 epochs, with and without averaging) on"),
        (lambda line: line["which"] == "ema", "Best of 45 evaluations (45 epochs) on"),
        (lambda line: line["step"] % 45 == 0, "Best of 30 evaluations (at 15 times, with and without averaging) on"),
        (lambda line: line["step"] == 675, "Best of 2 evaluations (with and without averaging) on"),
        (lambda line: line["step"] == 675 and line["which"] == "ema", None),
    ],
)
def test_the_choice_is_counted(kept: Any, words: str | None, tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    chosen = [line for line in lines if line["kind"] == "train" or kept(line)]
    last = next(line for line in chosen if line.get("which") == "ema" and line["step"] == 675)
    last["metrics"]["top1"] = 99.99
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in chosen))
    lines_below = [line for line in sure(run) if line.startswith("Best of")]
    assert [line.startswith(str(words)) and "slightly optimistic" in line for line in lines_below] == [True] * bool(
        words
    )


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_five_classes_or_fewer_have_no_top5(classes: int, shown: bool, tmp_path: Path) -> None:
    page = report(digits_run(tmp_path / "run", classes=[f"class {i}" for i in range(classes)]))
    assert ("top-5 accuracy" in plain(page.section("numbers"))) == shown


def test_many_classes_keep_their_published_top5(tmp_path: Path) -> None:
    assert "top-5 accuracy" in plain(report(large_run(tmp_path / "run", classes=120, images=300)).section("numbers"))


@pytest.mark.parametrize("damage", [{"intervals": {"top1": 5}}, {"intervals": [1]}, {"images": "many"}])
def test_damaged_intervals_are_one_sentence(damage: dict[str, Any], tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    rewrite(run, **damage)
    with pytest.raises(ValueError, match="is damaged"):
        report(run)
