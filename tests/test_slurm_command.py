"""`fourstage slurm`: the file for sbatch, its submission, and a training through stand-ins for sbatch and srun."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from fourstage.cli import main
from fourstage.engine.state import load_state
from fourstage.recipe import resolve
from fourstage.run.folder import RunFolder

Run = Callable[..., tuple[int, str, str]]
WHERE = ["--partition", "gpu", "--gpus", "2"]
SHORT = ["length=4it", "batch_size=16", "warmup=0it", "augmentation.mixup=0", "augmentation.cutmix=0",
         "evaluate_every=4it", "log_every=2", "workers=0", "device=cpu"]  # fmt: skip

SBATCH = """#!{python}
import os, subprocess, sys
file = sys.argv[-1]
output = next(line.partition("--output=")[2] for line in open(file).read().splitlines() if "--output=" in line)
job = {{**os.environ, "SLURM_JOB_ID": "4711"}}
with open(output.replace("%j", "4711"), "w") as out:
    code = subprocess.run(["bash", file], env=job, stdout=out, stderr=out).returncode
print("4711;cluster")
raise SystemExit(code)
"""
SRUN = """#!{python}
import os, subprocess, sys
words = sys.argv[1:]
own = [word for word in words[: words.index({python!r})]]
command = words[words.index({python!r}) :]
open({seen!r}, "w").write(" ".join(own))
step = {{"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}}
tasks = [
    subprocess.Popen(command, env={{**os.environ, **step, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}})
    for i in range(2)
]
raise SystemExit(max(task.wait() for task in tasks))
"""


@pytest.fixture
def run(typed: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    return partial(typed, "slurm")


@pytest.fixture
def bin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder at the front of the PATH, for stand-ins."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def stand_in(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def refused(result: tuple[int, str, str], *words: str) -> None:
    code, _, err = result
    assert code == 2, err
    line = err.strip().splitlines()[-1]
    assert line.startswith("fourstage: ")
    for word in words:
        assert word in line, line


def last_command(script: str) -> list[str]:
    """The words that srun gets."""
    text = script[script.index("\nsrun") :].replace("\\\n", " ").strip().splitlines()[0]
    return shlex.split(text)


# ------------------------------------------------------------------------------------------------------- the file


def test_a_dry_run_shows_the_file_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    code, script, _ = run(
        "train", "smt_tiny_in1k", "--partition", "gpu", "--gpus", 16, "--gpus-per-node", 4, "--cpus-per-task", 9,
        "--time", "2-00:00:00", "--job-name", "night", "--data", "/data/image net", "--out", "runs/it's",
        "--srun-args=--mpi=pmix --label", "--sbatch-args=--account=vision --qos=high", "--dry-run", "workers=8",
        "lr_multipliers={network.head: 10}",
    )  # fmt: skip
    assert code == 0
    head, _, _ = script.partition("\nsrun")
    assert (
        head.splitlines()
        == [
            "#!/bin/bash",
            "#SBATCH --job-name=night",
            "#SBATCH --partition=gpu",
            "#SBATCH --nodes=4",
            "#SBATCH --ntasks-per-node=4",
            "#SBATCH --gpus-per-node=4",
            "#SBATCH --cpus-per-task=9",
            "#SBATCH --time=2-00:00:00",
            f"#SBATCH --chdir={tmp_path}",
            f"#SBATCH --output={tmp_path}/runs/it's/slurm/night-%j.out",
            "#SBATCH --open-mode=append",
            "#SBATCH --requeue",
            "#SBATCH --account=vision --qos=high",
            "#SBATCH --signal=TERM@120",
            "",
        ][: len(head.splitlines())]
    )
    assert last_command(script) == [
        "srun", "--kill-on-bad-exit=1", "--cpus-per-task=9", "--mpi=pmix", "--label", sys.executable, "-m", "fourstage",
        "train", "smt_tiny_in1k", "--data", "/data/image net", "--out", "runs/it's", "workers=8",
        "lr_multipliers={network.head: 10}",
    ]  # fmt: skip
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("gpus", "nodes", "per_node"), [(1, 1, 1), (4, 1, 4), (8, 1, 8), (32, 4, 8)])
def test_a_node_has_eight_gpus_by_default(run: Run, gpus: int, nodes: int, per_node: int) -> None:
    _, script, _ = run("train", "digits_visformer", "--partition", "gpu", "--gpus", gpus, "--dry-run")
    assert f"#SBATCH --nodes={nodes}\n#SBATCH --ntasks-per-node={per_node}\n" in script


def test_an_evaluation_is_not_started_again_when_its_time_is_over(run: Run, tmp_path: Path) -> None:
    (tmp_path / "smt.pth").write_text("")
    words = ["--data", "digits", "--which", "ema", "--json", "--csv", "a.csv", "--weights", "smt.pth"]
    words.append("evaluation_batch_size=64")
    code, script, _ = run("evaluate", "smt_tiny_in1k", *WHERE, "--dry-run", *words)
    assert code == 0
    assert "--signal" not in script
    assert "scontrol" not in script
    assert f"--output={tmp_path}/slurm/smt_tiny_in1k-%j.out" in script
    assert last_command(script)[5:] == [
        "evaluate", "smt_tiny_in1k", "--data", "digits", "--weights", "smt.pth", "--which", "ema", "--csv", "a.csv",
        "--json", "evaluation_batch_size=64",
    ]  # fmt: skip


def test_a_run_folder_is_evaluated_by_its_own_recipe(run: Run, tmp_path: Path) -> None:
    begun(tmp_path / "runs" / "mine", [])
    code, script, _ = run("evaluate", "runs/mine", *WHERE, "--dry-run")
    assert code == 0
    assert last_command(script)[5:] == ["evaluate", "runs/mine"]
    refused(run("evaluate", tmp_path, *WHERE), "no recipe.yaml")


def test_what_may_be_missing_on_the_nodes_is_noted(run: Run) -> None:
    code, _, err = run("train", "smt_tiny_in1k", *WHERE, "--data", "nowhere", "--dry-run", "weights=gone.pth")
    assert code == 0
    assert "nowhere, are not on this machine" in err
    assert "gone.pth, are not on this machine" in err
    assert "as many loader workers as its CPUs allow, but without --cpus-per-task" in err
    _, _, err = run("train", "digits_visformer", *WHERE, "--dry-run", "workers=4")
    assert "workers=4, but without --cpus-per-task" in err
    _, _, err = run("train", "digits_visformer", *WHERE, "--dry-run", "workers=1")
    assert err == ""
    _, _, err = run("train", "digits_visformer", *WHERE, "--cpus-per-task", 3, "--dry-run")
    assert err == ""


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "smt_tiny_in1", *WHERE], ["did you mean smt_tiny_in1k"]),
        (["train", "digits_visformer", *WHERE, "lrr=1"], ["lrr"]),
        (["train", "digits_visformer", *WHERE, "precision=fp16"], ["precision"]),
        (["train", "smt_tiny_in1k", *WHERE], ["names no data", "--data"]),
        (["train", "digits_visformer", "--partition", "gpu", "--gpus", "12"], ["12 GPUs", "nodes of 8"]),
        (["train", "digits_visformer", "--partition", "gpu", "--gpus", "0"], ["--gpus must be at least 1"]),
        (["train", "digits_visformer", *WHERE, "--gpus-per-node", "4"], ["--gpus-per-node 4"]),
        (["train", "digits_visformer", "--partition", "gpu", "--gpus", "3"], ["64", "3 processes", "--gpus"]),
        (["train", "digits_visformer", *WHERE, "batch_size=6"], ["mixing pairs images", "a batch of 3"]),
        (["train", "digits_visformer", *WHERE, "--time", "soon"], ["--time", "soon"]),
        (["train", "digits_visformer", *WHERE, "--job-name", "a b"], ["--job-name", "one word"]),
        (["train", "digits_visformer", *WHERE, "--job-name", "../../x"], ["--job-name"]),
        (["train", "digits_visformer", "--partition", "gpu\n#", "--gpus", "1"], ["--partition"]),
        (["train", "digits_visformer", *WHERE, "--srun-args='"], ["--srun-args", "quotation"]),
        (["train", "digits_visformer", *WHERE, "--sbatch-args=rm -rf"], ["--sbatch-args", "an option"]),
        (["train", "digits_visformer", *WHERE, "--weights", "a.pth"], ["--weights", "weights=FILE"]),
        (["train", "digits_visformer", *WHERE, "--fresh"], ["no option --fresh"]),
        (["train", "digits_visformer"], ["--partition"]),
        (["evaluate", "digits_visformer", *WHERE], ["--weights"]),
        (["evaluate", "digits_visformer", *WHERE, "--weights", "a.pth", "--out", "x"], ["no --out"]),
        (["trian", "digits_visformer", *WHERE], ["did you mean train"]),
    ],
)
def test_mistakes_are_reported_before_a_job_is_queued(
    run: Run, tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    refused(run(*words), *expected)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tracker_is_reported_before_the_job(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    refused(run("train", "digits_visformer", *WHERE, "tracker=trackio"), '[trackio]"', "pip")


def test_the_folder_of_another_run_is_refused(run: Run, tmp_path: Path) -> None:
    begun(tmp_path / "run", [])
    refused(run("train", "digits_visformer", *WHERE, "--out", "run", "lr=1e-5"), "optimisation.lr", "--out")
    (tmp_path / "file").write_text("")
    refused(run("train", "digits_visformer", *WHERE, "--out", "file"), "is a file")


def test_without_slurm_there_is_a_sentence(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(run("train", "digits_visformer", *WHERE), "no sbatch on the PATH", "--dry-run")
    assert list(tmp_path.iterdir()) == []


def test_what_sbatch_says_is_passed_on_and_the_file_is_kept(run: Run, bin: Path, tmp_path: Path) -> None:
    stand_in(bin, "sbatch", "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\necho 'try sinfo' >&2\nexit 1\n")
    result = run("train", "digits_visformer", *WHERE, "--out", "run")
    refused(result, "sbatch: error: invalid partition try sinfo", "its file is run/slurm/digits_visformer.sbatch")
    file = tmp_path / "run" / "slurm" / "digits_visformer.sbatch"
    assert file.read_text() == run("train", "digits_visformer", *WHERE, "--out", "run", "--dry-run")[1]


def test_a_folder_that_cannot_be_created_is_reported(run: Run, bin: Path, tmp_path: Path) -> None:
    stand_in(bin, "sbatch", "#!/bin/sh\n")
    (tmp_path / "file").write_text("")
    refused(run("train", "digits_visformer", *WHERE, "--out", "file/run"), "--out")


# --------------------------------------------------------------------------------------------------- the whole chain


def begun(folder: Path, changes: list[str]) -> None:
    """A run folder whose training was stopped before its first checkpoint."""
    there = RunFolder(folder)
    there.begin(resolve("digits_visformer", changes), {})
    there.release()


def test_two_processes_train_through_sbatch_and_srun(run: Run, bin: Path, tmp_path: Path) -> None:
    seen = tmp_path / "srun-words"
    stand_in(bin, "sbatch", SBATCH.format(python=sys.executable))
    stand_in(bin, "srun", SRUN.format(python=sys.executable, seen=str(seen)))
    code, printed, err = run(
        "train", "digits_visformer", *WHERE, "--out", "run", "--cpus-per-task", 1, "--srun-args=--label", *SHORT
    )
    output = tmp_path / "run" / "slurm" / "digits_visformer-4711.out"
    assert code == 0, err + (output.read_text() if output.exists() else "")
    assert printed.splitlines() == [
        "Submitted job 4711: digits_visformer, 2 processes on 1 node.",
        "File: run/slurm/digits_visformer.sbatch",
        "Output: run/slurm/digits_visformer-4711.out",
    ]
    assert seen.read_text() == "--kill-on-bad-exit=1 --cpus-per-task=1 --label"
    assert "on cpu x 2" in output.read_text()
    assert output.read_text().count("Finished:") == 1
    state = load_state(tmp_path / "run" / "checkpoints" / "last.pt")
    assert state["step"] == 4
    assert state["finished"]
    assert state["conditions"]["processes"] == 2


@pytest.mark.parametrize(("code", "asked"), [(143, "requeue 4711"), (1, ""), (0, "")])
def test_a_run_that_was_stopped_in_time_is_queued_again(
    run: Run, bin: Path, tmp_path: Path, code: int, asked: str
) -> None:
    _, script, _ = run("train", "digits_visformer", *WHERE, "--dry-run")
    stand_in(bin, "srun", f"#!/bin/sh\nexit {code}\n")
    stand_in(bin, "scontrol", f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    done = subprocess.run(["bash"], input=script, text=True, env={**os.environ, "SLURM_JOB_ID": "4711"}, check=False)
    assert done.returncode == (0 if asked else code)
    told = tmp_path / "asked"
    assert (told.read_text().strip() if told.exists() else "") == asked
    stand_in(bin, "scontrol", "#!/bin/sh\nexit 1\n")
    done = subprocess.run(["bash"], input=script, text=True, env={**os.environ, "SLURM_JOB_ID": "4711"}, check=False)
    assert done.returncode == code


def test_a_comparison_is_an_array_of_its_cells(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["compare", "digits_visformer", "--vary", "mixer=swin,pvt", "--seeds", "3", "--out", "mixers", "length=2it"]
    assert main([*grid, "--partition", "gpu", "--cpus-per-task", "4", "--time", "1:00:00", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --array=0-5\n" in text
    assert f"#SBATCH --output={tmp_path}/mixers/slurm/mixers-%A_%a.out" in text
    assert "#SBATCH --gpus-per-node=1" in text
    assert "#SBATCH --signal=TERM@120" in text  # a cell that runs out of time saves, and is queued again
    [line] = [line for line in text.splitlines() if "-m fourstage" in line]
    words = line.split()
    assert words[words.index("compare") :] == [
        "compare", "digits_visformer", "--vary=mixer=swin,pvt", "--seeds=3", "length=2it",
        "--out", f"{tmp_path}/mixers", "--cell", '"$SLURM_ARRAY_TASK_ID"',
    ]  # fmt: skip
    assert not (tmp_path / "mixers").exists()
    assert main([*grid, "--partition", "gpu", "--time", "soon"]) == 2
    assert "--time is minutes" in capsys.readouterr().err
    assert main([*grid, "--partition", "gpu"]) == 2
    assert "there is no sbatch on the PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "name"), [("my mixers (2)", "my_mixers_2"), ("Zürich, a", "Zürich,_a"), ("$$$", "compare")]
)
def test_an_array_is_named_by_its_folder(
    out: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["compare", "digits_visformer", "--vary", "lr=1e-3,2e-3", "--seeds", "1", "--out", str(tmp_path / out)]
    assert main([*grid, "--partition", "gpu", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"#SBATCH --job-name={name}\n" in text
    assert f"{tmp_path}/{out}/slurm/{name}-%A_%a.out" in text
    [line] = [line for line in text.splitlines() if "-m fourstage" in line]
    words = shlex.split(line)
    assert words[words.index("--out") + 1] == f"{tmp_path}/{out}"


@pytest.mark.skipif(os.name != "posix", reason="the script is of bash")
def test_the_script_of_an_array_trains_its_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "arms"
    short = ["length=2it", "warmup=0it", "batch_size=16", "workers=0", "ema=null", "device=cpu"]
    grid = ["compare", "digits_visformer", "--vary", "lr=1e-3,2e-3", "--seeds", "1", "--out", str(out)]
    assert main([*grid, *short, "--analyses", "erf", "--partition", "gpu", "--gpus", "2", "--dry-run"]) == 0
    script = capsys.readouterr().out
    (bin := tmp_path / "bin").mkdir()
    stand_in(bin, "srun", SRUN.format(python=sys.executable, seen=str(tmp_path / "seen")))
    port = {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    path = {"PATH": f"{bin}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711"}
    environment = {**os.environ, **port, **path, "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert [str(file.relative_to(out)) for file in out.glob("*/seed-0/report.html")] == ["lr=2e-3/seed-0/report.html"]
    assert (out / "analyses" / "lr=2e-3" / "seed-0.erf.npz").is_file()  # two processes trained it, and one measured
    assert main([*grid, *short, "--analyses", "erf", "--cell", "0"]) == 0
    assert main(["compare", str(out), "--seconds", "0", "--analyses", "none"]) == 0
    assert "lr=2e-3 and lr=1e-3 cannot be decided with this seed" in " ".join(capsys.readouterr().out.split())
