"""`slurm`: train and evaluate as jobs of a cluster."""

import argparse
import sys

from fourstage.cli.parsing import Verbs, add_changes, add_verb, only_changes


def add_slurm(verbs: Verbs) -> None:
    verb = add_verb(verbs, "slurm", _run_slurm, "write the file for sbatch that trains or evaluates, and submit it")
    verb.add_argument("command", choices=("train", "evaluate"), metavar="train|evaluate", help="what the job does")
    verb.add_argument("recipe", metavar="RECIPE", help="a name or FILE.yaml; to evaluate, also the folder of a run")
    verb.add_argument("--partition", metavar="P", required=True, help="where the job waits and runs; see `sinfo`")
    verb.add_argument("--gpus", type=int, metavar="N", required=True, help="GPUs of all nodes, a process for each")
    verb.add_argument("--gpus-per-node", type=int, metavar="M", help="default: 8, or all where there are fewer")
    verb.add_argument("--cpus-per-task", type=int, metavar="C", help="CPUs for each process; take workers + 1")
    verb.add_argument("--time", metavar="T", help="such as 2-00:00:00; a run that needs more goes on in the queue")
    verb.add_argument("--job-name", metavar="J", help="default: the recipe's name")
    verb.add_argument("--srun-args", metavar="WORDS", default="", help='for srun; write --srun-args="--mpi=pmix"')
    verb.add_argument("--sbatch-args", metavar="WORDS", default="", help='for sbatch: --sbatch-args="--account=A"')
    verb.add_argument("--dry-run", action="store_true", help="print the file, and submit nothing")
    verb.add_argument("--data", metavar="PATH", help="as for the command itself")
    verb.add_argument("--out", metavar="RUN", help="of train: folder of the run; default: runs/<recipe>")
    verb.add_argument("--weights", metavar="FILE", help="of evaluate: the checkpoint")
    verb.add_argument("--which", choices=("model", "ema"), default="model", help="of evaluate")
    verb.add_argument("--csv", metavar="FILE", help="of evaluate")
    verb.add_argument("--json", action="store_true", help="of evaluate")
    add_changes(verb)


def _run_slurm(args: argparse.Namespace) -> int:
    from fourstage import slurm

    own = slurm.words_of(args.weights, args.which, args.csv, json=args.json)
    if args.command == "train" and own:
        raise ValueError(f"{own[0]} is an option of evaluate; a training starts from a checkpoint by weights=FILE")
    if args.command == "evaluate" and args.out is not None:
        raise ValueError("evaluate has no --out; the job prints into slurm/")
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
            changes=tuple(only_changes(args.changes)),
        )
    )
    print("\n".join(notes), end="\n" if notes else "", file=sys.stderr)
    if args.dry_run:
        print(slurm.script(job), end="")
        return 0
    done = slurm.submit(job)
    print(f"Submitted job {done.id}: {job.name}, {job.gpus} processes on {job.nodes} node{'s' * (job.nodes > 1)}.")
    print(f"File: {done.file}\nOutput: {done.output}")
    return 0
