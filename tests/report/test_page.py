"""The report as a reader's browser sees it: whole, harmless, and with the right numbers."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import DIGITS, HOSTILE, digits_run, large_run, stopped_run

from fourstage.report import render_report
from fourstage.report.charts import HUES

NEVER_CLOSED = {"img", "meta"}


@dataclass
class Element:
    name: str
    attributes: dict[str, str]
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str, class_: str | None = None) -> list["Element"]:
        """Elements below this one, in reading order."""
        found: list[Element] = []
        for child in self.children:
            if isinstance(child, Element):
                if child.name == name and (class_ is None or class_ in child.attributes.get("class", "").split()):
                    found.append(child)
                found += child.all(name, class_)
        return found

    def section(self, key: str) -> "Element":
        [found] = [part for part in self.all("section") if part.attributes["id"] == key]
        return found


class Tree(HTMLParser):
    """Every tag must be closed in the order it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert [element.name for element in self.open] == [""], "tags were left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        assert len(element.attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self.open[-1].children.append(element)
        if tag not in NEVER_CLOSED:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in NEVER_CLOSED:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def report(run: Path) -> Element:
    return Tree(render_report(run)).root


def plain(element: Element) -> str:
    """Its text with ordinary spaces."""
    return re.sub(r"\s+", " ", element.text)


MAKERS = {
    "digits": digits_run,
    "perfect": lambda folder: digits_run(folder, wrong=False),
    "hostile": lambda folder: digits_run(folder, classes=HOSTILE),
    "forty classes": lambda folder: digits_run(folder, classes=[f"class {i}" for i in range(40)]),
    "large": large_run,
    "stopped": stopped_run,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_report_is_complete_and_loads_nothing(kind: str, tmp_path: Path) -> None:
    run = MAKERS[kind](tmp_path / "run")
    text = render_report(run)
    assert len(text.encode()) < 1_500_000
    assert not re.search(r"(src|href|action|data|poster)\s*=\s*[\"']?\s*(https?:)?//", text)
    assert not re.search(r"url\(|@import|<link|<iframe|<object", text)
    page = Tree(text).root
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    for chart in page.all("svg", "chart"):
        assert set(chart.attributes["aria-labelledby"].split()) <= set(ids)
        assert chart.all("title")[0].text
        assert chart.all("desc")[0].text
    for table in page.all("table"):
        assert all(head.attributes["scope"] for head in table.all("th"))
        assert table.all("caption")[0].text
    assert not re.search(r"(?<![a-z])(nan|inf)(?![a-z])", " ".join(part.text for part in page.all("section")).lower())


def test_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    page = report(digits_run(tmp_path / "run"))
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    top1 = f"{evaluation['metrics']['top1']:.2f}"
    header = plain(page.all("header")[0])
    assert f"{top1}%" in plain(page.all("p", "big")[0])
    for expected in ("digits_visformer", "10 classes", "Finished: 675 steps, 45 epochs", "2 min 2 s", "1.2 M"):
        assert expected in header
    assert f"{top1} %" in plain(page.section("numbers"))
    rows = page.section("confusion").all("table", "matrix")[0].all("tr")[1:]
    counts = [[int(cell.text or 0) for cell in row.all("td")] for row in rows]
    assert counts == evaluation["tables"]["confusion"]
    assert [row.all("th")[0].text for row in rows] == list(DIGITS)
    shares = [float(row.all("td")[1].text.split()[0]) for row in page.section("classes").all("tr")[1:]]
    assert shares == sorted(round(row["top1"], 1) for row in evaluation["tables"]["per_class"])


def test_most_confused_pairs_are_the_largest_cells_off_the_diagonal(tmp_path: Path) -> None:
    page = report(digits_run(tmp_path / "run"))
    confusion = json.loads((tmp_path / "run" / "evaluation.json").read_text())["tables"]["confusion"]
    rows = page.section("confusion").all("table", "pairs-list")[0].all("tr")[1:]
    shown = [(row.all("th")[0].text, row.all("td")[0].text, int(row.all("td")[1].text)) for row in rows]
    assert all(confusion[int(truth)][int(guess)] == times for truth, guess, times in shown)
    off = sorted((n for i, row in enumerate(confusion) for j, n in enumerate(row) if i != j), reverse=True)
    assert [times for *_, times in shown] == off[: len(shown)]


def test_wrong_predictions_come_surest_first_with_their_own_picture(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    page = report(run)
    index = json.loads((run / "samples" / "index.json").read_text())
    wrong = sorted((e for e in index if e["top"][0][0] != e["truth"]), key=lambda e: -e["top"][0][1])
    cards = page.section("predictions").all("li", "wrong")
    assert [card.attributes["title"] for card in cards] == [entry["id"] for entry in wrong]
    for card, entry in zip(cards, wrong, strict=True):
        picture = card.all("img")[0].attributes["src"].removeprefix("data:image/png;base64,")
        assert base64.b64decode(picture) == (run / "samples" / entry["file"]).read_bytes()
        assert plain(card.all("p", "is")[0]) == f"truth {entry['truth']}"
        assert [row.all("span", "who")[0].text for row in card.all("li")] == [str(k) for k, _ in entry["top"][:3]]
    assert len(page.section("predictions").all("li", "right")) == len(index) - len(wrong)


def test_the_best_checkpoint_is_reported_as_the_best(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    chosen = next(
        line for line in lines if line["kind"] == "evaluation" and line["step"] == 300 and line["which"] == "ema"
    )
    chosen["metrics"]["top1"] = 99.25
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation |= {"step": 300, "metrics": {**evaluation["metrics"], "top1": 99.25}}
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = report(run)
    assert "99.25%" in plain(page.all("header")[0])
    assert "EMA weights, epoch 20; the best of the run" in plain(page.all("header")[0])
    numbers = plain(page.section("numbers"))
    assert "best checkpoint, EMA" in numbers
    header = plain(page.all("header")[0])
    assert "Best of 90 evaluations (45 epochs, with and without averaging) on these same images, so slightly" in header


def test_a_log_that_reaches_the_planned_length_is_finished(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    assert "Finished: 675 steps" in plain(report(run).all("header")[0])
    (run / "log.jsonl").write_text("\n".join(lines[:-10]) + "\n")
    assert "Not finished" in plain(report(run).all("header")[0])


def test_the_evaluated_weights_have_the_accent(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    evaluation = json.loads((run / "evaluation.json").read_text())
    for which, label in (("ema", "EMA"), ("model", "model")):
        (run / "evaluation.json").write_text(json.dumps({**evaluation, "which": which}))
        labels = report(run).section("curves").all("text", "accent")
        assert [text.text.split()[0] for text in labels if text.text[0].isalpha()] == [label, label]


def test_a_page_is_titled_by_its_run_and_repeated_by_the_file_of_its_recipe(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    (run / "changes.json").write_text(json.dumps({"recipe": "my recipes/own.yaml", "changes": {}}))
    page = report(run)
    assert page.all("h1")[0].text == "run"
    assert page.all("title")[0].text == "run – fourstage"
    assert "by the recipe my recipes/own.yaml." in plain(page.all("header")[0])
    assert "fourstage train 'my recipes/own.yaml' --data my_folder" in plain(page.section("own"))


def test_a_run_without_a_mistake_says_so(tmp_path: Path) -> None:
    page = report(digits_run(tmp_path / "run", wrong=False))
    assert "every image was classified right" in plain(page.section("predictions"))
    assert "No class was confused with another" in plain(page.section("confusion"))


def test_a_published_number_is_beside_ours_and_changes_are_listed(tmp_path: Path) -> None:
    run = large_run(tmp_path / "run")
    page = report(run)
    top1 = json.loads((run / "evaluation.json").read_text())["metrics"]["top1"]
    difference = f"{top1 - 82.2:+.2f}".replace("-", "\u2212")
    assert f"published; this run {difference}82.20 %" in plain(page.all("dl")[0])
    assert f"82.20 % this run {difference}" in plain(page.section("numbers"))
    how = plain(page.section("recipe"))
    assert "optimisation.batch_size1024512" in how
    assert "datanot set/data/imagenet" in how


def test_a_thousand_classes_show_how_they_spread_the_worst_and_the_best(tmp_path: Path) -> None:
    run = large_run(tmp_path / "run")
    rows = json.loads((run / "evaluation.json").read_text())["tables"]["per_class"]
    page = report(run)
    assert not page.all("table", "matrix")
    assert len(page.section("confusion").all("tr")) == 21
    classes = page.section("classes")
    assert sum(int(bar.text.split(": ")[1].split()[0]) for bar in classes.all("rect")) == 1000
    worst, best = ([plain(row) for row in table.all("tr")[1:]] for table in classes.all("table"))
    assert len(worst) == len(best) == 15
    lowest, highest = min(row["top1"] for row in rows), max(row["top1"] for row in rows)
    assert all(f"{lowest:.1f} %" in row for row in worst[:1])
    assert all(f"{highest:.1f} %" in row for row in best[:1])
    assert f"{sum(row['top1'] < 50 for row in rows)} stay below 50 %" in plain(classes)
    assert f"{sum(row['top1'] == 100 for row in rows)} have no mistake" in plain(classes)
    assert f"fourstage evaluate {run} --csv classes.csv" in plain(classes)


def test_the_kept_pairs_are_shown_in_their_order_with_their_share(tmp_path: Path) -> None:
    run = large_run(tmp_path / "run", classes=150, images=300)
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["tables"]["confused"] = [[7, 3, 2], [1, 0, 1]]
    evaluation["labels"] = [f"label {i}" for i in range(150)]
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    rows = [plain(row) for row in report(run).section("confusion").all("tr")[1:]]
    assert rows == ["label 7label 32100.0 %", "label 1label 0150.0 %"]


def test_classes_without_images_are_counted_and_not_shown(tmp_path: Path) -> None:
    page = report(large_run(tmp_path / "run", classes=150, images=130))
    assert "20 classes without an image in this split" in plain(page.section("classes"))
    assert "Half of the 130 classes" in plain(page.section("classes"))


def test_a_page_of_21841_classes_is_small(tmp_path: Path) -> None:
    run = large_run(tmp_path / "run", classes=21_841, images=21_841)
    assert len(render_report(run).encode()) < 1e6


def test_a_run_that_stopped_early_says_what_it_lacks(tmp_path: Path) -> None:
    page = report(stopped_run(tmp_path / "run"))
    header = plain(page.all("header")[0])
    assert "Not finished: the log ends at step 3 of 675" in header
    assert "Not evaluated yet" in header
    assert "The log holds no evaluation" in plain(page.section("numbers"))
    assert "No predictions were kept" in plain(page.section("predictions"))
    assert "Continue this run" in plain(page.section("next"))
    assert len(page.all("svg", "chart")) == 3


@pytest.mark.parametrize(
    "missing",
    ["log.jsonl", "evaluation.json", "records.jsonl", "samples/index.json", "environment.json", "changes.json"],
)
def test_any_part_may_be_missing(missing: str, tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    (run / missing).unlink()
    assert report(run).all("h1")[0].text == "run"


def test_a_recipe_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    page = report(tmp_path)
    assert page.all("h1")[0].text == tmp_path.name
    assert "by the recipe mine" in plain(page.all("header")[0])
    assert "the log ends at step 0" in plain(page.all("header")[0])


def test_names_show_themselves_and_never_run(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run", classes=HOSTILE)
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**environment, "command": "<img src=x onerror=alert(1)>"}))
    page = report(run)
    [script] = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    policy = next(m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes)
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert all(image.attributes["src"].startswith("data:image/") for image in page.all("img"))
    assert not [e for e in page.all("img") if "onerror" in e.attributes]
    heads = [row.all("th")[0].text for row in page.all("table", "matrix")[0].all("tr")[1:]]
    assert heads[:6] == list(HOSTILE[:6])
    assert heads[7] == "nul\ufffd and \ufffd"


def test_losses_that_are_not_finite_are_named(tmp_path: Path) -> None:
    run = stopped_run(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()[:3]]
    lines[1]["total"], lines[2]["total"] = float("nan"), float("inf")
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "2 of 3 logged losses are not finite" in plain(report(run).section("curves"))


def test_a_large_picture_goes_in_as_a_small_copy(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    run = digits_run(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    for file in (run / "samples").glob("*.png"):
        Image.fromarray(noise).save(file)
    (run / "samples" / "000.png").write_bytes(b"not a picture")
    page = report(run)
    assert len(render_report(run).encode()) < 1_500_000
    assert "unreadable picture" in page.section("predictions").text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("recipe.yaml", None, "is not a run folder"),
        ("recipe.yaml", "a: [", "is not YAML"),
        ("recipe.yaml", "- a", "should hold the recipe's keys"),
        ("log.jsonl", '{"kind": "tr\n{"kind": "train"}\n', "line 1, is damaged"),
        ("evaluation.json", "{", "is damaged"),
        ("evaluation.json", "[]", "should hold a JSON object"),
        ("evaluation.json", '{"classes": ["a"], "tables": {"confusion": [[1, 2], [3, 4]]}}', "names 1 class,"),
    ],
)
def test_a_damaged_run_is_answered_in_a_sentence(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    (run / file).unlink() if content is None else (run / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        render_report(run)


def test_importing_is_free_and_writing_needs_no_torch(tmp_path: Path) -> None:
    run = digits_run(tmp_path / "run")
    code = (
        "import sys; from fourstage.report import render_report; early = set(sys.modules)\n"
        f"render_report({str(run)!r}); late = set(sys.modules)\n"
        "print(sorted({'numpy', 'PIL', 'yaml'} & early), sorted({'torch', 'matplotlib', 'pydantic'} & late))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_text_can_be_read_in_both_themes() -> None:
    style = (Path(render_report.__code__.co_filename).parent / "style.css").read_text()
    themes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", block))
        for block in re.findall(r"\{[^{}]*--page:[^{}]*\}", style)
    ]
    assert len(themes) == 4
    for theme in themes:
        for text in ("ink", "quiet", "accent", "wrong"):
            for ground in ("page", "card"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground, theme)


def contrast(first: str, second: str) -> float:
    """WCAG 2.1: relative luminances, each plus 0.05, the lighter over the darker."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_compared_lines_can_be_seen_in_both_themes_and_letters_of_charts_have_one_size() -> None:
    style = (Path(render_report.__code__.co_filename).parent / "style.css").read_text()
    themes = re.findall(r"\{[^{}]*--page:[^{}]*\}", style)
    assert len(themes) == 4
    for theme in themes:
        page = re.findall(r"--page: (#[0-9a-f]+)", theme)[0]
        hues = re.findall(r"--hue-\d: (#[0-9a-f]+)", theme)
        assert len(set(hues)) == HUES
        assert all(contrast(hue, page) >= 3 for hue in hues), (hues, page)
    phone = style[style.index("(max-width: 760px)") :]
    sizes = {}  # of letters, as a share of the chart's width, which fills the screen
    for kind, width in ((".charts.large .chart", 440), (".charts.small .chart", 330), (".bar-chart", 620)):
        [size] = re.findall(rf"^  {re.escape(kind)} text {{ font-size: ([\d.]+)px", phone, re.M)
        sizes[kind] = float(size) / width
    assert max(sizes.values()) / min(sizes.values()) < 1.01, sizes
