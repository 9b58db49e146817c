"""Pages of damaged runs, of one seed, and names that PIL's own font does not have."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import digits_run
from fake_task_runs import detection_run

from fourstage.analysis.comparison import ArmResult, Comparison
from fourstage.analysis.seeds import summarise
from fourstage.report import render_comparison, render_report
from fourstage.report.arms.charts import metric_chart
from fourstage.report.objects import draw_objects

DAMAGES: list[tuple[str, Callable[[Any], Any]]] = [
    ("environment.json", lambda content: {**content, "packages": ["torch"]}),
    ("recipe.yaml", lambda text: f"{text}\nexpect: [82.2]\n"),
    ("recipe.yaml", lambda text: f"{text}\nimports: 3\n"),
    ("recipe.yaml", lambda text: re.sub(r"length: \S+", "length: 1.2.3ep", text)),
]


@pytest.mark.parametrize(("file", "change"), DAMAGES)
def test_values_that_only_a_page_reads_are_answered_in_a_sentence_too(
    file: str, change: Callable[[Any], Any], tmp_path: Path
) -> None:
    run = digits_run(tmp_path / "run")
    content = (run / file).read_text()
    is_json = file.endswith(".json")
    (run / file).write_text(json.dumps(change(json.loads(content))) if is_json else change(content))
    with pytest.raises(ValueError, match=rf"^a file in {re.escape(str(run))} is damaged"):
        render_report(run)


def test_a_damaged_run_among_several_is_named(tmp_path: Path) -> None:
    runs = [detection_run(tmp_path / name) for name in ("a", "b")]
    index = json.loads((runs[1] / "samples" / "index.json").read_text())
    (runs[1] / "samples" / "index.json").write_text(json.dumps([{**entry, "false": [1]} for entry in index]))
    with pytest.raises(ValueError, match=rf"^a file in {re.escape(str(runs[1]))} is damaged"):
        render_report(runs[1])
    with pytest.raises(ValueError, match=rf"^a file in {re.escape(f'{runs[0]} or {runs[1]}')} is damaged"):
        render_comparison(runs)


def test_one_seed_has_no_interval_in_words() -> None:
    values = np.array([93.5])
    arm = ArmResult("mine", "smt_tiny", None, None, None, None, (93.5,), summarise(values), "", None, ("runs/a",))
    settings = {"title": "t", "metric": "top1", "label": "top-1", "percent": True, "higher_is_better": True}
    rest = {"seeds": (0,), "images": 10, "arms": (arm,), "pairs": (), "missing": (), "warnings": (), "conditions": ()}
    chart = metric_chart(Comparison(**settings, **rest))
    assert "mine: mean 93.50, one seed gives no interval" in chart
    assert "nan" not in chart


def test_names_beyond_ascii_are_drawn_by_their_letters() -> None:
    """PIL's own font draws the same box for all letters that it lacks."""
    objects = {"boxes": [[20, 20, 90, 90]], "labels": [0]}
    image_HW3 = np.zeros((100, 200, 3), np.uint8)
    pictures = [np.asarray(draw_objects(image_HW3, objects, [name])) for name in ("éé", "üü", "ee")]
    assert not np.array_equal(pictures[0], pictures[1])
    assert all(picture.shape == pictures[0].shape for picture in pictures)
