"""Several runs on one page."""

import re
from pathlib import Path

import pytest
from fake_runs import digits_run, large_run, stopped_run

from fourstage.cli import main
from fourstage.report import render_comparison


def test_several_runs_are_on_one_page_with_unique_ids(tmp_path: Path) -> None:
    runs = [digits_run(tmp_path / "a"), stopped_run(tmp_path / "b"), large_run(tmp_path / "c", classes=120, images=300)]
    page = render_comparison(runs)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids)) > 12
    for referred in re.findall(r'aria-(?:labelledby|describedby)="([^"]*)"', page):
        assert referred in ids
    for link in re.findall(r'href="#([^"]*)"', page):
        assert link in ids
    assert page.count("smt_tiny_in1k") >= 2
    assert "not evaluated yet" in page


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
