"""What `FILE.py[:NAME]` names, and the one sentence for everything else."""

from pathlib import Path
from textwrap import dedent

import pytest

from fourstage.check.candidates import find_candidate

TWO = """\
    import fourstage
    from functools import partial
    from torch import nn

    class First(nn.Module):
        def __init__(self, dim, side=3):
            super().__init__()

    class Second(First):
        pass

    class Helper(nn.Module):
        def __init__(self, width):
            super().__init__()

    class Plain:
        pass

    wide = partial(First, side=5)
    number = 3

    def backbone():
        return First(8)
    """
REGISTERED = """\
    import fourstage
    from torch import nn

    class Helper(nn.Module):
        def __init__(self, dim):
            super().__init__()

    @fourstage.register_mixer
    class CandidateMixer(Helper):
        pass
    """


def write(folder: Path, text: str) -> str:
    path = folder / "mine.py"
    path.write_text(dedent(text))
    return str(path)


@pytest.mark.parametrize(
    ("name", "kind"), [("First", "mixer"), ("wide", "mixer"), ("Helper", "mixer"), ("backbone", "backbone")]
)
def test_a_name_is_found(name: str, kind: str, tmp_path: Path) -> None:
    candidate = find_candidate(f"{write(tmp_path, TWO)}:{name}")
    assert (candidate.name, candidate.kind) == (name, kind)


def test_the_registered_one_is_taken(tmp_path: Path) -> None:
    assert find_candidate(write(tmp_path, REGISTERED)).name == "CandidateMixer"


def test_a_registered_network_is_a_backbone(tmp_path: Path) -> None:
    text = """\
        import fourstage
        from torch import nn

        @fourstage.register
        def check_net(depth=2):
            return nn.Identity()
        """
    assert find_candidate(write(tmp_path, text)).kind == "backbone"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (TWO, "", ("several", "First, Second", "mine.py:First")),
        (TWO, ":Frist", ("defines no Frist", "did you mean First")),
        (TWO, ":zzz", ("defines no zzz", "it has First, Second")),
        (TWO, ":Plain", ("no torch.nn.Module",)),
        (TWO, ":number", ("type int",)),
        ("x = 1\n", "", ("no mixer and no backbone", "mine.py:MyMixer")),
        ("def f(:\n", "", ("line 1", "SyntaxError")),
        ("x = 1\n1 / 0\n", "", ("line 2", "ZeroDivisionError")),
    ],
)
def test_another_file_gives_one_sentence(text: str, name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words are checked below
        find_candidate(write(tmp_path, text) + name)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for source in (tmp_path / "none.py", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            find_candidate(str(source))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="is not a Python file"):
        find_candidate(str(tmp_path / "notes.txt"))
