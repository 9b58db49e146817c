"""Sections for image classification: the confusion matrix, accuracy by class, and pictures of predictions."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fourstage.files import shown_path
from fourstage.plurals import plural
from fourstage.report.charts import bar_chart
from fourstage.report.classes import bar, class_section, omitted_classes
from fourstage.report.common import figure, no_predictions, section
from fourstage.report.inline import inline
from fourstage.report.markup import Markup, join, name, table, tag
from fourstage.report.number_format import percent
from fourstage.report.read import ClassifiedSample, ClassRow, Evaluation, Run

# numbers of classes above which the page changes
LARGEST_MATRIX = 50  # only the most confused pairs are shown
BESIDE = 12  # the pairs are below the matrix instead of beside it
SMALL_CELLS = 20  # the cells of the matrix are small
MANY = 100  # only the worst and the best classes are listed

PAIRS = 10
CLASSES = 20  # rows of the accuracy table before the others are folded
EXTREMES = 15  # worst classes, and best classes, of many
SHEET = 24  # pictures in each sheet


@dataclass(frozen=True, slots=True)
class Pair:
    """Images of one class that were predicted as another."""

    truth: int
    guess: int
    times: int
    share: float  # of all images of that truth


def confusion(run: Run) -> Markup | None:
    """Return the section with the confusion matrix, or with the most confused pairs of many classes."""
    evaluation = run.evaluation
    if evaluation is None or (evaluation.confusion is None and not evaluation.per_class):
        return None
    if evaluation.confusion is None:
        return section("confusion", "Most confused pairs", _pairs(evaluation, _listed(evaluation)[: 2 * PAIRS]))
    if len(evaluation.classes) > LARGEST_MATRIX:
        pairs = _pairs(evaluation, most_confused(evaluation.confusion, 2 * PAIRS))
        return section("confusion", "Most confused pairs", pairs)
    matrix = _matrix(evaluation.classes, evaluation.confusion)
    pairs = tag("h3", "Most confused pairs"), _pairs(evaluation, most_confused(evaluation.confusion, PAIRS))
    wide = " alone" if len(evaluation.classes) > BESIDE else ""
    return section("confusion", "Confusion matrix", tag("div", matrix, tag("div", *pairs), class_="confusion" + wide))


def most_confused(confusion_CC: np.ndarray, most: int) -> list[Pair]:
    """Return the pairs off the diagonal, most frequent first, then by their share of the class."""
    total_C = confusion_CC.sum(1)
    truth_N, guess_N = np.nonzero(confusion_CC)
    pairs = [
        Pair(
            int(truth), int(guess), int(confusion_CC[truth, guess]), float(confusion_CC[truth, guess] / total_C[truth])
        )
        for truth, guess in zip(truth_N, guess_N, strict=True)
        if truth != guess
    ]
    return sorted(pairs, key=lambda pair: (-pair.times, -pair.share, pair.truth, pair.guess))[:most]


def _listed(evaluation: Evaluation) -> list[Pair]:
    """Return the pairs that evaluation.json holds, in its order."""
    rows = evaluation.per_class
    known = [pair for pair in evaluation.confused if max(pair[:2]) < min(len(rows), len(evaluation.classes))]
    return [Pair(truth, guess, times, times / max(rows[truth].count, 1)) for truth, guess, times in known]


def per_class(run: Run) -> Markup | None:
    """Return the section of accuracy by class; of many classes, the distribution, the worst and the best."""
    every = _class_rows(run.evaluation) if run.evaluation else ()
    rows = sorted((row for row in every if row.count), key=lambda row: (row.top1, -row.count))
    if not rows:
        return None
    absent = len(every) - len(rows)
    missing = omitted_classes(absent, "without an image in this split")
    if len(rows) > MANY:
        return _extremes(run, rows, missing)
    return class_section("Accuracy", rows, _bars, visible=CLASSES, missing=missing)


def _extremes(run: Run, rows: Sequence[ClassRow], missing: Markup | None) -> Markup:
    """Return the section for many classes. Among classes of equal accuracy, a larger mean loss is worse."""
    ordered = sorted(rows, key=lambda row: (row.top1, -np.nan_to_num(row.loss)))
    worst, best = ordered[:EXTREMES], ordered[: -EXTREMES - 1 : -1]
    lists = [
        tag("div", tag("h3", f"The {word} {len(some)}"), _bars(some, f"The {word} classes"))
        for word, some in (("worst", worst), ("best", best))
    ]
    command = f"fourstage evaluate {shlex.quote(shown_path(run.folder))} --csv classes.csv"
    all_of_them = tag("p", "All classes as a table: ", tag("code", command), class_="quiet")
    spread = _spread(np.array([row.top1 for row in rows]), [row.count for row in rows])
    content = spread, tag("div", *lists, class_="extremes"), missing, all_of_them
    return section("classes", "Accuracy by class", *content)


def _spread(top1_C: np.ndarray, counts: Sequence[int]) -> Markup:
    """Return a histogram of the classes' accuracies, and a sentence on it."""
    images = float(np.median(counts))
    width = 4 if images >= 100 or images % 25 == 0 else 10  # per cent; every bin spans equally many possible accuracies
    edges = np.arange(0, 101, width)
    times_n = np.histogram(np.clip(top1_C, 0, 100), edges)[0]
    below, middle = int((top1_C < 50).sum()), float(np.median(top1_C))
    perfect = int((top1_C >= 100).sum())
    text = f"Half of the {plural(len(top1_C), 'class', 'classes')} reach {percent(middle)}"
    text += " or more" if middle < 100 else ""
    text += f"; {below:,} {'stays' if below == 1 else 'stay'} below {percent(50, 0)}" if below else ""
    text += f"; {perfect:,} {'has' if perfect == 1 else 'have'} no mistake" if perfect else ""
    chart = bar_chart("spread", "Classes by their accuracy", edges, times_n, x_name="accuracy, per cent", of="classes")
    return join([tag("p", f"{text}."), figure("Classes by their accuracy", chart, "number of classes")])


def predictions(run: Run) -> Markup:
    """Return the section with sheets of wrong and right predictions and their probabilities."""
    wrong = sorted((sample for sample in run.samples if not sample.right), key=_confidence, reverse=True)
    right = [sample for sample in run.samples if sample.right]
    if not run.samples and not run.records:
        return no_predictions()
    return section(
        "predictions", "Predictions", _mean_confidence(run), _wrong_sheet(run, wrong), _right_sheet(run, right)
    )


def _matrix(classes: Sequence[str], confusion_CC: np.ndarray) -> Markup:
    """Return a heat map as a table: one colour for right cells, another for wrong ones, by their share of the row."""
    share_CC = confusion_CC / np.maximum(confusion_CC.sum(1, keepdims=True), 1)
    wrong_CC = np.where(np.eye(len(classes), dtype=bool), 0, share_CC)
    # mistakes are few: their colour is relative to the worst cell, and the root keeps single mistakes visible
    depth_CC = np.where(wrong_CC > 0, 0.6 * np.sqrt(wrong_CC / max(wrong_CC.max(), 0.05)), 0.5 * share_CC)
    head = tag(
        "tr", tag("th", "truth \\ prediction", class_="corner", scope="col"), *(_column_head(text) for text in classes)
    )
    rows = []
    for i, text in enumerate(classes):
        cells = [
            _cell(int(n), float(depth), i == j)
            for j, (n, depth) in enumerate(zip(confusion_CC[i], depth_CC[i], strict=True))
        ]
        rows.append(tag("tr", tag("th", name(text), scope="row", title=text), *cells))
    style = "matrix small-cells" if len(classes) > SMALL_CELLS else "matrix"
    legend = "Rows are true classes, columns are predicted classes, and cells are numbers of images."
    inner = tag("table", tag("caption", "Confusion matrix"), tag("thead", head), tag("tbody", *rows), class_=style)
    box = tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label="Confusion matrix")
    return tag("div", box, tag("p", legend, class_="legend"))


def _column_head(text: str) -> Markup:
    upright = "up" if len(text) > 3 else None
    return tag("th", tag("span", name(text)), scope="col", title=text, class_=upright)


def _cell(number: int, depth: float, right: bool) -> Markup:
    if not number:
        return Markup("<td></td>")
    return tag("td", number, class_="hit" if right else "miss", style=f"--v:{depth:.2f}")


def _pairs(evaluation: Evaluation, pairs: Sequence[Pair]) -> Markup:
    if not pairs:
        return tag("p", "No class was confused with another.", class_="nothing")
    classes = evaluation.classes
    rows = [(name(classes[p.truth]), name(classes[p.guess]), f"{p.times:,}", percent(100 * p.share)) for p in pairs]
    head = ("truth", "predicted as", "times", "of its class")
    return table(head, rows, caption="Most confused pairs", class_="pairs-list")


def _class_rows(evaluation: Evaluation) -> tuple[ClassRow, ...]:
    if evaluation.per_class or evaluation.confusion is None:
        return evaluation.per_class
    total_C, hit_C = evaluation.confusion.sum(1), evaluation.confusion.diagonal()
    each = zip(evaluation.classes, total_C, hit_C, strict=True)
    return tuple(ClassRow(text, int(total), 100 * float(hit) / max(int(total), 1)) for text, total, hit in each)


def _bars(rows: Sequence[ClassRow], caption: str) -> Markup:
    cells = [(name(row.name), bar(row.top1 / 100), percent(row.top1), f"{row.count:,}") for row in rows]
    short = all(len(row.name) <= 4 for row in rows)
    return table(("class", "", "accuracy", "images"), cells, caption=caption, class_="bars short" if short else "bars")


def _confidence(sample: ClassifiedSample) -> float:
    return sample.top[0][1] if sample.top else 0.0


def _mean_confidence(run: Run) -> Markup | None:
    records = run.records
    if records is None:
        return None
    right = records.count - records.wrong
    text = f"{right:,} of {plural(records.count, 'image')} are right and {records.wrong:,} wrong."
    if right:
        text += f" The mean probability of the first class is {percent(100 * records.confidence_when_right)} when right"
        text += f" and {percent(100 * records.confidence_when_wrong)} when wrong." if records.wrong else "."
    return tag("p", text)


def _wrong_sheet(run: Run, wrong: Sequence[ClassifiedSample]) -> Markup:
    if not wrong:
        none = run.records is not None and run.records.wrong == 0
        text = "None: every image was classified right." if none else "No picture of a wrong prediction was kept."
        return join([tag("h3", "Wrong"), tag("p", text, class_="nothing")])
    total = run.records.wrong if run.records else len(wrong)
    first = wrong[:SHEET]
    note = "highest probability first" + (f"; {len(first)} of {total:,}" if total > len(first) else "")
    return join([tag("h3", "Wrong ", tag("span", note, class_="quiet")), _sheet(run, first)])


def _right_sheet(run: Run, right: Sequence[ClassifiedSample]) -> Markup:
    if not right:
        return join([tag("h3", "Right"), tag("p", "No picture of a right prediction was kept.", class_="nothing")])
    first = right[:SHEET]
    total = run.records.count - run.records.wrong if run.records else len(right)
    note = f"{len(first)} of {total:,}" if total > len(first) else None
    return join([tag("h3", "Right ", tag("span", note, class_="quiet") if note else None), _sheet(run, first)])


def _sheet(run: Run, samples: Sequence[ClassifiedSample]) -> Markup:
    return tag("ul", *(_card(run, sample) for sample in samples), class_="sheet")


def _card(run: Run, sample: ClassifiedSample) -> Markup:
    guesses = [
        tag(
            "li", tag("span", name(run.label(label)), class_="who", title=run.label(label)),
            tag("span", percent(100 * probability, 0), class_="share"), bar(probability),
            class_="truth" if label == sample.truth else None,
        )
        for label, probability in sample.top[:3]
    ]  # fmt: skip
    truth = run.label(sample.truth)
    heading = tag("p", tag("span", "truth ", class_="quiet"), tag("b", name(truth)), class_="is", title=truth)
    picture = inline(sample.file, f"{sample.id}, true class {truth}")
    return tag(
        "li",
        picture,
        heading,
        tag("ol", *guesses),
        class_="card " + ("right" if sample.right else "wrong"),
        title=sample.id,
    )
