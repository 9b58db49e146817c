"""Every command line of README.md and docs/ runs as it is written, page by page, on thirty images.

`pages/lines.py` reads the lines, `pages/material.py` writes the files that they name, and `pages/stand_ins.py` puts
tiny networks behind the published names. The lines of a page run one after the other in one folder.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import material, stand_ins
from pages.lines import ELSEWHERE, PAGES, ROOT, lines_of, python_of, words_of, yaml_of

from fourstage import cli
from fourstage.weights.reading import download

PARSED_ONLY = {  # the beginning of a line -> why it is parsed and does not run
    "fourstage bench": "it measures for a minute; tests/bench runs short measurements",
    "fourstage check my_mixer.py": "it trains for 30 s; tests/check and the examples of --help run for less",
    "fourstage analyze invariance": "it takes 20 s; tests/analysis run it on fewer images",
    "fourstage analyze cam runs/detector": "its box is of a detector that is trained for longer than two steps",
    "fourstage demo": "it serves a page until it is stopped; tests/test_demo_page.py opens one",
    "fourstage predict hf-hub:": "it needs a hub; tests/predict have one of their own",
    "fourstage predict mine.onnx": "it needs an exported file; tests/exported have some",
    "fourstage evaluate mine.onnx": "it needs an exported file; tests/run/test_exported_files.py evaluates some",
    "fourstage push": "it needs a hub; tests/run/pretrained have one of their own",
    "fourstage verify": "it compares with the original networks, and not with stand-ins; tests/run/verify have these",
    "fourstage analyze robustness": "it needs ImageNet-A, or a package of corruptions",
}
TO_MINE = "fourstage train finetune --data photos --out runs/mine"
ON_DIGITS = "fourstage train digits_visformer --out"
BEFORE = {  # pages whose lines begin with runs, or with a file of one: what was typed before
    "docs/analysis.md": [
        *(f"{ON_DIGITS} runs/{name}" for name in ("mine", "other", "mine_seed1")),
        "fourstage train digit_scenes_mask_rcnn --out runs/detector",
    ],
    "docs/checkpoints.md": ["fourstage train finetune_detection --data boxes --out runs/mine ema=0.9"],
    "docs/export.md": [f"{ON_DIGITS} runs/mine"],
    "docs/predicting.md": ["fourstage train finetune_detection --data boxes --out runs/mine"],
    "docs/evaluation.md": [TO_MINE, *(f"{ON_DIGITS} runs/{name}" for name in "abc")],
}
FROM_A_RUN = "runs/mine/checkpoints/best.pt"  # stands in for files of other programs that describe themselves
DESCRIBED = ("mask_rcnn.pth", "upernet.pth", "mask_rcnn_swin-t.pth", "mask_rcnn_swin_tiny.pth")
WITH_LINES = [page for page in PAGES if lines_of(page)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the files of all pages, and published ones of tiny networks."""
    root = tmp_path_factory.mktemp("material")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(root / "torch"))
        stand_ins.use(patch)
        stand_ins.publish()
        material.write_material(root)
        stand_ins.write_others(root / "common")
    return root


@pytest.fixture
def _published(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start in an empty folder, with small stand-ins for what is published."""
    monkeypatch.setenv("TORCH_HOME", str(files / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    stand_ins.use(monkeypatch)
    stand_ins.without_sums(monkeypatch)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)


def prepare(page: str, files: Path) -> None:
    """Write what the lines of a page name into the current folder, and type what was typed before."""
    material.copy_for(page, files, Path(), download.folder())
    for name, text in yaml_of(page):
        Path(name).write_text(text)
    for line in BEFORE.get(page, ()):
        run(line)


def run(line: str) -> None:
    """Type a line; it ends with exit code 0 and has written what it should."""
    words = words_of(line)
    for name in DESCRIBED:
        if name in words and not Path(name).exists():
            shutil.copy(FROM_A_RUN, name)
    args = cli.parse(words)
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 0, line
    for path in written_by(words, args):
        assert path.exists(), f"{line}: no {path}"


def written_by(words: Sequence[str], args: object) -> list[Path]:
    """Return the files that a command writes."""
    named = [Path(value) for name in ("csv", "results", "out") if (value := getattr(args, name, None))]
    if words[0] == "train" and "--dry-run" not in words:
        folder = Path(getattr(args, "out", None) or f"runs/{Path(words[1]).stem}")
        return [folder / "report.html", folder / "checkpoints" / "best.pt"]
    return named


@pytest.mark.parametrize("page", WITH_LINES)
@pytest.mark.usefixtures("_published")
def test_the_lines_of_a_page_run(page: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(page, files)
    for line in lines_of(page):
        assert cli.parse(words_of(line))
        plain = line.removeprefix(".venv/bin/")
        if not plain.startswith(tuple(PARSED_ONLY)):
            try:
                run(line)
            except AssertionError as error:
                raise AssertionError(f"{page}: {line}\n{capsys.readouterr().err}") from error


@pytest.mark.usefixtures("_published")
def test_the_python_of_the_readme_runs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare("README.md", files)
    run("fourstage train finetune_detection --data boxes --out runs/mine")
    shutil.copy(FROM_A_RUN, "mask_rcnn_swin_tiny.pth")
    names: dict[str, Any] = {}
    exec(python_of("docs/mixers.md")[0], names)
    names |= {"images": torch.randn(2, 3, 64, 64), "MyMixer": names["MeanMixer"]}
    blocks = python_of("README.md")
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, names)
    assert names["done"].metrics.keys() >= {"top1"}
    assert "cat" in capsys.readouterr().out


def test_each_exception_is_needed() -> None:
    lines = [line.removeprefix(".venv/bin/") for page in PAGES for line in lines_of(page)]
    for start in PARSED_ONLY:
        assert any(line.startswith(start) for line in lines), start
    for page in (*BEFORE, *ELSEWHERE):
        assert (ROOT / page).is_file()
    assert set(BEFORE) <= set(WITH_LINES)
