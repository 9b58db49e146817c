"""The recipe of a run that has begun: what was fitted to its data then holds for as long as the run continues."""

from pathlib import Path

from fourstage.documents import read_json
from fourstage.recipe.resolve import RUN_RECIPE, Resolved, flatten


def as_begun(resolved: Resolved, folder: Path) -> Resolved:
    """Return a recipe with the values that were fitted to the data when the run in the folder began.

    A value counts only where the recipe still has the one that it replaced, and where the user did not set it. A folder
    without a run changes nothing.
    """
    path = folder / "changes.json"
    if not (folder / RUN_RECIPE).exists() or not path.is_file():
        return resolved
    try:
        content = read_json(path)
    except ValueError:
        return resolved  # the comparison with recipe.yaml says what differs
    fitted = content.get("fitted") if isinstance(content, dict) else None
    if not isinstance(fitted, dict):
        return resolved
    now = flatten(resolved.recipe.model_dump(mode="json"))
    values = {
        key: pair[1]
        for key, pair in fitted.items()
        if isinstance(pair, list) and len(pair) == 2 and now.get(key) == pair[0] and key not in resolved.given
    }
    try:
        return resolved.fit(values)
    except ValueError:  # of a file that somebody changed
        return resolved
