"""The model card of a saved network: README.md with the front matter that Hugging Face's hub reads."""

import re
import warnings
from typing import TYPE_CHECKING, Any

from fourstage.plurals import plural
from fourstage.report.number_format import metric as shown_metric
from fourstage.run.pretrained.facts import Facts, row_named
from fourstage.weights.catalog import NOT_STATED

if TYPE_CHECKING:
    from fourstage.run.pretrained.save import Saveable

LIBRARY = "fourstage"
PIPELINES = {  # a task -> its name on the hub
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
    "backbone": "image-feature-extraction",
}
MOST_NAMES = 40  # classes that a card lists
KNOWN_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # as the hub writes them: mit, apache-2.0
SETTINGS = ("length", "batch_size", "optimizer", "lr", "schedule", "warmup", "weight_decay")  # of a recipe


def licence_id(licence: str) -> str:
    """Return a licence as the hub writes it, where it is a name of that form: `MIT` is `mit`."""
    line = " ".join(licence.split())
    return line.lower() if KNOWN_LICENCE.fullmatch(line.lower()) else line


def text_of(one: "Saveable", source: str) -> str:
    """Return the card.

    Args:
        source: what the lines on how to use the network load, such as `hf-hub:user/name`.
    """
    sections = [
        f"---\n{_front_matter(one, source)}\n---",
        f"# {_title(one, source)}",
        _summary(one),
        _usage(one, source),
        _numbers(one.facts),
        _classes(one),
        _training(one),
        _licence(one.facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _title(one: "Saveable", source: str) -> str:
    return _plain(source.removeprefix("hf-hub:").rstrip("/").rpartition("/")[2] or _network(one))


def _network(one: "Saveable") -> str:
    described = one.description
    return f"{described.method} over {described.backbone}" if described.method else described.backbone


def _front_matter(one: "Saveable", source: str) -> str:
    from huggingface_hub import ModelCardData

    described, facts = one.description, one.facts
    tags = [LIBRARY, PIPELINES[described.task], described.backbone, *([described.method] if described.method else ())]
    tags += ["timm"] if described.task == "classification" else []
    values: dict[str, Any] = {"library_name": LIBRARY, "pipeline_tag": PIPELINES[described.task], "tags": tags}
    if facts.licence is not None:
        name = licence_id(facts.licence)
        known = KNOWN_LICENCE.fullmatch(name) is not None
        values |= {"license": name} if known else {"license": "other", "license_name": name}
    if facts.measured and facts.data:
        values |= {"model_name": _title(one, source), "eval_results": _results(one)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ModelCardData(**values).to_yaml().strip()


def _results(one: "Saveable") -> list[Any]:
    """Return the measured numbers as the hub's index of models has them."""
    from huggingface_hub import EvalResult

    facts = one.facts
    assert facts.data is not None
    kind = re.sub(r"[^a-z0-9-]+", "-", facts.data.lower()).strip("-") or "own"
    return [
        EvalResult(
            task_type=PIPELINES[one.description.task],
            dataset_type=kind,
            dataset_name=facts.data,
            metric_type=name,
            metric_value=round(value, 4),
        )
        for name, value in _shown(facts)
    ]


def _shown(facts: Facts) -> list[tuple[str, float]]:
    """Return what was measured and is not of a single class or size: the metrics that have an interval, else all."""
    of_interest = {*facts.intervals, *facts.expected, facts.main_metric}
    rows = [(name, value) for name, value in facts.measured.items() if name in of_interest]
    return rows or list(facts.measured.items())


def _summary(one: "Saveable") -> str:
    described = one.description
    what = {
        "classification": f"classifies images into {plural(described.num_classes, 'class', 'classes')}",
        "detection": f"detects objects of {plural(described.num_classes, 'class', 'classes')}",
        "segmentation": f"labels each pixel with one of {plural(described.num_classes, 'class', 'classes')}",
        "backbone": "returns feature maps of images; it is a dense backbone without a head",
    }[described.task]
    count = sum(parameter.numel() for parameter in one.network.parameters())
    return f"`{_network(one)}`, {count:,} parameters, {what}."


def _usage(one: "Saveable", source: str) -> str:
    if one.description.task == "backbone":
        lines = f'backbone = fourstage.from_checkpoint("{source}")\nmaps = backbone(images)  # (B, 3, H, W)'
    else:
        lines = f'network = fourstage.load("{source}")\nprint(network("photo.jpg"))'
    blocks = [f"```python\nimport fourstage\n\n{lines}\n```"]
    if one.description.task == "classification":
        there = source if source.startswith("hf-hub:") else f"local-dir:{source}"
        call = f'model = timm.create_model("{there}", pretrained=True)'
        blocks += ["With timm:", f"```python\nimport timm\nimport fourstage.timm\n\n{call}\n```"]
    return "\n\n".join(["## How to use", *blocks])


def _numbers(facts: Facts) -> str:
    if not facts.measured and not facts.expected:
        return ""
    rows = ["| metric | measured | 95 % interval | published |", "| --- | --- | --- | --- |"]
    measured = dict(_shown(facts))
    for name in [*measured, *(name for name in facts.expected if name not in measured)]:
        low, high = facts.intervals.get(name, (None, None))
        cells = [
            f"{measured[name]:.2f}" if name in measured else "-",
            "-" if low is None or high is None else f"{low:.2f} to {high:.2f}",
            f"{facts.expected[name]:g}" if name in facts.expected else "-",
        ]
        rows.append(f"| {shown_metric(name).label} (`{name}`) | {' | '.join(cells)} |")
    notes = []
    if facts.measured:
        data = f" of {_plain(facts.data)}" if facts.data else ""
        notes.append(f"Measured on {plural(facts.images, 'image')}{data}, in per cent.")
    if facts.expected:
        whose = f"`{facts.published_as}`" if facts.published_as else f"the recipe `{_code(facts.recipe)}`"
        notes.append(f"Published are the numbers of {whose}, by its authors, on their data.")
    return "\n".join(["## Numbers", "", *rows, "", *notes])


def _classes(one: "Saveable") -> str:
    if not one.classes:
        return ""
    names = [f"{i} {_plain(name)}" for i, name in enumerate(one.classes[:MOST_NAMES])]
    more = f", and {len(one.classes) - MOST_NAMES:,} more in config.json" if len(one.classes) > MOST_NAMES else ""
    return f"## Classes\n\n{', '.join(names)}{more}"


def _training(one: "Saveable") -> str:
    facts = one.facts
    if facts.recipe is None or one.recipe is None:
        return ""
    optimisation = one.recipe["optimisation"]
    settings = ", ".join(f"{name} {optimisation[name]}" for name in SETTINGS if optimisation.get(name) is not None)
    start = f" It started from `{facts.started_from}`." if facts.started_from else ""
    seed = f", seed {one.recipe['seed']}" if "seed" in one.recipe else ""
    return (
        f"## Training\n\nThe recipe `{_code(facts.recipe)}`: {settings}{seed}.{start} config.json has all "
        f"of its values, under `fourstage`."
    )


def _licence(facts: Facts) -> str:
    start = row_named(facts.started_from)  # a file of a later version may name another one
    lines = []
    if facts.licence is not None:
        lines.append(f"The weights have the licence {_plain(facts.licence)}.")
    else:
        lines.append("No licence of these weights is stated; ask whoever trained them before you use them.")
    if start is not None:
        theirs = "states no licence" if start.licence == NOT_STATED else f"has the licence {start.licence}"
        lines.append(f"The training started from `{start.name}` of {start.origin}, which {theirs}.")
    elif facts.origin is not None:
        lines.append(f"They come from {facts.origin}.")
    return f"## Licence\n\n{' '.join(lines)}"


def _code(text: object) -> str:
    """Return text for a span of code."""
    return " ".join(str(text).split()).replace("`", "'")


def _plain(text: object) -> str:
    """Return text of a file or a user without what Markdown or HTML would take for markup, in one line."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", line).replace("\\<", "&lt;").replace("\\>", "&gt;")
