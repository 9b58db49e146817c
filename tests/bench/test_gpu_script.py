"""`make gpu` in small, on the CPU: its tests pass, its tables are filled, and time that runs out costs no result."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1500)  # the script has 20 minutes, which a very busy machine may need


def run(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--out", str(out), *options]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu")
    done = run(out, "--minutes", "20")
    assert done.returncode == 0, done.stdout + done.stderr + "".join(p.read_text() for p in out.glob("*.log"))
    return out


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_test_ends_well_and_is_in_the_log(results: Path) -> None:
    outcomes = {
        line["test"].partition("::")[2].partition("[")[0]: line["outcome"]
        for line in lines(results / "tests.jsonl")
        if line["outcome"] != "begun"
    }
    assert outcomes["test_a_backbone_in_float32"] == "passed"
    assert outcomes["test_a_stopped_run_continues_bit_for_bit"] == "passed"
    assert outcomes["test_memory_is_free_after_an_error"] == "skipped"
    assert "failed" not in outcomes.values()


def test_tables_have_their_lines(results: Path) -> None:
    rows = lines(results / "gpu_networks.jsonl")
    assert {row["options"]["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert all(row["infer_samples_per_sec"] > 0 for row in rows)
    forms = {row["form"] for row in lines(results / "sampling.jsonl")}
    assert {"grid_sample", "gather", "torchvision", "chosen to train: grid_sample"} <= forms
    assert not any("failed" in row for row in lines(results / "sampling.jsonl"))
    tasks = lines(results / "gpu_tasks.jsonl")
    assert {(row["group"], row["mode"]) for row in tasks} >= {("Mask R-CNN", "train"), ("segmentation", "infer")}
    assert all(row["images_per_second"] > 0 for row in tasks)
    assert all(row["both"] > 0 for row in lines(results / "gpu_loader.jsonl"))
    assert {row["what"] for row in lines(results / "gpu_peak.jsonl")} >= {"float32", "bfloat16", "copy"}


def test_the_page_shows_all_of_it(results: Path) -> None:
    page = (results / "page.md").read_text()
    assert "| tests: networks | passed |" in page
    assert "| 1 | memory is pinned for GPUs alone |" in page
    assert "| visformer_digits | bfloat16 | NHWC | no |" in page
    assert "| convolution | grid_sample | float32 |" in page
    assert "| Mask R-CNN | torchvision MaskRCNN | train | bfloat16 |" in page
    assert "| bfloat16 |" in page.partition("## Peak")[2].partition("## Networks")[0]
    assert "| training |" in page.partition("## The loader")[2]
    assert "0 failed" in page


def test_a_page_remains_when_time_runs_out(tmp_path: Path) -> None:
    done = run(tmp_path, "--minutes", "0.6")  # a test that takes too long has failed; a group that does is cut short
    page = (tmp_path / "page.md").read_text()
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert re.search(r"\| tests: runs \| (cut short|failed) \|", page)
    assert "| left out | 0 |" in page


def test_a_page_remains_when_it_is_stopped(tmp_path: Path) -> None:
    words = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--out", str(tmp_path)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while "| tests: runs | running |" not in read(tmp_path / "page.md") and time.monotonic() < end:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert "| tests: runs | stopped |" in read(tmp_path / "page.md")


# ------------------------------------------------------------------------------------------------ the script alone


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_on_a_gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_step_that_hangs_costs_no_other_one(script: Any, tmp_path: Path) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    programs = {"hangs": deaf, "fails": "raise SystemExit(3)", "passes": "print('done')"}
    steps = [script.Step(name, (sys.executable, "-c", code)) for name, code in programs.items()]
    outcomes = [script.Outcome(name, "left out", 0.0) for name in programs]
    script.run(steps, outcomes, tmp_path, 5.0, lambda _: None)
    assert {x.name: x.status for x in outcomes} == {"hangs": "cut short", "fails": "failed", "passes": "passed"}
    assert "===== passes\ndone\n" in script.log_of(tmp_path)


LEAN = ("hypothesis", "rich", "pydantic", "yaml", "sklearn", "skimage", "scipy", "cv2", "pandas", "matplotlib", "onnx")


def test_no_group_of_tests_needs_more_than_torch_and_pytest(tmp_path: Path) -> None:
    """A GPU machine has little else; tests that need more are skipped one by one."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({LEAN}))")
    words = [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "-q", "-o", "addopts=", "--collect-only"]
    done = subprocess.run(
        [*words, "-p", "no:cacheprovider", "-W", "ignore"], cwd=ROOT, capture_output=True, text=True, check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests"))),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("sampling", "networks", "training", "runs", "compiled"):
        assert f"tests/gpu/test_gpu_{name}.py" in done.stdout


@pytest.mark.parametrize("name", ["gpu", "gpu_peak", "gpu_networks", "gpu_tasks", "gpu_loader", "sampling"])
def test_no_table_needs_more_than_torch_and_torchvision(name: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules.update(dict.fromkeys({LEAN}))")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "benchmarks")))
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}, fourstage.bench.task_workloads"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_steps_find_packages_that_pythonpath_names(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be installed, a folder of packages is brought along."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "brought_along.py").write_text("")
    outcome = script.Outcome("step", "left out", 0.0)
    step = script.Step("step", (sys.executable, "-c", "import brought_along, fourstage"))
    (tmp_path / "logs").mkdir()
    script.run([step], [outcome], tmp_path / "logs", 30.0, lambda _: None)
    assert outcome.status == "passed"


def test_make_gpu_keeps_the_packages_of_pythonpath_and_names_the_folder() -> None:
    # Under `make test` an inner make would take over the outer one's flags and print the folder that it enters.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--dry-run", "gpu", "RESULTS=here"]
    make = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH} " in make.stdout
    assert make.stdout.rstrip().endswith("--out here")


TESTS = """
import os, warnings
def test_a_warning(): warnings.warn("products are not in TF32")
def test_a_long_one():
    import time; time.sleep(30)
def test_a_crash(): os._exit(1)
"""


def test_the_page_names_tests_that_take_too_long_and_that_end_their_process(script: Any, tmp_path: Path) -> None:
    """A warning of a library is no failure: what it warns of may be the point of the test."""
    (tmp_path / "test_gpu_case.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text((ROOT / "tests/gpu/conftest.py").read_text())
    step = script.tests("case", "cpu", tmp_path, 2.0, tiny=False)
    words = [str(tmp_path / "test_gpu_case.py") if word.startswith("tests/") else word for word in step.command]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    subprocess.run([*words, "-c", str(ROOT / "pyproject.toml")], env={**alone, **step.environment}, check=False)
    page = script.page({}, [], tmp_path)
    assert "1 passed, 1 failed, 0 skipped, of 3." in page
    assert "test_a_long_one | failed | Failed: Timeout" in page
    assert "test_a_crash | not ended |" in page


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_without_a_gpu_a_sentence_says_what_to_type(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gpu.py: torch sees no GPU; try --device cpu --tiny, which tests the script itself\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--minutes", "0"], "the time is a number of minutes above 0, such as 8; got '0'"),
        (["--minutes", "nan"], "the time is a number of minutes above 0, such as 8; got 'nan'"),
        (["--minutes", "1"], "exists and is not an empty folder; give --out a new one"),
    ],
)
def test_bad_input_loses_nothing(tmp_path: Path, options: list[str], said: str) -> None:
    (tmp_path / "tables.jsonl").write_text("{}\n")
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert (tmp_path / "tables.jsonl").read_text() == "{}\n"
