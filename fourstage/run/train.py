"""`fourstage train`: train by a recipe, in a run folder."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fourstage.build import own_values
from fourstage.data.bad_images import with_replacements
from fourstage.data.loader import TrainPlan
from fourstage.data.sample import Batch, Dataset
from fourstage.engine.devices import Ranks, join, leave
from fourstage.engine.log import RunLog, epoch_text
from fourstage.engine.loop import Loop
from fourstage.engine.stop import StopRequest
from fourstage.engine.threads import choose_threads, limited_threads, loader_workers
from fourstage.engine.tracker import check_tracker
from fourstage.engine.training import Training
from fourstage.engine.waiting import yielding_cores
from fourstage.files import real_path, write_text
from fourstage.plurals import plural
from fourstage.progress import Bar
from fourstage.recipe import Recipe, Resolved, as_begun, data_path, resolve
from fourstage.recipe.sizing import blockers, refuse, sized
from fourstage.report.number_format import brief_text, short_value
from fourstage.resources import sentences
from fourstage.run import build, computation, trial
from fourstage.run.compilation import compiled, plain_evaluation, unchanged
from fourstage.run.evaluate import Evaluator, finish
from fourstage.run.folder import RunFolder, environment
from fourstage.run.published import settled_weights
from fourstage.run.replaced_images import advice
from fourstage.run.resume import continue_from
from fourstage.run.setup import Setup
from fourstage.run.splits import Splits, open_splits, readable_splits
from fourstage.run.task_protocol import AnyProtocol, AnyTask, protocol_of
from fourstage.streams import print_lines
from fourstage.user_files import import_files


@dataclass(frozen=True)
class Trained:
    """The end of a training."""

    folder: Path
    step: int
    total: int
    stopped_by: str | None = None  # "Ctrl-C", "SIGTERM" or "another process"; None: the training reached its end
    metrics: dict[str, float] | None = None  # of the best checkpoint, once finished
    already_finished: bool = False
    classes: int = 0  # of the data


def train(
    recipe: str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    changes: Iterable[str] = (),
    imports: Iterable[str | Path] = (),
    fresh: bool = False,
    dry_run: bool = False,
    show: bool = True,
) -> Trained:
    """Train by a recipe; continue a run that was stopped.

    Args:
        recipe: a name from `list_recipes()`, or a YAML file.
        data: folder of the data set, or "digits"; default: the one that the recipe names.
        out: the run folder; default: runs/<recipe>.
        changes: `key=value` strings, such as "optimisation.lr=1e-3"; one may be given alone.
        imports: Python files of your own to run, beside those that the recipe names.
        fresh: set an earlier run in `out` aside and start again.
        dry_run: check everything, build everything, load one batch, run its smallest image through the network, and
            write nothing.
        show: print progress.

    Raises:
        ValueError, OSError: one sentence on what came, what was needed and what to type next.
    """
    changes = (changes,) if isinstance(changes, str) else tuple(changes)
    resolved = resolve(recipe, changes, {} if data is None else {"data": data_path(data)}, imports)
    if out is not None and not str(out):
        raise ValueError("--out is empty; give a folder for the run")
    folder = RunFolder(real_path(out) if out is not None else Path("runs") / resolved.recipe.name)
    new = fresh or not folder.begun
    if not new:
        resolved = as_begun(resolved, folder.path)
    folder.check_usable(resolved.recipe, fresh=fresh)
    typed = _typed(recipe, data, out, {"--fresh": fresh, "--dry-run": dry_run}, changes)
    ranks, device = join(resolved.recipe.device)
    try:
        done = None if fresh else _finished(folder)
        if done is not None:
            return done
        less_memory = _less_memory(resolved.recipe, ranks)
        workers = loader_workers(resolved.recipe.workers, device)
        with sentences(less_memory, folder.path), limited_threads(workers), yielding_cores():
            start = _Start(typed, new=new, from_weights=fresh or not folder.has_checkpoint)
            setup, task = _prepare(resolved, folder, ranks, device, start, show=show and ranks.first)
            with advice(resolved.recipe.skip_bad_images, begun=not start.from_weights):
                if dry_run:
                    return _dry_run(setup, folder, task)
                if start.from_weights:
                    trial.try_single_image(setup, task)
            if fresh and ranks.first:
                _set_aside(folder, show=show)
            ranks.wait()
            with advice(resolved.recipe.skip_bad_images):
                return _fit(setup, folder, task.to(device), show=show and ranks.first)
    finally:
        folder.release()
        leave()


def _typed(
    recipe: str | Path,
    data: str | Path | None,
    out: str | Path | None,
    flags: Mapping[str, bool],
    changes: Sequence[str],
) -> list[str]:
    """Return the words of a training's command line, for messages."""
    options = [("--data", data), ("--out", out)]
    given = [word for name, value in options if value is not None for word in (name, str(value))]
    return ["fourstage", "train", str(recipe), *given, *(name for name, on in flags.items() if on), *changes]


def _dry_run(setup: Setup, folder: RunFolder, task: AnyTask) -> Trained:
    """Try what the first steps do, and write nothing."""
    folder.check_writable()
    batches = setup.batches_of(0)
    trial.try_losses(setup, task, batches)
    trial.try_single_image(setup, task)
    trial.try_smallest_image(setup, task, batches[0])
    print_lines("Dry run: everything is in place, and nothing was written.")
    return Trained(folder.path, 0, setup.plan.total)


def _set_aside(folder: RunFolder, *, show: bool) -> None:
    aside = folder.set_aside()
    if aside and show:
        print_lines(f"The earlier run is now in {aside}.")


def _less_memory(recipe: Recipe, ranks: Ranks) -> str:
    """Return what to type where the memory is too small for a training."""
    o = recipe.optimisation
    micro_batch = o.batch_size // o.accumulation // ranks.size
    free = [
        *([] if recipe.grad_checkpointing else ["grad_checkpointing=true"]),
        *(["fewer workers, such as workers=0"] if recipe.workers != 0 else []),
    ]
    other = [
        *([f"optimisation.accumulation={2 * o.accumulation}"] if micro_batch % 2 == 0 else []),
        "a smaller optimisation.batch_size or image size",
    ]
    start_again = f"start again with --fresh and {' or '.join(other)}"
    return f"continue with {' and '.join(free)}, or {start_again}" if free else start_again


def _finished(folder: RunFolder) -> Trained | None:
    """Return the result of a run that has nothing left to do, without building anything; else None."""
    if not (folder.path / "report.html").is_file() or not (folder.path / "recipe.yaml").is_file():
        return None
    state = folder.state()
    if state is None or not state["finished"]:
        return None
    return Trained(
        folder.path,
        state["step"],
        state["step"],
        metrics=state["best"].get("metrics"),
        already_finished=True,
        classes=len(state["classes"]),
    )


@dataclass(frozen=True)
class _Start:
    """Whether a training begins or continues."""

    typed: Sequence[str]  # the words of the command, for messages
    new: bool  # its recipe is not settled yet
    from_weights: bool  # no checkpoint of its own will fill the network


def _settled(
    resolved: Resolved, opened: Splits, ranks: Ranks, start: _Start, notes: list[str]
) -> tuple[Resolved, AnyProtocol]:
    """Return the recipe with the values that follow from its weights and its data; add a note for each."""
    protocol = protocol_of(resolved.recipe)
    images = protocol.count_training_images(opened.train)
    unit = 2 * resolved.recipe.optimisation.accumulation * ranks.size  # mixing needs pairs
    if start.new:
        resolved, of_weights = settled_weights(resolved)
        resolved, of_data = sized(resolved, images, unit)
        notes += [*of_weights, *of_data]
    refuse(blockers(resolved.recipe, images, unit), start.typed)
    return resolved, protocol_of(resolved.recipe)


def _prepare(
    resolved: Resolved, folder: RunFolder, ranks: Ranks, device: torch.device, start: _Start, *, show: bool
) -> tuple[Setup, AnyTask]:
    """Do everything up to the first step without writing a file; cheap checks come first."""
    check_tracker(resolved.recipe.tracker)
    build.set_numerics(resolved.recipe, device)
    import_files(resolved.recipe.imports)
    opened = open_splits(protocol_of(resolved.recipe), show=show)
    notes: list[str] = []
    resolved, protocol = _settled(resolved, opened, ranks, start, notes)
    recipe = resolved.recipe
    order = _order(protocol, opened.train, ranks)  # mistakes in a recipe are reported before images are read
    build.schedule(recipe, order.steps_per_epoch)
    protocol.train_transform()
    protocol.evaluation_transform()
    protocol.mixing(len(opened.train.classes), order.micro_batch)
    metadata = protocol.dataset_metadata(opened.train)
    notes += protocol.metadata_lines(opened.train.classes, metadata)
    task = protocol.build_task(opened.train.classes, metadata)
    build.prepare(task, recipe, ranks, device)
    notes += build.unmatched_names(task, recipe, resolved.given)
    build.optimizer(task, recipe)
    if recipe.weights is not None and start.from_weights:
        notes.append(protocol.load_initial_weights(task, recipe.weights))
    splits = readable_splits(opened, recipe, ranks, None if start.new else folder.bad_images, show=show)
    splits = replace(splits, train=protocol.training_data(splits.train))
    if recipe.skip_bad_images:  # for those that cannot be read later, or that were not read in advance
        splits = replace(splits, train=with_replacements(splits.train), val=with_replacements(splits.val))
    order = _order(protocol, splits.train, ranks, protocol.batch_groups(splits.train))
    setup = Setup(resolved, protocol, splits, order, metadata, ranks, device)
    if show:
        print_lines("\n".join([*_summary(setup, task), *notes]))
    return setup, task


def _order(protocol: AnyProtocol, dataset: Dataset, ranks: Ranks, groups: bytes = b"") -> TrainPlan:
    recipe: Recipe = protocol.recipe
    o = recipe.optimisation
    return TrainPlan(
        length=len(dataset),
        batch_size=o.batch_size,
        seed=recipe.seed,
        accumulation=o.accumulation,
        rank=ranks.rank,
        ranks=ranks.size,
        repeats=protocol.repeats,
        shard_sizes=getattr(dataset, "shard_sizes", ()),
        groups=groups,
        group_size=max(1, o.batch_size // o.accumulation // ranks.size),
    )


def _fit(setup: Setup, folder: RunFolder, task: AnyTask, *, show: bool) -> Trained:
    """Run the training from its last checkpoint, or from the start, and score its best checkpoint at the end."""
    ranks, device, plan = setup.ranks, setup.device, setup.plan
    training = setup.training(task)
    if ranks.first:
        folder.begin(setup.resolved, environment(device, sum(p.numel() for p in task.parameters())))
        write_text(folder.bad_images, json.dumps(setup.splits.scans))
    ranks.wait()
    computation.settle(folder, folder.state(), ranks, device, lambda: _choose_threads(setup, task, show=show))
    log_position = continue_from(setup, folder, training, show=show)
    evaluator = Evaluator(setup.protocol, setup.splits.val, ranks, device)
    batches = setup.batches(training.step, plan.total)
    loop = _loop(setup, folder, training, evaluator, batches)
    with (
        closing(batches),
        _open_log(setup, folder, log_position, training.step) as log,
        StopRequest() as stop,
        Bar("training", plan.total, training.step, show=show, main=True) as bar,
    ):
        finished = loop.run(bar, stop, log)
        ranks.wait()  # a launcher may end all processes when one leaves, while the first one still writes
    if not finished:
        return Trained(folder.path, training.step, plan.total, stopped_by=stop.name)
    with plain_evaluation(setup.recipe):
        metrics = finish(folder, evaluator, training)
    ranks.wait()
    return Trained(folder.path, training.step, plan.total, metrics=metrics, classes=len(setup.splits.train.classes))


def _loop(
    setup: Setup, folder: RunFolder, training: Training, evaluator: Evaluator, batches: Iterator[list[Batch]]
) -> Loop:
    recipe, device, plan, task = setup.recipe, setup.device, setup.plan, training.task
    assert isinstance(task, AnyTask)

    def evaluate(task: nn.Module, stop: StopRequest) -> dict[str, float] | None:
        with plain_evaluation(recipe):
            return evaluator.metrics(task, stop, keep=training.step == plan.total)

    return Loop(
        training=training,
        plan=plan,
        schedule=build.schedule(recipe, plan.steps_per_epoch),
        batches=batches,
        batches_of=setup.batches_of,
        evaluate=evaluate,
        main_metric=task.main_metric,
        checkpoints=folder.checkpoints,
        keep=_kept_in_checkpoints(setup),
        ranks=setup.ranks,
        device=device,
        autocast=build.autocast(recipe, device),
        grad_clip=recipe.optimisation.grad_clip,
        seed=recipe.seed,
        weight_decay=build.weight_decay(recipe, plan.total),
        forward=compiled if recipe.compile else unchanged,
        describe=partial(brief_text, classes=len(setup.splits.train.classes)),
    )


def _kept_in_checkpoints(setup: Setup) -> dict[str, Any]:
    """Return what a checkpoint holds beside the state of the training."""
    return {
        "classes": own_values(list(setup.splits.train.classes)),  # a format of the user's may have numpy's texts
        "about": setup.metadata,
        "recipe": setup.recipe.model_dump(mode="json"),
        "conditions": setup.conditions,
        **computation.entry(setup.device),
    }


def _open_log(setup: Setup, folder: RunFolder, position: int, step: int) -> AbstractContextManager[RunLog | None]:
    """Return the log of the first process, which continues at a position of its file; None for the others."""
    if not setup.ranks.first:
        return nullcontext()
    recipe = setup.recipe
    return RunLog(folder.path, position, step, tracker=recipe.tracker, config=recipe.model_dump(mode="json"))


def _choose_threads(setup: Setup, task: AnyTask, *, show: bool) -> None:
    """Use fewer threads if other programs keep cores busy and steps are faster then; not where processes share them."""
    if setup.ranks.size > 1 or setup.recipe.compile:
        return
    chosen = choose_threads(trial.trial_step(setup, task))
    if chosen is not None and show:
        print(chosen, flush=True)


def _summary(setup: Setup, task: AnyTask) -> list[str]:
    recipe, plan, splits, resolved = setup.recipe, setup.plan, setup.splits, setup.resolved
    fitted = resolved.fitted  # each has a note of its own
    parameters = sum(p.numel() for p in task.parameters()) / 1e6
    devices = setup.device.type + (f" x {setup.ranks.size}" if setup.ranks.size > 1 else "")
    epochs = float(epoch_text(plan.total / plan.steps_per_epoch))
    train, val = plural(len(splits.train), "training image"), plural(len(splits.val), "validation image")
    return [
        f"{recipe.name}: {recipe.network_name}, {parameters:.2f} M parameters, on {devices}",
        f"{recipe.data}: {train}, {val}, {plural(len(splits.train.classes), 'class', 'classes')}",
        f"{plan.total} x {plural(recipe.optimisation.batch_size, 'image')} ({epochs:g} epoch{'s' * (epochs != 1)}), "
        f"{recipe.optimisation.optimizer} at {recipe.optimisation.lr:g}",
        *(
            f"changed: {key} = {short_value(new)} (recipe: {short_value(old)})"
            for key, (old, new) in resolved.changes.items()
            if key not in fitted
        ),
        *splits.notes,
        *setup.protocol.data_notes(splits.train),
    ]
