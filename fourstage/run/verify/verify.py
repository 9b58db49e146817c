"""The checks of `fourstage verify`, and their results."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from fourstage.api import create_backbone, create_model
from fourstage.run.pretrained import facts
from fourstage.run.pretrained.facts import Facts
from fourstage.run.verify.identify import Identified, identify
from fourstage.run.verify.protocol import Measured, measure
from fourstage.user_files import import_files
from fourstage.weights import golden
from fourstage.weights.catalog import NOT_STATED
from fourstage.weights.no_values import without_memory

CLASSES = 1000  # of the originals' classifiers, unless they are counted with others
Verdict = Literal["agrees", "disagrees", "not known", ""]  # "": a statement


@dataclass(frozen=True)
class Check:
    """One line: what was compared, and what came out."""

    name: str
    verdict: Verdict
    text: str
    values: Mapping[str, Any] = field(default_factory=dict)  # for programs


@dataclass(frozen=True)
class Verified:
    """All checks of a file, and the metrics on data where there was any."""

    path: Path
    checks: tuple[Check, ...]
    metrics: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether nothing disagrees."""
        verdicts = [*(check.verdict for check in self.checks), *(one.verdict for one in self.metrics)]
        return "disagrees" not in verdicts


def verify(
    source: str | Path,
    *,
    data: str | Path | None = None,
    changes: Iterable[str] = (),
    imports: Iterable[str | Path] = (),
    show: bool = True,
) -> Verified:
    """Check a checkpoint against what its source publishes.

    Args:
        source: a file, a folder of `save_pretrained`, a run, `hf-hub:user/name`, or the name of published weights such
            as `smt_tiny.in1k`, which are fetched.
        data: a data set, on which the published protocol is repeated; None: it is not.
        changes: values of its recipe, such as `workers=0`.
        imports: files that register what the network is built from. Those that a checkpoint names are not run.
        show: show a progress bar.

    Raises:
        ValueError, OSError: there is nothing to verify, or the data does not suit; one sentence.
    """
    import_files(imports)
    found = identify(source)
    known = facts.of_weight(found.weight) if found.weight is not None else facts.of_file(found.file)
    keys = _keys(found)
    values = _values(found)
    checks = [_sha256(found), _source(found), keys, values, _parameters(found), _golden(found), _licence(found, known)]
    if data is None or "disagrees" in (keys.verdict, values.verdict):
        return Verified(found.file.path, tuple(checks))
    metrics, notes = measure(found, known, data, changes, show=show)
    return Verified(found.file.path, tuple(checks), metrics, notes)


def _sha256(found: Identified) -> Check:
    """Compare the sum with that of the catalogue."""
    size = found.file.path.stat().st_size
    mine, row = f"{found.sha256} ({size:,} bytes)", found.weight
    values = {"sha256": found.sha256, "bytes": size, "published": row and row.sha256}
    if row is None:
        return Check("sha256", "", mine, values)
    if row.sha256 is None:
        return Check("sha256", "not known", f"{mine}; the source publishes none for {row.name}", values)
    if found.sha256.startswith(row.sha256):
        return Check("sha256", "agrees", f"{mine}; the published one begins with {row.sha256}", values)
    text = f"{mine}, and that of {row.name} begins with {row.sha256}: this is another file, or a damaged one"
    return Check("sha256", "disagrees", text, values)


def _source(found: Identified) -> Check:
    """Say which file of which source this is."""
    row, writer = found.weight, found.writer()
    values = {
        "published_as": row and row.name,
        "known_by": found.known_by or None,
        "writer": writer or None,
        "network": found.title,
        "task": found.described.task,
        "origin": row and row.origin,
    }
    names = f"its names are those of {writer}" if writer else "its names are of no program that is known"
    if row is None:
        return Check("source", "", f"{found.title}, by the {found.named_by}; {names}", values)
    return Check("source", "", f"{row.name} of {row.origin}, by {found.known_by}: {found.title}; {names}", values)


def _keys(found: Identified) -> Check:
    """Fill the network; every key of both sides needs a counterpart."""
    try:
        report = found.fill()
    except ValueError as error:
        return Check("keys", "disagrees", str(error), {"error": str(error)})
    left = [key for key in report.dropped if key not in report.rebuilt]
    values = {
        "read": report.read,
        "renamed": report.renamed,
        "resized": list(report.resized),
        "left_out": left,
        "as_built": list(report.fresh),
    }
    text = str(report).removeprefix(f"{report.source}: ")
    if report.fresh and found.described.task == "classification":
        more = f" and {len(report.fresh) - 1} more" if report.fresh[1:] else ""
        text = f"the file lacks {report.fresh[0]}{more}: {text}"
        return Check("keys", "disagrees", text, values)
    return Check("keys", "agrees", f"every key has its place: {text}, {report.renamed} of them renamed", values)


def _values(found: Identified) -> Check:
    """Look for NaN and infinities in the file."""
    tensors = found.file.weights()
    wrong = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if not wrong:
        return Check("values", "agrees", "all numbers are finite", {"not_finite": []})
    more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
    text = (
        f"{wrong[0]}{more} of {len(tensors)} tensors hold NaN or infinity: a damaged file, or a training that diverged"
    )
    return Check("values", "disagrees", text, {"not_finite": wrong})


def _parameters(found: Identified) -> Check:
    """Compare the number of parameters with the original's network; heads are for the classes of the file."""
    described, network = found.described, found.network
    backbone = network.get_submodule("backbone") if found.is_complete else network
    count = _count(network)
    values: dict[str, Any] = {"parameters": count}
    dense = described.task != "classification"
    original = golden.parameters(described.backbone, described.backbone_args, dense=dense)
    arguments = described.backbone_args.get("out_indices")
    if original is None or arguments is not None:  # without some norms, nobody has counted it
        return Check("parameters", "not known", f"{count:,}; nobody has counted the original's network", values)
    theirs, own = original
    ours = _count(backbone)
    if not dense and (head := getattr(network, "head", None)) is not None and isinstance(head, nn.Linear):
        theirs += (head.out_features - own.get("num_classes", CLASSES)) * (head.in_features + (head.bias is not None))
    values |= {"counted": ours, "original": theirs}
    what = f"{count:,}, the backbone {ours:,}" if found.is_complete else f"{count:,}"
    if ours == theirs:
        return Check("parameters", "agrees", f"{what}, as the original's network has", values)
    if _counted_alone(described.backbone, own, dense=dense) == original[0]:
        text = f"{what}; nobody has counted the original's network with the arguments of this one"
        return Check("parameters", "not known", text, values)
    return Check("parameters", "disagrees", f"{what}, and the original's network has {theirs:,}", values)


def _counted_alone(model: str, arguments: Mapping[str, Any], *, dense: bool) -> int:
    """Return the number of parameters of a network with the arguments of the original's, and no others."""
    with without_memory():
        return _count((create_backbone if dense else create_model)(model, **arguments))


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _golden(found: Identified) -> Check:
    """Let the network compute the original's numbers with test weights."""
    described = found.described
    dense = described.task != "classification"
    numbers = golden.find(described.backbone, dense=dense, arguments=described.backbone_args)
    if numbers is None:
        return Check("golden numbers", "not known", f"there are none for {described.backbone}")
    build = create_backbone if numbers.dense else create_model
    result = golden.compare(build(numbers.model, **numbers.arguments), numbers)
    what = "its backbone" if found.is_complete else "the network"
    whose = what if numbers.model == described.backbone else f"{numbers.model}, of the same family,"
    values = {
        "network": numbers.model,
        "numbers": result.numbers,
        "largest_deviation_in_std": result.largest,
        "weights": "test weights",
    }
    text = (
        f"with test weights, not those of this file, {whose} gives {result.numbers} numbers of the original code"
        f"{'' if result.agrees else ' no more'} (largest deviation {result.largest:.0e} of their standard deviation)"
    )
    return Check("golden numbers", "agrees" if result.agrees else "disagrees", text, values)


def _licence(found: Identified, known: Facts) -> Check:
    """State the licence, which nobody can check."""
    stated = known.licence or (NOT_STATED if found.weight is not None else "none in the file")
    origin = f", at {found.weight.origin}" if found.weight is not None else ""
    return Check("licence", "", f"{stated}{origin}", {"licence": known.licence, "origin": known.origin})
