"""A run folder may come from anyone: nothing is written outside it, nothing waits, and nothing changed is silent."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from run.runs import refused

from fourstage.cli import main
from fourstage.files import check_no_links, open_to_lock
from fourstage.recipe import resolve
from fourstage.report.read import read_run
from fourstage.run.folder import FOLDERS, WRITTEN, RunFolder
from fourstage.run.splits import scans_before
from fourstage.run.states import damaged_line

TRAIN = ["train", "digits_visformer", "length=1it", "batch_size=16", "warmup=0it", "workers=0"]


def begun(path: Path) -> RunFolder:
    folder = RunFolder(path)
    folder.begin(resolve("digits_visformer"), {})
    folder.release()
    return folder


@pytest.mark.parametrize("name", [*WRITTEN, "wandb", "checkpoints/last.pt", "samples/000.png", "slurm/job.sh"])
def test_a_symbolic_link_is_never_written_through(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, out = tmp_path / "precious", tmp_path / "run"
    target.write_text("precious")
    begun(out)
    path = out / name
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    refused(main([*TRAIN, "--out", str(out)]), capsys, f"{path} is a symbolic link")
    refused(main([*TRAIN, "--out", str(out), "--fresh"]), capsys, f"{path} is a symbolic link")
    assert target.read_text() == "precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["precious", "run"]


@pytest.mark.parametrize("name", [".lock", "log.jsonl"])
def test_a_hard_link_is_not_changed_in_place(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, out = tmp_path / "precious", tmp_path / "run"
    target.write_text("precious")
    begun(out)
    (out / name).unlink(missing_ok=True)
    (out / name).hardlink_to(target)
    refused(main([*TRAIN, "--out", str(out)]), capsys, f"{out / name} is a hard link")
    assert target.read_text() == "precious"


@pytest.mark.parametrize("name", [".lock", "recipe.yaml", "log.jsonl", "checkpoints/last.pt", "computation.json"])
def test_a_pipe_in_place_of_a_file_is_never_waited_for(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "run")
    (tmp_path / "run" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "run" / name)
    refused(main([*TRAIN, "--out", str(tmp_path / "run")]), capsys, f"{name} is a named pipe")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_folder_in_place_of_a_file_and_the_other_way_round_are_sentences(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = begun(tmp_path / "run").path / name
    if name in FOLDERS:
        if path.exists():
            path.rmdir()
        path.touch()
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
    found = "file, and a run writes a folder" if name in FOLDERS else "folder, and a run writes a file"
    refused(main([*TRAIN, "--out", str(tmp_path / "run")]), capsys, f"{path} is a {found} of this name", "--out")


def test_a_damaged_file_is_named_once_in_the_message_of_a_report(tmp_path: Path) -> None:
    path = begun(tmp_path / "run").path / "evaluation.json"
    for content in ("{", "[" * 200_000):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"evaluation\.json is damaged") as raised:
            read_run(path.parent)
        assert str(raised.value).count(str(path)) == 1, raised.value
        assert "; correct it" not in str(raised.value)


@pytest.mark.parametrize(
    "content", ["", "{", "7", "[]", "\0", '{"train": 7}', '{"train": {"ids": 3, "bad": {}}}', "[" * 100_000]
)
def test_damaged_lists_of_unreadable_images_are_made_again(content: str, tmp_path: Path) -> None:
    known, good = tmp_path / "bad_images.json", {"ids": "a", "bad": {"x.png": "it is empty"}}
    known.write_text(content)
    assert scans_before(known) == {}
    known.write_text(json.dumps({"train": good, "val": {**good, "bad": {"x.png": 1}}}))
    assert scans_before(known) == {"train": good}


def test_links_of_the_user_elsewhere_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    folder = begun(tmp_path / "link")
    (folder.path / "notes").symlink_to(tmp_path)
    (folder.path / "wandb").mkdir()
    (folder.path / "wandb" / "latest-run").symlink_to(tmp_path)
    folder.check_usable(resolve("digits_visformer").recipe, fresh=False)
    with pytest.raises(ValueError, match="notes is a symbolic link"):
        check_no_links(folder.path, ["notes"])


def test_a_lock_keeps_the_content_of_its_file(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("kept")
    open_to_lock(tmp_path / ".lock").close()
    assert (tmp_path / ".lock").read_text() == "kept"


@pytest.mark.parametrize("place", range(0, 2000, 97))
def test_a_changed_recipe_is_noticed(place: int, tmp_path: Path) -> None:
    folder = begun(tmp_path)
    path = tmp_path / "recipe.yaml"
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe\.yaml "):
        folder.recipe()


def test_a_recipe_that_was_changed_on_purpose_is_read_without_its_sum(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    *lines, last = (tmp_path / "recipe.yaml").read_text().splitlines(keepends=True)
    assert last.startswith("# CRC-32")
    (tmp_path / "recipe.yaml").write_text("".join(lines).replace("seed: 0", "seed: 5"))
    assert folder.recipe().seed == 5


@pytest.mark.parametrize(
    "line", ['{"kind": "train", "stfp": 1}', '{"kind": "train", "step": "x"}', "[1, 2]", "7", "[" * 5000, "\x00", "{"]
)
def test_a_damaged_log_is_a_sentence(line: str, tmp_path: Path) -> None:
    folder = begun(tmp_path)
    folder.log.write_text(json.dumps({"kind": "train", "step": 1}) + f"\n{line}\n" + json.dumps({"kind": "x"}) + "\n")
    with pytest.raises(ValueError, match="damaged"):
        read_run(tmp_path)
    assert damaged_line(folder.log) == (0 if line.startswith('{"kind"') else 2)


HOSTILE: dict[str, Callable[[], str]] = {
    "changes.json": lambda: '{"changes": {"a": 5}}',
    "environment.json": lambda: "[" * 100_000,
    "evaluation.json": lambda: '{"tables": {"confusion": [[1e999]], "per_class": [5]}, "classes": 7}',
    "records.jsonl": lambda: '{"top": [[[]]], "truth": {}}\n',
    "recipe.yaml": lambda: "a: &a [*a]",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_of_a_run_are_a_sentence_in_a_report(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path / "run")
    (tmp_path / "run" / name).write_text(HOSTILE[name]())
    words = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "a.html")]
    refused(main(words), capsys, str(tmp_path / "run"))
