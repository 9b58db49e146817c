"""What an installation gives programs that run elsewhere."""

import subprocess
import sys
from pathlib import Path


def test_a_program_beside_a_clone_finds_the_package(tmp_path: Path) -> None:
    """The folder of the clone has the package's name, and Python would take it for a package without files."""
    (tmp_path / "fourstage").mkdir()
    program = "import fourstage; print(fourstage.create_model.__name__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("create_model\n", "")
