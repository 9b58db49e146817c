"""The layer of a classifier that has one row per class, in a file and in a network."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from fourstage.backbones.base import Backbone
from fourstage.weights import imagenet22k

HEAD = ("head.weight", "head.bias")  # of our networks


def head_names(network: nn.Module, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the names of the weights with one row per class.

    In a network of a user's own, these are the linear layers and convolutions of other shapes than in the file, if the
    rows of all differ in the same way. Where none differs, the file has as many classes.
    """
    if isinstance(network, Backbone) or hasattr(network, "levels"):  # ours, or a backbone without a head
        return HEAD
    layers = {name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    own = [key for key in wanted if key in state and key.rpartition(".")[0] in layers]
    differing = [key for key in own if state[key].shape != wanted[key].shape]
    counts = {(state[key].shape[:1], wanted[key].shape[:1]) for key in differing}
    return tuple(differing) if len(counts) == 1 else HEAD


def fit_head(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: Sequence[str], source: str, fresh_head: bool
) -> tuple[dict[str, Tensor], str]:
    """Return what fills our head, and a note where that is not the file's own head.

    A head for ImageNet-22K also fills one for ImageNet-1K, as in the originals: the rows of the same classes are taken.

    Args:
        names: see `head_names`.

    Raises:
        ValueError: the numbers of classes differ in another way, and `fresh_head` is not given.
    """
    head, first = {key: state[key] for key in names if key in state}, names[0]
    theirs = len(head[first]) if first in head else None
    if first not in wanted:
        return {}, f"head left out: this network has none, the file one for {theirs} classes" if theirs else ""
    ours = len(wanted[first])
    if theirs == ours:
        return head, ""
    if tuple(names) == HEAD and (theirs, ours) == (imagenet22k.CLASSES, len(imagenet22k.ROWS)):
        return {
            key: value[[*imagenet22k.ROWS]] for key, value in head.items()
        }, f"head mapped: {theirs} to {ours} classes"
    if fresh_head:
        return {}, f"head dropped: {theirs} to {ours} classes" if theirs else "head new: the file has none"
    if theirs is None:
        raise ValueError(f"{source} has no head: give load_checkpoint fresh_head=True to keep the new one")
    counts = f"{theirs} or, mapped, {len(imagenet22k.ROWS)}" if theirs == imagenet22k.CLASSES else theirs
    raise ValueError(
        f"{source} predicts {theirs} classes and the network {ours}: use data or num_classes={counts}; to train on "
        f"from it with a new head, give a recipe weights={source}, or load_checkpoint fresh_head=True"
    )
