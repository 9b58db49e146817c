"""Checks of data and checkpoints that every task shares. Each message is one sentence."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from fourstage.data.sample import Dataset
from fourstage.plurals import plural
from fourstage.recipe import Recipe
from fourstage.user_files import where_raised
from fourstage.weights.reading.safe import Checkpoint


def check_truth(recipe: Recipe, dataset: Dataset, truth: str, missing: str, example: str) -> None:
    """Raise ValueError unless the samples have this truth and the data as many classes as the recipe says.

    Args:
        missing: what data without the truth lacks, such as "no boxes".
        example: data that has it.
    """
    if truth not in dataset.truths:
        raise ValueError(f"{recipe.data} has {missing}, but {recipe.name} is a {recipe.task} recipe; give {example}")
    wanted, actual = getattr(recipe, "num_classes", None), len(dataset.classes)
    if wanted is not None and wanted != actual:
        raise ValueError(
            f"{recipe.data} has {plural(actual, 'class', 'classes')}, but the recipe says num_classes={wanted}; write "
            f"num_classes={actual}, or num_classes=null for the number that the data has"
        )


def check_same_classes(weights: str | Path, file: Checkpoint, classes: Sequence[str]) -> None:
    """Raise ValueError where a checkpoint was trained on the same number of other classes than the data has.

    The checkpoint of a run must have exactly the names of the data. Foreign checkpoints spell the names of a published
    data set in their own way, or the data has numbers only: there, only the same names in another order are a mistake.
    """
    ours = file.content.get("fourstage") is not None
    spell = str if ours else simplified
    known, given = [spell(name) for name in file.classes or classes], [spell(name) for name in classes]
    if known == given or (not ours and sorted(known) != sorted(given)):
        return
    theirs, mine = next(pair for pair in zip_longest(file.classes or (), classes) if pair[0] != pair[1])
    raise ValueError(
        f"{weights} was trained on other classes than the data has: the checkpoint has {theirs!r} where the data has "
        f"{mine!r}; give the data that it was trained on with --data"
    )


def failed_on_image(network: str, size: tuple[int, int], error: Exception) -> str:
    """Return the sentence on a network that raises an error for an image of (H, W) pixels."""
    reason = (str(error).splitlines() or [""])[0]
    return (
        f"{network} failed on an image of {size[0]} x {size[1]} pixels ({type(error).__name__}: {reason}, at "
        f"{where_raised(error)}); correct it, or choose another network"
    )


def simplified(name: str) -> str:
    """Return the name of a class as foreign files are compared: case and underscores do not count."""
    return " ".join(name.lower().replace("_", " ").split())
