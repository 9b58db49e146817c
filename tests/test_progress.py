"""Progress: the time left of one command, and of several in a row."""

import pytest

from fourstage import progress
from fourstage.progress import STAGE, Bar, Stage


def bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, main: bool, first: int = 0) -> str:
    """Return the line after 10 s, in which 10 of 40 steps were done."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Bar("training", 40, first, every=5, main=main) as shown:
        now[0] += 10
        shown.update(first + 10, "note")
    return capsys.readouterr().err


def test_the_time_left_of_all_stages_follows_from_their_shares(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STAGE, raising=False)
    assert bar(capsys, monkeypatch, main=True) == "training 10/40  0:30 left  note\n"
    monkeypatch.setenv(STAGE, "2/3 20,40,80")  # this one takes 40 s, so the third takes 80
    assert bar(capsys, monkeypatch, main=True) == "stage 2/3  training 10/40  1:50 left in all  note\n"
    assert bar(capsys, monkeypatch, main=True, first=20) == "stage 2/3  training 30/40  1:30 left in all  note\n"
    assert bar(capsys, monkeypatch, main=False) == "stage 2/3  training 10/40  0:30 left  note\n"
    monkeypatch.setenv(STAGE, "3/3 20,40,80")
    assert bar(capsys, monkeypatch, main=True) == "stage 3/3  training 10/40  0:30 left in all  note\n"


@pytest.mark.parametrize("text", ["", "2", "2/3", "0/1 5", "4/3 1,1,1", "2/3 1,1", "1/2 1,x", "1/2 1,0", "a/b 1,1"])
def test_nonsense_is_no_stage(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STAGE, text)
    assert Stage.here() is None
