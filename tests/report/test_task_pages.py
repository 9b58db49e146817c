"""Reports of detection and segmentation: whole, harmless, with the right numbers and the worst mistakes first."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_runs import HOSTILE
from fake_task_runs import ANIMALS, detection_run, segmentation_run
from test_page import Element, Tree, plain, report

from fourstage.report import render_report

MANY = [f"thing {i}" for i in range(150)]
MAKERS: dict[str, Callable[[Path], Path]] = {
    "detection": detection_run,
    "boxes alone": lambda folder: detection_run(folder, masks=False),
    "nothing there": lambda folder: detection_run(folder, objects=0),
    "hostile detection": lambda folder: detection_run(folder, classes=HOSTILE),
    "many detection": lambda folder: detection_run(folder, classes=MANY),
    "segmentation": segmentation_run,
    "hostile segmentation": lambda folder: segmentation_run(folder, classes=HOSTILE),
    "many segmentation": lambda folder: segmentation_run(folder, classes=MANY),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_report_of_detection_or_segmentation_is_complete_and_loads_nothing(kind: str, tmp_path: Path) -> None:
    text = render_report(MAKERS[kind](tmp_path / "run"))
    assert len(text.encode()) < 6_000_000
    assert not re.search(r"(src|href|action|data|poster)\s*=\s*[\"']?\s*(https?:)?//", text)
    assert not re.search(r"url\(|@import|<link|<iframe|<object", text)
    page = Tree(text).root
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert not re.search(r"(?<![a-z])(nan|inf)(?![a-z])", " ".join(part.text for part in page.all("section")).lower())
    assert "a model" not in plain(page.all("header")[0])
    assert {picture.attributes["src"].partition(";")[0] for picture in page.all("img")} <= {
        "data:image/jpeg",
        "data:image/png",
        "data:image/webp",
    }


def rows(page: Element, section: str) -> list[str]:
    return [plain(row) for row in page.section(section).all("tr")[1:]]


def test_detection_by_class_is_what_was_measured_the_worst_first(tmp_path: Path) -> None:
    page = report(detection_run(tmp_path / "run"))
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    known = {row["name"]: row for row in evaluation["tables"]["per_class"]}
    shown = rows(page, "classes")
    order = sorted(known, key=lambda name: known[name]["box_map"])
    assert [next(name for name in ANIMALS if name in row) for row in shown] == order
    for name, row in zip(order, shown, strict=True):
        assert f"{known[name]['box_map']:.1f}" in row
        assert f"{known[name]['mask_map']:.1f}" in row
    charts = page.section("precision").all("svg", "chart")
    assert len(charts) == 2
    for target, legend in zip(("box", "mask"), page.section("precision").all("ul", "legend-lines"), strict=True):
        metrics = {name.removeprefix(f"{target}_"): value for name, value in evaluation["metrics"].items()}
        shown = {"0.50": metrics["map50"], "0.75": metrics["map75"], "0.50:0.95": metrics["map"]}
        texts = [f"{threshold}: AP {value:.1f}" for threshold, value in shown.items()]
        assert [plain(entry).strip() for entry in legend.all("li")] == texts
        assert metrics["map"] > 0.05
        mean = evaluation["tables"]["curves"][target]["mean"]["0.50"]
        assert 100 * sum(mean) / len(mean) == pytest.approx(metrics["map50"], abs=0.01), "AP is the mean of the line"
        assert len({entry.all("g")[0].attributes["class"] for entry in legend.all("li")}) == 3
    assert f"{evaluation['metrics']['box_map']:.2f}" in plain(page.all("p", "big")[0])


def test_the_cards_say_what_is_wrong_the_worst_last(tmp_path: Path) -> None:
    page = report(detection_run(tmp_path / "run"))
    index = json.loads((tmp_path / "run" / "samples" / "index.json").read_text())
    weights = [sum(score for _, score, _ in one["false"]) + len(one["missed"]) for one in index]
    assert len(index) == 12
    assert weights[9:] == sorted(weights, reverse=True)[:3]
    assert [one["id"] for one in index[:9]] == sorted(one["id"] for one in index[:9])  # drawn evenly, not by mistakes
    cards = page.section("predictions").all("ul", "wide-sheet")[0].all("li")
    assert len(cards) == 12
    for card, one in zip(cards, index, strict=True):
        text = plain(card)
        assert ("Missed: " in text) == bool(one["missed"])
        assert ("False: " in text) == bool(one["false"])
        if one["missed"]:
            assert ANIMALS[one["missed"][0]] in text
    assert any(" instead of " in plain(card) for card in cards)


def test_segmentation_by_class_and_what_is_taken_for_what(tmp_path: Path) -> None:
    page = report(segmentation_run(tmp_path / "run"))
    tables = json.loads((tmp_path / "run" / "evaluation.json").read_text())["tables"]
    known = sorted((row["iou"], row["name"]) for row in tables["per_class"] if row["iou"] is not None)
    assert [next(name for name in ANIMALS if name in row) for row in rows(page, "classes")] == [n for _, n in known]
    assert "1 class neither in the images nor predicted" in plain(page.section("classes"))
    truth, guess, pixels = tables["confused"][0]
    first = rows(page, "confusion")[0]
    assert first.startswith(ANIMALS[truth])
    assert ANIMALS[guess] in first
    assert f"{pixels:,}" in first
    cards = page.section("predictions").all("ul", "wide-sheet")[0].all("ul", "legend-of")
    assert len(cards) == 12


@pytest.mark.parametrize("make", [detection_run, segmentation_run])
@pytest.mark.parametrize("missing", ["evaluation.json", "samples/index.json", "records.jsonl", "log.jsonl"])
def test_a_file_of_a_run_may_be_missing(make: Callable[[Path], Path], missing: str, tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    (run / missing).unlink()
    text = plain(report(run))
    if missing == "samples/index.json":
        assert "No predictions were kept" in text


@pytest.mark.parametrize("make", [detection_run, segmentation_run])
def test_names_in_a_report_are_escaped(make: Callable[..., Path], tmp_path: Path) -> None:
    text = render_report(make(tmp_path / "run", classes=HOSTILE))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert len(re.findall("<script", text)) == 1
