"""What a check of a data set returns: findings, a summary, and both as text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fourstage.plurals import plural

Severity = Literal["error", "warning", "note"]

SHOWN = 5  # findings of one title that the text lists


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong or odd. An error stops training or spoils it; a note is worth knowing.

    `where`, `what` and `do` make one sentence: "`where` `what`: `do`".
    """

    severity: Severity
    title: str  # findings of one title are shown together
    where: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.where} {self.what}: {self.do}"


@dataclass(slots=True)
class SplitSummary:
    """What is in one split."""

    images: int = 0
    per_class: Counter[str] = field(default_factory=Counter)  # images of a class, or objects where images hold several
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (H, W) of every image that could be read


@dataclass(slots=True)
class Summary:
    """What was checked."""

    format: str
    counted: Literal["images", "objects"] = "images"  # what `per_class` counts
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    seconds: float = 0.0
    also: list["Summary"] = field(default_factory=list)  # what the same folder is when it is read in other ways


class Checked(NamedTuple):
    """The result of a check."""

    findings: list[Finding]
    summary: Summary


def render(findings: Sequence[Finding], summary: Summary) -> str:
    """Return summary and findings as text, errors first; of each title the first few, and how many more there are."""
    lines = [f"{summary.format}, checked in {summary.seconds:.1f} s"]
    for one in (summary, *summary.also):
        lines += [f"{one.format}, in the same folder"] if one is not summary else []
        for name, split in one.splits.items():
            lines.append(f"  {name}: {plural(split.images, 'image')}{_sizes(split)}")
            lines += _per_class(split, one.counted)
    for severity in ("error", "warning", "note"):
        titles = dict.fromkeys(f.title for f in findings if f.severity == severity)
        for title in titles:
            titled = [f for f in findings if (f.severity, f.title) == (severity, title)]
            lines.append(f"{severity}: {title} ({len(titled):,})")
            lines += [f"  {finding}" for finding in titled[:SHOWN]]
            if len(titled) > SHOWN:
                lines.append(f"  ... and {len(titled) - SHOWN:,} more")
    counts = Counter(f.severity for f in findings)
    lines.append(", ".join(plural(counts[s], s) for s in ("error", "warning", "note")))
    return "\n".join(lines)


def _sizes(split: SplitSummary) -> str:
    if not split.sizes:
        return ""
    by_area = sorted(split.sizes, key=lambda size: size[0] * size[1])
    low, middle, high = (f"{w} x {h}" for h, w in (by_area[0], by_area[len(by_area) // 2], by_area[-1]))
    return f" of {low} pixels" if by_area[0] == by_area[-1] else f" of {low} to {high} pixels, {middle} in the middle"


def _per_class(split: SplitSummary, counted: str) -> list[str]:
    """All classes when they are few, else the largest and the smallest."""
    if not split.per_class:
        return []
    ranked = split.per_class.most_common()
    if len(ranked) > 12:
        few = [f"{name} {count:,}" for name, count in (*ranked[:3], *ranked[-3:])]
        text = f"{', '.join(few[:3])} ... {', '.join(few[3:])}"
    else:
        text = ", ".join(f"{name} {count:,}" for name, count in sorted(split.per_class.items()))
    classes = "1 class" if len(ranked) == 1 else f"{len(ranked):,} classes"
    return [f"    {classes}, {counted} of each: {text}"]
