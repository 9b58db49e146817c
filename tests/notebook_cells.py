"""Run the cells of a notebook without Jupyter: as one script, line for line as IPython would.

`python tests/notebook_cells.py docs/notebooks/*.ipynb` runs notebooks in an empty folder and keeps their outputs.
"""

import ast
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

SETTINGS = "settings"  # the tag of the cell whose values a reader changes, and a test makes small


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of code."""
    return [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]


def run_cells(path: Path, values: Mapping[str, object] | None = None) -> list[list[dict[str, Any]]]:
    """Run all cells in the current folder and return the outputs of each, as a notebook stores them.

    Args:
        values: replace those of the settings' cell, which must have set them.
    """
    names: dict[str, Any] = {"_shell": _shell}
    outputs = []
    for cell in read_cells(path):
        outputs.append(_run("".join(cell["source"]), names))
        if SETTINGS in cell["metadata"].get("tags", ()):
            unknown = set(values or ()) - names.keys()
            assert not unknown, f"{path.name} has no settings {unknown}"
            names |= values or {}
    return outputs


def _run(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    tree = ast.parse("\n".join(map(_as_python, source.splitlines())))
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    text = io.StringIO()
    with redirect_stdout(text):
        exec(compile(tree, "<cell>", "exec"), names)
        value = (
            None
            if not isinstance(last, ast.Expr)
            else eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
        )
    printed = [{"output_type": "stream", "name": "stdout", "text": _lines(text.getvalue())}] if text.getvalue() else []
    return printed + ([] if value is None else [_shown(value)])


def _as_python(line: str) -> str:
    """Return a line of IPython as Python: after `!` stands a command with `{values}`."""
    return f"_shell(rf'''{line.removeprefix('!')}''')" if line.startswith("!") else line


def _shell(command: str) -> None:
    start = f'"{sys.executable}" -m fourstage '
    assert command.startswith("fourstage "), "a notebook types no other program"
    done = subprocess.run(
        start + command.removeprefix("fourstage "), shell=True, capture_output=True, text=True, check=False
    )
    print(done.stdout, end="")
    assert done.returncode == 0, done.stderr


def _shown(value: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"text/plain": _lines(repr(value))}
    if hasattr(value, "_repr_png_"):
        data["image/png"] = base64.b64encode(value._repr_png_()).decode()
    return {"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data}


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def keep_outputs(path: Path) -> None:
    """Run a notebook in an empty folder and write its outputs into it."""
    path, here = path.resolve(), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        outputs = iter(run_cells(path))
        os.chdir(here)
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, some) in enumerate(zip(code, outputs, strict=True), start=1):
        cell["execution_count"], cell["outputs"] = number, some
        for output in some:
            output.update({"execution_count": number} if "execution_count" in output else {})
    text = json.dumps(notebook, indent=1, ensure_ascii=False).replace(f"{Path(folder).resolve()}/", "")
    path.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        keep_outputs(Path(name))
