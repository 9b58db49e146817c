"""Formats that users register: they are asked first, and checks, dry runs and loader processes know them."""

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fourstage
from fourstage.cli import main
from fourstage.data import formats
from fourstage.data.checks.check import check
from fourstage.data.formats import find_format, open_dataset
from fourstage.data.loader import _Fetch
from fourstage.user_files import PREFIX, import_files, module_name

FORMAT = """
from pathlib import Path

import fourstage
from fourstage.data.findings import Checked, Finding, Summary
from fourstage.data.images import read_image
from fourstage.data.sample import Sample


def fits(root):
    return (root / "flat.txt").is_file()


def look(root, progress):
    return Checked([Finding("warning", "odd name", str(root / "flat.txt"), "is flat", "that is fine")], Summary("flat"))


@fourstage.register_format("flat", layout="flat.txt", fits=fits{check})
class Flat:
    truths, classes = ("label",), ("even", "odd")

    def __init__(self, root, split):
        self.root, self.names = root, (root / "flat.txt").read_text().split()

    def __len__(self):
        return len(self.names)

    def id(self, index):
        return self.names[index]

    def sample(self, index):
        image_HW3 = read_image(self.root / self.names[index])
        return Sample(self.names[index], image_HW3, image_HW3.shape[:2], label=index % 2)
"""
Picture = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget after each test what its files register, and the files, which a process that is started would run too."""
    monkeypatch.setattr(formats, "_registered", {})
    yield
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        del sys.modules[name]
    for name in [name for name in sys.modules if name.startswith(PREFIX)]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def data(tmp_path: Path, picture: Picture) -> Path:
    """Class folders, which are an ImageFolder too, with the file that makes them a `flat`."""
    names = [f"{name}/{i}.png" for name in ("train/a", "train/b") for i in range(6)]
    for i, name in enumerate(names):
        picture(f"data/{name}", width=33 + i)
    (tmp_path / "data" / "flat.txt").write_text("\n".join(names))
    return tmp_path / "data"


def write(path: Path, check: str = "") -> Path:
    path.write_text(FORMAT.replace("{check}", check))
    return path


def test_a_users_format_is_asked_first(data: Path, tmp_path: Path) -> None:
    assert find_format(data).name == "ImageFolder"
    import_files([write(tmp_path / "mine.py")])
    assert find_format(data).name == "flat"
    assert len(open_dataset(data, "train")) == 12
    (data / "flat.txt").unlink()
    assert find_format(data).name == "ImageFolder"
    with pytest.raises(ValueError, match=r"supported layouts:\n  flat: flat.txt\n  COCO: "):
        find_format(tmp_path)


def test_a_name_is_given_once(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.py"), write(tmp_path / "b.py")
    import_files([first])
    import_files([first])  # it does not run again
    with pytest.raises(ValueError, match=r"b\.py, line 18: ValueError: two formats are called 'flat'"):
        import_files([second])
    sys.modules.pop(module_name(first))
    import_files([first])  # it runs again, as after a change in a notebook
    with pytest.raises(ValueError, match="two formats are called 'COCO'"):
        fourstage.register_format("COCO", layout="", fits=lambda root: False)


def test_the_truth_decides_where_several_formats_fit(data: Path, tmp_path: Path) -> None:
    import_files([write(tmp_path / "mine.py", ', truth="objects"')])
    assert find_format(data, "objects").name == "flat"
    assert find_format(data, "label_map_HW").name == "flat"  # the first that fits: its task then says what is missing


def test_check_runs_the_users_checker(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write(tmp_path / "mine.py", ", check=look")
    assert main(["data", "check", str(data), "--imports", str(mine)]) == 0
    shown = capsys.readouterr().out
    assert "flat, checked in" in shown
    assert "flat.txt is flat: that is fine" in shown


def test_check_says_that_there_is_no_checker(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write(tmp_path / "mine.py")
    assert main(["data", "check", str(data), "--imports", str(mine)]) == 2
    assert "the format 'flat' has no checker" in capsys.readouterr().err
    with pytest.raises(ValueError, match="has no checker"):
        check(data)
    assert main(["data", "check", str(data), "--imports", str(tmp_path / "gone.py")]) == 2
    assert "there is no Python file" in capsys.readouterr().err


def test_a_dry_run_opens_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "mine.py")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "base: digits_visformer\nimports: [mine.py]\ndata: data\nworkers: 0\noptimisation: {batch_size: 4}\n"
    )
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--dry-run"]) == 0
    assert "12 training images" in capsys.readouterr().out
    (data / "flat.txt").write_text("gone.png")
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--dry-run"]) == 2


def test_show_draws_it(data: Path, tmp_path: Path) -> None:
    write(tmp_path / "mine.py")
    (tmp_path / "mine.yaml").write_text("base: digits_visformer\nimports: [mine.py]\n")
    out = tmp_path / "sheet.png"
    assert main(["data", "show", str(data), "--recipe", str(tmp_path / "mine.yaml"), "--out", str(out)]) == 0
    assert out.is_file()


def test_a_spawned_process_finds_the_users_class(data: Path, tmp_path: Path) -> None:
    import_files([write(tmp_path / "mine.py")])
    dataset = open_dataset(data, "train")
    (tmp_path / "fetch").write_bytes(pickle.dumps(_Fetch(dataset, copy.copy, None)))
    code = (
        "import pickle, sys\nfrom pathlib import Path\n"
        "fetch = pickle.loads(Path(sys.argv[1]).read_bytes())\nprint(fetch.dataset.sample(3).id, len(fetch.dataset))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "fetch")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [dataset.id(3), "12"]


def test_a_fits_that_raises_is_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = write(tmp_path / "mine.py")
    mine.write_text(mine.read_text().replace("return (root", "return 1 / 0 and (root"))
    assert main(["data", "check", str(data), "--imports", str(mine)]) == 2
    sentence = capsys.readouterr().err
    assert f"the format 'flat' failed on {data} (ZeroDivisionError: division by zero, at {mine}, line 11)" in sentence
    assert "correct its fits" in sentence


def test_name_and_truth_of_a_format_are_checked() -> None:
    with pytest.raises(ValueError, match="the name of a format is text"):
        fourstage.register_format(3, layout="", fits=lambda root: False)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"truth is one of label, objects, label_map_HW; .* 'boxes'"):
        fourstage.register_format("mine", layout="", fits=bool, truth="boxes")  # pyright: ignore[reportArgumentType]
