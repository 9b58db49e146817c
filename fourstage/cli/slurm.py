"""`slurm`: train and evaluate in jobs of a cluster."""

import argparse
import sys

from fourstage.cli.parsing import Verbs, add_changes, add_imports, add_verb
from fourstage.plurals import plural


def add_slurm(verbs: Verbs, help: str) -> None:
    verb = add_verb(
        verbs,
        "slurm",
        _run_slurm,
        help,
        ["fourstage slurm train digits_visformer --partition gpu --gpus 2 --dry-run"],
    )
    verb.add_argument(
        "command", choices=("train", "evaluate"), metavar="train|evaluate", help="the command that the job runs"
    )
    verb.add_argument("recipe", metavar="RECIPE", help="a name or FILE.yaml; for evaluate also a run folder")
    verb.add_argument("--partition", metavar="P", required=True, help="partition of the cluster; see `sinfo`")
    verb.add_argument(
        "--gpus", type=int, metavar="N", required=True, help="GPUs on all nodes together, one process for each"
    )
    verb.add_argument("--gpus-per-node", type=int, metavar="M", help="default: 8, or --gpus if that is less")
    verb.add_argument(
        "--cpus-per-task", type=int, metavar="C", help="CPUs for each process; workers + 1 is a good choice"
    )
    verb.add_argument(
        "--time", metavar="T", help="time limit, such as 2-00:00:00; a longer training is queued again and continues"
    )
    verb.add_argument("--job-name", metavar="J", help="default: the name of the recipe")
    verb.add_argument(
        "--srun-args", metavar="WORDS", default="", help='options for srun, such as --srun-args="--mpi=pmix"'
    )
    verb.add_argument(
        "--sbatch-args", metavar="WORDS", default="", help='options for sbatch, such as --sbatch-args="--account=A"'
    )
    verb.add_argument("--dry-run", action="store_true", help="print the file and submit nothing")
    verb.add_argument("--data", metavar="PATH", help="folder of the data set, or `digits`; default: that of the recipe")
    verb.add_argument("--out", metavar="RUN", help="train: run folder; default: runs/<recipe>")
    verb.add_argument("--weights", metavar="FILE", help="evaluate: the checkpoint")
    verb.add_argument(
        "--which", choices=("model", "ema"), default="model", help="evaluate: which weights of the checkpoint"
    )
    verb.add_argument("--csv", metavar="FILE", help="evaluate: write the results of each class as a table")
    verb.add_argument("--json", action="store_true", help="evaluate: print the metrics as JSON")
    add_imports(verb, "a Python file of your own to run, beside those of the recipe; may be repeated")
    add_changes(verb)


def _run_slurm(args: argparse.Namespace) -> int:
    from fourstage import slurm

    own = slurm.words_of(args.weights, args.which, args.csv, json=args.json)
    if args.command == "train" and own:
        raise ValueError(
            f"{own[0]} is an option of evaluate; to start a training from a checkpoint, write weights=FILE"
        )
    if args.command == "evaluate" and args.out is not None:
        raise ValueError("evaluate has no --out: the output of the job goes to slurm/; leave it out")
    job, notes = slurm.prepare(
        slurm.Job(
            args.command,
            args.recipe,
            args.partition,
            args.gpus,
            gpus_per_node=args.gpus_per_node,
            cpus_per_task=args.cpus_per_task,
            time=args.time,
            name=args.job_name,
            srun_args=args.srun_args,
            sbatch_args=args.sbatch_args,
            data=args.data,
            out=args.out,
            options=own,
            imports=tuple(args.imports),
            changes=tuple(args.changes),
        )
    )
    print("\n".join(notes), end="\n" if notes else "", file=sys.stderr)
    if args.dry_run:
        print(slurm.script(job), end="")
        return 0
    done = slurm.submit(job)
    print(
        f"Submitted job {done.id}: {job.name}, {plural(job.gpus, 'process', 'processes')} on "
        f"{plural(job.nodes, 'node')}."
    )
    print(f"File: {done.file}\nOutput: {done.output}")
    return 0
