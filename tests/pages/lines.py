"""The command lines of a page: lines in fenced blocks that begin with `fourstage`, or that start it with torchrun."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
STARTS = ("fourstage ", ".venv/bin/fourstage ", "torchrun ")
ELSEWHERE = {  # pages whose lines another test runs, and pages of records
    "docs/coming-from.md": "tests/test_coming_from.py",
    "docs/clusters.md": "tests/test_coming_from.py",
    "docs/log.md": "a record of what was typed once",
}
PAGES = sorted(
    name
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    if (name := str(path.relative_to(ROOT))) not in ELSEWHERE
)


def lines_of(page: str) -> list[str]:
    """Return the lines of a page without their comments; a line that ends in a backslash goes on in the next."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    typed = [block.replace("\\\n", " ") for language, block in blocks if language in ("", "sh")]
    lines = [line for block in typed for line in block.splitlines()]
    return [re.split(r"\s+#", line)[0].strip() for line in lines if line.startswith(STARTS) and "fourstage " in line]


def python_of(page: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def yaml_of(page: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of the recipes of a page: the comment in their first line is the file's name."""
    for text in re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE):
        if (named := re.match(r"# ([\w-]+\.yaml)\n", text)) is not None:
            yield named[1], text


def words_of(line: str) -> list[str]:
    """Return the words after `fourstage`, whatever starts its processes."""
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if word.rpartition("/")[2] == "fourstage")
    return words[start + 1 :]
