"""`fourstage evaluate`, and the evaluations during and after a training."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fourstage.data.loader import evaluation_batches
from fourstage.data.sample import BadImage, Batch, Dataset
from fourstage.engine.devices import Ranks, join, leave
from fourstage.engine.log import Bar
from fourstage.engine.state import load_state, write_text, write_whole
from fourstage.engine.stop import StopWish
from fourstage.engine.task import Task
from fourstage.engine.training import fill
from fourstage.recipe import Recipe, resolve
from fourstage.run import build
from fourstage.run.folder import RunFolder
from fourstage.run.kinds import AnyTask, Record, kind_of
from fourstage.run.splits import data_path, open_split, readable


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
        error, done, batch = None, 0, None
        with closing(batches):
            try:
                for batch in batches:
                    done += 1
                    if wish is not None and wish.name is not None and self.ranks.size == 1:
                        return None
                    records |= self._predict(task, batch)
                    if bar is not None:
                        bar.update(min(len(records) * self.ranks.size, len(self.val)))
            except BadImage as unreadable:
                error = unreadable
        if batch is not None:
            self._go_along(task, batch, done)
        if self.ranks.any(error is not None):  # the others wait for records that would never come
            raise error or ValueError("another process met an image that cannot be read; its message names the file")
        return self.ranks.gather(records)

    def _predict(self, task: Task, batch: Batch) -> Mapping[str, Record]:
        with build.autocast(self.recipe, self.device):
            return task.predict(batch.to(self.device))

    def _go_along(self, task: Task, batch: Batch, done: int) -> None:
        """Run a sharded network as often as the process with most batches does: its parts are gathered from all."""
        if self.recipe.parallel != "fsdp" or self.ranks.size == 1:
            return
        most = math.ceil(math.ceil(len(self.val) / self.ranks.size) / self.batch_size)
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
    show: bool = True,
) -> Evaluated:
    """Score a checkpoint on the validation split.

    Args:
        recipe: a run folder, a name from `list_recipes()`, or a YAML file.
        weights: the checkpoint; default: the best one of the run.
        data: folder of the data set; default: what the recipe names.
        which: "model", or "ema" for the averaged weights of a checkpoint that has both.
    """
    run = RunFolder(Path(recipe)) if Path(recipe).is_dir() else None
    source = Path(recipe) / "recipe.yaml" if run else recipe
    if run is not None:
        run.recipe()  # its sentence where the folder is no run's
    resolved = resolve(source, changes, {} if data is None else {"data": data_path(data)})
    if weights is None and run is None:
        raise ValueError("there is nothing to evaluate; add --weights FILE, or name a run folder")
    weights = weights or (run.require_best() if run else None)
    assert weights is not None
    ranks, device = join(resolved.recipe.device)
    try:
        build.run_imports(resolved.recipe)
        opened = open_split(resolved.recipe, "val", show=show and ranks.first)
        task = kind_of(resolved.recipe).build_task(resolved.recipe, opened.classes)
        kind_of(resolved.recipe).load(task, weights, which)
        val, _, notes = readable(opened, "val", resolved.recipe, ranks, show=show and ranks.first)
        task = task.to(device).eval()
        evaluator = Evaluator(resolved.recipe, val, ranks, device)
        with Bar("evaluating", len(val), show=show and ranks.first) as bar:
            records = evaluator.records(task, bar=bar)
        assert records is not None
        return Evaluated(
            task.score(records), dict(resolved.recipe.expect), task.tables(records), records, len(val), notes
        )
    finally:
        leave()


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
        _write(folder, evaluator, task, records, state, metrics)
    return metrics


def _write(
    folder: RunFolder,
    evaluator: Evaluator,
    task: AnyTask,
    records: Mapping[str, Record],
    state: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> None:
    from fourstage.report import render_report

    summary = {
        "step": state["step"],
        "which": state["which"],
        "metrics": metrics,
        "main_metric": task.main_metric,
        "classes": list(task.classes),
        "tables": task.tables(records),
    }
    write_text(folder.path / "evaluation.json", json.dumps(summary))
    lines = [json.dumps({"id": id, **record}) for id, record in records.items()]
    write_text(folder.path / "records.jsonl", "".join(line + "\n" for line in lines))
    write_samples(folder.path, evaluator.val, records, kind_of(evaluator.recipe).samples(records))
    write_text(folder.path / "report.html", render_report(folder.path))


def write_samples(folder: Path, val: Dataset, records: Mapping[str, Record], chosen: Sequence[str]) -> None:
    """Small pictures of the chosen samples, with what was predicted for them."""
    from PIL import Image

    index = {val.id(i): i for i in range(len(val))}
    (folder / "samples").mkdir(exist_ok=True)
    lines = []
    for number, id in enumerate(chosen):
        image = val.sample(index[id]).image
        assert isinstance(image, np.ndarray)
        picture = Image.fromarray(image)
        picture.thumbnail((192, 192))
        write_whole(folder / "samples" / f"{number:03}.png", lambda file, p=picture: p.save(file, "PNG"))
        lines.append({"file": f"{number:03}.png", "id": id, **records[id]})
    write_text(folder / "samples" / "index.json", json.dumps(lines))
