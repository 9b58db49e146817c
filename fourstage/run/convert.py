"""`fourstage convert`: a checkpoint as a .safetensors file in our names that describes its network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fourstage.api import create_backbone, create_model
from fourstage.backbones.base import Backbone
from fourstage.build import own_values, try_on_meta
from fourstage.checksums import ENTRY, UNKNOWN, with_sum
from fourstage.files import write_file
from fourstage.registry import find
from fourstage.weights import catalog
from fourstage.weights.catalog import Weight
from fourstage.weights.load import Report, head_classes, load_state
from fourstage.weights.reading.download import hash_of
from fourstage.weights.reading.metadata import arguments_of, describe
from fourstage.weights.reading.safe import Checkpoint, read_checkpoint

SIZES = {"img_size", "window_size"}  # arguments that ask for resized tables


@dataclass(frozen=True)
class Converted:
    """A file that was written."""

    path: Path
    report: Report  # of reading the source
    weight: Weight | None  # the published file that the source is
    metadata: dict[str, str]


def convert(
    source: str | Path,
    model: str,
    out: str | Path,
    *,
    which: str = "model",
    dense: bool = False,
    force: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> Converted:
    """Read a checkpoint into our network, which checks it, and write the filled tensors as .safetensors in our names.

    The network has as many classes as the file's head. `fourstage.from_checkpoint` rebuilds it from the file alone.
    Tensors that the source does not fill are not written.

    Args:
        source: any file that `load_checkpoint` reads.
        model: one of `list_models()`; with a tag, the source is treated as that published weight.
        which: "model" or "ema".
        dense: write the form that `create_backbone` builds.
        force: replace a file that is there.
        arguments: of the network, where they differ from the defaults and from those of the published weight.

    Raises:
        ValueError: the source does not fit, is for another image size, or a file would be lost.
        OSError: a file cannot be read or written.
    """
    source, out, given = Path(source), Path(out), own_values(dict(arguments or {}))
    _check(source, out, force, given)
    file, sha256 = read_checkpoint(source), hash_of(source)
    state = file.weights(which)
    bare, tag = catalog.split(model)
    name = find(bare, "networks of your own are not converted").name
    weight, known_by = _published(name, tag, file, sha256)
    usual = {**(weight.network if weight else {}), **arguments_of(file.metadata, name, source)}
    if "arguments" in file.metadata:  # which may ask for any size
        create = create_backbone if dense else create_model
        try_on_meta(lambda: create(name, **{**(_but_classes(usual) if dense else usual), **given}), file)
    network = _network(name, usual, given, state, dense)
    if not isinstance(network, Backbone):
        raise ValueError(f"only networks of this package are converted, and {name} is your own")
    report = _filled(network, name, state, source)
    if report.resized and not given.keys() & SIZES:
        raise ValueError(
            f"{source} is for another image size or window than {name} has ({report.resized[0]} would be resized): add "
            "the size that it was trained at, img_size=PX"
        )
    described = describe(
        model=name,
        form="dense" if dense else "classifier",
        arguments=_arguments(network, usual, given, dense),
        source=source.name,
        sha256=sha256,
        which=which,
        classes=file.classes if not dense and len(file.classes or ()) == network.num_classes else None,
        weight=weight,
        known_by=known_by,
    )
    new = {*report.fresh, *(f"{key.rpartition('.')[0]}.num_batches_tracked" for key in report.fresh)}
    tensors = {key: value.contiguous() for key, value in network.state_dict().items() if key not in new}
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    write_file(out, lambda stream: write_safetensors(tensors, described, stream), needed=needed)
    return Converted(out, report, weight, described)


def _check(source: Path, out: Path, force: bool, given: Mapping[str, Any]) -> None:
    """Raise ValueError for wrong arguments, before large files are read."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out} must end in .safetensors, the only format that is written")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} to write {out.name} into: make it, or name another --out")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out} is the file that is converted: name another --out")
    if out.exists() and not force:
        raise ValueError(f"{out} exists: add --force to replace it, or name another --out")
    for key, value in given.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(f"{key}={value!r} cannot be written into a file: give numbers or text") from None


def _published(name: str, tag: str | None, file: Checkpoint, sha256: str) -> tuple[Weight | None, str]:
    """Return the published weight that a file is, and how it was recognised."""
    if tag is not None:
        return catalog.find(name, tag), "the name that was given"
    written = catalog.split(file.metadata.get("published_as", ""))
    if written[0] == name and written[1] in {weight.tag for weight in catalog.published(name)}:
        return catalog.find(*written), file.metadata.get("known_by", "")
    weight = catalog.recognise(name, file.path.name, sha256)
    return weight, "" if weight is None else "its sha256" if weight.sha256 else "its file name"


def _network(
    name: str, usual: Mapping[str, Any], given: Mapping[str, Any], state: Mapping[str, Tensor], dense: bool
) -> Any:
    if dense:
        return create_backbone(name, **{**_but_classes(usual), **given})
    with torch.device("meta"):  # names and shapes need no memory
        template = create_model(name, **{**usual, **given})
    classes = head_classes(template, state)
    return create_model(name, **{**usual, **({} if classes is None else {"num_classes": classes}), **given})


def _filled(network: nn.Module, name: str, state: Mapping[str, Tensor], source: Path) -> Report:
    try:
        return load_state(network, state, source=source.name)
    except ValueError as error:
        if "create_backbone" in str(error):  # the loader recognised the other form
            raise ValueError(f"{source} holds the dense form of {name}, without a head: add --dense") from error
        raise


def _arguments(network: Any, usual: Mapping[str, Any], given: Mapping[str, Any], dense: bool) -> dict[str, Any]:
    """Return the arguments that rebuild the network."""
    _, height, width = network.default_cfg["input_size"]
    known = {"img_size": height if height == width else [height, width]}
    known |= {} if dense else {"num_classes": network.num_classes}
    return {**_but_classes(usual), **given, **known}


def write_safetensors(tensors: dict[str, Tensor], described: dict[str, str], stream: IO[bytes]) -> None:
    """Write .safetensors with its sum, and with its header sorted, so that the same content gives the same bytes."""
    data = memoryview(save(tensors, {**described, ENTRY: UNKNOWN}))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(bytes(data[8:start])), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight
    stream.write(with_sum(header, data[start:]))
    stream.write(data[start:])


def _but_classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in arguments.items() if key != "num_classes"}
