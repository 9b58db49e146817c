"""Batch norms that would take their statistics from a single value."""

from collections.abc import Iterator
from contextlib import contextmanager

NEED = "a training step needs more than one value per channel in each batch norm"
IN_TRAINING = "train with two images or more at a time, or on larger images"


@contextmanager
def enough_values(advice: str = IN_TRAINING) -> Iterator[None]:
    """Raise ValueError with advice where torch refuses to normalise a single value per channel."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if "more than 1 value per channel" in str(error):
            raise ValueError(f"{NEED}; {advice}") from error
        raise
