"""Where each format carries the description of a file, for the writer and for the reader.

ONNX       `metadata_props["fourstage"]` of the model
OpenVINO   the entry "fourstage" of the model's runtime information, in the .xml file
torch      the extra file `fourstage.json` in the .pt2 archive
"""

import zipfile
from pathlib import Path
from typing import Any

from fourstage.exported.description import JSON_BYTES, KEY, Description, no_description
from fourstage.files import limit

EXTRA_FILE = f"{KEY}.json"


def add_to_onnx(model: Any, description: Description) -> None:
    """Add the description to an `onnx.ModelProto`, in place of one that is there."""
    kept = [entry for entry in model.metadata_props if entry.key != KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, description.to_json()


def from_onnx(session: Any, path: Path) -> Description:
    """Return the description of an `onnxruntime.InferenceSession`, which needs no package onnx.

    Raises:
        ValueError: there is no description, or it is damaged.
    """
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise no_description(path)
    return Description.from_json(text, path)


def add_to_openvino(model: Any, description: Description) -> None:
    """Add the description to an `openvino.Model`, before it is saved."""
    model.set_rt_info(description.to_json(), [KEY])


def from_openvino(model: Any, path: Path) -> Description:
    """Return the description of an `openvino.Model`.

    Raises:
        ValueError: there is no description, or it is damaged.
    """
    if not model.has_rt_info([KEY]):
        raise no_description(path)
    return Description.from_json(str(model.get_rt_info([KEY]).value), path)


def torch_extra_files(description: Description) -> dict[str, Any]:
    """Return the argument `extra_files` of `torch.export.save`."""
    return {EXTRA_FILE: description.to_json()}


def from_torch(archive: zipfile.ZipFile, path: Path) -> Description:
    """Return the description in a .pt2 archive, which needs no torch.

    Raises:
        ValueError: there is no description, or it is damaged or too large.
    """
    entry = next((one for one in archive.infolist() if one.filename.endswith(f"/extra/{EXTRA_FILE}")), None)
    if entry is None:
        raise no_description(path)
    if entry.file_size > limit(JSON_BYTES):
        raise ValueError(f"the description in {path} is {entry.file_size:,} bytes large; export the network again")
    return Description.from_json(archive.read(entry), path)
