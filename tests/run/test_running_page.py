"""docs/running.md names every file and folder of a run."""

from pathlib import Path

from fourstage.run.analyze.outputs import INSIDE
from fourstage.run.folder import LOCK, WRITTEN

PAGE = (Path(__file__).parents[2] / "docs" / "running.md").read_text(encoding="utf-8")


def test_every_file_and_folder_of_a_run_is_on_the_page() -> None:
    listed = PAGE.split("```\n")[1]
    missing = [name for name in (*WRITTEN, INSIDE) if name not in listed and name != LOCK]
    assert not missing, f"docs/running.md lacks {missing}"
