"""Messages of errors say "got 3" and "is not a number", and use the field's words (see CONTRIBUTING.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
AVOIDED = re.compile(
    r", and [^;]* came\b"  # "needs 4 images, and 3 came": write "; got 3"
    r"|(?<!there )\bis no (?!longer\b|such\b)[a-z]"  # write "is not a"
    r"|\b(mend|anew|duel|is told)\b"
)


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every message that is raised, with `{}` for the values in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:
                if isinstance(argument, ast.JoinedStr):
                    pieces = (str(one.value) if isinstance(one, ast.Constant) else "{}" for one in argument.values)
                    yield node.lineno, "".join(pieces)
                elif isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def test_messages_of_errors_are_plain_english() -> None:
    count, avoided = 0, []
    for path in sorted((ROOT / "fourstage").rglob("*.py")):
        for line, text in messages(ast.parse(path.read_text())):
            count += 1
            if AVOIDED.search(text):
                avoided.append(f"{path.relative_to(ROOT)}:{line}: {text}")
    assert count > 500
    assert not avoided, "\n".join(avoided)
