"""Fill a network from the tensors of any file, with an account of every key.

A file is ours or an original's; `FAMILIES` says which tables rename an original's keys. `Plan` compares names and
shapes only, so the same code that fills a network also finds, on failure, the network that a file would fill.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from typing import Any

from torch import Tensor, nn

from fourstage import registry
from fourstage.backbones.base import Backbone, Classifier, Dense, Family
from fourstage.backbones.feature_maps import FeatureMaps
from fourstage.backbones.wrapped import WrappedBackbone
from fourstage.weights import foreign_swin, scalablevit, smt, swin, unified, visformer
from fourstage.weights.adapt import adapt_stem, adapted_note, is_adaptable
from fourstage.weights.heads import HEAD, fit_head, head_names
from fourstage.weights.no_values import check_memory, without_memory
from fourstage.weights.openmmlab import swin_names
from fourstage.weights.prefixes import Reading, readings
from fourstage.weights.replaced_tensors import how_to_restore
from fourstage.weights.resize import resize_rule
from fourstage.weights.rules import Renamed, Table, check_complete, check_real
from fourstage.weights.strangers import recognise_stranger
from fourstage.weights.wrapped import filling

# family -> the tables of those who write its checkpoints
FAMILIES: dict[str, tuple[Table, ...]] = {
    "scalablevit": (Table(scalablevit.RULES, writer="Yangr116/ScalableViT"),),
    "smt": (Table(smt.RULES, writer="AFeng-x/SMT"),),
    "swin": (
        foreign_swin.TIMM,  # before Microsoft's, which knows most of its keys
        Table(swin.RULES, writer="microsoft/Swin-Transformer"),
        Table(swin_names.SWIN, writer="MMDetection or MMSegmentation"),
        foreign_swin.TORCHVISION,
        foreign_swin.TRANSFORMERS,
    ),
    "swin_visformer": (Table(visformer.SWIN_RULES, writer="danczs/Visformer"),),
    "unified": (
        Table(unified.RULES, writer="OpenGVLab/STM-Evaluation"),
        Table(unified.OFFICIAL_SWIN, writer="OpenGVLab/STM-Evaluation"),
        Table(unified.OFFICIAL_PVT_V2, writer="OpenGVLab/STM-Evaluation"),
    ),
    "visformer": (Table(visformer.RULES, writer="danczs/Visformer"),),
    "visformer_net1": (Table(visformer.NET1_RULES, writer="danczs/Visformer"),),
}
OURS = "fourstage"  # who else names parameters
MOST_LISTED = 3  # keys in a message

END = (r"final\.", r"pre_logits\.", r"head\.")  # keys of a classifier that follow its last map
COUNTER = r".*\bnum_batches_tracked"  # unused here: every BatchNorm has a fixed momentum
SCALE = r".*\b(gamma_?[12]|scale[12]\.scale)"  # layer scales, by the originals' names and ours


@dataclass(frozen=True)
class Report:
    """An account of every key of a file and of every key of the network."""

    source: str
    read: int  # tensors that went into the network
    renamed: int  # of these, under another name
    resized: tuple[str, ...]  # our names
    dropped: tuple[str, ...]  # their names, or ours of a module that this form does not have
    fresh: tuple[str, ...]  # our names: stay as they were built
    head: str = ""  # what became of a head for another number of classes
    # of the dropped ones, the buffers that follow from sizes, which this network computes
    rebuilt: tuple[str, ...] = ()
    stem: str = ""  # what became of a first convolution for another number of channels
    taken: str = ""  # which of two networks in the file was taken

    def __str__(self) -> str:
        left = [key for key in self.dropped if key not in self.rebuilt and not (self.head and key.startswith("head."))]
        fresh = [key for key in self.fresh if not (self.head and key.startswith("head."))]
        words = [f"{self.read} read"]
        words += [f"{len(self.resized)} resized"] if self.resized else []
        words += [note for note in (self.taken, self.stem, self.head) if note]
        words += [f"{len(self.rebuilt)} buffers rebuilt"] if self.rebuilt else []
        words += [f"{len(left)} left out ({_patterns(left)})"] if left else []
        words += [f"{len(fresh)} as built ({_patterns(fresh)})"] if fresh else []
        return f"{self.source}: {', '.join(words)}"


@dataclass
class Plan:
    """How a renamed state dict would fill a network, key by key."""

    take: list[str] = field(default_factory=list)
    resize: list[str] = field(default_factory=list)
    adapt: list[str] = field(default_factory=list)  # the first convolution, from RGB to other channels
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
    if isinstance(model, WrappedBackbone):
        return _load_wrapped(model, state, source)
    network = _network(model)
    reading, named = _best_reading(model, state)
    if named is None:
        raise ValueError(misfit(model, unwrap(state)[0], source))
    wanted = network.state_dict()
    if (plan := make_plan(model, wanted, named.state)).wrong:
        raise ValueError(misfit(model, reading.state, source, plan.wrong))
    check_memory(wanted.values(), source)
    check_real(named.state, wanted, source)
    if not fresh_head:
        _check_end(plan, source)
    names = head_names(network, wanted, named.state)
    head, note = fit_head(named.state, wanted, names, source, fresh_head)
    filled = {**_filled(model, plan, wanted, named.state, but=names), **head}
    fresh = [*plan.fresh, *(key for key in names if key in wanted and key not in head and key not in plan.fresh)]
    check_complete(filled, wanted, fresh)
    network.load_state_dict({**wanted, **filled})
    return Report(
        source=source,
        read=len(filled),
        renamed=len(filled.keys() - reading.state.keys()),
        resized=tuple(plan.resize),
        dropped=(*reading.outside, *named.outside, *named.rebuilt, *plan.leave),
        fresh=tuple(key for key in fresh if not re.fullmatch(COUNTER, key)),
        head="" if isinstance(model, Dense) else note,  # no dense form has a head
        rebuilt=named.rebuilt,
        stem=adapted_note(wanted[plan.adapt[0]].shape[1]) if plan.adapt else "",
        taken=reading.note,
    )


def _check_end(plan: Plan, source: str) -> None:
    """Raise ValueError where the file is of a feature extractor, and the network needs what follows the last map."""
    end = [key for key in plan.fresh if matches(key, END[:-1]) and not re.fullmatch(COUNTER, key)]
    if end:
        raise ValueError(
            f"{source} holds a network without what follows its last map ({_listed(end)}): give load_checkpoint "
            "fresh_head=True to keep these as they were built"
        )


def _filled(
    model: nn.Module, plan: Plan, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], but: Sequence[str]
) -> dict[str, Tensor]:
    """Return the tensors of a plan in the network's shapes, all but those of the head."""
    filled = {key: state[key] for key in plan.take if key not in but}
    for key in plan.resize:
        rule = resize_rule(_family(model), key)
        assert rule is not None, key
        filled[key] = rule.change(state[key], wanted[key])
    for key in plan.adapt:
        filled[key] = adapt_stem(state[key], wanted[key].shape[1])
    return filled


def _load_wrapped(model: WrappedBackbone, state: Mapping[str, Tensor], source: str) -> Report:
    wanted, found = model.state_dict(), filling(model, state)
    if found.wrong:
        raise ValueError(
            f"{source} does not fit timm/{model.name} ({_listed(found.wrong)}); give a checkpoint of this network, "
            "built with the same arguments"
        )
    check_memory(wanted.values(), source)
    check_real(found.tensors, wanted, source)
    check_complete(found.tensors, wanted, found.fresh)
    model.load_state_dict({**wanted, **found.tensors})
    return Report(
        source=source,
        read=len(found.tensors),
        renamed=len(found.tensors.keys() - state.keys()),
        resized=tuple(found.resized),
        dropped=(*found.reading.outside, *found.dropped),
        fresh=tuple(key for key in found.fresh if not re.fullmatch(COUNTER, key)),
        stem=adapted_note(wanted[found.adapted[0]].shape[1]) if found.adapted else "",
        taken=found.reading.note,
    )


def _network(model: nn.Module) -> nn.Module:
    """Return the module whose names a file has: that inside of a feature extractor."""
    return model.model if isinstance(model, FeatureMaps) else model


def _best_reading(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[Reading, Renamed | None]:
    """Return the first reading of a file that fills the model; where none does, the first with known names."""
    wanted = _network(model).state_dict()
    found = [(reading, _renamed(model, reading.state)) for reading in _readings(model, state)]
    known = [(reading, named) for reading, named in found if named is not None]
    if len(known) > 1:
        known = [pair for pair in known if not make_plan(model, wanted, pair[1].state).wrong] or known
    return known[0] if known else found[0]


def _readings(model: nn.Module, state: Mapping[str, Tensor]) -> list[Reading]:
    return list(readings(state, lambda inner: _renamed(model, inner) is not None))


def unwrap(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of the backbone without the prefixes around it, and the keys outside of it."""
    tables = [table for family in FAMILIES.values() for table in family]
    reading = next(readings(state, lambda inner: any(table.read(inner) is not None for table in tables)))
    return reading.state, list(reading.outside)


def head_classes(model: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes of a file's head; 0 without a head, None where its keys are unknown."""
    named = _best_reading(model, state)[1]
    head = None if named is None else named.state.get(HEAD[0])
    return None if named is None else len(head) if head is not None and head.ndim else 0


def writer_of(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return the program whose names a file of this network has; "" where they are of none that is known."""
    for reading in _readings(model, state):
        for table in FAMILIES.get(_family(model), ()):
            if table.read(reading.state) is not None:
                return table.writer
        if _shares_names(model, reading.state):
            return OURS
    return ""


def our_names(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]] | None:
    """Return `state` under our names, and the keys that the original's table drops; None for unknown names."""
    named = _renamed(model, state)
    return None if named is None else (named.state, [*named.rebuilt, *named.outside])


def _renamed(model: nn.Module, state: Mapping[str, Tensor]) -> Renamed | None:
    found = _from_an_original(_family(model), state)
    return found or (Renamed(dict(state)) if _shares_names(model, state) else None)


def _family(model: nn.Module) -> str:
    network = _network(model)
    return network.family.name if isinstance(network, Backbone) else ""


def _from_an_original(family: str, state: Mapping[str, Tensor]) -> Renamed | None:
    return next((named for table in FAMILIES.get(family, ()) if (named := table.read(state)) is not None), None)


def _shares_names(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Return whether most keys are the model's, or most of its keys are there: `out_indices` leaves stages out."""
    own = _network(model).state_dict().keys()
    return len(state.keys() & own) * 2 > min(len(state), len(own))


def make_plan(model: nn.Module, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Plan:
    """Compare names and shapes. `fit_head` compares the numbers of classes."""
    plan, head = Plan(), head_names(_network(model), wanted, state)
    from_classifier = isinstance(model, Dense) and not any(matches(key, model.family.dense_only) for key in state)
    stem, without_end = _first_convolution(model), _is_without_end(model, state)
    one_count = len({state[key].shape[:1] for key in head if key in state}) == 1  # else no weight fits its bias
    for key, value in state.items():
        if key not in wanted:
            if _other_form(model, key):
                plan.leave.append(key)
            else:
                plan.wrong.append(f"{key} is not in it")
        elif _has_shape(value, wanted[key], any_rows=key in head and one_count):
            plan.take.append(key)
        elif (rule := resize_rule(_family(model), key)) and rule.fits(value, wanted[key]):
            plan.resize.append(key)
        elif key == stem and is_adaptable(value, wanted[key]):
            plan.adapt.append(key)
        else:
            plan.wrong.append(
                f"{key} is {tuple(value.shape)} in the file and {tuple(wanted[key].shape)} in the network"
            )
    for key in wanted:
        if key not in state:
            new = isinstance(model, Dense) and from_classifier and matches(key, model.family.dense_only)
            new = new or (without_end and matches(key, END))
            if new or key.startswith("head.") or re.fullmatch(COUNTER, key):
                plan.fresh.append(key)
            else:
                plan.wrong.append(f"{key} is missing from the file")
    return plan


def _has_shape(theirs: Tensor, ours: Tensor, *, any_rows: bool) -> bool:
    return theirs.shape == ours.shape or (any_rows and theirs.shape[1:] == ours.shape[1:])


def _first_convolution(model: nn.Module) -> str:
    """Return the name of the weight that reads the image; "" for a user's own network."""
    network = _network(model)
    return f"{network.default_cfg['first_conv']}.weight" if isinstance(network, Backbone) else ""


def _is_without_end(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Return whether a file for this classifier is of a feature extractor, which has nothing after the last map."""
    return isinstance(model, Classifier) and not any(matches(key, (*END, *model.family.dense_only)) for key in state)


def _other_form(model: nn.Module, key: str) -> bool:
    """Return whether a key is of a module that this form of the network does not have and does not need."""
    if isinstance(model, FeatureMaps):
        stage = re.match(r"stages\.(\d+)\.", key)
        return matches(key, END) or (bool(stage) and int(stage[1]) > model.out_indices[-1])
    if isinstance(model, Classifier):
        return model.num_classes == 0 and key.startswith("head.")
    if not isinstance(model, Dense):
        return False
    if matches(key, model.family.classifier_only):
        return True
    match = re.match(r"(?:stages|norms)\.(\d+)\.", key)  # of a stage that out_indices leaves out
    return (
        bool(match)
        and int(match[1]) not in model.out_indices
        and not (key.startswith("stages.") and int(match[1]) < len(model.stages))
    )


def matches(key: str, patterns: Sequence[str]) -> bool:
    """Return whether one of the patterns matches the beginning of a key."""
    return any(re.match(pattern, key) for pattern in patterns)


def misfit(model: nn.Module, state: Mapping[str, Tensor], source: str, wrong: list[str] | None = None) -> str:
    """Return a sentence on a file that does not fill `model`: the network that it fits, or the first misfits."""
    mine, network = getattr(model, "default_cfg", {}).get("architecture", "this network"), _network(model)
    if isinstance(network, Classifier) and state and _fills(_dense_twin(network), state):
        return f"{source} holds the dense form of {mine}, without a head: load it into create_backbone({mine!r})"
    if stranger := recognise_stranger(state):
        return f"{source} does not fit {mine}: {stranger}"
    if restore := how_to_restore(state):
        return (
            f"{source} does not fit {mine}: {restore} on the network that it is from, and save its state_dict() again"
        )
    if restore := how_to_restore(network.state_dict()):
        return f"{source} does not fit this network: its {restore} before the file is loaded"
    misfits = _listed(wrong or list(state)) if state else "it holds no tensors"
    built = ({}, *_other_arguments(state))
    arguments, fits = next(((a, names) for a in built if (names := which_models(state, mine, a))), ({}, []))
    if mine in fits and not arguments:
        return (
            f"{source} is a {mine}, but this network was built with other arguments ({misfits}): build it without them"
        )
    if fits:
        headless = not any(key.startswith("head") for key in state)
        create = "create_backbone" if isinstance(model, Dense) or headless else "create_model"
        given = "".join(f", {key}={value}" for key, value in arguments.items())
        call = f"type {create}({(mine if mine in fits else fits[0])!r}{given})"
        if mine in fits:
            return f"{source} is a {mine} that was built with other arguments ({misfits}): {call}"
        return f"{source} is a checkpoint of {' or '.join(fits)}, not of {mine}: {call} or give another file"
    return f"{source} does not fit {mine}, nor any other network here ({misfits}); give a checkpoint of {mine}"


def _other_arguments(state: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return arguments that add parameters to networks or remove them, each such that `state` may be of its network."""
    position = any(key.endswith(("absolute_pos_embed", "embed.position")) for key in state)
    scales = any(re.fullmatch(SCALE, key) for key in state)
    return [*([{"ape": True}] if position else []), {"init_values": 1e-4 if scales else 0}]


def which_models(state: Mapping[str, Tensor], first: str = "", arguments: Mapping[str, Any] | None = None) -> list[str]:
    """Return the names of our networks that `state` would fill, in either form, whatever its number of classes.

    Those that it fills as it is, else those that it fills resized. Since networks take time to build, those of
    families whose names the keys are not are left alone, and so are all others where the family of `first`, a network's
    name, has the answer.

    Args:
        arguments: build the networks with these; a network that does not take them fits nothing.
    """
    named = {family for family in FAMILIES if _from_an_original(family, state)}
    if not named and not any(key.startswith("stages.") for key in state):
        return []  # neither an original's names nor ours
    files: dict[str, list[str]] = {}
    for name in registry.list_models():
        if (file := _file_of(name)) and name == registry.find(name).name:
            files.setdefault(file, []).append(name)
    resized: list[str] = []
    for file, names in sorted(files.items(), key=lambda item: item[0] != _file_of(first)):
        if named and not named & _families_in(file):
            continue
        plans = {name: _plan_of_either_form(registry.find(name), state, arguments or {}) for name in names}
        if exact := [name for name, plan in plans.items() if plan is not None and not plan.resize]:
            return exact
        resized += [name for name, plan in plans.items() if plan is not None]
    return sorted(resized)


def _file_of(name: str) -> str | None:
    """Return the file of `fourstage/backbones` that a network is in; None for a user's own."""
    prefix = max((prefix for prefix in registry.FAMILIES if name.startswith(prefix)), key=len, default=None)
    return prefix and registry.FAMILIES[prefix]


def _families_in(file: str) -> set[str]:
    """Return the names of the families in a file of `fourstage/backbones`."""
    module = import_module(f"fourstage.backbones.{file}")
    return {value.name for value in vars(module).values() if isinstance(value, Family)}


def _plan_of_either_form(
    entry: registry.Entry, state: Mapping[str, Tensor], arguments: Mapping[str, Any]
) -> Plan | None:
    for build in (entry.classifier, entry.dense):
        if not arguments.keys() <= signature(build).parameters.keys():
            return None
        with without_memory():
            model = build(**arguments)
        named = our_names(model, state)
        if not isinstance(model, Backbone) or named is None:
            return None  # neither form has these names
        shown = model
        if isinstance(model, Dense) and (maps := _maps_with_norms(named[0], model)):
            with without_memory():
                shown = entry.dense(out_indices=maps, **arguments)
        if (plan := _plan(shown, named[0])) is not None:
            return plan
        if not _of_dense_form(model.family, named[0]):
            return None
    return None


def maps_of(name: str, state: Mapping[str, Tensor]) -> list[int] | None:
    """Return the numbers of the maps of a dense backbone whose file has norms for some of its maps alone; else None."""
    with without_memory():
        model = registry.find(name).dense()
    named = our_names(model, state)
    return _maps_with_norms(named[0], model) if named is not None else None


def _maps_with_norms(renamed: Mapping[str, Tensor], model: nn.Module) -> list[int] | None:
    maps = sorted({int(match[1]) for key in renamed if (match := re.match(r"norms\.(\d+)\.", key))})
    return maps if 0 < len(maps) < len(getattr(model, "levels", ())) else None


def _plan(model: nn.Module, renamed: Mapping[str, Tensor]) -> Plan | None:
    """Return how `renamed` would fill the model; None where it would not, or where its keys are of the other form."""
    if isinstance(model, Dense) and not _of_dense_form(model.family, renamed):
        return None  # a classifier's file fills this form too, and is reported as a classifier
    plan = make_plan(model, model.state_dict(), renamed)
    return None if plan.wrong else plan


def _of_dense_form(family: Family, state: Mapping[str, Tensor]) -> bool:
    if family.dense_only:
        return any(matches(key, family.dense_only) for key in state)
    return not any(matches(key, family.classifier_only) for key in state)


def _dense_twin(model: Classifier) -> nn.Module | None:
    name = model.default_cfg.get("architecture")
    if name is None:
        return None
    with without_memory():
        return registry.find(name).dense()


def _fills(model: nn.Module | None, state: Mapping[str, Tensor]) -> bool:
    if model is None or (named := our_names(model, state)) is None:
        return False
    return _plan(model, named[0]) is not None


def _patterns(keys: Sequence[str]) -> str:
    """Return keys as a short text, those that differ only in numbers as one pattern."""
    patterns = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", key) for key in keys))
    if len(patterns) > MOST_LISTED:
        patterns = list(dict.fromkeys(key.partition(".")[0] + ".*" for key in keys))
    return _listed(patterns)


def _listed(keys: Sequence[str]) -> str:
    more = len(keys) - MOST_LISTED
    return ", ".join(keys[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
