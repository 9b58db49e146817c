"""The memory of large tensors on a CPU under Linux.

glibc gives every freed block above a threshold back to the system, and the next tensor of that size gets new pages,
which may cost more time than what is computed in them. The threshold begins at 128 KiB and rises to the largest block
that a program has freed, at most 32 MiB. A network may never free one that is as large as what it needs together.
"""

import sys
from functools import cache

import torch

LARGEST = 2**25 - 2**16  # bytes: glibc's limit, less room for its own notes


@cache
def keep_freed_blocks() -> None:
    """Raise glibc's threshold to its limit, once in a process. No memory is touched."""
    if sys.platform == "linux":
        torch.empty(LARGEST, dtype=torch.uint8, device="cpu")
