"""From finished runs to the result of a comparison: statistics, costs, speeds, verdicts in words."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from fourstage.analysis.comparison import ArmResult, Comparison, PairResult
from fourstage.analysis.paired import Pair, Verdict, compare_pairs, decide
from fourstage.analysis.seeds import fewest_seeds, smallest_p, summarise
from fourstage.plurals import plural
from fourstage.recipe import Recipe, difference, flatten
from fourstage.report.number_format import metric as metric_format
from fourstage.report.number_format import signed
from fourstage.run.compare.column_values import columns_of, pictures_of, remarks_of
from fourstage.run.compare.columns import ANALYSES, Analysis, analyses_of
from fourstage.run.compare.costs import Cost, counted, image_size, unequal
from fourstage.run.compare.image_scores import common_images, drawn_metrics
from fourstage.run.compare.runs import NO_SETTING, FinishedRun, Table, common_seeds
from fourstage.run.compare.speeds import Speeds, speeds_of
from fourstage.run.task_protocol import protocol_of
from fourstage.tasks.detection.coco_ap import UNKNOWN
from fourstage.weights.reading.safe import read_checkpoint

NOT_STATED = "not stated"
MUST_AGREE = ("data", "optimisation.length", "optimisation.batch_size", "image_size")


@dataclass(frozen=True)
class Wishes:
    """What the user asks of a comparison beside its runs.

    Attributes:
        reference: the arm that the others are compared with; None: the first.
        metric: None: the task's main metric.
        tuning: by arm, its tuning budget in words.
        speed_seconds: for each arm and mode; 0: speed and memory are not measured.
        analyses: whose columns the table has.
    """

    reference: str | None = None
    metric: str | None = None
    tuning: Mapping[str, str] = field(default_factory=dict)
    speed_seconds: float = 3.0
    analyses: tuple[Analysis, ...] = ANALYSES


def assemble(
    table: Table, folder: Path, wishes: Wishes, *, missing: Sequence[str] = (), show: bool = True
) -> Comparison:
    """Return the comparison of finished runs.

    Args:
        folder: where speeds are kept.
        missing: cells that have not ended, in words.

    Raises:
        ValueError: arms share no seed, no images or no metric, or a name in the wishes is no arm.
    """
    seeds, arms = common_seeds(table), list(table)
    left_out = _left_out(table, seeds)
    table = {arm: {seed: runs[seed] for seed in seeds} for arm, runs in table.items()}
    reference = wishes.reference or arms[0]
    check_tuning(wishes.tuning, arms)
    name = _metric(table, seeds, wishes.metric)
    shown = metric_format(name)
    values = {arm: np.array([table[arm][seed].metrics[name] for seed in seeds]) for arm in arms}
    images = len(common_images(table))
    draws = drawn_metrics(table, seeds, name)
    pairs = _pairs(values, draws, reference, images, higher_is_better=shown.higher_is_better)
    costs = {arm: _cost(table[arm][seeds[0]]) for arm in arms}
    known = {arm: cost for arm, cost in costs.items() if cost is not None}
    speeds = _speeds(table, seeds[0], folder, wishes.speed_seconds, show=show)
    measured = analyses_of(table, seeds, folder, wishes.analyses, show=show)
    columns = columns_of(measured, wishes.analyses, reference)
    results = tuple(
        replace(_arm(arm, table[arm], seeds, values[arm], costs[arm], speeds, wishes), columns=columns[arm])
        for arm in arms
    )
    return Comparison(
        title=" · ".join(arms),
        metric=name,
        label=shown.label,
        percent=shown.percent,
        higher_is_better=shown.higher_is_better,
        seeds=seeds,
        images=images,
        arms=results,
        pairs=pairs,
        missing=tuple(missing),
        warnings=(*_warnings(table, seeds, results, known, reference, images_known=draws is not None), *left_out),
        conditions=tuple(_conditions(table, seeds, results)),
        remarks=tuple(remarks_of(measured, columns, wishes.analyses, table[reference][seeds[0]].recipe)),
        pictures=pictures_of(measured, wishes.analyses, reference),
    )


def _pairs(
    values: Mapping[str, np.ndarray],
    draws: Mapping[str, np.ndarray] | None,
    reference: str,
    images: int,
    *,
    higher_is_better: bool,
) -> tuple[PairResult, ...]:
    """Return each other arm compared with the reference; `values` and `draws` as in `compare_pairs`."""
    sign = 1.0 if higher_is_better else -1.0
    names = [(arm, reference) for arm in values if arm != reference]
    compared = compare_pairs(
        {arm: sign * one for arm, one in values.items()},
        names,
        None if draws is None else {arm: sign * one for arm, one in draws.items()},
        images,
    )
    verdicts = [decide(pair, len(names)) for pair in compared]
    return tuple(
        PairResult(arm, base, pair, verdict, sentence(arm, base, pair, verdict, len(names), images))
        for (arm, base), pair, verdict in zip(names, compared, verdicts, strict=True)
    )


def sentence(arm: str, reference: str, pair: Pair, verdict: Verdict, pairs: int, images: int) -> str:
    """Return a verdict as one sentence."""
    seeds = pair.difference.count
    if verdict.word != "undecided":
        return f"{arm} is {verdict.word} than {reference}, by {abs(pair.difference.mean):.2f}."
    these = "this seed" if seeds == 1 else f"these {seeds:,} seeds"
    start = f"{arm} and {reference} cannot be decided with {these} and {plural(images, 'image')}"
    if seeds == 1 and pair.difference.mean:
        return f"{start}; one seed does not show how many would do."
    if verdict.needed is None:
        return f"{start}; no practical number would do for a difference of {signed(pair.difference.mean)}."
    more = f" and {plural(verdict.needed.images, 'image')}" if verdict.needed.images else ""
    needed = (
        f"{plural(verdict.needed.seeds, 'seed')}{more} would do if the difference stays {signed(pair.difference.mean)}"
    )
    if verdict.too_few:
        least = f"{plural(pairs, 'pair')} {'needs' if pairs == 1 else 'need'} at least {fewest_seeds(pairs)}"
        return f"{start}: {least}; {needed}."
    return f"{start}; {needed}."


def too_few_seeds(pairs: int, seeds: int) -> list[str]:
    """Return a sentence where no pair can be decided, whatever the differences; else nothing."""
    if seeds >= fewest_seeds(pairs):
        return []
    least = min(1.0, pairs * smallest_p(seeds))
    return [
        f"{plural(seeds, 'seed')} cannot decide {plural(pairs, 'pair')}, whatever the differences: the smallest "
        f"possible p is {least:.3g} after Holm; {fewest_seeds(pairs)} seeds are the fewest that can"
    ]


def check_tuning(tuning: Mapping[str, str], arms: Sequence[str]) -> None:
    """Raise ValueError where a tuning budget is of an arm that is not there."""
    if unknown := next((name for name in tuning if name not in arms), None):
        raise ValueError(f"--tuning names {unknown}, which is not an arm; the arms are {', '.join(arms)}")


def _metric(table: Table, seeds: Sequence[int], asked: str | None) -> str:
    runs = [runs[seed] for runs in table.values() for seed in seeds]
    if len(tasks := sorted({run.recipe.task for run in runs})) > 1:
        raise ValueError(f"the runs are of the tasks {' and '.join(tasks)}, which share no metric; compare one task")
    name = asked or runs[0].main_metric
    known = [one for one in runs[0].metrics if all(one in run.metrics for run in runs)]
    if name not in known:
        raise ValueError(f"{name} is not a metric of all these runs; they share {', '.join(known) or 'none'}")
    wrong = next((run for run in runs if _is_unknown(run, name)), None)
    if wrong is not None:
        raise ValueError(
            f"{name} of {wrong.folder} is not a number; train this run again with --fresh, or leave it out"
        )
    return name


def _is_unknown(run: FinishedRun, metric: str) -> bool:
    """Return whether a metric is no number; the AP of objects that the ground truth does not have is `UNKNOWN`."""
    value = run.metrics[metric]
    return not np.isfinite(value) or (run.recipe.task == "detection" and value == UNKNOWN)


def _arm(
    name: str,
    runs: Mapping[int, FinishedRun],
    seeds: Sequence[int],
    values_S: np.ndarray,
    cost: Cost | None,
    speeds: Speeds,
    wishes: Wishes,
) -> ArmResult:
    first = runs[seeds[0]]
    parameters = cost.parameters if cost else first.environment.get("parameters")
    known = [runs[seed].seconds for seed in seeds]
    seconds = [one for one in known if one is not None]
    modes = speeds.get(name, {})
    return ArmResult(
        name=name,
        network=first.recipe.network_name,
        parameters=parameters if isinstance(parameters, int) else None,
        macs=cost.macs if cost else None,
        infer=modes.get("infer"),
        train=modes.get("train"),
        values=tuple(values_S.tolist()),
        summary=summarise(values_S),
        tuning=wishes.tuning.get(name, NOT_STATED),
        hours=sum(seconds) / 3600 if len(seconds) == len(seeds) else None,
        runs=tuple(str(runs[seed].folder) for seed in seeds),
    )


def _cost(run: FinishedRun) -> Cost | None:
    """Return the cost of a run's network; None where it cannot be built here, such as without a user's own file.

    The checkpoint of a detector says whether its data has masks; without the file, the cost is not known either.
    """
    protocol = protocol_of(run.recipe)
    classes = tuple(map(str, run.evaluation.get("classes", ())))
    about, checkpoint = None, run.folder / "checkpoints" / "best.pt"
    if run.recipe.task == "detection":
        if not checkpoint.is_file():
            return None
        about = read_checkpoint(checkpoint).content.get("about")
    try:
        with torch.device("meta"):
            network = protocol.build_task(classes, about if isinstance(about, dict) else None).network
    except ValueError:
        return None
    return counted(network, image_size(run.recipe))


def _speeds(table: Table, seed: int, folder: Path, seconds: float, *, show: bool) -> Speeds:
    if not seconds:
        return {}
    runs = {arm: runs[seed] for arm, runs in table.items()}
    recipes: dict[str, tuple[Recipe, int]] = {
        arm: (run.recipe, len(run.evaluation.get("classes", ()))) for arm, run in runs.items()
    }
    return speeds_of(recipes, folder, seconds, show=show)


def _left_out(table: Table, seeds: Sequence[int]) -> list[str]:
    """Return a sentence on the runs whose seed is not in every arm; else nothing."""
    runs = [f"{arm}, seed {seed}" for arm, runs in table.items() for seed in sorted(set(runs) - set(seeds))]
    if not runs:
        return []
    return [f"not in the table, because not every arm has their seeds: {'; '.join(runs)}; train the same seeds"]


def _warnings(
    table: Table,
    seeds: Sequence[int],
    arms: Sequence[ArmResult],
    costs: Mapping[str, Cost],
    reference: str,
    *,
    images_known: bool,
) -> list[str]:
    """Return sentences on what weakens the comparison."""
    out, pairs = list[str](), len(arms) - 1
    out += too_few_seeds(pairs, len(seeds))
    if reference in costs:
        out += unequal(costs, reference)
    first = table[reference][seeds[0]].recipe
    for arm, runs in table.items():
        for key in difference(first, runs[seeds[0]].recipe, ignore=NO_SETTING - {"data"}):
            if key in MUST_AGREE:
                out.append(f"{arm} and {reference} differ in {key}, so their batches hold other images")
    budgets = {arm.tuning for arm in arms}
    if len(budgets) > 1:
        out.append("the arms had different tuning budgets; the one with more trials has an advantage")
    if any(run.evaluations > 1 for runs in table.values() for run in runs.values()):
        out.append(
            "the best of several evaluations on the validation images was kept, which raises every arm; with "
            "evaluate_every=null the last one counts"
        )
    if not images_known:
        out.append("intervals over images are not known for this metric, so verdicts hold for these images alone")
    runs_of_all = [run for runs in table.values() for run in runs.values()]
    if any(len({run.environment.get(key) for run in runs_of_all}) > 1 for key in ("torch", "device")):
        out.append("the runs were trained with different versions of torch or on different devices")
    return out


def _conditions(table: Table, seeds: Sequence[int], arms: Sequence[ArmResult]) -> list[tuple[str, str]]:
    """Return what the runs have in common, and how the numbers of the table were made."""
    runs = [runs[seed] for runs in table.values() for seed in seeds]
    first = runs[0]
    once = all(run.evaluations <= 1 for run in runs)
    rule = "the last one" if once else "the best one on the validation images"
    if first.recipe.ema is not None:
        rule += "; of the weights and their average, the better"

    def trained(run: FinishedRun) -> str:
        o = run.recipe.optimisation
        return f"{o.optimizer}, batch {o.batch_size}, learning rate {o.lr:g}"

    def where(run: FinishedRun, *keys: str) -> str:
        return ", ".join(str(run.environment.get(key, "unknown")) for key in keys)

    def averaged(run: FinishedRun) -> str:
        return "none" if run.recipe.ema is None else f"decay {run.recipe.ema:g}"

    rows = {
        "seeds": {", ".join(map(str, seeds))},
        "recipe, without what the arms vary": {_common_recipe(runs)},
        "data": {str(run.recipe.data) for run in runs},
        "image size": {" x ".join(map(str, image_size(run.recipe))) for run in runs},
        "length": {str(run.recipe.optimisation.length) for run in runs},
        "optimiser": {trained(run) for run in runs},
        "checkpoint": {rule},
        "averaged weights": {averaged(run) for run in runs},
        "trained on": {where(run, "machine", "device") for run in runs},
        "fourstage and torch": {where(run, "fourstage", "torch") for run in runs},
    }
    if any(arm.macs is not None for arm in arms):
        rows["MACs"] = {"counted by `fourstage bench`, a multiplication and its addition as one"}
    if batches := sorted({speed.batch for arm in arms for speed in (arm.infer, arm.train) if speed is not None}):
        batch = " or ".join(map(str, batches))
        rows["speed and memory"] = {f"where `compare` ran, float32, not compiled, NCHW, batch {batch}"}
    return [(name, " or ".join(sorted(values))) for name, values in rows.items()]


def _common_recipe(runs: Sequence[FinishedRun]) -> str:
    """Return the number of the keys with one value in all runs: equal numbers stand for equal recipes."""
    flat = [flatten(run.recipe.model_dump(mode="json")) for run in runs]
    names = [name for name in flat[0] if name.split(".")[0] not in NO_SETTING - {"weights"}]
    common = {name: flat[0][name] for name in names if all(one.get(name) == flat[0][name] for one in flat)}
    digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()
    return f"{digest[:12]} ({plural(len(common), 'key')})"
