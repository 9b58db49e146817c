"""Three hundred hostile or damaged checkpoints by name, each with a function that writes it."""

import io
import json
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from golden.checkpoints.hostile import BOMBS, PROGRAMS, WRITERS, Stored, inside, pickled, write_zip
from torch._utils import _rebuild_tensor_v2

from fourstage.engine.state import save_state

Write = Callable[[Path], object]
HUGE = 10**12


def all_files(honest: Path) -> dict[str, Write]:
    """Return every hostile file; `honest` is the best checkpoint of a run, which some of them change."""
    files: dict[str, Write] = {}
    for number, (name, program) in enumerate(PROGRAMS.items()):
        container = list(WRITERS)[number % len(WRITERS)]
        files[f"code, {container}: {name}"] = partial(_write, WRITERS[container], program)
        if number % 4 == 0:
            files[f"code inside a dict: {name}"] = partial(_write, write_zip, inside(program))
    for name, program in {**BOMBS, **OPCODES}.items():
        files[f"bomb: {name}"] = partial(_write, write_zip, program)
    files |= {f"zip: {name}": write for name, write in ZIPS.items()}
    files |= {f"storage: {name}": partial(_write_stored, stored) for name, stored in STORED.items()}
    files |= {f"safetensors: {name}": partial(_write_safetensors, *parts) for name, parts in SAFETENSORS.items()}
    files |= {f"file: {name}": write for name, write in OTHERS.items()}
    files |= {f"run: {name}": partial(_write_run, honest, change) for name, change in RUNS.items()}
    files |= {f"configuration: {name}": partial(_write_config, text) for name, text in CONFIGS.items()}
    files |= {f"damage {n}": partial(_damage, honest, n) for n in range(40)}
    return files


def _write(writer: Callable[[Path, bytes], object], program: bytes, path: Path) -> None:
    writer(path, program)


OPCODES = {
    name: b"\x80\x04(" + opcode * 6_000_000 + b"l."
    for name, opcode in (("sets", b"\x8f"), ("lists", b"]"), ("dicts", b"}"), ("marks", b"("), ("tuples", b")"))
} | {
    "colliding keys": b"\x80\x04}("
    + b"".join(b"\x8a\x0a" + ((2**61 - 1) * n).to_bytes(10, "little") + b"N" for n in range(1, 200_000))
    + b"u.",
    "objects": b"\x80\x04cyacs.config\nCfgNode\nq\x00(" + b"h\x00)R" * 1_500_000 + b"l.",
    "memo": b"\x80\x04N" + b"\x94" * 6_000_000 + b".",
}


# ---------------------------------------------------------------- archives


def _zip_of(*entries: tuple[str, bytes], how: int = zipfile.ZIP_STORED) -> Write:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", how) as archive:
            for name, data in entries:
                archive.writestr(name, data)

    return write


def _many_entries(path: Path) -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 600_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count % 65536, count % 65536, len(entry) * count, 0, 0)
    path.write_bytes(b"PK\3\4" + entry * count + end)


def _changed_directory(field: int, value: bytes, path: Path) -> None:
    """An archive of one tensor whose directory says something else of `data.pkl`."""
    torch.save({"model": {"w": torch.zeros(4)}}, path)
    content = bytearray(path.read_bytes())
    at = content.rindex(f"{path.stem}/data.pkl".encode()) - 46
    content[at + field : at + field + len(value)] = value
    path.write_bytes(content)


MEMBER = ("a/data.pkl", pickled({"model": {}}))
ZIPS: dict[str, Write] = {
    "deflated zeros": _zip_of(("a/data.pkl", b"\0" * 2**26), how=zipfile.ZIP_DEFLATED),
    "deflated twice": _zip_of(MEMBER, ("a/data/0", b"\0" * 2**26), how=zipfile.ZIP_DEFLATED),
    "lzma": _zip_of(MEMBER, how=zipfile.ZIP_LZMA),
    "paths": _zip_of(MEMBER, ("../../outside", b"x"), ("/tmp/outside-of-hostile-files", b"x")),
    "two roots": _zip_of(MEMBER, ("b/data.pkl", b"x")),
    "torchscript": _zip_of(MEMBER, ("a/code/a.py", b"open('marker', 'w')"), ("a/constants.pkl", b"")),
    "nothing": _zip_of(),
    "many entries": _many_entries,
    "size": partial(_changed_directory, 24, b"\xff" * 4),
    "compressed size": partial(_changed_directory, 20, b"\xf0\xff\xff\xff"),
    "offset": partial(_changed_directory, 42, b"\xff" * 4),
    "method": partial(_changed_directory, 10, b"\x08\0"),
    "encrypted": partial(_changed_directory, 8, b"\x01\0"),
    "name length": partial(_changed_directory, 28, b"\xff\xff"),
}


# ---------------------------------------------------------------- storages and tensors


def _tensor(stored: object, offset: Any = 0, size: Any = (4,), stride: Any = (1,)) -> Any:
    class Rebuilt:
        def __reduce__(self) -> tuple:
            return _rebuild_tensor_v2, (stored, offset, size, stride, False, {})

    return {"model": {"w": Rebuilt()}}


STORED: dict[str, Any] = {
    "missing": _tensor(Stored(4, key="9")),
    "a terabyte": _tensor(Stored(2**38)),
    "negative": _tensor(Stored(-4)),
    "half": _tensor(Stored(4), size=(8,)),
    "offset": _tensor(Stored(4), offset=2**62),
    "negative offset": _tensor(Stored(4), offset=-1),
    "stride": _tensor(Stored(4), size=(4,), stride=(2**61,)),
    "expanded": _tensor(Stored(4), size=(2**20, 2**20), stride=(0, 0)),
    "dimensions": _tensor(Stored(4), size=(1,) * 100, stride=(1,) * 100),
    "empty and huge": _tensor(Stored(4), size=(0, 2**62, 2**62), stride=(1, 1, 1)),
    "floats": _tensor(Stored(4), size=(4.0,)),
    "text": _tensor(Stored("4")),
    "no storage": _tensor("storage"),
    "other type": _tensor(Stored(4, kind=dict)),
    "other tag": _tensor(Stored(4, tag="module")),
}


def _write_stored(content: Any, path: Path) -> None:
    write_zip(path, pickled(content), {"0": b"\0" * 16})


# ---------------------------------------------------------------- .safetensors


def _one(**changes: Any) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}).encode()


def _described(**arguments: Any) -> bytes:
    told = {"fourstage_format": "1", "model": "visformer_digits", "form": "classifier"}
    told["arguments"] = json.dumps({"num_classes": 10, **arguments})
    return json.dumps({"__metadata__": told, "w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()


SAFETENSORS: dict[str, tuple[bytes, int]] = {  # header, bytes behind it
    "deep": (b'{"a":' + b"[" * 200_000, 16),
    "not an object": (b"[1, 2]", 16),
    "huge shape": (_one(shape=[2**62, 2**62]), 16),
    "terabyte": (_one(shape=[2**38], data_offsets=[0, 2**40]), 16),
    "negative": (_one(shape=[-4]), 16),
    "floats": (_one(shape=[4.0]), 16),
    "backwards": (_one(data_offsets=[16, 0]), 16),
    "overlap": (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":'
                b"[0,16]}}", 16),
    "hole": (_one(data_offsets=[8, 24]), 24),
    "type": (_one(dtype="OBJECT"), 16),
    "rest": (_one(), 4000),
    "metadata": (b'{"__metadata__": {"a": {"b": [1]}}}', 0),
    "many": (json.dumps({f"{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(400_000)})
             .encode(), 0),
    "num_classes": (_described(num_classes=HUGE), 16),
    "img_size": (_described(img_size=10**9), 16),
    "infinite": (_described(img_size=float("inf")), 16),
    "depths": (_described(depths=[10**9] * 4), 16),
    "in_chans": (_described(in_chans=10**6), 16),
    "nested arguments": (_described(img_size=[[[[1]]]]), 16),
    "checkpoint_path": (_described(checkpoint_path="/dev/zero", pretrained=True), 16),
    "other format": (json.dumps({"__metadata__": {"fourstage_format": "[" * 9000, "model": "swin_tiny"}}).encode(), 0),
}  # fmt: skip


def _write_safetensors(header: bytes, behind: int, path: Path) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(behind))


# ---------------------------------------------------------------- other files


def _sparse(path: Path) -> None:
    header = _one(dtype="U8", shape=[2**35], data_offsets=[0, 2**35])
    _write_safetensors(header, 0, path)
    os.truncate(path, 8 + len(header) + 2**35)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", "../outside"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


OTHERS: dict[str, Write] = {
    "pipe": os.mkfifo,
    "zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "random without end": lambda path: path.symlink_to("/dev/urandom"),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "holes": _sparse,
    "tar": _tar,
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: path.write_bytes(b"\x80"),
    "a line without end": lambda path: path.write_bytes(b"I" + b"1" * 2**26),
    "text without end": lambda path: path.write_bytes(b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x" * 2**20),
}


# ---------------------------------------------------------------- checkpoints of a run


DEEP = "DEEP"  # is replaced by lists in lists, which torch.save itself cannot write
LEVELS = 20_000


def _recipe(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, "recipe": {**content["recipe"], **changes}}


def _content(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, **changes}


RUNS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "image_size": _recipe(image_size=10**9),
    "image_size that fits memory": _recipe(image_size=20_000),
    "num_classes": _recipe(num_classes=HUGE),
    "depths": _recipe(model="swin_tiny", model_args={"depths": [10**9] * 4}),
    "many layers": _recipe(model="swin_tiny", model_args={"depths": [10**6] * 4}),
    "width": _recipe(model="swin_tiny", model_args={"width": 10**6}),
    "another network": _recipe(model="unified_dcn_v3_large"),
    "unknown network": _recipe(model="evil", imports=["evil.py"]),
    "imports": _recipe(imports=["evil.py", "/dev/zero"]),
    "imports of a pipe": _recipe(model="evil", imports="evil.py"),
    "weights": _recipe(weights="/dev/zero"),
    "base": _recipe(base="../../evil.yaml"),
    "deep arguments": _recipe(model_args={"drop_path_rate": DEEP}),
    "infinite": _recipe(model_args={"drop_path_rate": float("inf")}),
    "long integer": _recipe(seed=10**4000),
    "task": _recipe(task="../evil"),
    "recipe is a list": _content(recipe=[1, 2]),
    "recipe is deep": _content(recipe=DEEP),
    "classes is a number": _content(classes=7),
    "classes are numbers": _content(classes=list(range(10))),
    "half a million classes": _content(classes=["c"] * 500_000),
    "long class names": _content(classes=["c" * 2_000_000] * 10),
    "about": _content(about=[1]),
    "deep classes": _content(classes=DEEP),
    "deep data": _recipe(data=DEEP),
    "which": _content(which={}),
    "model is a number": _content(model=3),
    "model of numbers": _content(model={"network.head.weight": 3}),
    "version": _content(fourstage=10**30),
    "conditions": _content(conditions=DEEP),
    "computation": _content(computation={"products": "x" * 10**6, "threads": 10**9}),
    "detector": _recipe(task="detection", method="mask_rcnn", backbone="swin_tiny", num_classes=HUGE),
    "segmentor": _recipe(task="segmentation", method="upernet", backbone="swin_tiny", method_args={"channels": 10**9}),
}


def _write_run(honest: Path, change: Callable[[dict[str, Any]], dict[str, Any]], path: Path) -> None:
    stream = io.BytesIO()
    torch.save(change(torch.load(honest, weights_only=True)), stream)
    with zipfile.ZipFile(stream) as before, zipfile.ZipFile(path, "w") as after:
        for entry in before.infolist():
            deep = b"]" * LEVELS + b"a" * (LEVELS - 1)
            after.writestr(entry.filename, before.read(entry).replace(b"X\4\0\0\0DEEP", deep))


def _many_types(name: str) -> str:
    return f"model = dict(type='MaskRCNN', backbone=dict(type='SwinTransformer', {name}))"


CONFIGS = {
    "program": "x = __import__('os').system('touch marker')\nmodel = dict(type='MaskRCNN')",
    "deep": "model = " + "(" * 100_000,
    "deep lists": "model = " + "[" * 150 + "]" * 150,
    "long": "model = dict(type='MaskRCNN')\n" + "x = 1\n" * 500_000,
    "power": "model = dict(type='MaskRCNN', x=9**9**9)",
    "repeated": "model = dict(type='MaskRCNN', x='a' * 10**12)",
    "range": "model = dict(type='MaskRCNN', x=[0 for _ in range(10**12)])",
    "embed_dims": _many_types("embed_dims=10**9"),
    "embed_dims as a number": _many_types("embed_dims=1000000000"),
    "depths": _many_types("embed_dims=96, depths=[1000000000, 2, 6, 2], num_heads=[3, 6, 12, 24]"),
    "sum": "model = " + "1 + " * 100_000 + "1",
    "bytes": "model = dict(type=b'MaskRCNN')\0",
    "base": "_base_ = ['/dev/zero', '../../evil.py']\nmodel = dict(type='MaskRCNN')",
    "huge": "model = dict(type='RetinaNet', bbox_head=dict(num_classes=" + "9" * 300 + "))",
}


def _write_config(text: str, path: Path) -> None:
    torch.save({"meta": {"config": text}, "state_dict": {"backbone.a": torch.zeros(1)}}, path)


def _damage(honest: Path, number: int, path: Path) -> None:
    """Flip bits of a checkpoint with its sum, or cut it, or fill a block with zeros."""
    draw, content = random.Random(number), bytearray(honest.read_bytes())
    if number % 5 == 4:
        save_state(path, {"fourstage": 1, "model": {}})
        content = bytearray(path.read_bytes())
    at = draw.randrange(len(content))
    match number % 4:
        case 0 | 1:
            content[at] ^= 1 << draw.randrange(8)
        case 2:
            del content[at:]
        case 3:
            content[at : at + 512] = bytes(b ^ 255 for b in content[at : at + 512])
    path.write_bytes(content)
