"""The table and the page of `fourstage compare`."""

from fourstage.analysis.comparison import Comparison


def render_comparison_files(comparison: Comparison) -> dict[str, str]:
    """Return the content of each file by its name: page, markdown, CSV, JSON and LaTeX."""
    from fourstage.report.arms import tables
    from fourstage.report.arms.page import comparison_page

    return {
        "comparison.html": comparison_page(comparison),
        "table.md": tables.markdown(comparison),
        "table.csv": tables.csv_table(comparison),
        "runs.csv": tables.csv_runs(comparison),
        "table.json": tables.json_table(comparison),
        "table.tex": tables.latex(comparison),
    }
