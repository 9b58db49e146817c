"""What every task asks of its data and of checkpoints, in one sentence each."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from fourstage.data.sample import Dataset
from fourstage.recipe import Recipe
from fourstage.report.number_format import plural
from fourstage.weights.reading.safe import Checkpoint


def check_truth(recipe: Recipe, dataset: Dataset, truth: str, lacks: str, give: str) -> None:
    """Raise ValueError unless the samples have this truth, and as many classes as the recipe says.

    Args:
        lacks: what data without the truth has not, such as "no boxes".
        give: data that has it.
    """
    if truth not in dataset.truths:
        raise ValueError(f"{recipe.data} has {lacks}, and {recipe.name} is a {recipe.task} recipe; give {give}")
    wanted, found = getattr(recipe, "num_classes", None), len(dataset.classes)
    if wanted is not None and wanted != found:
        raise ValueError(
            f"{recipe.data} holds {plural(found, 'class', 'classes')}, and the recipe says num_classes={wanted}; write "
            f"num_classes={found}, or num_classes=null for as many as the data has"
        )


def check_same_classes(weights: str | Path, file: Checkpoint, classes: Sequence[str]) -> None:
    """Raise ValueError where a checkpoint was trained on other classes than the data has, of the same number.

    A run's own checkpoint must know the very names. Others spell the names of a published data set in their own way, or
    the data has numbers alone: there only the same names in another order are a mistake.
    """
    ours = file.content.get("fourstage") is not None
    spelt = str if ours else _plain
    known, given = [spelt(name) for name in file.classes or classes], [spelt(name) for name in classes]
    if known == given or (not ours and sorted(known) != sorted(given)):
        return
    theirs, mine = next(pair for pair in zip_longest(file.classes or (), classes) if pair[0] != pair[1])
    raise ValueError(
        f"{weights} was trained on other classes than the data has: where it knows {theirs!r}, the data has {mine!r}; "
        f"give the data that it was trained for with --data"
    )


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").split())
