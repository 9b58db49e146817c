"""The command line that installs an extra of this package, for messages. Any package may import this module."""

import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

PACKAGE = "fourstage"


def install(*extras: str) -> str:
    """Return the command line that installs extras; without an extra, one that installs what the package needs.

    It names the place that this package was installed from, as no package index has it: the checkout of an editable
    installation, such as `.venv/bin/pip install -e ".[train]"`, or the address of a file or repository.
    """
    wanted = f"[{','.join(extras)}]" if extras else ""
    address, editable = _origin()
    if editable:
        folder = Path(unquote(urlsplit(address).path))
        return f'{_pip_install()} -e "{_shown(folder)}{wanted}"'
    return f'{_pip_install()} "{PACKAGE}{wanted} @ {address}"'


def install_package(name: str) -> str:
    """Return the command line that installs one library into the running interpreter."""
    return f"{_pip_install()} {name}"


def _origin() -> tuple[str, bool]:
    """Return the address that the package was installed from, and whether it is an editable checkout."""
    try:
        direct = json.loads(distribution(PACKAGE).read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        direct = {}
    if "url" not in direct:  # the code runs where it is, without an installation
        return Path(__file__).parents[1].as_uri(), True
    folder = bool(direct.get("dir_info", {}).get("editable"))
    version = direct.get("vcs_info", {})
    prefix, at = (f"{version['vcs']}+", f"@{version['commit_id']}") if version else ("", "")
    return f"{prefix}{direct['url']}{at}", folder


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
