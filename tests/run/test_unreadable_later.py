"""An image that turns out unreadable in the middle of a training, where images are not read in advance."""

import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run.runs import losses, refused, run_setup, stop_before

from fourstage.cli import main
from fourstage.data import bad_images
from fourstage.data.bad_images import with_replacements
from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.data.embedded.digits import Digits
from fourstage.data.objects.coco import Coco
from fourstage.data.objects.dataset import has_objects
from fourstage.data.sample import BadImage, Batch
from fourstage.engine.state import load_state

SHORT = ["length=9it", "batch_size=8", "warmup=0it", "workers=0", "log_every=1", "evaluate_every=9it"]
STILL = ["optimisation.lr=1e-30", "optimisation.min_lr=0", "optimisation.warmup_lr=0"]  # no weight changes
Ids = dict[int, list[str]]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real scans in class folders, which count as too many to be read in advance."""
    monkeypatch.setattr("fourstage.run.splits.SCAN_UP_TO", 0)
    for split, count in (("train", 40), ("val", 10)):
        digits = Digits("train" if split == "train" else "val")
        for index in range(count):
            sample = digits.sample(index)
            path = tmp_path / "photos" / split / f"digit {sample.label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(sample.image)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def ids_of_steps(monkeypatch: pytest.MonkeyPatch) -> Ids:
    """The images of each step that is trained."""
    seen: Ids = {}
    real = run_setup.train_batches

    def batches(*args: Any, first_step: int, **named: Any) -> Generator[list[Batch]]:
        for step, parts in enumerate(real(*args, first_step=first_step, **named), first_step):
            seen[step] = [id for batch in parts for id in batch.ids]
            yield parts

    monkeypatch.setattr(run_setup, "train_batches", batches)
    return seen


def words(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "digits_visformer", "--data", str(data), "--out", str(out), *SHORT, *more]


def spoil(path: Path) -> bytes:
    content = path.read_bytes()
    path.write_bytes(content[:40])
    return content


def test_the_run_goes_on_exactly_for_all_other_images(
    photos: Path, tmp_path: Path, ids_of_steps: Ids, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(words(photos, tmp_path / "intact", *STILL)) == 0
    whole = dict(losses(tmp_path / "intact"))
    intact, broken = dict(ids_of_steps), ids_of_steps[3][2]
    spoil(photos / "train" / broken)
    for name in ("once", "twice"):
        code = main(words(photos, tmp_path / name, *STILL))
        refused(code, capsys, f"{broken} cannot be read", "replace it, or add skip_bad_images=true", "same command")
        assert load_state(tmp_path / name / "checkpoints" / "last.pt")["step"] == 3
    assert main(words(photos, tmp_path / "once", *STILL, "skip_bad_images=true", "workers=1")) == 0
    printed = capsys.readouterr().out
    assert "Continuing" in printed
    assert "not bit for bit" not in printed
    replaced = {s: [b for a, b in zip(intact[s], ids_of_steps[s], strict=True) if a != b] for s in range(3, 9)}
    [taken] = {id for ids in replaced.values() for id in ids}
    assert printed.count(f"{broken} cannot be read; {taken} takes its place.") == 1
    names = sorted(path.relative_to(photos / "train").as_posix() for path in photos.glob("train/*/*.png"))
    assert taken == names[(names.index(broken) + 1) % 40]  # the next one
    found = dict(losses(tmp_path / "once"))
    differs = {step for step in whole if found[step] != whole[step]}
    assert differs == {
        step + 1 for step, ids in intact.items() if broken in ids
    }  # a line counts the steps that are done
    assert differs

    with monkeypatch.context() as patch:  # killed once more
        stop_before(6, patch)
        main(words(photos, tmp_path / "twice", *STILL, "skip_bad_images=true"))
    assert main(words(photos, tmp_path / "twice", *STILL, "skip_bad_images=true")) == 0
    assert losses(tmp_path / "twice") == losses(tmp_path / "once")


def test_a_file_that_is_replaced_is_as_if_nothing_had_happened(
    photos: Path, tmp_path: Path, ids_of_steps: Ids, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(photos, tmp_path / "intact")) == 0
    broken = photos / "train" / ids_of_steps[5][0]
    content = spoil(broken)
    refused(main(words(photos, tmp_path / "run")), capsys, str(broken), "replace it")
    broken.write_bytes(content)
    assert main(words(photos, tmp_path / "run")) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "intact")


def test_an_image_of_the_first_step_stops_a_dry_run(
    photos: Path, tmp_path: Path, ids_of_steps: Ids, capsys: pytest.CaptureFixture[str]
) -> None:
    """No step has been saved yet, and there is no run to continue."""
    assert main(words(photos, tmp_path / "run", "--dry-run")) == 0
    broken = photos / "train" / ids_of_steps[0][0]
    content = spoil(broken)
    line = "replace it, or add skip_bad_images=true, and give the same command again\n"
    code = main(words(photos, tmp_path / "run", "--dry-run"))
    assert capsys.readouterr().err.endswith(f"; {line}")
    assert code == 2
    broken.write_bytes(content)
    assert main(words(photos, tmp_path / "run", "--dry-run")) == 0


def test_a_validation_image_is_left_out_of_the_score(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sorted(photos.glob("val/*/*.png"))[4]
    spoil(broken)
    refused(main(words(photos, tmp_path / "run")), capsys, str(broken), "add skip_bad_images=true")
    assert load_state(tmp_path / "run" / "checkpoints" / "last.pt")["step"] == 9
    assert main(words(photos, tmp_path / "run", "skip_bad_images=true")) == 0
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == 9


def unreadable(*bad: int) -> Callable[[Any, int], Any]:
    def read(self: Any, asked: int) -> Any:
        if asked in bad:
            raise BadImage(f"{asked}.png", "it is broken")
        return asked

    return read


def test_the_next_image_takes_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = Digits("val")
    last = len(digits) - 1
    monkeypatch.setattr(Digits, "sample", unreadable(3, 4, last))
    dataset = with_replacements(digits)
    assert [dataset.sample(i) for i in (2, 3, 4, 5, last)] == [2, 5, 5, 5, 0]
    assert (len(dataset), dataset.classes, dataset.id(3)) == (len(digits), digits.classes, digits.id(3))
    monkeypatch.setattr(bad_images, "TRIES", 2)
    with pytest.raises(BadImage, match=r"3.png"):
        dataset.sample(3)


def test_objects_come_with_the_image_that_takes_the_place(tmp_path: Path) -> None:
    write_digit_scenes(tmp_path / "scenes", train=4, val=1, size=64)
    plain = Coco(tmp_path / "scenes", "train")
    shutil.copyfile(__file__, plain.path(1))
    dataset = with_replacements(plain)
    assert has_objects(dataset)
    assert np.array_equal(dataset.sizes(), plain.sizes())
    found, following = dataset.sample(1), plain.sample(2)
    assert found.id == following.id
    assert found.objects is not None
    assert following.objects is not None
    assert found.objects.boxes_N4.equal(following.objects.boxes_N4)


def test_an_image_that_was_repaired_is_read_again_by_a_fresh_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = sorted(photos.glob("train/*/*.png"))[0]
    content = spoil(broken)
    assert main(words(photos, tmp_path / "run", "skip_bad_images=true")) == 0
    assert "skipped: 1 of 40 images in train" in capsys.readouterr().out
    broken.write_bytes(content)
    assert main(words(photos, tmp_path / "run", "skip_bad_images=true", "--fresh")) == 0
    assert "skipped" not in capsys.readouterr().out


def test_an_image_that_was_repaired_is_read_again_where_none_is_skipped(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message asks for a repair, which therefore has to count."""
    broken = sorted(photos.glob("val/*/*.png"))[0]
    content = spoil(broken)
    with monkeypatch.context() as patch:
        stop_before(6, patch)
        main(words(photos, tmp_path / "run", "skip_bad_images=true"))
    refused(main(words(photos, tmp_path / "run")), capsys, str(broken))
    broken.write_bytes(content)
    assert main(words(photos, tmp_path / "run")) == 0
