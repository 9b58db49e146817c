"""Who may import whom, and that nothing heavy is imported before it is needed."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "fourstage"
LEAVES = {
    "checksums",
    "cores",
    "documents",
    "extras",
    "files",
    "freed_memory",
    "methods",
    "plurals",
    "resources",
    "run_folders",
    "streams",
    "user_files",
}  # any room may import
ROOMS = {  # room -> the rooms that it may import from, beside the leaves
    "checksums": set(),
    "documents": set(),
    "cores": set(),
    "files": set(),
    "freed_memory": set(),
    "extras": set(),
    "run_folders": set(),
    "user_files": set(),
    "methods": set(),
    "plurals": set(),
    "resources": set(),
    "streams": set(),
    "registry": set(),
    "terminal_bar": set(),
    "progress": {"terminal_bar"},
    "ops": set(),
    "backbones": {"registry", "ops"},
    "timm_backbone": {"backbones"},
    "weights": {"backbones", "registry"},
    "data": set(),
    "tasks": {"backbones", "data", "ops"},
    "build": {"registry", "weights", "progress"},
    "api": {"build", "timm_backbone", "registry", "backbones", "weights", "tasks", "data"},
    "engine": {"progress"},
    "recipe": {"registry"},
    "recipes": {"recipe"},
    "analysis": {"api", "backbones", "data", "ops", "registry", "tasks", "weights"},
    "timm": {"api", "registry"},
    "report": {"analysis"},
    "exported": {"data", "ops"},  # ops: an operator that .pt2 files of detectors have
    "export": {"backbones", "data", "exported", "ops", "tasks"},
    "predict": {"data", "exported", "progress", "report", "tasks"},
    "bench": {"api", "ops", "registry", "weights", "tasks", "data", "engine", "exported", "recipe", "progress"},
    "run": {
        *("api", "build", "registry", "backbones", "ops", "weights", "tasks", "data"),
        *("analysis", "bench", "engine", "export", "exported", "recipe", "report", "predict", "progress"),
    },
    "check": {"analysis", "api", "backbones", "bench", "data", "registry", "tasks"},
    "slurm": {"engine", "recipe"},
    "doctor": {"ops"},
    "demo": {"data", "predict", "run"},
    "cli": {
        "export",
        "run",
        "report",
        "bench",
        "check",
        "data",
        "engine",
        "recipe",
        "slurm",
        "demo",
        "doctor",
        "progress",
    },
    "__init__": {"api", "registry", "backbones", "data", "run"},
    "__main__": {"cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "fourstage"}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    ours = {name.split(".")[1] for name in imported(path) if name.startswith("fourstage.")}
    assert ours <= ROOMS[room_of(path)] | LEAVES | {room_of(path)}


def test_every_room_has_a_row() -> None:
    assert {room_of(path) for path in FILES} == set(ROOMS)


def test_the_page_on_the_architecture_has_the_same_table() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) \|$", page[page.index("| package | may import |") :].partition("\n\n")[0], re.M
    )
    assert {room: set(re.findall(r"`(\w+)`", may)) for room, may in rows} == {
        room: may for room, may in ROOMS.items() if room not in LEAVES
    }


def test_no_rooms_import_each_other() -> None:
    graphlib.TopologicalSorter(ROOMS).prepare()  # raises CycleError


def test_the_api_needs_no_recipe_and_no_run() -> None:
    code = "import fourstage.api, fourstage.weights.openmmlab.network"
    loaded = modules_after(code)
    assert "fourstage.api" in loaded
    above = ("fourstage.run", "fourstage.engine", "fourstage.recipe", "fourstage.report", "fourstage.cli")
    assert not [name for name in loaded if name.startswith(above)]


@pytest.mark.parametrize("path", [p for p in FILES if "backbones" in p.parts], ids=lambda path: path.name)
def test_backbones_import_torch_and_the_standard_library_only(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(path)}
    assert roots <= {"torch", "fourstage"} | sys.stdlib_module_names


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_a_leaf_imports_the_standard_library_only(leaf: str) -> None:
    leaves = {"fourstage", *(f"fourstage.{name}" for name in LEAVES)}
    names = {name for name in imported(PACKAGE / f"{leaf}.py") if name.rpartition(".")[0] not in leaves - {"fourstage"}}
    others = {name.partition(".")[0] for name in names - leaves} - sys.stdlib_module_names
    assert others <= ({"yaml"} if leaf == "documents" else set())


def test_documents_import_yaml_only_when_one_is_read() -> None:
    assert "yaml" not in loaded_by("import fourstage.documents")


def test_processes_are_named_in_one_file() -> None:
    assert [p.name for p in FILES if any(n.startswith("torch.distributed") for n in imported(p))] == ["devices.py"]


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def loaded_by(code: str) -> set[str]:
    return {name.partition(".")[0] for name in modules_after(code)}


def test_import_fourstage_stays_light() -> None:
    heavy = {"torchvision", "timm", "matplotlib", "PIL", "sklearn", "skimage", "cv2", "scipy", "pydantic"}
    assert not loaded_by("import fourstage") & heavy


def test_a_model_needs_no_torchvision_and_no_timm() -> None:
    code = "import fourstage; fourstage.create_model('visformer_digits')"
    assert not loaded_by(code) & {"torchvision", "timm", "matplotlib", "PIL", "sklearn", "cv2", "pydantic"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["analyze", "erf", "--help"], ["recipes"], ["--version"]]
)
def test_help_imports_no_torch(arguments: list[str]) -> None:
    code = f"from fourstage.cli import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    assert "torch" not in loaded_by(code)


def test_measuring_a_model_needs_no_recipe() -> None:
    code = "import fourstage.bench.run; from fourstage.bench.networks import expand; expand(['visformer_digits'])"
    assert not loaded_by(code) & {"pydantic"}
