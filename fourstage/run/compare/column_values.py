"""From what analyses say about runs to columns and figures of arms. A arms, S seeds, T maps, V settings."""

from collections.abc import Mapping, Sequence
from math import nan

import numpy as np

from fourstage.analysis import erf
from fourstage.analysis.comparison import Column, Consistency, FieldMap, Pictures
from fourstage.analysis.invariance import Family
from fourstage.analysis.seeds import Summary, summarise
from fourstage.analysis.similarity import Similarity, similarity_of_trainings
from fourstage.plurals import plural
from fourstage.recipe import Recipe
from fourstage.run.analyze.inputs import NAMED
from fourstage.run.compare.columns import FAMILIES, IMAGES, LEFT_OUT, Analysis, Arrays, Measured, side_of

HALF = 0.5  # share of a field whose area is a column
WIDTH, AREA, LOG_AREA = "erf_width_px", "erf_area50_percent", "erf_area50_log_percent"  # keys of columns
MOST_SIMILAR = 12  # arms; with more, each is compared with the reference alone
CHANGES: dict[Family, str] = {"translation": "shifted", "pre_rotation": "rotated", "scale": "resized"}


def columns_of(measured: Measured, wanted: Sequence[Analysis], reference: str) -> dict[str, tuple[Column, ...]]:
    """Return the columns of each arm, the same ones for all. An arm of which a seed is unknown has no summary."""
    columns: dict[str, list[Column]] = {arm: [] for arm in measured}
    for analysis in wanted:
        found = {arm: _found(measured, arm, analysis) for arm in measured}
        if not any(found.values()):
            continue
        of_analysis = {"erf": _fields, "invariance": _invariance}.get(analysis)
        new = of_analysis(found) if of_analysis else _similarity(found, reference)
        for arm, more in new.items():
            columns[arm] += more
    return {arm: tuple(own) for arm, own in columns.items()}


def pictures_of(measured: Measured, wanted: Sequence[Analysis], reference: str) -> Pictures | None:
    """Return what the figures draw; None where nothing is known."""
    found = {analysis: {arm: _found(measured, arm, analysis) for arm in measured} for analysis in wanted}
    fields = {arm: _mean_field(runs) for arm, runs in found.get("erf", {}).items() if runs}
    curves: dict[Family, dict[str, Consistency]] = {
        family: {
            arm: Consistency(runs[0][f"{family}_settings"], np.stack([run[f"{family}_consistency"] for run in runs]))
            for arm, runs in found.get("invariance", {}).items()
            if runs
        }
        for family in FAMILIES
    }
    similar, similarity_TAA = _matrix(found.get("cka", {}), reference)
    curves = {family: by_arm for family, by_arm in curves.items() if by_arm}
    if not fields and not curves and not similar:
        return None
    return Pictures(fields, curves, similar, similarity_TAA)


def remarks_of(
    measured: Measured, columns: Mapping[str, Sequence[Column]], wanted: Sequence[Analysis], recipes: Sequence[Recipe]
) -> list[str]:
    """Return how each analysis was made, and why some are unknown.

    Args:
        columns: from `columns_of`.
        recipes: of the arms, which are of one task.
    """
    amounts, out = IMAGES[recipes[0].task], list[str]()
    for analysis in wanted:
        if any(_found(measured, arm, analysis) for arm in measured):
            sides = " or ".join(map(str, sorted({side_of(recipe, analysis) for recipe in recipes})))
            images = f"up to {plural(amounts[analysis], 'validation image')} of {sides} pixels"
            out.append(f"{_HOW[analysis]}; {images}")
        reasons = {run.reasons[analysis]: arm for arm, runs in measured.items() for run in runs.values()
                   if analysis in run.reasons}  # fmt: skip
        arms = {arm for arm, runs in measured.items() if any(analysis in run.reasons for run in runs.values())}
        if reasons:
            whose = "" if len(arms) == len(measured) else f" of {', '.join(arm for arm in measured if arm in arms)}"
            out.append(f"{_NAMES[analysis]}{whose} is not known: {next(iter(reasons))}")
    maps = {
        arm: len(runs[0]["units"]) for arm in measured if "cka" in wanted and (runs := _found(measured, arm, "cka"))
    }
    if len(set(maps.values())) > 1:
        counts = ", ".join(f"{arm} {count}" for arm, count in maps.items())
        out.append(f"arms with other numbers of stages have no CKA with each other; the numbers are {counts}")
    return [*out, *_unknown(measured, columns), *_left_out(measured)]


def _unknown(measured: Measured, columns: Mapping[str, Sequence[Column]]) -> list[str]:
    """Return sentences on single columns that are unknown although their analysis was made."""
    missing = {(arm, one.key) for arm, own in columns.items() for one in own if one.summary is None}
    fields = [arm for arm in measured if _found(measured, arm, "erf")]
    maps = [arm for arm in measured if _found(measured, arm, "cka")]
    out = list[str]()
    if wide := [arm for arm in fields if {(arm, AREA), (arm, LOG_AREA)} & missing]:
        out.append(
            f"the area of half the ERF of {', '.join(wide)} is not known: no square around the cell's centre that is "
            "inside of the image holds half of the map, so the field is larger than these images"
        )
    if flat := [arm for arm in fields if (arm, WIDTH) in missing]:
        out.append(f"the ERF width of {', '.join(flat)} is not known: no Gaussian fits the radial profile")
    if maps and all(len(measured[arm]) == 1 for arm in maps):
        out.append(
            "there is one seed, so CKA is of trainings that share it, and the ceiling, which needs a second seed, is "
            "not known"
        )
    same = [arm for arm in maps if any(np.isnan(run["units"]).any() for run in _found(measured, arm, "cka"))]
    if same:
        out.append(f"a feature map of {', '.join(same)} is the same for all images, and has no CKA")
    return out


def _left_out(measured: Measured) -> list[str]:
    """Return a sentence with the names of the images that could not be read; none where all could."""
    found = [one for runs in measured.values() for run in runs.values() for one in run.found.values()]
    names = list(dict.fromkeys(str(name) for one in found for name in one[LEFT_OUT].tolist()))
    if not names:
        return []
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    verb = "is" if len(names) == 1 else "are"
    return [f"{plural(len(names), 'image')} cannot be read and {verb} left out of the analyses: {shown}"]


_NAMES: dict[Analysis, str] = {"erf": "the receptive field", "invariance": "invariance", "cka": "CKA"}
_HOW: dict[Analysis, str] = {
    "erf": "receptive fields are of the last map's middle cell, the gradient by the pixels: the width is the standard "
    "deviation of the Gaussian that fits the radial profile, the areas those of the smallest squares with half of the "
    "map A, and of RepLKNet's log10(A + 1), which depends on the scale of a network's gradient",
    "invariance": "consistency is the share of changed images with the best class of the standard view, the mean over "
    "shifts in one drawn direction, rotations before the crop, and crop ratios of the published protocol",
    "cka": "CKA is linear and unbiased, where there are several seeds the mean over pairs of trainings whose seeds "
    "differ; ± is the standard deviation over these pairs",
}


def _found(measured: Measured, arm: str, analysis: Analysis) -> list[Arrays]:
    """Return the arrays of all seeds of an arm; nothing where one of them is unknown."""
    runs = list(measured[arm].values())
    return [run.found[analysis] for run in runs] if all(analysis in run.found for run in runs) else []


def _over_seeds(key: str, label: str, digits: int, values: Sequence[float]) -> Column:
    known = bool(values) and bool(np.isfinite(values).all())
    return Column(key, label, digits, tuple(values) if known else (), summarise(np.array(values)) if known else None)


def _fields(found: dict[str, list[Arrays]]) -> dict[str, list[Column]]:
    out = {}
    for arm, runs in found.items():
        fields = [_as_erf(run) for run in runs]
        widths = [erf.profile(one, centre="unit").sigma for one in fields]
        out[arm] = [
            _over_seeds(WIDTH, "ERF width, px", 1, widths),
            _over_seeds(AREA, "area of half the ERF, %", 1, [_area(one, "raw") for one in fields]),
            _over_seeds(LOG_AREA, "of its logarithm, %", 1, [_area(one, "replknet") for one in fields]),
        ]
    return out


def _area(field: erf.Erf, scale: erf.Scale) -> float:
    """Return the area of half a field in per cent of the image; NaN where no square holds it."""
    found = erf.square(erf.scaled(field.map_HW, scale), HALF, field.unit_centre)
    return nan if found is None else 100 * found.ratio


def _as_erf(run: Arrays) -> erf.Erf:
    rows, columns = (int(one) for one in run["cells"])
    row, column = (float(one) for one in run["unit_centre"])
    map_HW = run["map"].astype(np.float64) * float(run["sum"])
    return erf.Erf(map_HW, np.ones(1), (rows, columns), (rows // 2, columns // 2), (row, column), 0, erf.LAST)


def _mean_field(runs: Sequence[Arrays]) -> FieldMap:
    first = _as_erf(runs[0])
    return FieldMap(np.mean([run["map"] for run in runs], axis=0, dtype=float), first.cells, first.unit_centre)


def _invariance(found: dict[str, list[Arrays]]) -> dict[str, list[Column]]:
    out: dict[str, list[Column]] = {arm: [] for arm in found}
    for name, words, digits in (("consistency", "same class", 1), ("top1", "top-1", 1)):
        for family, change in CHANGES.items():
            for arm, runs in found.items():
                values = [float(run[f"{family}_{name}"].mean()) for run in runs]
                key, label = f"{name}_{change}_percent", f"{words} {change}, %"
                out[arm].append(_over_seeds(key, label, digits, values))
    return out


def _similarity(found: dict[str, list[Arrays]], reference: str) -> dict[str, list[Column]]:
    """Return CKA with the reference and among the seeds of the arm, by stage."""
    units = {arm: np.stack([run["units"] for run in runs]) for arm, runs in found.items() if runs}
    stages = max(one.shape[1] for one in units.values())
    base = units.get(reference)
    out = {}
    for arm in found:
        own = units.get(arm)
        ceiling = [] if own is None else similarity_of_trainings(own)
        with_base: list[Similarity] = []
        if own is not None and base is not None and own.shape[1:] == base.shape[1:] and arm != reference:
            with_base = similarity_of_trainings(base, own)
        out[arm] = [
            *(_of_pairs(f"cka_stage{i + 1}", f"stage {i + 1}", with_base, i) for i in range(stages)),
            *(_of_pairs(f"cka_ceiling_stage{i + 1}", f"stage {i + 1}", ceiling, i) for i in range(stages)),
        ]
    return out


def _of_pairs(key: str, label: str, values: Sequence[Similarity], i: int) -> Column:
    if i >= len(values) or not np.isfinite(values[i].mean):
        return Column(key, label, 3, (), None)
    one = values[i]
    return Column(key, label, 3, (), Summary(one.mean, one.sd, nan, nan, one.pairs))


def _matrix(found: dict[str, list[Arrays]], reference: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the arms and the (T, A, A) CKA of their pairs; arms with another number of maps are left out."""
    units = {arm: np.stack([run["units"] for run in runs]) for arm, runs in found.items() if runs}
    if reference not in units:
        return (), np.zeros((0, 0, 0))
    shape = units[reference].shape[1:]
    arms = tuple(arm for arm, own in units.items() if own.shape[1:] == shape)
    if len(arms) > MOST_SIMILAR:
        return (), np.zeros((0, 0, 0))
    matrix_TAA = np.full((shape[0], len(arms), len(arms)), np.nan)
    for i, a in enumerate(arms):
        for j, b in enumerate(arms[: i + 1]):
            values = similarity_of_trainings(units[a]) if a == b else similarity_of_trainings(units[b], units[a])
            matrix_TAA[:, i, j] = matrix_TAA[:, j, i] = [one.mean for one in values]
    return arms, matrix_TAA
