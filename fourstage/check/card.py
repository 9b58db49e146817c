"""The report card: its lines in their order, what each builds on, and the run of all."""

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from fourstage.check import figures, graphs, laws, learning, mixing, numerics
from fourstage.check.candidates import Candidate
from fourstage.check.entrants import Entrant, entrants_of
from fourstage.check.figures import Figures, Table
from fourstage.check.findings import Finding, Status, guarded
from fourstage.check.learning import Trained
from fourstage.check.probes import Probe, first_side, probes_of

SECONDS = 30.0
Progress = Callable[[float, str], None]  # the share that is done, and the line that runs


@dataclass(frozen=True)
class Setting:
    """How much is measured.

    Attributes:
        seconds: of the training of all six networks together; 0 leaves it out.
        stages: places in which a mixer is tried.
        beside: whether figures beside the built-in mixers are measured.

    Raises:
        ValueError: `seconds` is negative or not finite.
    """

    seconds: float = SECONDS
    stages: tuple[int, ...] = (0, 1, 2, 3)
    beside: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"--seconds is the time of the training, 0 or more; got {self.seconds}")


@dataclass(frozen=True)
class Law:
    """A line that needs the user's module alone.

    Attributes:
        needs: lines that must not fail before this one says anything of its own.
        advice: where the user's code raises an error.
    """

    name: str
    run: Callable[[Sequence[Probe]], Finding]
    needs: tuple[str, ...] = ()
    advice: str = "correct the error that the line names"


SHAPES, SIZES, GRADIENTS, REPEATS = "shapes", "any size", "gradients", "deterministic"
OF_DTYPE = "create tensors with dtype=x.dtype, and convert none to float32 alone"
LAWS = (
    Law(SHAPES, laws.shapes, advice="build it as docs/mixers.md says, and correct this error first"),
    Law(SIZES, laws.sizes, (SHAPES,)),
    Law("batch equals single", laws.batches, (SHAPES, REPEATS)),
    Law(GRADIENTS, laws.gradients, (SHAPES,), "let forward run in training mode, without operations in place"),
    Law("bfloat16", numerics.bfloat16, (SHAPES, REPEATS), OF_DTYPE),
    Law("float16", numerics.float16, (SHAPES, REPEATS), OF_DTYPE),
    Law("compiles", graphs.compiles, (SHAPES, REPEATS)),
    Law("exports", graphs.exports, (SHAPES, SIZES, REPEATS)),
    Law("checkpointing", laws.checkpoints, (SHAPES, REPEATS)),
    Law(REPEATS, laws.repeats, (SHAPES,), "let forward run in training mode"),
)
RUN_FIRST = (SHAPES, SIZES, REPEATS)  # lines that others need
COST, SPEED, MEMORY = "parameters, MACs", "speed", "memory"
REACH, FIELD = "reach", "receptive field"
LEARNS, SHIFTS = "learns digits", "translation"


@dataclass(frozen=True)
class Line:
    """One line of the card."""

    name: str
    finding: Finding


@dataclass
class Card:
    """The results for one mixer or backbone.

    Attributes:
        table: figures of the user's network, then of the five built-in mixers; empty where they were not measured.
    """

    name: str
    kind: str
    lines: list[Line] = field(default_factory=list)
    table: Table = field(default_factory=dict)

    def status(self, name: str) -> Status | None:
        """Return the status of a line; None: it is not on the card."""
        return next((line.finding.status for line in self.lines if line.name == name), None)

    def count(self, status: Status) -> int:
        return sum(line.finding.status == status for line in self.lines)

    @property
    def good(self) -> bool:
        """Whether no line failed."""
        return not self.count("fail")

    def as_dict(self) -> dict[str, Any]:
        """Return the card as plain values for JSON."""
        lines = [{"line": line.name, **asdict(line.finding)} for line in self.lines]
        return {
            "name": self.name,
            "kind": self.kind,
            "lines": lines,
            "networks": [asdict(x) for x in self.table.values()],
        }


def check(candidate: Candidate, setting: Setting | None = None, progress: Progress | None = None) -> Card:
    """Run all lines. What the user's code prints goes to the standard error.

    Args:
        progress: is called before each line, and while networks train.
    """
    setting, progress = setting or Setting(), progress or (lambda share, what: None)
    card = Card(candidate.name, candidate.kind)
    with redirect_stdout(sys.stderr):
        _check_laws(card, candidate, setting, progress)
        if setting.beside:
            _check_beside(card, candidate, setting, progress)
    return card


def _check_laws(card: Card, candidate: Candidate, setting: Setting, progress: Progress) -> None:
    probes = probes_of(candidate, setting.stages)
    extra = (Law(REACH, mixing.reach, (SHAPES, GRADIENTS)),) if candidate.kind == "mixer" else ()
    shown = (*LAWS, *extra)
    found: dict[str, Finding] = {}
    first = [law for name in RUN_FIRST for law in LAWS if law.name == name]
    for number, law in enumerate([*first, *(law for law in shown if law not in first)]):
        progress(0.3 * number / len(shown), law.name)
        skipped = _skipped(law.needs, {name: finding.status for name, finding in found.items()})
        found[law.name] = skipped or guarded(partial(law.run, probes), law.advice)
    card.lines.extend(Line(law.name, found[law.name]) for law in shown)


def _skipped(needs: Sequence[str], statuses: dict[str, Status]) -> Finding | None:
    broken = [name for name in needs if statuses.get(name) in ("fail", "skip")]
    return Finding("skip", f"not tried: needs `{broken[0]}`") if broken else None


def _check_beside(card: Card, candidate: Candidate, setting: Setting, progress: Progress) -> None:
    needs = _skipped((SHAPES, GRADIENTS), {line.name: line.finding.status for line in card.lines})
    names = [COST, SPEED, MEMORY, FIELD, *([LEARNS, SHIFTS] if setting.seconds else [])]
    if needs is not None:
        card.lines.extend(Line(name, needs) for name in names)
        return
    entrants = _told_apart(entrants_of(candidate))
    card.table.update({entrant.name: Figures(entrant.name) for entrant in entrants})
    measures = ((COST, figures.cost), (SPEED, figures.speed), (MEMORY, figures.memory), (FIELD, figures.field))
    for number, (name, measure) in enumerate(measures):
        progress(0.3 + 0.05 * number, name)
        advice = "the mixer must run in a network too: correct this error"
        card.lines.append(Line(name, guarded(partial(measure, entrants, card.table), advice)))
    if setting.seconds:
        _check_learning(card, candidate, entrants, setting, progress)


def _told_apart(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Return the entrants, the user's under another name where it is called as a built-in mixer is."""
    own, *five = entrants
    taken = own.name in {one.name for one in five}
    return [Entrant(f"{own.name} (yours)", own.build) if taken else own, *five]


def _check_learning(
    card: Card, candidate: Candidate, entrants: Sequence[Entrant], setting: Setting, progress: Progress
) -> None:
    side = learning.SIDE if candidate.kind == "mixer" else first_side(candidate)
    trained: list[Trained] = []

    def learns() -> Finding:
        trained.append(
            learning.train(entrants, setting.seconds, side, lambda share: progress(0.5 + 0.45 * share, LEARNS))
        )
        return learning.accuracy(entrants, trained[0], card.table)

    advice = "the mixer must train in a network too: correct this error"
    card.lines.append(Line(LEARNS, guarded(learns, advice)))
    progress(0.95, SHIFTS)
    if card.status(LEARNS) == "fail" or not trained:
        card.lines.append(Line(SHIFTS, Finding("skip", f"not tried: needs `{LEARNS}`")))
        return
    card.lines.append(Line(SHIFTS, guarded(partial(learning.translation, entrants, trained[0], card.table), advice)))
