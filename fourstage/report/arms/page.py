"""The page of a comparison: verdicts, the table, charts, and the conditions."""

from fourstage.analysis.comparison import Comparison
from fourstage.report.arms import tables
from fourstage.report.arms.charts import difference_chart, metric_chart
from fourstage.report.arms.columns import columns_section
from fourstage.report.common import figure, section
from fourstage.report.markup import Markup, name, table, tag
from fourstage.report.page import document

READING = (
    "A pair is decided where two p-values are at most 0.05 after Holm's adjustment for all pairs: the exact sign-flip "
    "test over seeds, and the test over seeds and images together. The first says that another seed would not change "
    "the order; the second, that other images would not either.",
    "The interval over seeds holds for these images, the one over images for these networks, and the one over both for "
    "other seeds and other images. AP and mean IoU are accumulated again for every draw of images.",
    "P(A > B) is the share of seeds in which the arm is better than the reference; a tie counts half.",
)


def comparison_page(comparison: Comparison) -> str:
    """Return the complete page, which loads nothing from the network."""
    parts = [
        _head(comparison),
        _verdicts(comparison),
        _arms(comparison),
        _seeds(comparison),
        _differences(comparison),
        columns_section(comparison),
        _conditions(comparison),
    ]
    return document(comparison.title, parts)


def _head(comparison: Comparison) -> Markup:
    top = tag("p", "fourstage", tag("span", " comparison", class_="quiet"), class_="brand")
    heading = tag(
        "h1", *[item for i, arm in enumerate(comparison.arms) for item in ([" · "] if i else []) + [name(arm.name)]]
    )
    warnings = [tag("li", _sentence(text, comparison)) for text in comparison.warnings]
    missing = [tag("li", f"Not ended, and not in the table: {text}.") for text in comparison.missing]
    notes = tag("ul", *missing, *warnings, class_="cautions") if warnings or missing else None
    return tag("header", top, heading, tag("p", tables.summary_line(comparison), class_="lede"), notes)


def _sentence(text: str, comparison: Comparison) -> str:
    """Return a warning as a sentence; one that begins with the name of an arm keeps its first letter."""
    if any(text.startswith(arm.name) for arm in comparison.arms):
        return f"{text}."
    return f"{text[0].upper()}{text[1:]}."


def _verdicts(comparison: Comparison) -> Markup:
    lines = [
        tag("li", tag("b", row.verdict.word), " ", row.sentence, class_=f"verdict {row.verdict.word}")
        for row in comparison.pairs
    ]
    reading = tag("details", tag("summary", "How a pair is decided"), *(tag("p", text) for text in READING))
    return section("verdicts", "Verdicts", tag("ul", *lines, class_="verdicts"), reading)


def _arms(comparison: Comparison) -> Markup:
    head, rows = tables.arm_table(comparison)
    speed = any(arm.infer for arm in comparison.arms)
    note = (
        "Parameters and MACs are of the network for one image. "
        + ("Images per second and peak memory were measured in turns; ± is half the range of the quartiles. " * speed)
        + "The interval of the mean is Student's."
    )
    return section(
        "arms", "Arms", table(head, _named(rows), caption="Arms", class_="numbers"), tag("p", note, class_="quiet")
    )


def _seeds(comparison: Comparison) -> Markup:
    head, rows = tables.seed_table(comparison)
    note = "each dot is a run; the bar is the mean with its interval of 95 %"
    chart = figure(f"{comparison.label} of every run", metric_chart(comparison), note)
    return section("seeds", "Every run", chart, table(head, _named(rows), caption="Metric by seed", class_="numbers"))


def _differences(comparison: Comparison) -> Markup:
    head, rows = tables.pair_table(comparison)
    note = "intervals of 95 %, from top to bottom over seeds, over images, and in colour over both"
    chart = figure(f"Difference to {comparison.pairs[0].reference}", difference_chart(comparison), note)
    return section("pairs", "Differences", chart, table(head, _named(rows), caption="Pairs", class_="numbers"))


def _conditions(comparison: Comparison) -> Markup:
    files = "The same numbers are in table.md, table.csv, table.json and table.tex; runs.csv has every run."
    caption = "Conditions of all arms"
    return section(
        "conditions",
        "Conditions",
        table(("", "all arms"), comparison.conditions, caption=caption),
        tag("p", files, class_="quiet"),
    )


def _named(rows: list[list[str]]) -> list[list[object]]:
    return [[name(first), *rest] for first, *rest in rows]
