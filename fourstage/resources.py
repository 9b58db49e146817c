"""The state of memory and disks, and which errors mean that they ran out. Any package may import this module."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
CGROUPS = Path("/sys/fs/cgroup")
NO_MEMORY = (  # in messages of torch's allocators and of the libraries below them
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "Cannot allocate memory",
    "Unable to allocate",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "could not create a memory object",
    "Failed to allocate",
)
NO_SHARED_MEMORY = ("unable to allocate shared memory", "unable to open shared memory", "unable to resize file")
NO_SPACE = (  # torch's zip writer reports no number, only that its own position is not the file's
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "unexpected pos",
    "PytorchStreamWriter failed",
    "file write failed",
)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that the memory of the machine or of a GPU ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "_ArrayMemoryError"):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def is_shared_memory_full(error: BaseException) -> bool:
    """Return whether an error reports that a loader process found no room in /dev/shm."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_SHARED_MEMORY)


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error reports a full disk, an exceeded quota or a file that may not become larger."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_SPACE)


def size_text(count: float) -> str:
    """Return bytes as text: 1234567 as 1.2 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def room(folder: Path) -> tuple[int, int] | None:
    """Return the free bytes, for this user, and the size of the disk of a folder; None where the system has no answer.

    A folder that does not exist yet has the disk of the next one above it.
    """
    for place in (folder, *folder.parents):
        try:
            disk = os.statvfs(place)
        except (OSError, AttributeError):  # not there yet; Windows has no statvfs
            continue
        return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return None


def free_text(folder: Path) -> str:
    """Return the free space of a folder's disk in words; "" where the system has no answer."""
    found = room(folder)
    return "" if found is None else f"{size_text(found[0])} of {size_text(found[1])} are free"


def memory_text() -> str:
    """Return the state of the machine's memory in words; "" where the system has no answer."""
    limit, free, total = memory_limit(), _from_meminfo("MemAvailable"), _from_meminfo("MemTotal")
    if limit is not None and (total is None or limit < total):
        return f"this process group may use {size_text(limit)}"
    if free is None or total is None:
        return ""
    return f"{size_text(free)} of {size_text(total)} are free now"


def memory_limit() -> int | None:
    """Return the bytes that this process's group (a container, a Slurm job) may use; None: no limit is known."""
    limits: list[int] = []
    for name in ("memory.max", "memory.limit_in_bytes"):
        for file in _group_files(name):
            text = file.read_text().strip()
            if text.isdecimal() and int(text) < 1 << 60:
                limits.append(int(text))
    return min(limits, default=None)


def count_memory_kills() -> int:
    """Return how many processes of this group, or of this machine, the system has killed because memory ran out."""
    counts = [0]
    for name in ("memory.events", "memory.oom_control"):
        for file in _group_files(name):
            counts += _values(file.read_text(), "oom_kill")
    with contextlib.suppress(OSError):
        counts += _values(Path("/proc/vmstat").read_text(), "oom_kill")
    return max(counts)


def _values(text: str, key: str) -> list[int]:
    lines = [line.split() for line in text.splitlines()]
    return [int(words[1]) for words in lines if len(words) >= 2 and words[0].rstrip(":") == key]


def _from_meminfo(key: str) -> int | None:
    try:
        found = _values(Path("/proc/meminfo").read_text(), key)
    except OSError:
        return None
    return found[0] * 1024 if found else None


def _group_files(name: str) -> Iterator[Path]:
    """Yield the files of this name of the control group of this process, in both versions of the system's interface."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        base = CGROUPS / "memory" if controllers else CGROUPS
        for folder in {base / path.lstrip("/"), base}:  # in a container the path may be that outside of it
            if (folder / name).is_file() and os.access(folder / name, os.R_OK):
                yield folder / name
