"""From the tensors of any file to a filled network, with an account of every key.

A file is ours or an original's; `FAMILIES` says which table renames an original's keys. `Plan` compares names and
shapes only, so the same code that fills a network also finds, on failure, the network that a file would fill.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Backbone, Classifier, Dense
from fourstage.weights import swin, visformer
from fourstage.weights.resize import resize_position, resize_table
from fourstage.weights.rules import Rule, check_complete, claims, rename

FAMILIES: dict[str, tuple[Rule, ...]] = {"swin": swin.RULES, "visformer": visformer.RULES}

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile, around a whole state dict
INNER = (
    "backbone.",
    "network.",
)  # where detectors and segmentors keep a backbone, and our classification task its network
COUNTER = r".*\bnum_batches_tracked"  # matters to no network of ours: momentum is fixed


@dataclass(frozen=True)
class Report:
    """What became of every key of a file and of every key of the network."""

    source: str
    read: int  # tensors that went into the network
    renamed: int  # of these, under another name
    resized: tuple[str, ...]  # our names
    dropped: tuple[str, ...]  # their names: buffers that follow from sizes, and parts that this network has not
    fresh: tuple[str, ...]  # our names: stay as they were built
    head: str = ""  # why the head was left out

    def __str__(self) -> str:
        parts = [f"{self.read} read"]
        parts += [f"{self.renamed} of them renamed"] if self.renamed else []
        parts += [f"{len(self.resized)} resized"] if self.resized else []
        parts += [f"head dropped: {self.head}"] if self.head else []
        parts += [f"{len(self.dropped)} left out ({_listed(self.dropped)})"] if self.dropped else []
        parts += [f"{len(self.fresh)} as built ({_listed(self.fresh)})"] if self.fresh else []
        return f"{self.source}: {', '.join(parts)}"


@dataclass
class Plan:
    """How a renamed state dict would fill a network."""

    take: list[str] = field(default_factory=list)
    resize: list[str] = field(default_factory=list)
    leave: list[str] = field(default_factory=list)  # in the file, not for this network
    fresh: list[str] = field(default_factory=list)  # in the network, not expected from this file
    wrong: list[str] = field(default_factory=list)  # why it does not fit, one reason a key


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, source: str, fresh_head: bool = False) -> Report:
    """Fill `model` from the tensors of a file.

    Args:
        source: the file's name, for messages.
        fresh_head: where the file's head is for another number of classes, or missing, ours stays as it was built;
            without this, that is an error.

    Raises:
        ValueError: the file holds another network or another number of classes.
    """
    inner, outside = unwrap(state)
    named = our_names(model, inner)
    if named is None:
        raise ValueError(misfit(model, inner, source))
    renamed, gone = named
    wanted = model.state_dict()
    if (plan := make_plan(model, wanted, renamed)).wrong:
        raise ValueError(misfit(model, inner, source, plan.wrong))
    head = head_note(renamed, wanted, source, fresh_head)
    if head:
        plan.take = [key for key in plan.take if not key.startswith("head.")]
        plan.fresh += [key for key in ("head.weight", "head.bias") if key not in plan.fresh]
    filled = {key: renamed[key] for key in plan.take} | {k: resized(renamed[k], wanted[k]) for k in plan.resize}
    check_complete(filled, wanted, plan.fresh)
    model.load_state_dict({**wanted, **filled})
    return Report(
        source=source,
        read=len(filled),
        renamed=len(filled.keys() - inner.keys()),
        resized=tuple(plan.resize),
        dropped=(*outside, *gone, *plan.leave),
        fresh=tuple(key for key in plan.fresh if not re.fullmatch(COUNTER, key)),
        head=head,
    )


def unwrap(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's tensors without the prefixes of what was around it, and the keys of a detector's other parts."""
    inner, outside = dict(state), []
    while True:
        wrapper = next((w for w in WRAPPERS if inner and all(key.startswith(w) for key in inner)), None)
        if wrapper:
            inner = {key.removeprefix(wrapper): value for key, value in inner.items()}
        elif part := next((p for p in INNER if any(key.startswith(p) for key in inner)), None):
            outside += [key for key in inner if not key.startswith(part)]
            inner = {key.removeprefix(part): value for key, value in inner.items() if key.startswith(part)}
        else:
            return inner, outside


def our_names(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]] | None:
    """`state` under our names, and the keys that the original's table drops; None if the names are nobody's we know."""
    rules = FAMILIES.get(model.family.name, ()) if isinstance(model, Backbone) else ()
    if state and all(len(claims(rules, key)) == 1 for key in state):
        gone = [key for key in state for rule, _ in claims(rules, key) if rule.name is None]
        return rename(state, rules), gone
    shared = state.keys() & model.state_dict().keys()
    return (dict(state), []) if len(shared) * 2 > len(state) else None


def make_plan(model: nn.Module, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Plan:
    """Compare names and shapes. The class count is another question, see `head_note`."""
    plan = Plan()
    from_classifier = not any(key.startswith("norms.") for key in state)
    for key, value in state.items():
        if key not in wanted:
            if _other_form(model, key):
                plan.leave.append(key)
            else:
                plan.wrong.append(f"{key} is not in it")
        elif _same_shape(key, value, wanted[key]):
            plan.take.append(key)
        elif _resizable(key, value, wanted[key]):
            plan.resize.append(key)
        else:
            plan.wrong.append(
                f"{key} is {tuple(value.shape)} in the file and {tuple(wanted[key].shape)} in the network"
            )
    for key in wanted:
        if key not in state:
            new_norm = isinstance(model, Dense) and from_classifier and key.startswith("norms.")
            if new_norm or key.startswith("head.") or re.fullmatch(COUNTER, key):
                plan.fresh.append(key)
            else:
                plan.wrong.append(f"{key} is missing from the file")
    return plan


def _same_shape(key: str, theirs: Tensor, ours: Tensor) -> bool:
    if key.startswith("head."):  # the number of classes is another question
        return theirs.shape[1:] == ours.shape[1:]
    return theirs.shape == ours.shape


def _other_form(model: nn.Module, key: str) -> bool:
    """Whether a key is of a part that this form of the network does without, and that no other part depends on."""
    if isinstance(model, Classifier):
        return model.num_classes == 0 and key.startswith("head.")
    if not isinstance(model, Dense):
        return False
    if key.startswith(("norm.", "head.")):
        return True
    match = re.match(r"(?:stages|norms)\.(\d+)\.", key)  # what out_indices took away
    return (
        bool(match)
        and int(match[1]) not in model.out_indices
        and not (key.startswith("stages.") and int(match[1]) < len(model.stages))
    )


def _resizable(key: str, theirs: Tensor, ours: Tensor) -> bool:
    part = key.rpartition(".")[2]
    if part == "table":
        return theirs.ndim == 2 and theirs.shape[1] == ours.shape[1] and math.isqrt(len(theirs)) ** 2 == len(theirs)
    return part == "position" and theirs.ndim == 4 and theirs.shape[:2] == ours.shape[:2]


def resized(theirs: Tensor, ours: Tensor) -> Tensor:
    """A table or position embedding at our size."""
    if theirs.ndim == 2:
        return resize_table(theirs, len(ours))
    return resize_position(theirs, ours.shape[-2], ours.shape[-1])


def head_note(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, fresh_head: bool) -> str:
    """Why the file's head is left out; empty where it is read or where there is none.

    Raises:
        ValueError: the class counts differ and nobody said that this is meant.
    """
    if "head.weight" not in wanted:
        return ""
    theirs = len(state["head.weight"]) if "head.weight" in state else None
    ours = len(wanted["head.weight"])
    if theirs == ours:
        return ""
    if fresh_head:
        return f"{theirs} to {ours} classes" if theirs else "the file has none"
    if theirs is None:
        raise ValueError(f"{source} has no head: give load_checkpoint fresh_head=True to keep the new one")
    raise ValueError(
        f"{source} predicts {theirs} classes and the network {ours}: use data or num_classes={theirs}; to train on "
        f"from it with a new head, give a recipe weights={source}, or load_checkpoint fresh_head=True"
    )


def misfit(model: nn.Module, state: Mapping[str, Tensor], source: str, wrong: list[str] | None = None) -> str:
    """One sentence on a file that does not fill `model`: what it would fill, or what is strange about it."""
    mine = getattr(model, "default_cfg", {}).get("architecture", "this network")
    if isinstance(model, Classifier) and state and _fits(_dense_twin(model), state):
        return f"{source} holds the dense form of {mine}, without a head: load it into create_backbone({mine!r})"
    if fits := which_models(state):
        names = " or ".join(fits)
        return f"{source} does not fit {mine}, it is {names}: type create_model({fits[0]!r}) or give another file"
    strange = _listed(wrong or list(state)) if state else "it holds no tensors"
    return f"{source} does not fit {mine}, nor any other network here ({strange}); give a checkpoint of {mine}"


def which_models(state: Mapping[str, Tensor]) -> list[str]:
    """Names of our networks that `state` would fill, in either form, whatever its class count."""
    fits = []
    for prefix in registry.FAMILIES:
        for name in registry.list_models(prefix + "*"):
            entry = registry.find(name)
            if name == entry.name and (_fits_build(entry.classifier, state) or _fits_build(entry.dense, state)):
                fits.append(name)
    return sorted(set(fits))


def _fits_build(build: object, state: Mapping[str, Tensor]) -> bool:
    assert callable(build)
    with torch.device("meta"):  # shapes without memory
        model = build()
    return isinstance(model, Backbone) and _fits(model, state)


def _fits(model: nn.Module | None, state: Mapping[str, Tensor]) -> bool:
    if model is None or (named := our_names(model, state)) is None:
        return False
    if isinstance(model, Dense) and not any(key.startswith("norms.") for key in named[0]):
        return False  # a classifier's file: it fills this form too, but is not called by it
    return not make_plan(model, model.state_dict(), named[0]).wrong


def _dense_twin(model: Classifier) -> nn.Module | None:
    name = model.default_cfg.get("architecture")
    if name is None:
        return None
    with torch.device("meta"):
        return registry.find(name).dense()


def _listed(keys: list[str] | tuple[str, ...], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
