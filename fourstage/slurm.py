"""`fourstage slurm`: the file that Slurm's `sbatch` takes, and its submission. Needs neither torch nor a GPU."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fourstage.engine.tracker import check_tracker
from fourstage.recipe import EMBEDDED, FREE, Classification, Recipe, difference, from_mapping, read_yaml, resolve

WARNING = 120  # seconds between the signal and the end of a job's time, in which a run saves
STOPPED = 143  # the exit code of a run that SIGTERM stopped, and that the same command continues
TIME = r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+|\d+-\d+:\d+|\d+-\d+:\d+:\d+|UNLIMITED"  # as sbatch takes it


@dataclass(frozen=True)
class Job:
    """A command of ours, and what of the cluster it needs.

    Attributes:
        verb: what runs.
        recipe: a recipe's name or FILE.yaml; to evaluate, also the folder of a run.
        options: words of the command behind the recipe, such as ("--weights", "a.pth").
        gpus: processes, one for each GPU.
        gpus_per_node: None: as many as a node usually has, 8, or all of fewer.
        cpus_per_task: None: as the partition has it, often a single one.
        time: as sbatch takes it, such as 2-00:00:00.
        name: None: the recipe's.
        srun_args, sbatch_args: further options of the two, as typed.
    """

    verb: Literal["train", "evaluate"]
    recipe: str
    partition: str
    gpus: int
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    time: str | None = None
    name: str | None = None
    srun_args: str = ""
    sbatch_args: str = ""
    data: str | None = None
    out: str | None = None
    options: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        return self.gpus // self.per_node

    @property
    def per_node(self) -> int:
        return self.gpus_per_node or min(self.gpus, 8)

    @property
    def folder(self) -> Path:
        """Where the file and what the job prints go."""
        return Path("slurm") if self.out is None else Path(self.out) / "slurm"

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.sbatch"

    @property
    def command(self) -> list[str]:
        """The words that each process runs."""
        places = [
            word for name, value in (("--data", self.data), ("--out", self.out)) if value for word in (name, value)
        ]
        words = [self.verb, self.recipe, *places, *self.options, *self.changes]
        return [sys.executable, "-m", "fourstage", *words]


@dataclass(frozen=True)
class Submitted:
    """A job that Slurm has taken."""

    id: str
    file: Path
    output: Path


def prepare(job: Job) -> tuple[Job, list[str]]:
    """A job with its name and folder, checked as far as that needs neither data nor GPU, and what to tell of it.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    _check_size(job)
    recipe = _recipe(job)
    job = replace(job, name=job.name or recipe.name)
    if job.verb == "train":
        job = replace(job, out=job.out or str(Path("runs") / recipe.name))
    _check_words(job)
    if job.verb == "train":
        _check_folder(job, recipe)
    return job, list(_notes(job, recipe))


def script(job: Job) -> str:
    """The file for sbatch; the job comes from `prepare`."""
    options = {
        "job-name": job.name,
        "partition": job.partition,
        "nodes": job.nodes,
        "ntasks-per-node": job.per_node,
        "gpus-per-node": job.per_node,
        "cpus-per-task": job.cpus_per_task,
        "time": job.time,
        "chdir": Path.cwd(),
        "output": job.folder.absolute() / f"{job.name}-%j.out",
        "open-mode": "append",  # a job that is started again goes on in the same file
    }
    lines = [f"#SBATCH --{name}={_quoted(str(value))}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *([f"#SBATCH {job.sbatch_args}"] if job.sbatch_args else [])]
    # srun takes the CPUs of the job for granted no longer, so it is told again.
    cpus = [] if job.cpus_per_task is None else [f"--cpus-per-task={job.cpus_per_task}"]
    srun = ["srun", "--kill-on-bad-exit=1", *cpus, *shlex.split(job.srun_args)]
    run = f"{shlex.join(srun)} \\\n    {shlex.join(job.command)}\n"
    if job.verb == "train":
        lines.append(f"#SBATCH --signal=TERM@{WARNING}")
        run += AGAIN
    return "\n".join(["#!/bin/bash", *lines, "", run])


# To whom the end of the job's time is announced saves and says so; whoever cancels the job ends this script too.
AGAIN = f"""code=$?
if [ "$code" -eq {STOPPED} ]; then
    scontrol requeue "$SLURM_JOB_ID" && exit 0  # stopped and saved: the same command continues
fi
exit "$code"
"""


def submit(job: Job) -> Submitted:
    """Write the file, whole, and hand it to sbatch.

    Raises:
        ValueError: there is no sbatch here, or it refuses the job; the file is kept.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise ValueError(
            "there is no sbatch on the PATH; type this on a machine of the cluster, or add --dry-run to see the file"
        )
    from fourstage.engine.state import write_text  # it imports torch

    try:
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{job.folder} cannot be made ({error.strerror}); choose another --out") from None
    write_text(job.file, script(job))
    done = subprocess.run([sbatch, "--parsable", str(job.file)], capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise ValueError(f"sbatch refused the job ({said}); its file is kept, {job.file}")
    id = (done.stdout.split() or ["?"])[-1].partition(";")[0]
    return Submitted(id, job.file, job.folder / f"{job.name}-{id}.out")


def _check_size(job: Job) -> None:
    for option, value in (
        ("gpus", job.gpus),
        ("gpus-per-node", job.gpus_per_node),
        ("cpus-per-task", job.cpus_per_task),
    ):
        if value is not None and value < 1:
            raise ValueError(f"--{option} counts from 1; got {value}")
    if job.per_node > job.gpus:
        raise ValueError(f"--gpus is the number of all, and {job.gpus} is fewer than --gpus-per-node {job.per_node}")
    if job.gpus % job.per_node:
        raise ValueError(
            f"{job.gpus} GPUs do not fill nodes of {job.per_node}; choose a multiple for --gpus, or another "
            f"--gpus-per-node"
        )
    if job.time is not None and not re.fullmatch(TIME, job.time):
        raise ValueError(f"--time is minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS; got {job.time!r}")


def _check_words(job: Job) -> None:
    """What stands in a line of the file may not begin another one, and a job's name is that of a file."""
    for option, value in (("partition", job.partition), ("job-name", job.name)):
        if not re.fullmatch(r"[\w.,+@-]+", value or ""):
            raise ValueError(f"--{option} is a single word of letters, digits and .,+@-; got {value!r}")
    for option, value in (("srun-args", job.srun_args), ("sbatch-args", job.sbatch_args)):
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"--{option} cannot be read ({str(error).lower()}); got {value!r}") from None
        if "\n" in value or (words and not words[0].startswith("-")):
            raise ValueError(f"--{option} holds options, such as --{option}='--exclusive'; got {value!r}")


def _recipe(job: Job) -> Recipe:
    """The recipe as the job will see it."""
    values = {} if job.data is None else {"data": _absolute(job.data)}
    if job.verb == "train" or not Path(job.recipe).is_dir():
        recipe = resolve(job.recipe, job.changes, values).recipe
    elif not (Path(job.recipe) / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{job.recipe} is not the folder of a run: it has no recipe.yaml")
    else:
        recipe = resolve(Path(job.recipe) / "recipe.yaml", job.changes, values).recipe
    if job.verb == "evaluate" and not Path(job.recipe).is_dir() and "--weights" not in job.options:
        raise ValueError("there is nothing to evaluate; add --weights FILE, or name a run folder")
    if recipe.data is None:
        raise ValueError("the recipe names no data; add --data FOLDER, or --data digits to try it out")
    for name in recipe.imports:
        if not Path(name).is_file():
            raise FileNotFoundError(f"the recipe imports {name}, and there is no such Python file")
    if job.verb == "train":
        _check_training(job, recipe)
    return recipe


def _check_training(job: Job, recipe: Recipe) -> None:
    batch, accumulation = recipe.optimisation.batch_size, recipe.optimisation.accumulation
    if batch % (accumulation * job.gpus):
        raise ValueError(
            f"batch_size {batch} does not split evenly over {job.gpus} processes with accumulation={accumulation}; "
            f"choose a multiple of {accumulation * job.gpus}, or another --gpus"
        )
    part = batch // accumulation // job.gpus
    if isinstance(recipe, Classification) and recipe.augmentation.mixes and part % 2:
        raise ValueError(
            f"mixing pairs images, and each process has {part} of them at a time; choose another batch_size or --gpus"
        )
    check_tracker(recipe.tracker)


def _check_folder(job: Job, recipe: Recipe) -> None:
    """The run folder is free, or holds a run of this very recipe."""
    folder = Path(job.out or "")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --out")
    path = folder / "recipe.yaml"
    if not path.is_file():
        return
    there = from_mapping(read_yaml(path.read_text(encoding="utf-8"), str(path)), str(path)).recipe
    if differs := difference(there, recipe, ignore=FREE):
        key, (before, now) = next(iter(differs.items()))
        raise ValueError(
            f"{folder} holds a run of another recipe ({key} {before} there and {now} here); choose another --out"
        )


def _notes(job: Job, recipe: Recipe) -> Iterator[str]:
    """What is no mistake for sure, and often one."""
    weights = job.options[job.options.index("--weights") + 1] if "--weights" in job.options else recipe.weights
    for what, path in (("data", recipe.data), ("weights", weights)):
        if path is not None and path not in EMBEDDED and not Path(path).exists():
            yield f"note: the {what}, {path}, are not on this machine; the job needs them there on its nodes"
    if job.cpus_per_task is None and recipe.workers > 1:
        yield (
            f"note: each process loads with workers={recipe.workers}, and without --cpus-per-task many partitions give "
            f"it a single CPU"
        )


def _absolute(data: str) -> str:
    if not data:
        raise ValueError("--data is empty; name a folder, or digits")
    return data if data in EMBEDDED else str(Path(data).expanduser().resolve())


def _quoted(value: str) -> str:
    """A value in an #SBATCH line, where quotes keep spaces together."""
    return f'"{value}"' if re.search(r"\s", value) else value


def words_of(weights: str | None, which: str, csv: str | None, *, json: bool) -> tuple[str, ...]:
    """The options of `fourstage evaluate` as words, where they are not the default."""
    chosen: Sequence[tuple[str, ...]] = (
        ("--weights", weights) if weights else (),
        ("--which", which) if which != "model" else (),
        ("--csv", csv) if csv else (),
        ("--json",) if json else (),
    )
    return tuple(word for words in chosen for word in words)
