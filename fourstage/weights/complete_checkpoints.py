"""Detectors and segmentors from the tensors of a file: OpenMMLab's, ours, or a classifier's for the backbone.

A file has keys of the backbone, which `load` reads as it reads a classifier's, and keys of the neck and the heads,
which the method's own table renames. A training may start with the backbone of another method's file.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pkgutil import resolve_name
from typing import NoReturn

from torch import Tensor, nn

from fourstage.methods import Method, all_methods, get_method, recognise
from fourstage.weights.description import NetworkDescription
from fourstage.weights.load import COUNTER, OURS, Report, load_state, maps_of, unwrap, which_models
from fourstage.weights.no_values import check_memory
from fourstage.weights.prefixes import Reading, readings
from fourstage.weights.reading.safe import Checkpoint
from fourstage.weights.rules import Rule, check_complete, check_real, matching_rules, rename

BACKBONE = "backbone."
HEAD = "head."  # of a classifier beside its backbone, as in MMPretrain
WRITERS = (  # a pattern of a key of a detector or segmentor -> the program that names it so
    (r"transformer\.level_embeds", "detrex"),
    (r"transformer\.level_embed", "IDEA-Research/DINO"),
    (r"head\.head_series\..*", "PeizeSun/SparseR-CNN"),
    (r"((bbox|roi|rpn|decode|auxiliary)_head|neck\.\w+_convs)\..*", "MMDetection or MMSegmentation"),
)
AUXILIARY = "auxiliary."  # a head for training only: a file or a network may be without it
MASKS = ("mask_head.", "mask_heads.")  # a training may start from a file with or without them


def load_dense_state(
    model: nn.Module, state: Mapping[str, Tensor], *, method: str, source: str, fresh_head: bool = False
) -> Report:
    """Fill a detector or segmentor.

    Args:
        model: has a `backbone`, and a neck and heads with the names of the method's table.
        state: the tensors of a detector or segmentor, or of a backbone or classifier alone: then neck and heads stay
            as built.
        method: the method whose table of names is used, such as "upernet".
        source: the file's name, for messages.
        fresh_head: layers for another number of classes stay as they were built, as do heads for masks where the file
            has none, which else are left out where the model has none; of another method's network the backbone is
            taken alone. Without this, all are errors.

    Raises:
        ValueError: the file holds another network, another method or another number of classes, or the network is on
            the meta device.
    """
    check_memory(model.state_dict().values(), source)
    reading = _without_prefixes(state, model.state_dict().keys())
    if (
        not any(key.startswith(BACKBONE) for key in reading.state)
        and not reading.state.keys() & model.state_dict().keys()
    ):
        reading = Reading(dict(state))  # a backbone or classifier alone, whose prefixes are read with its names
    state = _regular(reading.state, method, getattr(model, "num_classes", None))
    around = {key: value for key, value in state.items() if not key.startswith(BACKBONE)}
    inner = _backbone_of(state)
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(BACKBONE)}
    backbone = model.get_submodule(BACKBONE[:-1])
    classifier = bool(inner) and all(key.startswith(HEAD) for key in around)
    other = fresh_head and bool(inner) and not _is_of(method, around, own)
    if not around or classifier or other or (not inner and backbone.state_dict()):  # its backbone alone
        report = _load_backbone(backbone, inner or state, source)
        fresh = [key for key in own if not re.fullmatch(COUNTER, key)]
        return _joined(report, source, {}, (*reading.outside, *(around if inner else ())), fresh=fresh, reading=reading)
    renamed, gone = _our_names(around, own, method, source)
    filled, fresh, left, other_rows = _fit(
        renamed, own, method, source, but=(AUXILIARY, *MASKS) if fresh_head else (AUXILIARY,)
    )
    if other_rows and not fresh_head:
        _refuse_rows(other_rows[0], renamed, own, method, source, same_classes=_has_classes_of(model, method, state))
    check_real(filled, own, source)
    report = _load_backbone(backbone, inner, source)
    check_complete(filled, own, fresh)
    model.load_state_dict({**model.state_dict(), **filled})
    renamed_count = len(filled.keys() - around.keys())
    fresh = [key for key in fresh if not re.fullmatch(COUNTER, key)]
    dropped = (*reading.outside, *gone, *left)
    return _joined(report, source, filled, dropped, fresh=fresh, renamed=renamed_count, reading=reading)


def fill_completely(network: nn.Module, file: Checkpoint, which: str = "model") -> Report:
    """Fill a detector or segmentor from a file that must hold all of it.

    Raises:
        ValueError: the file holds another network, or a backbone alone.
    """
    method = getattr(network, "method", None)
    if method is None:
        raise ValueError(f"{type(network).__name__} has no method, by which the names in {file.path} could be known")
    report = load_dense_state(network, file.weights(which), method=method, source=file.path.name)
    fresh = [key for key in report.fresh if not key.startswith(AUXILIARY)]  # which predicts nothing
    if fresh:
        more = f" and {len(fresh) - 1} more" if fresh[1:] else ""
        raise ValueError(
            f"{file.path} holds a backbone without the heads of a {method} ({fresh[0]}{more}); "
            f"give the checkpoint of a trained {method}"
        )
    return report


def dense_writer_of(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return the program whose names a file of this detector or segmentor has; "" where they are of none."""
    bare = _without_prefixes(state, network.state_dict().keys()).state
    around = [key for key in bare if not key.startswith(BACKBONE)]
    if len(set(around) & network.state_dict().keys()) * 2 > len(around):
        return OURS
    return next((name for pattern, name in WRITERS if any(re.fullmatch(pattern, key) for key in around)), "")


def count_classes(state: Mapping[str, Tensor], task: str) -> int | None:
    """Return the number of classes of a detector or segmentor by its tensors; None where they do not show it."""
    bare = _without_prefixes(state).state
    method = recognise(key for key in bare if not key.startswith(BACKBONE))  # layers of two methods can have one name
    return _count_of(method, bare) if method is not None and method.task == task else None


def _count_of(method: Method, state: Mapping[str, Tensor]) -> int | None:
    """Return the number of classes by tensors that have rows: a damaged file may have a number in their place."""
    if method.count_classes is None:
        return None
    count = resolve_name(method.count_classes)({key: value for key, value in state.items() if value.ndim})
    return count if count is not None and count > 0 else None


def similar_networks(file: Checkpoint) -> tuple[Method | None, list[str]]:
    """Return the method and the networks of ours that a file would fill, by the names and shapes in it.

    Of a classifier or a backbone alone the method is None; of a file that fits nothing here, there are no networks.
    """
    try:
        state: Mapping[str, Tensor] = _without_prefixes(file.weights()).state
    except ValueError:
        return None, []
    for method in all_methods():
        if method.regular is not None:
            state = resolve_name(method.regular)(state, None)
    inner = _backbone_of(state)
    method = recognise(key for key in state if not key.startswith(BACKBONE)) if inner else None
    return method, which_models(inner or unwrap(file.weights())[0])


def network_of_tensors(file: Checkpoint) -> NetworkDescription | None:
    """Return the network of a foreign checkpoint without a configuration, by its tensors; None where they lack it."""
    try:
        state: Mapping[str, Tensor] = _without_prefixes(file.weights()).state
    except ValueError:
        return None
    for method in all_methods():
        arguments = None if method.describe is None else resolve_name(method.describe)(state)
        if arguments is not None:
            break
    else:
        return None
    inner = _backbone_of(_regular(state, method.name, None))
    models, classes = which_models(inner), count_classes(state, method.task)
    if not models or classes is None:
        return None
    maps = maps_of(models[0], inner)
    return NetworkDescription(
        task=method.task,
        backbone=models[0],
        num_classes=classes,
        backbone_args={} if maps is None else {"out_indices": maps},
        method=method.name,
        method_args=arguments,
    )


def _backbone_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(BACKBONE): value for key, value in state.items() if key.startswith(BACKBONE)}


def _is_of(method: str, around: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Return whether the keys outside a backbone are those of this method, whose keys here are `own`."""
    known = get_method(method)
    if known is None or known.keys is None:
        return _has_own_names(around, own)
    recognised = recognise(around)
    return recognised is not None and recognised.name == method


def _has_own_names(around: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Return whether most keys of a file are those of the network."""
    return len(around.keys() & own.keys()) * 2 > len(around)


def _without_prefixes(state: Mapping[str, Tensor], own: Collection[str] = ()) -> Reading:
    """Return a state dict without the prefixes of parallel training, of compilation, of tasks and of Lightning.

    Args:
        own: the keys of the network that is to be filled, whose beginnings are no prefixes.
    """

    def known(inner: Mapping[str, Tensor]) -> bool:
        return any(key.startswith(BACKBONE) for key in inner) or len(inner.keys() & own) * 2 > len(inner)

    return next(readings(state, known))


def _regular(state: Mapping[str, Tensor], method: str, classes: int | None) -> Mapping[str, Tensor]:
    """Return a state dict under the names that the method's table knows, as the method's own function gives them."""
    known = get_method(method)
    if known is None or known.regular is None:
        return state
    return resolve_name(known.regular)(state, classes)


def _load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], source: str) -> Report:
    own = backbone.state_dict()
    if own.keys() == state.keys() and all(own[key].shape == value.shape for key, value in state.items()):
        check_real(state, own, source)
        backbone.load_state_dict(dict(state))  # ours, timm's or a user's own, by the names that they have here
        return Report(source, len(own), 0, (), (), ())
    return load_state(backbone, state, source=source)


def _our_names(
    around: Mapping[str, Tensor], own: Mapping[str, Tensor], method: str, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return neck and heads under our names, and the keys that the table drops."""
    if _has_own_names(around, own):
        return dict(around), []
    known = get_method(method)
    if known is None or known.names is None:
        raise ValueError(
            f"{source} has no {method} under the names that fourstage uses ({next(iter(around))} is not in the "
            f"network), and no other names of a {method} are known; give a checkpoint that fourstage wrote"
        )
    rules: Sequence[Rule] = resolve_name(known.names)
    unknown = [key for key in around if len(matching_rules(rules, key)) != 1]
    if unknown:
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise ValueError(
            f"{source} is not a checkpoint of {method}: unexpected key {unknown[0]}{more}; name the method that "
            f"the file was trained with"
        )
    gone = [key for key in around for rule, _ in matching_rules(rules, key) if rule.name is None]
    return rename(around, rules), gone


def _fit(
    renamed: Mapping[str, Tensor], own: Mapping[str, Tensor], method: str, source: str, but: tuple[str, ...]
) -> tuple[dict[str, Tensor], list[str], list[str], list[str]]:
    """Return what is filled, the keys that stay as built, the file's keys without use, and keys with other rows.

    Args:
        but: beginnings of names that either side may lack altogether.
    """
    left = [key for key in renamed if key.startswith(AUXILIARY) and key not in own]
    left += [key for key in renamed if key not in left and _lacks(key, own, but)]
    wrong = [f"{key} is not in it" for key in renamed if key not in own and key not in left]
    filled, other_rows = dict[str, Tensor](), list[str]()
    for key, value in renamed.items():
        if key not in own:
            continue
        if value.shape == own[key].shape:
            filled[key] = value
        elif value.ndim == own[key].ndim and value.shape[1:] == own[key].shape[1:]:
            other_rows.append(key)  # rows are classes, boxes of classes, anchors, queries or proposals
        else:
            wrong.append(f"{key} is {tuple(value.shape)} in the file and {tuple(own[key].shape)} in the network")
    missing = [key for key in own if key not in renamed]
    wrong += [
        f"{key} is missing from the file"
        for key in missing
        if not (re.fullmatch(COUNTER, key) or _lacks(key, renamed, but))
    ]
    if wrong:
        more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
        raise ValueError(f"{source} does not fit this {method}: {wrong[0]}{more}; build it as the file was trained")
    return filled, [*missing, *other_rows], left, other_rows


def _has_classes_of(model: nn.Module, method: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors of a file show the number of classes of the network that is filled."""
    known = get_method(method)
    count = None if known is None else _count_of(known, state)
    return count is not None and count == getattr(model, "num_classes", None)


def _refuse_rows(
    key: str, renamed: Mapping[str, Tensor], own: Mapping[str, Tensor], method: str, source: str, *, same_classes: bool
) -> NoReturn:
    rows = f"{key} has {len(renamed[key])} rows in the file and {len(own[key])} in the network"
    if same_classes:
        raise ValueError(f"{source} does not fit this {method}: {rows}; build it as the file was trained")
    raise ValueError(
        f"{source} has another number of classes: {rows}; give its number of classes, or fresh_head=True to start "
        f"with a new head"
    )


def _lacks(key: str, names: Iterable[str], beginnings: tuple[str, ...]) -> bool:
    """Return whether a key has one of these beginnings, and none of the names has the same."""
    first = next((one for one in beginnings if key.startswith(one)), None)
    return first is not None and not any(name.startswith(first) for name in names)


def _joined(
    backbone: Report,
    source: str,
    filled: Mapping[str, Tensor],
    dropped: Sequence[str],
    *,
    fresh: Sequence[str],
    reading: Reading,
    renamed: int = 0,
) -> Report:
    """Return one report of the backbone and of what is around it."""
    return Report(
        source=source,
        read=backbone.read + len(filled),
        renamed=backbone.renamed + renamed,
        resized=tuple(BACKBONE + key for key in backbone.resized),
        dropped=(*backbone.dropped, *dropped),
        fresh=(*(BACKBONE + key for key in backbone.fresh), *fresh),
        rebuilt=backbone.rebuilt,
        stem=backbone.stem,
        taken=reading.note or backbone.taken,
    )
