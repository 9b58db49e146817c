"""Work on many images in threads: decoding and hashing let other threads run."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fourstage.data.sample import Progress

CHUNK = 1024  # items that wait in the pool at a time; a million futures would need a gigabyte

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None = None
) -> Iterator[Result]:
    """Yield the results in the order of the items.

    Args:
        progress: called with (results yielded, items in all).
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            for done, result in enumerate(pool.map(function, chunk), start + 1):
                yield result
                if progress is not None:
                    progress(done, len(items))
