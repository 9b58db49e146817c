"""Fill a network of another library from the checkpoints that this library writes of its classifiers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fourstage.backbones.classifier_names import name_in
from fourstage.backbones.wrapped import WrappedBackbone
from fourstage.weights.adapt import adapt_stem, is_adaptable
from fourstage.weights.prefixes import Reading, readings

POSITIONS = r".*(?:pos_embed|position_embedding|position_bias_table|rel_pos|pos_bias)[^.]*"
# buffers that follow from sizes, and step counters: a file may have or lack them
COMPUTED = r".*(?:relative_position_index|attn_mask|num_batches_tracked)"


@dataclass
class Filling:
    """The tensors of a file under the names of a wrapped network, and why it does not fit, one reason a key."""

    reading: Reading
    tensors: dict[str, Tensor] = field(default_factory=dict)
    adapted: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)  # names of the file
    fresh: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def filling(model: WrappedBackbone, state: Mapping[str, Tensor]) -> Filling:
    """Return how a file fills a wrapped network; of the networks in the file, the first that fits."""
    wanted = model.state_dict()

    def is_known(inner: Mapping[str, Tensor]) -> bool:
        return 2 * sum(name_in(inner, key) is not None for key in wanted) > len(wanted)

    found = [_filling(model, wanted, reading) for reading in readings(state, is_known)]
    return next((one for one in found if not one.wrong), found[0])


def _filling(model: WrappedBackbone, wanted: Mapping[str, Tensor], reading: Reading) -> Filling:
    out, state, used, stems = Filling(reading), reading.state, set[str](), model.stem_names()
    resized: Mapping[str, Tensor] | None = None
    for key, ours in wanted.items():
        name = name_in(state, key)
        if name is None:
            if re.fullmatch(COMPUTED, key):
                out.fresh.append(key)
            else:
                out.wrong.append(f"{key} is missing from the file")
            continue
        used.add(name)
        theirs = state[name]
        if theirs.shape == ours.shape:
            out.tensors[key] = theirs
        elif name in stems and is_adaptable(theirs, ours):
            out.tensors[key] = adapt_stem(theirs, ours.shape[1])
            out.adapted.append(key)
        elif re.fullmatch(POSITIONS, name) and theirs.ndim == ours.ndim:
            resized = model.resized(state) if resized is None else resized
            if (fitting := resized.get(name)) is not None and fitting.shape == ours.shape:
                out.tensors[key] = fitting
                out.resized.append(key)
            else:
                out.wrong.append(_shapes(name, theirs, ours))
        else:
            out.wrong.append(_shapes(name, theirs, ours))
    rest = [name for name in state if name not in used]
    ends = model.classifier_names() if rest else frozenset()
    for name in rest:
        if name in ends or re.fullmatch(COMPUTED, name):
            out.dropped.append(name)
        else:
            out.wrong.append(f"{name} is not in it")
    return out


def _shapes(name: str, theirs: Tensor, ours: Tensor) -> str:
    return f"{name} is {tuple(theirs.shape)} in the file and {tuple(ours.shape)} in the network"
