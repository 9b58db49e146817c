"""One rule for everything that a user's file registers: the same place may register a name again, another may not."""

import importlib
import re
import sys
from pathlib import Path

import pytest
from torch import nn

import fourstage
from fourstage import methods, registry
from fourstage.data import formats
from fourstage.recipe import resolve, resolve_run
from fourstage.tasks.detection.matching import OverlapMatcher, ThresholdMatcher
from fourstage.user_files import PREFIX, import_files, imported_files

FILES = {
    "network": "@fourstage.register\ndef thing(num_classes=3):\n    return nn.Identity()\n",
    "family": "registry.add('thing', classifier=partial(nn.Linear, 1), dense=nn.Identity, aliases=('other',))\n",
    "mixer": "@fourstage.register_mixer\nclass thing(nn.Identity):\n    pass\n",
    "detector": "@fourstage.register_detector\nclass thing(nn.Identity):\n    pass\n",
    "segmentor": "@fourstage.register_segmentor\ndef thing(backbone, num_classes):\n    return backbone\n",
    "format": "@fourstage.register_format('thing', layout='', fits=lambda root: False)\nclass thing:\n    pass\n",
}
HEAD = "from functools import partial\n\nfrom torch import nn\n\nimport fourstage\nfrom fourstage import registry\n\n"
TAKEN = "two (models|mixers|formats) are called 'thing'|there is a (detector|segmentor) called 'thing' already"


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test what its files register."""
    registry.list_models()  # imports all families, which register only once
    for module, table in ((registry, "_entries"), (registry, "_mixers"), (methods, "_registered")):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))
    monkeypatch.setattr(formats, "_registered", {})
    for name in [name for name in sys.modules if name.startswith(PREFIX) or name == "thing_file"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "thing_file.py"
    path.write_text(HEAD + FILES[request.param])
    return path


def test_an_import_and_a_recipe_may_run_the_same_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    importlib.import_module("thing_file")
    import_files([file])
    importlib.reload(sys.modules["thing_file"])


def test_another_file_may_not_take_the_name(file: Path) -> None:
    import_files([file])
    other = file.with_name("other.py")
    other.write_text(file.read_text())
    with pytest.raises(ValueError, match=rf"other\.py, line \d+: ValueError: ({TAKEN})"):
        import_files([other])


def test_a_file_that_raises_may_be_corrected_and_imported_again(file: Path) -> None:
    good = file.read_text()
    file.write_text(f"{good}\n1 / 0\n")
    for _ in range(2):
        with pytest.raises(ValueError, match="ZeroDivisionError"):
            import_files([file])
    file.write_text(good)
    import_files([file])


def test_a_cell_of_a_notebook_may_run_again() -> None:
    for kind, code in FILES.items():
        for _ in range(2):
            exec(HEAD + code.replace("thing", f"thing_of_{kind}"), {"__name__": "a_notebook"})


def test_the_position_of_a_file_among_the_imports_does_not_matter(file: Path) -> None:
    other = file.with_name("empty.py")
    other.write_text("")
    import_files([file])
    import_files([other, file])
    assert [path for _, path in imported_files()] == [str(file.resolve()), str(other.resolve())]


def test_a_relative_path_has_the_right_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n\n{}['key']\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"mine\.py, line 3: KeyError"):
        import_files(["mine.py"])


@pytest.mark.parametrize("name", ["register", "register_mixer", "register_detector", "register_segmentor"])
def test_lambdas_and_instances_have_no_name(name: str) -> None:
    for thing in (lambda **arguments: nn.Identity(), nn.Identity(), "x"):
        with pytest.raises(ValueError, match="registered by the name of its class or function"):
            getattr(fourstage, name)(thing)


def test_an_unknown_name_may_be_ones_own() -> None:
    for ask in (
        lambda: fourstage.create_detector("Wide", "visformer_digits", 3),
        lambda: fourstage.create_backbone("Wide"),
        lambda: fourstage.create_backbone("unified_pvt_micro", mixer="Wide"),
    ):
        with pytest.raises(ValueError, match=r"is called 'Wide'; .*if it is your own, add --imports FILE\.py, name"):
            ask()


def test_imports_may_be_one_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: digits_visformer\nimports: mine.py\n")
    assert resolve(tmp_path / "mine.yaml").recipe.imports == (str(tmp_path / "mine.py"),)


@pytest.fixture
def run_recipe(tmp_path: Path) -> Path:
    """The recipe of a run folder that wants two files."""
    (tmp_path / "changes.json").write_text("{}")
    for name in ("mine.py", "more mine.py"):
        (tmp_path / name).write_text("")
    files = [str(tmp_path / name) for name in ("mine.py", "more mine.py")]
    (tmp_path / "recipe.yaml").write_text(f"base: digits_visformer\nimports: {files}\n")
    return tmp_path / "recipe.yaml"


def test_the_recipe_of_a_run_folder_runs_nothing_by_itself(run_recipe: Path, tmp_path: Path) -> None:
    wanted = rf"if you trust them, add --imports {tmp_path}/mine.py --imports '{tmp_path}/more mine.py'"
    for ask in (lambda: resolve(run_recipe), lambda: resolve_run(tmp_path)):
        with pytest.raises(ValueError, match=re.escape(wanted)):
            ask()
    other = tmp_path / "other.py"
    for resolved in (
        resolve(run_recipe, imports=[other]),
        resolve_run(tmp_path, imports=[other]),
        resolve(run_recipe, [f"imports=[{other}]"]),
    ):
        assert resolved.recipe.imports == (str(other),)
    (tmp_path / "changes.json").unlink()  # then it is a file of the user, who names it
    assert len(resolve(run_recipe, imports=[other]).recipe.imports) == 3
    with pytest.raises(ValueError, match="which a run folder or a checkpoint alone does not run"):
        resolve_run(tmp_path)


def test_files_that_have_run_in_this_process_count(run_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    moved = [(tmp_path / name).rename(tmp_path / "mine" / name) for name in ("mine.py", "more mine.py")]
    import_files(moved)
    assert resolve(run_recipe).recipe.imports == tuple(map(str, moved))


def test_a_matcher_takes_the_anchors_of_each_level() -> None:
    import torch

    with pytest.raises(ValueError, match=r"got one tensor of shape \(5, 4\); give \[anchors\]"):
        OverlapMatcher(ThresholdMatcher(0.5, 0.4))(torch.zeros(5, 4), torch.zeros(1, 4))  # pyright: ignore
