"""Memory and disks that run out, and processes that are gone: which errors report it, and one sentence for each.

Any package may import this module.
"""

import contextlib
import errno
import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
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
    "unable to find an engine to execute",  # a convolution for whose work space no kernel of cuDNN found room
    "could not create a memory object",
    "Failed to allocate",
    "Storage size calculation overflowed",  # more bytes than a number has
    "integer multiplication overflow",
    "failed to map segment from shared object",  # the dynamic linker, with a limit such as `ulimit -v`
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
LOST_PROCESS = ("gloo", "Connection closed by peer", "Connection reset by peer", "NCCL", "TCPStore", "recvValue failed")
SMALLER = "use a smaller batch, image size or number of workers"


@contextmanager
def sentences(advice: str = SMALLER, folder: Path | None = None) -> Generator[None]:
    """Raise ValueError with one sentence for every error by which memory, a disk or another process reports its end.

    Args:
        advice: what to type where memory ran out.
        folder: where files are written, for errors that do not name one.
    """
    try:
        yield
    except (ImportError, MemoryError, OSError, RuntimeError) as error:
        text = sentence_of(error, advice, folder)
        if text is None:
            raise
        raise ValueError(text) from error


def sentence_of(error: BaseException, advice: str = SMALLER, folder: Path | None = None) -> str | None:
    """Return the sentence for an error, or None for one of another kind; see `sentences`."""
    if is_out_of_memory(error):
        return f"{_memory_ran_out(error)}; {advice}"
    if is_shared_memory_full(error):
        return f"shared memory is full (/dev/shm: {free_text(SHARED_MEMORY)}); add workers=0"
    if is_disk_full(error):
        named = getattr(error, "filename", None)
        what = f"a file in {folder}" if named is None and folder is not None else str(named or "a file")
        place = Path(named).parent if named else folder or Path()
        return f"{what} could not be written: {full_disk_text(place, error)}; free space and start again"
    if is_lost_process(error):
        reason = (str(error).splitlines() or [""])[0].rpartition("] ")[2]
        return (
            f"another process of this run has ended ({reason:.120}), and its message says why; the same command "
            f"continues a training from its last checkpoint"
        )
    return None


def _memory_ran_out(error: BaseException) -> str:
    text = str(error)
    gpu = any(words in text for words in ("CUDA", "CUBLAS", "CUDNN", "HIP out of", "find an engine"))
    asked = re.search(r"(?:ried|able) to allocate ([\d.]+) ?(bytes|[KMGTPE]iB)?", text)
    amount = ""
    if asked is not None:
        unit = asked[2] or "bytes"
        size = float(asked[1]) * 1024 ** ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB").index(unit)
        amount = f", {size_text(size)} more were needed"
    state = "" if gpu else memory_text()
    details = f"{state}{amount}".removeprefix(", ")
    return f"the memory of {'the GPU' if gpu else 'this machine'} ran out{f' ({details})' if details else ''}"


def full_disk_text(folder: Path, error: BaseException, needed: int | None = None) -> str:
    """Return in words that the disk of a folder is full, or that a limit on files is reached."""
    number = getattr(error, "errno", None)
    if number == errno.EDQUOT:
        what = "the quota of this user is used up"
    elif number == errno.EFBIG or "File too large" in str(error):
        what = "File too large: the limit of this system on the size of a file (`ulimit -f`) is reached"
    else:
        what = "No space left on device: the disk is full"
    found = free_text(folder.absolute())
    wanted = "" if needed is None else f"{size_text(needed)} are needed"
    details = ", ".join(text for text in (wanted, found) if text)
    return f"{what}{f' ({details})' if details else ''}"


def is_lost_process(error: BaseException) -> bool:
    """Return whether an error of the collective library reports that another process is gone."""
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__.startswith("Dist") or any(words in str(error) for words in LOST_PROCESS)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that the memory of the machine or of a GPU ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "_ArrayMemoryError"):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, ImportError | RuntimeError) and any(words in str(error) for words in NO_MEMORY)


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


def free_memory() -> int | None:
    """Return the bytes that this process may still take; None where the system has no answer."""
    known = [size for size in (memory_limit(), _from_meminfo("MemAvailable")) if size is not None]
    return min(known, default=None)


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
