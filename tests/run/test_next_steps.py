"""The commands of a report run as they are pasted: of a finished run, in the order of the page."""

import html
import re
import shlex
from pathlib import Path

import pytest
from run.runs import stop_before
from run.test_dense_runs import SHORT, SMALL

from fourstage.cli import main
from fourstage.data.embedded.digit_scenes import write_digit_scenes

WITH_SCENES = ("digit_scenes_mask_rcnn", "digit_scenes_upernet")


def commands(page: Path) -> list[list[str]]:
    """Return the words of the commands in the section `next` of a page."""
    [section] = re.findall(r'<section id="next">(.*?)</section>', page.read_text(), re.S)
    return [
        shlex.split(html.unescape(text)) for text in re.findall(r'class="command"[^>]*><code>(.*?)</code>', section)
    ]


@pytest.mark.parametrize("recipe", ["digits_visformer", *WITH_SCENES])
def test_commands_of_a_page_run_as_they_are(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short, data = [*SHORT, "length=2it", "evaluate_every=2it", "device=cpu"], ["--data", "my scenes"]
    if recipe in WITH_SCENES:
        write_digit_scenes(Path("my scenes"), train=8, val=4, size=64)
        short += data + SMALL[recipe]
    assert main(["train", recipe, "--out", "my runs/a", *short]) == 0, capsys.readouterr().err
    typed = commands(Path("my runs/a/report.html"))
    assert [words[1] for words in typed] == ["predict", "evaluate", "train", "report"]
    if recipe in WITH_SCENES:
        assert typed[0][3].startswith("my scenes/"), "an image of the validation data, not a picture of the run"
    for words in typed:
        assert words[0] == "fourstage"
        assert main(words[1:]) == 0, capsys.readouterr().err
    assert Path("my runs/a-longer/report.html").is_file()
    assert "optimisation.length" in Path("comparison.html").read_text()
    assert any(Path("predictions").iterdir())
    assert Path("classes.csv").stat().st_size


def test_a_stopped_run_is_continued_by_the_command_of_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "digits_visformer", "--out", "a", *SHORT, "length=3it", "evaluate_every=1it", "device=cpu"]
    monkeypatch.setattr("sys.argv", ["/somewhere/fourstage/__main__.py", *words])
    with monkeypatch.context() as patch:
        stop_before(1, patch)
        assert main(words) == 143
    assert main(["report", "a", "--out", "page.html"]) == 0
    from fourstage.report import render_report

    Path("page.html").write_text(render_report("a"))
    first = commands(Path("page.html"))[0]
    assert first == ["fourstage", *words]
    assert main(first[1:]) == 0
    assert "Finished" in capsys.readouterr().out
