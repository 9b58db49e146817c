"""`fourstage doctor`: report versions, devices and problems of this machine, each with its solution."""

import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from fourstage.cores import WAITING_BY_USER, available_cores
from fourstage.extras import install
from fourstage.plurals import plural

NEEDED = {  # extra -> package and the module that is imported from it or from another package that has it
    "core": {
        **{name: name for name in ("torch", "torchvision", "numpy", "safetensors", "huggingface_hub", "filelock")},
        "pydantic": "pydantic",
        "rich": "rich",
        "pyyaml": "yaml",
    },
    "train": {
        **{name: name for name in ("timm", "scipy", "tensorboard")},
        "opencv-python-headless": "cv2",
        "faster-coco-eval": "faster_coco_eval",
        "pillow": "PIL",
    },
    "demo": {"scikit-learn": "sklearn", "scikit-image": "skimage"},
}
PURPOSE = {"core": "anything", "train": "training and evaluating", "demo": "the embedded data (--data digits)"}
SMALL_SHARED_MEMORY = 256 * 2**20  # bytes; loader workers pass batches through it


def examine() -> tuple[list[str], bool]:
    """Return the lines of the report, and whether there is no problem."""
    packages = _packages()
    problems = [*_packages_missing(packages), *_pair(), *_shared_memory(), *_fast_paths()]
    lines = [f"fourstage {version('fourstage')}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [
        f"{extra}: " + ", ".join(found or f"{name} -" for name, found in names.items())
        for extra, names in packages.items()
    ]
    lines += _devices()
    return lines + ([f"! {problem}" for problem in problems] or ["No problem found on this machine."]), not problems


def _packages() -> dict[str, dict[str, str | None]]:
    """Return, for each extra, its packages with their versions; None where the module cannot be imported."""
    owners = packages_distributions()
    return {
        extra: {name: _found(name, module, owners) for name, module in modules.items()}
        for extra, modules in NEEDED.items()
    }


def _found(name: str, module: str, owners: Mapping[str, list[str]]) -> str | None:
    """Return the package that has a module, such as opencv-python for cv2, with its version."""
    if find_spec(module) is None:
        return None
    owner = name if _version(name) or module not in owners else owners[module][0]
    return f"{owner} {_version(owner) or 'of an unknown version'}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages_missing(packages: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    out = []
    for extra, names in packages.items():
        missing = [name for name, found in names.items() if found is None]
        if missing:
            line = install() if extra == "core" else install(extra)
            out.append(f"{', '.join(missing)} not installed; needed for {PURPOSE[extra]}: {line}")
    return out


def _pair() -> list[str]:
    """Return a problem unless torch and torchvision were built for each other."""
    if find_spec("torch") is None or find_spec("torchvision") is None:
        return []
    try:
        import torchvision

        assert callable(torchvision.ops.nms)
    except (ImportError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        return [f"torch and torchvision do not match ({reason}): install both from one index in one command"]
    return []


def _shared_memory() -> list[str]:
    if not Path("/dev/shm").is_dir():
        return []
    free = shutil.disk_usage("/dev/shm").free
    if free >= SMALL_SHARED_MEMORY:
        return []
    return [
        f"/dev/shm has {free / 2**20:.0f} MiB, too little for loader workers: give the container --shm-size=8g, or"
        f" train with workers=0"
    ]


def _fast_paths() -> list[str]:
    """Return a problem for each environment variable of the fast paths that every network would refuse."""
    if find_spec("torch") is None:
        return []
    from fourstage.ops import eager, products, sampling_choice

    out = []
    for check in (eager.switched_on, products.asked, sampling_choice.asked):
        try:
            check()
        except ValueError as error:
            out.append(str(error))
    return out


def _cpu(threads: int) -> str:
    waiting = ", ".join(f"{name}={os.environ[name]}" for name in WAITING_BY_USER if os.environ.get(name))
    return (
        f"CPU: {plural(os.cpu_count() or 1, 'core')}, of which this process may use {available_cores()}; torch uses "
        f"{plural(threads, 'thread')}; threads wait as {waiting or 'OpenMP decides'}"
    )


def _devices() -> list[str]:
    if find_spec("torch") is None:
        return []
    import torch

    lines = [_cpu(torch.get_num_threads())]
    if not torch.cuda.is_available():
        return [*lines, "GPU: torch finds none; device=auto trains on the CPU"]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        lines.append(f"GPU {index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    return lines
