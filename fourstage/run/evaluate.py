"""`fourstage evaluate`, and the evaluations during and after a training."""

import csv as csv_format
import io
import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fourstage.data.loader import evaluation_batches
from fourstage.data.sample import BadImage, Batch, Dataset, Sample, collate
from fourstage.engine.devices import Ranks, join, leave
from fourstage.engine.state import load_state, write_text
from fourstage.engine.stop import StopWish
from fourstage.engine.task import Task
from fourstage.engine.training import fill
from fourstage.progress import Bar
from fourstage.recipe import Recipe, resolve
from fourstage.run import build
from fourstage.run.folder import RunFolder
from fourstage.run.splits import data_path, readable
from fourstage.run.task_protocol import AnyTask, Record, kind_of
from fourstage.weights.reading.safe import read_checkpoint


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    metrics: dict[str, float]
    expect: dict[str, float]  # the published numbers, where the recipe has them
    tables: dict[str, Any]
    records: Mapping[str, Record]
    images: int
    notes: tuple[str, ...] = ()  # what is unusual about the data


class Evaluator:
    """Predicts every validation sample, each in one process, and scores the records of all."""

    def __init__(self, recipe: Recipe, val: Dataset, ranks: Ranks, device: torch.device) -> None:
        self.recipe, self.val, self.ranks, self.device = recipe, val, ranks, device
        self.batch_size = recipe.evaluation_batch_size or max(
            1, recipe.optimisation.batch_size // recipe.optimisation.accumulation // ranks.size
        )

    def records(self, task: Task, wish: StopWish | None = None, bar: Bar | None = None) -> dict[str, Record] | None:
        """All records, on every rank; None if a stop was wished for meanwhile."""
        records: dict[str, Record] = {}
        batches = evaluation_batches(
            self.val,
            kind_of(self.recipe).transforms(self.recipe)[1],
            batch_size=self.batch_size,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            workers=self.recipe.workers if len(self.val) > 8 * self.batch_size else 0,
            pin_memory=self.device.type == "cuda",
        )
        error, done = None, 0
        with closing(batches):
            try:
                for batch in batches:
                    if wish is not None and wish.name is not None and self.ranks.size == 1:
                        return None
                    records |= self._predict(task, batch)
                    done += 1
                    if bar is not None:
                        bar.update(min(len(records) * self.ranks.size, len(self.val)))
            except BadImage as unreadable:
                error = unreadable
        self._go_along(task, done)
        if self.ranks.any(error is not None):  # the others wait for records that would never come
            raise error or ValueError("another process met an image that cannot be read; its message names the file")
        return self.ranks.gather(records)

    def _predict(self, task: Task, batch: Batch) -> Mapping[str, Record]:
        with build.autocast(self.recipe, self.device):
            return task.predict(batch.to(self.device))

    def _go_along(self, task: Task, done: int) -> None:
        """Run a sharded network as often as the process with most batches does: its parts are gathered from all."""
        if self.recipe.parallel != "fsdp" or self.ranks.size == 1:
            return
        most = math.ceil(math.ceil(len(self.val) / self.ranks.size) / self.batch_size)
        black = Sample("", np.zeros((64, 64, 3), np.uint8), (64, 64), label=0)
        batch = collate([kind_of(self.recipe).transforms(self.recipe)[1](black)])
        for _ in range(done, most):
            self._predict(task, batch)

    def metrics(self, task: nn.Module, wish: StopWish) -> dict[str, float] | None:
        """What the loop asks for."""
        assert isinstance(task, AnyTask)
        records = self.records(task, wish)
        return None if records is None else task.score(records)


def evaluate(
    recipe: str | Path,
    *,
    weights: str | Path | None = None,
    data: str | Path | None = None,
    changes: Iterable[str] = (),
    which: str = "model",
    csv: str | Path | None = None,
    show: bool = True,
) -> Evaluated:
    """Score a checkpoint on the validation split.

    A checkpoint that knows ImageNet's 1000 classes is also scored on the test sets that were made for these; see
    `data.imagenet_variants`.

    Args:
        recipe: a run folder, a name from `list_recipes()`, or a YAML file.
        weights: the checkpoint; default: the best one of the run.
        data: folder of the data set; default: what the recipe names.
        which: "model", or "ema" for the averaged weights of a checkpoint that has both.
        csv: a file for the results of each class: class, count, top1, top5 (per cent), mean loss.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    run = RunFolder(Path(recipe)) if Path(recipe).is_dir() else None
    source = Path(recipe) / "recipe.yaml" if run else recipe
    if run is not None:
        run.recipe()  # its sentence where the folder is no run's
    resolved = resolve(source, changes, {} if data is None else {"data": data_path(data)})
    if weights is None and run is None:
        raise ValueError("there is nothing to evaluate; add --weights FILE, or name a run folder")
    if weights is None:
        assert run is not None
        weights, which = run.kept(which)
    table = None if csv is None else check_csv(Path(csv), keep=(weights, source))
    ranks, device = join(resolved.recipe.device)
    try:
        build.run_imports(resolved.recipe)
        found = _evaluate(resolved.recipe, weights, which, ranks, device, show=show and ranks.first)
        if table is not None and ranks.first:
            write_text(table, class_table(found.tables["per_class"], kind_of(resolved.recipe).COLUMNS))
        return found
    finally:
        leave()


def _evaluate(
    recipe: Recipe, weights: str | Path, which: str, ranks: Ranks, device: torch.device, *, show: bool
) -> Evaluated:
    kind = kind_of(recipe)
    opened = kind.open_evaluation(recipe, weights, which, show=show)
    known = read_checkpoint(weights).content.get("about")
    task = kind.build_task(recipe, opened.data.classes, known if isinstance(known, dict) else kind.about(opened.data))
    kind.load(task, weights, which)
    opened.tell(task)
    val, _, notes = readable(opened.data, "val", recipe, ranks, show=show)
    task = task.to(device).eval()
    with Bar("evaluating", len(val), show=show) as bar:
        records = Evaluator(recipe, val, ranks, device).records(task, bar=bar)
    assert records is not None
    metrics = {**task.score(records), **opened.further(records)}
    return Evaluated(metrics, opened.expect, task.tables(records), records, len(val), (*notes, *opened.notes))


def check_csv(path: Path, keep: Iterable[str | Path] = ()) -> Path:
    """`path`, if a file can be written there. Raises ValueError; also if it is one of the files to keep."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give --csv the name of a file in it")
    if path.exists() and any(Path(other).exists() and path.samefile(other) for other in keep):
        raise ValueError(f"{path} is what is to be evaluated; give --csv another name")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent):  # files get their names in one step: the folder counts
            return path
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); choose another place for --csv") from None


def class_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, int]]) -> str:
    """The results of each class as CSV: its name and these columns, decimal places given; empty without a result."""
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    writer.writerow(["class", *(name for name, _ in columns)])
    for row in rows:
        name = str(row["name"]).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        values = [(row.get(column), places) for column, places in columns]
        writer.writerow([name, *("" if value is None else f"{value:.{n}f}" for value, n in values)])
    return text.getvalue()


def finish(folder: RunFolder, evaluator: Evaluator, task: AnyTask) -> dict[str, float]:
    """Evaluate the best checkpoint of a finished training once more, and write what the report shows.

    All processes call it and have the metrics; the first one writes.
    """
    state = load_state(folder.best)
    fill(task, state["model"])
    records = evaluator.records(task.eval())
    assert records is not None
    metrics = task.score(records)
    if evaluator.ranks.first:
        about = {"step": state["step"], "which": state["which"], "metrics": metrics}
        _write(folder.path, evaluator, task, records, about)
    return metrics


def _write(
    folder: Path, evaluator: Evaluator, task: AnyTask, records: Mapping[str, Record], about: Mapping[str, Any]
) -> None:
    from fourstage.report import render_report

    summary = {
        **about,
        "main_metric": task.main_metric,
        "classes": list(task.classes),
        "labels": list(kind_of(evaluator.recipe).class_names(task)),
        "tables": task.tables(records),
    }
    write_text(folder / "evaluation.json", json.dumps(summary))
    lines = [json.dumps({"id": id, **record}) for id, record in records.items()]
    write_text(folder / "records.jsonl", "".join(line + "\n" for line in lines))
    kind_of(evaluator.recipe).keep_samples(folder, task, evaluator.recipe, evaluator.val, records)
    write_text(folder / "report.html", render_report(folder))
