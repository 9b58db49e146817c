"""`fourstage evaluate`, and the evaluations during and after a training."""

import csv as csv_format
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fourstage.data.loader import evaluation_batches
from fourstage.data.sample import BadImage, Batch, Dataset, Sample, collate
from fourstage.data.workers import LoaderError
from fourstage.engine.devices import Ranks, join, leave
from fourstage.engine.state import load_state
from fourstage.engine.stop import StopRequest
from fourstage.engine.task import Task
from fourstage.engine.threads import limited_threads, loader_workers
from fourstage.engine.training import Training, fill
from fourstage.engine.waiting import yielding_cores
from fourstage.exported.runtime import is_exported
from fourstage.files import csv_cell, real_path, write_text
from fourstage.progress import Bar
from fourstage.recipe import Recipe, Resolved, data_path, list_recipes, resolve, resolve_run, resolve_stored
from fourstage.resources import sentences
from fourstage.run import build, computation
from fourstage.run.described import check_recipe_of_file, checkpoint_of, stored_values
from fourstage.run.folder import RunFolder
from fourstage.run.published import published_weights
from fourstage.run.results import Results, check_new_file
from fourstage.run.splits import readable
from fourstage.run.task_protocol import AnyProtocol, AnyTask, Record, protocol_of
from fourstage.run_folders import names_a_run, no_run
from fourstage.tasks.parts.intervals import Intervals
from fourstage.user_files import as_files, import_files
from fourstage.weights import saved
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint


@dataclass(frozen=True)
class Evaluated:
    """The results of an evaluation."""

    metrics: dict[str, float]
    expect: dict[str, float]  # published numbers, where the recipe has them
    tables: dict[str, Any]
    records: Mapping[str, Record]
    images: int
    intervals: Intervals  # of 95 %, of the metrics that have one
    notes: tuple[str, ...] = ()  # remarks on the data


class Evaluator:
    """Predicts each validation sample in one of the processes, and scores the records of all."""

    def __init__(self, protocol: AnyProtocol, val: Dataset, ranks: Ranks, device: torch.device) -> None:
        self.protocol, self.val, self.ranks, self.device = protocol, val, ranks, device
        recipe = protocol.recipe
        self.kept: dict[int, dict[str, Record]] = {}  # by the identity of a task that does not change any more
        self.workers = loader_workers(recipe.workers, device)
        self.batch_size = recipe.evaluation_batch_size or max(
            1, recipe.optimisation.batch_size // recipe.optimisation.accumulation // ranks.size
        )

    def records(self, task: Task, stop: StopRequest | None = None, bar: Bar | None = None) -> dict[str, Record] | None:
        """Return all records, on every rank; None if a stop was requested meanwhile."""
        records: dict[str, Record] = {}
        batches = evaluation_batches(
            self.val,
            self.protocol.evaluation_transform(),
            batch_size=self.batch_size,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            workers=self.workers if len(self.val) > 8 * self.batch_size else 0,
            pin_memory=self.device.type == "cuda",
        )
        error, done = None, 0
        with closing(batches):
            try:
                for batch in batches:
                    if stop is not None and stop.name is not None:
                        break
                    records |= self._predict(task, batch)
                    done += 1
                    if bar is not None:
                        bar.update(min(len(records) * self.ranks.size, len(self.val)))
            except (BadImage, LoaderError) as unreadable:
                error = unreadable
        self._join_collectives(task, done)
        if self.ranks.any(stop is not None and stop.name is not None):
            return None  # a launcher's SIGTERM may have ended the loader processes as well
        if self.ranks.any(error is not None):  # else the other processes would wait for records for ever
            raise error or ValueError("another process cannot read its images; its message says why")
        return self.ranks.gather(records)

    def _predict(self, task: Task, batch: Batch) -> Mapping[str, Record]:
        with build.autocast(self.protocol.recipe, self.device):
            return task.predict(batch.to(self.device))

    def _join_collectives(self, task: Task, done: int) -> None:
        """Run a sharded network as many times as the process with most batches: all must take part in gathering it."""
        if self.protocol.recipe.parallel != "fsdp" or self.ranks.size == 1:
            return
        most = math.ceil(math.ceil(len(self.val) / self.ranks.size) / self.batch_size)
        black = Sample("", np.zeros((64, 64, 3), np.uint8), (64, 64), label=0)
        batch = collate([self.protocol.evaluation_transform()(black)])
        for _ in range(done, most):
            self._predict(task, batch)

    def metrics(self, task: nn.Module, stop: StopRequest, *, keep: bool = False) -> dict[str, float] | None:
        """Return the metrics, as the training loop calls it.

        Args:
            keep: whether `finish` may take the records, because the task does not change any more.
        """
        assert isinstance(task, AnyTask)
        records = self.records(task, stop)
        if records is None:
            return None
        if keep:
            self.kept[id(task)] = records
        return task.score(records)


@sentences("add evaluation_batch_size=1, or another small number, and workers=0")
def evaluate(
    recipe: str | Path,
    *,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    changes: Iterable[str] = (),
    which: str = "model",
    csv: str | Path | None = None,
    results: str | Path | None = None,
    imports: Iterable[str | Path] = (),
    show: bool = True,
) -> Evaluated:
    """Score a checkpoint on the validation split.

    A checkpoint of ImageNet's 1000 classes is also scored on the test sets that exist for these; see
    `data.labels.imagenet_variants`.

    Args:
        recipe: a run folder, a checkpoint that describes its network, a folder of `save_pretrained`,
            `hf-hub:user/name`, a name from `list_recipes()`, a YAML file, or an exported file.
        weights: the checkpoint, or the name of published weights: `pretrained`, `smt_tiny.in1k`; default: the best one
            of the run, or what the recipe starts from.
        data: folder of the data set; default: the one that the recipe names.
        which: "model", or "ema" for the averaged weights of a checkpoint that has both.
        csv: a file to write the results of each class to; its columns depend on the task.
        results: where to write the predictions; see `run/results.py` for the format of each task.
        imports: Python files of your own to run. The recipe of a run folder names its files, but they run only if they
            are given here.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    changes = (changes,) if isinstance(changes, str) else changes
    if is_exported(recipe):
        from fourstage.run.exported_evaluation import evaluate_exported  # here, because it imports this module
        from fourstage.run.open import Options, check_exported

        check_exported(recipe, Options(weights=weights, which=which, imports=as_files(imports)))
        return evaluate_exported(recipe, data=data, changes=changes, csv=csv, results=results, show=show)
    if names_a_run(str(recipe), list_recipes()):
        raise FileNotFoundError(no_run(Path(recipe)))
    values = {} if data is None else {"data": data_path(data)}
    file = checkpoint_of(recipe, weights)
    run = RunFolder(Path(recipe)) if file is None and Path(recipe).is_dir() else None
    resolved = _resolved(recipe, file, run, changes, values, imports)
    if file is not None:
        recipe = weights = file.path
    weights, which = _weights(weights, which, run, resolved.recipe)
    ranks, device = join(resolved.recipe.device)
    try:
        import_files(resolved.recipe.imports)
        resolved, weights = published_weights(resolved, weights)
        protocol, kept = protocol_of(resolved.recipe), (weights, run.path / "recipe.yaml" if run else recipe)
        table = None if csv is None else check_csv(Path(csv), kept)
        predictions = None if results is None else checked_results(protocol, results, table, kept)
        with limited_threads(loader_workers(protocol.recipe.workers, device)), yielding_cores():
            evaluated = _evaluate(protocol, weights, which, run, ranks, device, predictions, show=show and ranks.first)
        if table is not None and ranks.first:
            write_text(table, class_table(evaluated.tables["per_class"], protocol.class_columns))
        return evaluated
    finally:
        leave()


def _resolved(
    recipe: str | Path,
    file: Checkpoint | None,
    run: RunFolder | None,
    changes: Iterable[str],
    values: Mapping[str, Any],
    imports: Iterable[str | Path],
) -> Resolved:
    """Return the recipe of a checkpoint, of a run, or of a name or YAML file, with changes."""
    if file is not None:
        resolved = resolve_stored(stored_values(file), file.path, changes, values, imports)
        check_recipe_of_file(resolved.recipe, file)
        return resolved
    if run is None:
        return resolve(recipe, changes, values, imports)
    run.recipe()  # raises its own message where the folder is not a run folder
    return resolve_run(run.path, changes, values, imports)


def _weights(weights: str | Path | None, which: str, run: RunFolder | None, recipe: Recipe) -> tuple[str | Path, str]:
    """Return the weights to evaluate: those that were asked for, the run's best ones, or those the recipe starts from.

    Raises:
        ValueError: there are none.
    """
    if weights is None and run is not None:
        return run.kept(which)
    weights = weights or recipe.weights
    if weights is None:
        raise ValueError(
            "a recipe alone has no weights to evaluate; add --weights FILE, or --weights pretrained for the published "
            "ones, or name a run folder"
        )
    return weights, which


def _evaluate(
    protocol: AnyProtocol,
    weights: str | Path,
    which: str,
    run: RunFolder | None,
    ranks: Ranks,
    device: torch.device,
    results: Results | None,
    *,
    show: bool,
) -> Evaluated:
    opened = protocol.open_evaluation(weights, which, show=show)
    file = read_checkpoint(weights)
    metadata = saved.stored_about(file)
    if metadata is None:
        metadata = protocol.dataset_metadata(opened.dataset)
    task = protocol.build_task(opened.dataset.classes, metadata)
    protocol.load_weights(task, weights, which)
    computation.take(metadata if computation.KEY in metadata else file.content, run, ranks)
    opened.prepare(task)
    val, _, notes = readable(opened.dataset, "val", protocol.recipe, ranks, show=show)
    task = task.to(device).eval()
    with nullcontext() if results is None else results.opened(task, opened.dataset, ranks):
        with Bar("evaluating", len(val), show=show) as bar:
            records = Evaluator(protocol, val, ranks, device).records(task, bar=bar)
        assert records is not None
        if results is not None and ranks.first:
            results.write(task, opened.dataset, records)
    metrics = {**task.score(records), **opened.extra_scores(records)}
    intervals = task.intervals(records) if ranks.first else Intervals("")
    notes = (*notes, *opened.notes)
    return Evaluated(metrics, opened.expect, task.tables(records), records, len(val), intervals, notes)


def check_csv(path: Path, keep: Iterable[str | Path] = ()) -> Path:
    """Return `path` if a CSV file can be written there; see `check_new_file`."""
    return check_new_file(path, "--csv", keep)


def checked_results(protocol: AnyProtocol, path: str | Path, table: Path | None, keep: Iterable[str | Path]) -> Results:
    """Return where the predictions go. Raises ValueError unless they can be written there."""
    results = protocol.results(Path(path))
    results.check(keep)
    if table is not None and real_path(table) == real_path(results.path):
        raise ValueError(f"--csv and --results are both {path}; give each its own name")
    return results


def class_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, int]]) -> str:
    """Return the results of each class as CSV: its name and these columns; a cell without a result is empty."""
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    writer.writerow(["class", *(name for name, _ in columns)])
    for row in rows:
        name = str(row["name"]).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        values = [(row.get(column), places) for column, places in columns]
        writer.writerow([csv_cell(name), *("" if value is None else f"{value:.{n}f}" for value, n in values)])
    return text.getvalue()


def finish(folder: RunFolder, evaluator: Evaluator, training: Training) -> dict[str, float]:
    """Write the report of a finished training's best checkpoint, and evaluate it again unless it is the last one.

    All processes call it and get the metrics; the first one writes.
    """
    state, task = load_state(folder.best), training.task
    assert isinstance(task, AnyTask)
    records = None
    if state["step"] == training.step:
        average = training.ema.module if training.ema is not None else None
        records = evaluator.kept.get(id(task if state["which"] == "model" else average))
    fill(task, state["model"])
    task.eval()
    if records is None:
        records = evaluator.records(task)
    assert records is not None
    metrics = task.score(records)
    if evaluator.ranks.first:
        origin = {"step": state["step"], "which": state["which"], "metrics": metrics}
        _write_report(folder.path, evaluator, task, records, origin)
    return metrics


def _write_report(
    folder: Path, evaluator: Evaluator, task: AnyTask, records: Mapping[str, Record], origin: Mapping[str, Any]
) -> None:
    from fourstage.report import render_report

    intervals = task.intervals(records)
    summary = {
        **origin,
        "images": len(records),
        "intervals": {name: list(interval) for name, interval in intervals.of.items()},
        "interval_method": intervals.method,
        "main_metric": task.main_metric,
        "classes": list(task.classes),
        "labels": list(evaluator.protocol.class_names(task)),
        "tables": task.tables(records),
    }
    write_text(folder / "evaluation.json", json.dumps(summary))
    lines = [json.dumps({"id": id, **record}) for id, record in records.items()]
    write_text(folder / "records.jsonl", "".join(line + "\n" for line in lines))
    evaluator.protocol.write_report_samples(folder, task, evaluator.val, records)
    write_text(folder / "report.html", render_report(folder))
