"""The products that a measurement chose on this machine, in a file of the user's cache folder.

The file's name and content say for which processor, version of PyTorch and number of threads the choice was measured.
Other files, and files that cannot be read or written, count as none: then the choice is measured again.
"""

import contextlib
import hashlib
import json
import platform
from pathlib import Path

import torch

from fourstage.documents import read_json
from fourstage.files import cache_folder, write_text
from fourstage.ops import products
from fourstage.ops.products import Products

FORMAT = 3  # of the file and of the measurement; another number leaves older files unread
LARGEST = 2**14  # bytes; ours has about 500
IDENTITY = (  # lines of Linux's /proc/cpuinfo: those of x86, and those of ARM
    *("vendor_id", "cpu family", "model", "model name", "stepping"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),
)


def folder() -> Path:
    """Return the folder of these files."""
    return cache_folder() / "products"


def path() -> Path:
    """Return the file of this processor, version and number of threads."""
    digest = hashlib.sha256(json.dumps(_machine(), sort_keys=True).encode()).hexdigest()
    return folder() / f"{digest[:16]}.json"


def read() -> Products | None:
    """Return the kept choice; None: there is none for this machine."""
    try:
        content = read_json(path(), most_bytes=LARGEST)
        if not isinstance(content, dict) or not isinstance(names := content.pop("products", None), str):
            return None
        return products.checked(names) if content == _machine() else None
    except (OSError, ValueError):
        return None


def write(choice: Products) -> None:
    """Keep a choice, where the cache folder can be written."""
    with contextlib.suppress(OSError):
        file = path()
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**_machine(), "products": str(choice)}, indent=2))


def _machine() -> dict[str, str | int]:
    """Return all that the speed of a product depends on."""
    return {
        "format": FORMAT,
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "onednn": products.has_onednn(),  # without it, every choice is PyTorch's own
    }


def _processor() -> str:
    """Return the model of the processor, as exactly as the system reports it."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
        pairs = [line.partition(":") for line in first.splitlines()]
        found = {key.strip(): value.strip() for key, _, value in pairs}
        known = [found[key] for key in IDENTITY if key in found]
        if known:
            return ", ".join(known)
    return platform.processor() or platform.machine()
