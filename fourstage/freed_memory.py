"""The memory of freed tensors on a CPU under Linux.

glibc gives freed memory back to the system: blocks above a threshold at once (at first 128 KiB, later up to 32 MiB),
and the free end of its heap where it is above twice that. The next tensors get new pages, which may cost more time
than what is computed in them: a ninth of a training step of Swin-T at 8 images of 224 pixels, a seventh of a pass over
an image of detection.
"""

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's mallopt
LARGEST = 2**25  # bytes: the highest threshold for a block that every glibc takes
KEPT = 2**31 - 1  # bytes: the largest number that it takes
SETTINGS = ("trim_threshold", "top_pad", "mmap_threshold", "mmap_max")


@cache
def keep_freed_memory() -> None:
    """Let the C library keep freed blocks of up to 32 MiB, and up to 2 GiB of free memory at the end of its heap.

    Once in a process, and not where the environment has settings of glibc for this. No memory is touched.
    """
    _set({M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: KEPT})


def keep_all_freed_memory() -> None:
    """Let the C library keep blocks of any size too, in a process that needs the same memory in each of its steps."""
    _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: KEPT})


def _set(values: dict[int, int]) -> None:
    """Call glibc's mallopt. Elsewhere, and with other allocators, nothing changes."""
    if sys.platform != "linux" or _is_set_by_user():
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for parameter, value in values.items():
            library.mallopt(parameter, value)


def _is_set_by_user() -> bool:
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    return any(os.environ.get(f"MALLOC_{name.upper()}_") or f"glibc.malloc.{name}=" in tunables for name in SETTINGS)
