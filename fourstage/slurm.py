"""`fourstage slurm`: write the file for Slurm's `sbatch` and submit it. Needs neither torch nor a GPU."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fourstage.documents import YAML_BYTES
from fourstage.engine.tracker import check_tracker
from fourstage.files import check_no_links, is_address, is_hub_name, read_text, typed, write_text
from fourstage.recipe import (
    EMBEDDED,
    FREE,
    Classification,
    Recipe,
    as_begun,
    data_path,
    difference,
    from_mapping,
    is_name_of_weights,
    list_recipes,
    read_yaml,
    resolve,
)
from fourstage.run_folders import CHECKPOINTS, names_a_run, no_run

WARNING = 120  # seconds between the signal and the end of a job's time limit, in which a run saves
STOPPED = 143  # exit code of a run that SIGTERM stopped and that the same command continues
NAME = r"\w.,+@-"  # characters of the names of jobs and partitions
TIME = r"\d+|\d+:\d+|\d+:\d+:\d+|\d+-\d+|\d+-\d+:\d+|\d+-\d+:\d+:\d+|UNLIMITED"  # formats of sbatch


@dataclass(frozen=True)
class Job:
    """A command and the resources of a cluster that it needs.

    Attributes:
        verb: the command.
        recipe: a recipe by name or FILE.yaml; for evaluate also a run folder.
        options: words of the command after the recipe, such as ("--weights", "a.pth").
        imports: Python files of the user that the recipe or the run needs.
        gpus: number of GPUs, with one process each.
        gpus_per_node: None: 8, or `gpus` if that is less.
        cpus_per_task: None: the default of the partition, often 1.
        time: limit in a format of sbatch, such as 2-00:00:00.
        name: None: the name of the recipe.
        srun_args, sbatch_args: further options of srun and sbatch, as typed.
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
    imports: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        return self.gpus // self.per_node

    @property
    def per_node(self) -> int:
        return self.gpus_per_node or min(self.gpus, 8)

    @property
    def folder(self) -> Path:
        """The folder of the file and of the job's output."""
        return Path("slurm") if self.out is None else Path(self.out) / "slurm"

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.sbatch"

    @property
    def command(self) -> list[str]:
        """The words of the command that each process runs."""
        paths = [
            word for name, value in (("--data", self.data), ("--out", self.out)) if value for word in (name, value)
        ]
        imports = [f"--imports={file}" for file in self.imports]
        words = [self.verb, self.recipe, *paths, *self.options, *imports, *self.changes]
        return [sys.executable, "-m", "fourstage", *words]


@dataclass(frozen=True)
class Submitted:
    """A job that Slurm has accepted."""

    id: str
    file: Path
    output: Path


def prepare(job: Job) -> tuple[Job, list[str]]:
    """Complete and check a job as far as that needs neither data nor a GPU; return it with notes for the user.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    _check_size(job)
    recipe = _recipe(job)
    job = replace(job, name=job.name or recipe.name)
    if job.verb == "train":
        job = replace(job, out=str(_run_folder(job, recipe)))
    _check_words(job)
    if job.verb == "train":
        _check_folder(job, recipe)
    return job, list(_notes(job, recipe))


def script(job: Job) -> str:
    """Return the content of the file for sbatch; the job comes from `prepare`."""
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
        "open-mode": "append",  # a job that is queued again appends to the same file
    }
    lines = [f"#SBATCH --{name}={_quoted(str(value))}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", *([f"#SBATCH {job.sbatch_args}"] if job.sbatch_args else [])]
    # Since Slurm 22.05, srun does not inherit --cpus-per-task from sbatch.
    cpus = [] if job.cpus_per_task is None else [f"--cpus-per-task={job.cpus_per_task}"]
    srun = ["srun", "--kill-on-bad-exit=1", *cpus, *shlex.split(job.srun_args)]
    run = f"{shlex.join(srun)} \\\n    {shlex.join(job.command)}\n"
    if job.verb == "train":
        lines.append(f"#SBATCH --signal=TERM@{WARNING}")
        run += REQUEUE
    return "\n".join(["#!/bin/bash", *lines, "", run])


# A run that the signal before the time limit stops saves and exits with this code. `scancel` ends this script too.
REQUEUE = f"""code=$?
if [ "$code" -eq {STOPPED} ]; then
    scontrol requeue "$SLURM_JOB_ID" && exit 0  # stopped and saved: the same command continues
fi
exit "$code"
"""


def submit(job: Job) -> Submitted:
    """Write the file and submit it with sbatch.

    Raises:
        ValueError: there is no sbatch, or it refuses the job; the file is kept.
    """
    return _submit(job, script(job))


def _submit(job: Job, text: str) -> Submitted:
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise ValueError(
            "there is no sbatch on the PATH; run this on a login node of the cluster, or print the file with --dry-run"
        )
    try:
        check_no_links(job.folder.parent, [job.folder.name])
        job.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{job.folder} cannot be created ({error.strerror}); choose another --out") from None
    write_text(job.file, text)
    done = subprocess.run([sbatch, "--parsable", str(job.file)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        raise ValueError(f"sbatch refused the job ({reason}); its file is {job.file}")
    id = (done.stdout.split() or ["?"])[-1].partition(";")[0]
    return Submitted(id, job.file, job.folder / f"{job.name}-{id}.out")


def _check_size(job: Job) -> None:
    for option, value in (
        ("gpus", job.gpus),
        ("gpus-per-node", job.gpus_per_node),
        ("cpus-per-task", job.cpus_per_task),
    ):
        if value is not None and value < 1:
            raise ValueError(f"--{option} must be at least 1; got {value}")
    if job.per_node > job.gpus:
        raise ValueError(
            f"--gpus is the number on all nodes, but {job.gpus} is less than --gpus-per-node {job.per_node}"
        )
    if job.gpus % job.per_node:
        raise ValueError(
            f"{job.gpus} GPUs do not fill nodes of {job.per_node}; choose a multiple for --gpus, or another "
            f"--gpus-per-node"
        )
    if job.time is not None and not re.fullmatch(TIME, job.time):
        raise ValueError(f"--time is minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS; got {job.time!r}")


def _check_words(job: Job) -> None:
    """Raise ValueError for a value that would break a line of the file, and for a job name that is no file name."""
    for option, value in (("partition", job.partition), ("job-name", job.name)):
        if not re.fullmatch(f"[{NAME}]+", value or ""):
            raise ValueError(f"--{option} must be one word of letters, digits and .,+@-; got {value!r}")
    for option, value in (("srun-args", job.srun_args), ("sbatch-args", job.sbatch_args)):
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"--{option} is not valid shell syntax ({str(error).lower()}); got {value!r}") from None
        if "\n" in value or (words and not words[0].startswith("-")):
            raise ValueError(f"--{option} must begin with an option, such as --{option}='--exclusive'; got {value!r}")


def _recipe(job: Job) -> Recipe:
    """Return the recipe as the job will resolve it."""
    values = {} if job.data is None else {"data": data_path(job.data)}
    if job.verb == "evaluate" and names_a_run(job.recipe, list_recipes()):
        raise FileNotFoundError(no_run(Path(job.recipe)))
    if job.verb == "evaluate" and (is_hub_name(job.recipe) or Path(job.recipe).suffix in CHECKPOINTS):
        raise ValueError(
            f"a job evaluates a run or a recipe, and {job.recipe} is a checkpoint; name its recipe, with --weights "
            f"{typed(job.recipe)}"
        )
    if job.verb == "train":
        resolved = resolve(job.recipe, job.changes, values, job.imports)
        recipe = as_begun(resolved, _run_folder(job, resolved.recipe)).recipe
    elif not Path(job.recipe).is_dir():
        recipe = resolve(job.recipe, job.changes, values, job.imports).recipe
    elif not (Path(job.recipe) / "recipe.yaml").is_file():
        raise FileNotFoundError(no_run(Path(job.recipe)))
    else:
        recipe = resolve(Path(job.recipe) / "recipe.yaml", job.changes, values, job.imports).recipe
    given = Path(job.recipe).is_dir() or "--weights" in job.options or recipe.weights is not None
    if job.verb == "evaluate" and not given:
        raise ValueError("a recipe alone has no weights to evaluate; add --weights FILE, or name a run folder")
    if recipe.data is None:
        raise ValueError("the recipe names no data; add --data FOLDER, or --data digits to try it out")
    for name in recipe.imports:
        if not Path(name).is_file():
            raise FileNotFoundError(f"the recipe imports {name}, but there is no such Python file")
    if job.verb == "train":
        _check_training(job, recipe)
    return recipe


def _run_folder(job: Job, recipe: Recipe) -> Path:
    return Path(job.out or Path("runs") / recipe.name)


def _check_training(job: Job, recipe: Recipe) -> None:
    batch, accumulation = recipe.optimisation.batch_size, recipe.optimisation.accumulation
    if batch % (accumulation * job.gpus):
        raise ValueError(
            f"batch_size {batch} does not split evenly over {job.gpus} processes with accumulation={accumulation}; "
            f"choose a multiple of {accumulation * job.gpus}, or another --gpus"
        )
    micro_batch = batch // accumulation // job.gpus
    if isinstance(recipe, Classification) and recipe.augmentation.mixes and micro_batch % 2:
        raise ValueError(
            f"mixing pairs images, but each process has a batch of {micro_batch}, an odd number; choose another "
            f"batch_size or --gpus"
        )
    check_tracker(recipe.tracker)


def _check_folder(job: Job, recipe: Recipe) -> None:
    """Raise ValueError unless the run folder is free or holds a run of this recipe."""
    folder = Path(job.out or "")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --out")
    path = folder / "recipe.yaml"
    if not path.is_file():
        return
    there = from_mapping(read_yaml(read_text(path, YAML_BYTES), str(path)), str(path)).recipe
    if differs := difference(there, recipe, ignore=FREE):
        key, (before, now) = next(iter(differs.items()))
        raise ValueError(
            f"{folder} holds a run of another recipe ({key} {before} there and {now} here); choose another --out"
        )


def _notes(job: Job, recipe: Recipe) -> Iterator[str]:
    """Yield notes on what is often a mistake."""
    weights = job.options[job.options.index("--weights") + 1] if "--weights" in job.options else recipe.weights
    paths = dict[str, str]()
    if recipe.data is not None and recipe.data not in EMBEDDED and not is_address(recipe.data):
        paths["data"] = recipe.data
    if weights is not None and not is_name_of_weights(weights) and not is_hub_name(weights):
        paths["weights"] = weights
    for what, path in paths.items():
        if _is_missing(path):
            yield f"note: the {what}, {path}, are not on this machine; the nodes of the job need them at this path"
    if job.cpus_per_task is None and (recipe.workers is None or recipe.workers > 1):
        has = "as many loader workers as its CPUs allow" if recipe.workers is None else f"workers={recipe.workers}"
        yield f"note: each process has {has}, but without --cpus-per-task many partitions give it a single CPU"


def _is_missing(path: str) -> bool:
    """Return whether a path is not on this machine; of shards such as train-{00..07}.tar, their folder."""
    before, braces, _ = path.partition("{")
    return not (Path(before).parent if braces else Path(before)).exists()


def _quoted(value: str) -> str:
    """Return a value for an #SBATCH line, in quotes if it has spaces."""
    return f'"{value}"' if re.search(r"\s", value) else value


def words_of(weights: str | None, which: str, csv: str | None, *, json: bool) -> tuple[str, ...]:
    """Return the options of `fourstage evaluate` as words, without default values."""
    chosen: Sequence[tuple[str, ...]] = (
        ("--weights", weights) if weights else (),
        ("--which", which) if which != "model" else (),
        ("--csv", csv) if csv else (),
        ("--json",) if json else (),
    )
    return tuple(word for words in chosen for word in words)


# ------------------------------------------------------------------------------------------- arrays of a comparison


@dataclass(frozen=True)
class Array:
    """The cells of `fourstage compare` as tasks of a Slurm array, one training each.

    Attributes:
        sources: recipes by name or file.
        words: of the command after the recipes, without --out and --data.
        cells: number of tasks.
        out: folder of the comparison, absolute.
        gpus: of each cell, all on one node.
    """

    sources: tuple[str, ...]
    words: tuple[str, ...]
    cells: int
    out: Path
    name: str
    partition: str
    gpus: int = 1
    cpus_per_task: int | None = None
    time: str | None = None
    sbatch_args: str = ""
    data: str | None = None

    @property
    def job(self) -> Job:
        """The resources of one cell, as those of a training."""
        return Job(
            "train",
            self.sources[0],
            self.partition,
            self.gpus,
            gpus_per_node=self.gpus,
            cpus_per_task=self.cpus_per_task,
            time=self.time,
            name=self.name,
            sbatch_args=self.sbatch_args,
            out=str(self.out),
        )


def name_of_folder(folder: Path) -> str:
    """Return the name of an array of jobs from the folder of its comparison, as one word."""
    return re.sub(rf"[^{NAME}]+", "_", folder.name).strip("_") or "compare"


def array_script(array: Array) -> str:
    """Return the content of the file for sbatch. A cell that its time limit stops is queued again and continues.

    Raises:
        ValueError: one sentence on what came, what was needed and what to type next.
    """
    job = array.job
    _check_size(job)
    _check_words(job)
    data = [] if array.data is None else ["--data", data_path(array.data)]
    words = ["compare", *array.sources, *array.words, *data, "--out", str(array.out)]
    own = f"{shlex.join(job.command)} "
    cell = f'{shlex.join([sys.executable, "-m", "fourstage", *words])} --cell "$SLURM_ARRAY_TASK_ID" '
    text = script(job).replace(own.rstrip(), cell.rstrip())
    text = text.replace(f"{job.name}-%j.out", f"{job.name}-%A_%a.out")
    return text.replace("#SBATCH --requeue", f"#SBATCH --array=0-{array.cells - 1}\n#SBATCH --requeue", 1)


def submit_array(array: Array) -> Submitted:
    """Write the file and submit it with sbatch. Raises ValueError: there is no sbatch, or it refuses the job."""
    done = _submit(array.job, array_script(array))
    return replace(done, output=array.job.folder / f"{array.name}-{done.id}_*.out")
