"""The command line that installs an extra of this package, for messages. Any package may import this module."""

import json
import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution, requires
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

PACKAGE = "fourstage"
OF_EXTRA = {  # modules that may be imported where they are needed -> the extra that brings them
    **dict.fromkeys(("timm", "scipy", "cv2", "faster_coco_eval", "tensorboard", "matplotlib", "PIL"), "train"),
    **dict.fromkeys(("sklearn", "skimage"), "demo"),
    **dict.fromkeys(("pyarrow", "fsspec"), "data"),
}


class MissingLibrary(ImportError):
    """A library that data needs is not installed: no fault of the data, and so no ValueError. One sentence."""


def without_library(error: ImportError) -> str:
    """Return the sentence on a library that an extra brings and that is not installed; empty for other errors."""
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name not in OF_EXTRA:
        return ""
    return f"this needs {name}, which is missing; type: {install(OF_EXTRA[name])}"


def install(*extras: str) -> str:
    """Return the command line that installs extras; without an extra, one that installs what the package needs.

    It names the place that this package was installed from, as no package index has it: the checkout of an editable
    installation, such as `.venv/bin/pip install -e ".[train]"`, or the address of a file or repository. Where that
    place is not known, it names the libraries themselves.
    """
    wanted = f"[{','.join(extras)}]" if extras else ""
    address, editable = _origin()
    if not address:
        return " ".join([_pip_install(), *(f'"{one}"' for one in _requirements(extras))])
    if editable:
        folder = Path(unquote(urlsplit(address).path))
        return f'{_pip_install()} -e "{_shown(folder)}{wanted}"'
    return f'{_pip_install()} "{PACKAGE}{wanted} @ {address}"'


def install_package(name: str) -> str:
    """Return the command line that installs one library into the running interpreter."""
    return f"{_pip_install()} {name}"


def _origin() -> tuple[str, bool]:
    """Return the address that the package was installed from, empty if not known, and whether it is a checkout."""
    try:
        direct = json.loads(distribution(PACKAGE).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        direct = {}
    if "url" not in direct:  # the code runs where it is, without an installation, or pip did not record the place
        folder = Path(__file__).parents[1]
        return (
            (folder.as_uri(), True) if (folder / "pyproject.toml").is_file() or not _requirements(()) else ("", False)
        )
    folder = bool(direct.get("dir_info", {}).get("editable"))
    version = direct.get("vcs_info", {})
    prefix, at = (f"{version['vcs']}+", f"@{version['commit_id']}") if version else ("", "")
    return f"{prefix}{direct['url']}{at}", folder


def _requirements(extras: tuple[str, ...]) -> list[str]:
    """Return what the installed package requires for these extras, or without an extra, such as "timm>=1.0.20"."""
    try:
        listed = [line.partition(";") for line in requires(PACKAGE) or ()]
    except PackageNotFoundError:
        return []
    found = ((name.strip(), re.findall(r"extra == ['\"]([^'\"]+)", marker)) for name, _, marker in listed)
    return [name for name, of in found if set(of) & set(extras) or (not of and not extras)]


def _pip_install() -> str:
    """Return the command that installs into the running interpreter, as a user would type it."""
    python = Path(sys.executable)
    pip = python.with_name("pip")
    if pip.is_file():
        return f"{shlex.quote(str(_shown(pip)))} install"
    if find_spec("pip") is None:  # environments that uv makes have none
        return f"uv pip install --python {shlex.quote(str(python))}"
    return f"{shlex.quote(str(_shown(python)))} -m pip install"


def _shown(path: Path) -> Path:
    """Return a path as it is typed from the working folder where it is inside of that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
