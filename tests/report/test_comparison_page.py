"""Several runs on one page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_runs import digits_run, large_run, stopped_run
from fake_task_runs import detection_run, segmentation_run
from test_page import Tree, plain

from fourstage.cli import main
from fourstage.report import comparison_page, render_comparison
from fourstage.report.charts import HUES, compared_look
from fourstage.report.comparison_page import unique_titles


def test_several_runs_are_on_one_page_with_unique_ids(tmp_path: Path) -> None:
    runs = [digits_run(tmp_path / "a"), stopped_run(tmp_path / "b"), large_run(tmp_path / "c", classes=120, images=300)]
    page = render_comparison(runs)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 12
    for referred in re.findall(r'aria-(?:labelledby|describedby)="([^"]*)"', page):
        assert referred in ids
    for link in re.findall(r'href="#([^"]*)"', page):
        assert link in ids
    assert "not evaluated yet" in page


def changed(run: Path, **values: Any) -> Path:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (run / "recipe.yaml").write_text(yaml.safe_dump({**recipe, **values}))
    return run


def test_the_page_is_titled_by_the_folders_of_its_runs(tmp_path: Path) -> None:
    paths = [digits_run(tmp_path / name) for name in ("first", "second", "third", "fourth")]
    for count, title in ((1, "first"), (2, "Comparison of first and second"), (4, "Comparison of 4 runs")):
        page = Tree(render_comparison(paths[:count])).root
        assert page.all("h1")[0].text == title
        assert page.all("title")[0].text == f"{title} – fourstage"
    assert Tree(render_comparison(paths[:3])).root.all("h1")[0].text == "Comparison of first, second and third"
    same = [digits_run(tmp_path / parent / "run") for parent in ("a", "b")]
    assert unique_titles([*same, paths[0]]) == ["a/run", "b/run", f"{tmp_path.name}/first"]


def test_keys_that_differ_are_in_a_table_the_network_and_its_mixer_first(tmp_path: Path) -> None:
    a = changed(digits_run(tmp_path / "a"), model="unified_swin_micro", model_args={"mixer": "MyMixer"}, seed=3)
    b = changed(digits_run(tmp_path / "b"), model="unified_halo_micro", model_args={}, name="other")
    c = changed(digits_run(tmp_path / "c"), optimisation={"batch_size": 96, "length": "45ep", "lr": 5.078124999e-09})
    table = Tree(render_comparison([a, b, c])).root.section("differences").all("table")[0]
    rows = [[plain(cell).strip() for cell in (*row.all("th"), *row.all("td"))] for row in table.all("tr")]
    assert rows == [
        ["key", "a", "b", "c"],
        ["model", "unified_swin_micro", "unified_halo_micro", "visformer_digits"],
        ["mixer", "MyMixer", "halo", "–"],
        ["seed", "3", "–", "–"],
        ["optimisation.lr", "0.001", "0.001", "5.078e-9"],
        ["optimisation.warmup", "2ep", "2ep", "–"],
        ["model_args.drop_path_rate", "–", "–", "0.1"],
    ]


def test_equal_recipes_are_called_equal(tmp_path: Path) -> None:
    page = Tree(render_comparison([digits_run(tmp_path / "a"), digits_run(tmp_path / "b")])).root
    assert "are the same" in plain(page.section("differences"))
    other = json.loads((tmp_path / "b" / "environment.json").read_text()) | {"torch": "2.14.0"}
    (tmp_path / "b" / "environment.json").write_text(json.dumps(other))
    page = Tree(render_comparison([tmp_path / "a", tmp_path / "b"])).root
    assert "torch 2.15.0 2.14.0" in " ".join(part.text for part in page.section("differences").all("code"))


def test_curves_of_all_runs_share_charts_and_differ_in_colour_and_dash(tmp_path: Path) -> None:
    names = ["first", "second", "third"]
    page = Tree(render_comparison([digits_run(tmp_path / name) for name in names])).root
    section = page.section("curves-classification")
    charts = section.all("svg", "chart")
    assert [chart.all("title")[0].text for chart in charts] == [
        "Training loss", "Validation top-1 accuracy", "Validation loss", "Learning rate"
    ]  # fmt: skip
    for chart in charts:
        lines = json.loads(chart.attributes["data-lines"])
        assert [line["name"] for line in lines] == names
        assert all(len(line["points"]) > 20 for line in lines)
        assert not chart.all("text", "label"), "names are in the legend"
        assert len({line["look"].split()[0] for line in lines}) == len({line["look"].split()[1] for line in lines}) == 3
    legend = section.all("ul", "legend-lines")[0].all("li")
    assert [plain(entry).strip() for entry in legend] == names
    looks = [entry.all("g")[0].attributes["class"] for entry in legend]
    assert looks == [f"line {line['look']}" for line in json.loads(charts[0].attributes["data-lines"])]


def test_looks_are_distinct_and_all_in_the_style() -> None:
    looks = [compared_look(place) for place in range(HUES**2)]
    assert len(set(looks)) == HUES**2
    style = (Path(comparison_page.__file__).parent / "style.css").read_text()
    for token in {token for look in looks for token in look.split()} - {"dash-0"}:
        assert f".line.{token} path" in style


def test_tasks_have_their_own_curves_and_differences(tmp_path: Path) -> None:
    runs = [digits_run(tmp_path / "c"), segmentation_run(tmp_path / "s")]
    runs += [detection_run(tmp_path / "d1"), changed(detection_run(tmp_path / "d2"), method="retinanet", seed=4)]
    page = Tree(render_comparison(runs)).root
    charts = page.section("curves-detection").all("svg", "chart")
    assert all(
        [line["name"] for line in json.loads(chart.attributes["data-lines"])] == ["d1", "d2"] for chart in charts
    )
    assert "Different methods have different losses" in plain(page.section("curves-detection"))
    assert "Validation mean IoU" in plain(page.section("curves-segmentation"))
    every, detection = page.section("differences").all("table")
    first = {row.all("th")[0].text: [plain(cell).strip() for cell in row.all("td")] for row in every.all("tr")[1:]}
    assert first["task"] == ["classification", "segmentation", "detection", "detection"]
    assert first["model"] == ["visformer_digits", "–", "–", "–"]
    assert first["method"] == ["–", "upernet", "mask_rcnn", "retinanet"]
    assert "model_args.drop_path_rate" not in first
    assert [row.all("th")[0].text for row in detection.all("tr")[1:]] == ["method", "seed"]


def test_folders_that_are_no_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = digits_run(tmp_path / "a")
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["report", str(run), str(run), "--out", str(tmp_path / "r.html")]) == 2
    assert "each once" in capsys.readouterr().err
    assert main(["report", str(run), "--out", str(tmp_path / "r.pdf")]) == 2
    assert "must end in .html" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
    assert main(["report", str(run), "--out", str(tmp_path / "new" / "r.html")]) == 0
    assert (tmp_path / "new" / "r.html").read_text().startswith("<!DOCTYPE html>")
