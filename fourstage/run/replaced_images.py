"""Images that turn out unreadable during a training: how it goes on, and which images took their places."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from typing import Any

from fourstage.data.loader import TrainPlan
from fourstage.data.sample import BadImage, Batch, Dataset
from fourstage.streams import print_lines


@contextmanager
def advice(skips: bool, *, begun: bool = True) -> Generator[None]:
    """Add to the error of an image what lets the run begin or go on.

    Args:
        skips: whether others take the places of such images already; then many in a row cannot be read.
        begun: whether the run has completed steps.

    Raises:
        ValueError: with that advice, instead of BadImage.
    """
    try:
        yield
    except BadImage as error:
        if skips:
            do = "many images behind it cannot be read either; check the disk or the network folder"
        else:
            do = f"{'every completed step is saved: ' if begun else ''}replace it, or add skip_bad_images=true"
        again = "give the same command again" + (" to continue the run" if begun else "")
        raise ValueError(f"{error}; {do}, and {again}") from error


def report_replaced(
    steps: Generator[list[Batch]], first: int, order: TrainPlan, dataset: Dataset
) -> Generator[list[Batch]]:
    """Yield the batches of each step from `first` on, and print once for each image which one took its place."""
    reported: set[int] = set()
    with closing(steps):
        for step, batches in enumerate(steps, first):
            for index, id in _replaced(batches, step, order, dataset):
                if index not in reported:
                    print_lines(f"{dataset.id(index)} cannot be read; {id} takes its place.")
                    reported.add(index)
            yield batches


def _replaced(batches: Sequence[Batch], step: int, order: TrainPlan, dataset: Dataset) -> Iterable[tuple[int, Any]]:
    for number, batch in enumerate(batches):
        for index, id in zip(order.request(step, number).indices, batch.ids, strict=True):
            if id != dataset.id(index):
                yield index, id
