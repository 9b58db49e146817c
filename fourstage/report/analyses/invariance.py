"""The page of invariance curves. S settings, N images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.analysis.invariance import Curves, Family
from fourstage.report.analyses.layout import analysis_page, figure, notes, panels, section
from fourstage.report.curves import Curve, curve_chart, legend
from fourstage.report.markup import Markup, table

MEASURES = ("consistency", "top1", "top5", "loss")
TITLES = {
    "consistency": ("Consistency", "images with the standard view's class, %"),
    "top1": ("Top-1 accuracy", "changed views of the right class, %"),
    "top5": ("Top-5 accuracy", "changed views with the right class among five, %"),
    "loss": ("Loss", "cross-entropy against the standard view, nats"),
}
FAMILY_TITLES: dict[Family, tuple[str, str]] = {
    "translation": ("Translation", "shift, pixels at 224 pixels a side"),
    "pre_rotation": ("Rotation before the crop", "angle, degrees"),
    "post_rotation": ("Rotation after the crop", "angle, degrees"),
    "scale": ("Scale", "crop ratio; above 1 the image is smaller than the view"),
}


@dataclass(frozen=True)
class Invariance:
    """The curves of one network."""

    name: str
    weights: str
    curves: Mapping[Family, Curves]


def invariance_page(found: Sequence[Invariance], images: str, *, original: bool) -> str:
    """Return the page: for each measure one chart per family, all with the same vertical axis, and a table."""
    how = "the transforms of the authors' code" if original else "content leaves the view, and black comes in"
    sections = [_measure(found, measure) for measure in MEASURES]
    return analysis_page(
        "Invariance",
        f"Predictions of changed images beside those of the standard view; {images}; {how}.",
        [*sections, section("Means over all settings", _table(found)), section("How to read this", notes(_REMARKS))],
    )


def _measure(found: Sequence[Invariance], measure: str) -> Markup | None:
    families = list(found[0].curves)
    bounds = [
        interval
        for one in found
        for c in one.curves.values()
        for interval in (*c.interval(measure), c.values(measure).mean(axis=1))
    ]
    finite = np.concatenate([values[np.isfinite(values)] for values in bounds])
    if not len(finite):
        return None
    high = 100.0 if measure != "loss" else 1.05 * float(finite.max())
    title, unit = TITLES[measure]
    drawn = [figure(_chart(found, family, measure, unit, high), FAMILY_TITLES[family][0]) for family in families]
    key = legend([f"{one.name}, {one.weights}" for one in found])
    return section(title, panels(drawn, wide=True), key)


def _chart(found: Sequence[Invariance], family: Family, measure: str, unit: str, high: float) -> Markup:
    curves = []
    for one in found:
        own = one.curves[family]
        low_S, high_S = own.interval(measure)
        curves.append(
            Curve(f"{one.name}, {one.weights}", own.settings_S, own.values(measure).mean(axis=1), low_S, high_S)
        )
    title = f"{TITLES[measure][0]} by {FAMILY_TITLES[family][0].lower()}"
    return curve_chart(
        f"{measure}{family.replace('_', '')}", title, curves, x_name=FAMILY_TITLES[family][1], y_name=unit,
        y_range=(0.0, high), named=False,
    )  # fmt: skip


def _table(found: Sequence[Invariance]) -> Markup:
    rows = []
    for one in found:
        for family, curves in one.curves.items():
            cells = [curves.values(measure).mean() for measure in MEASURES]
            shown = ["–" if np.isnan(value) else f"{value:.2f}" for value in cells]
            standard = curves.standard_top1_N.mean()
            own = "–" if np.isnan(standard) else f"{100 * standard:.2f}"
            rows.append((one.name, one.weights, FAMILY_TITLES[family][0], *shown, own))
    head = ("network", "weights", "change", "consistency %", "top-1 %", "top-5 %", "loss", "standard top-1 %")
    return table(head, rows, caption="Means over all settings of a family", class_="numbers")


_REMARKS = (
    "The protocol is that of https://arxiv.org/abs/2211.05781. The standard view is the validation crop; its "
    "probabilities are the targets of the loss.",
    "Bands are 95 % bootstrap intervals over images. They leave out the variation between seeds of a training.",
    "An untrained network is consistent where its prediction hardly depends on the image. Read consistency beside "
    "accuracy.",
    "With the authors' transforms, shifts above 16 pixels at 224 move the content back to the middle and add a "
    "black border; here, content leaves the view.",
)
