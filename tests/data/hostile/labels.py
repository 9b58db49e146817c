"""Damage to classification data in lists, archives, tables and shards."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from tarfile import BLOCKSIZE, PAX_FORMAT, SYMTYPE, TarFile, TarInfo
from typing import Any

from data.hostile import sound
from data.hostile.images import zeros
from data.hostile.sound import png, write

Build = Callable[[Path], object]
DEEP = "[" * 200_000


def _line(line: str | bytes, root: Path) -> None:
    """Add a line to the training list."""
    sound.lists(root)
    with (root / "meta" / "train.txt").open("ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")


def _whole_list(content: bytes, root: Path) -> None:
    sound.lists(root)
    write(root / "meta" / "train.txt", content)


def _sparse_list(root: Path) -> None:
    sound.lists(root)
    os.truncate(root / "meta" / "train.txt", 1 << 40)


def _classes(content: bytes, root: Path) -> None:
    sound.lists(root)
    write(root / "classes.txt", content)


def _secret(root: Path) -> Path:
    """Write a picture beside the data set, which no file of the set may reach."""
    return write(root.parent / "outside" / "secret.png", png(9))


def _outside_line(line: str, root: Path) -> None:
    secret = _secret(root)
    _line(line.format(secret=secret), root)


LISTS: dict[str, Build] = {
    "label of 100 million": partial(_line, "cat/000.png 100000000"),
    "label of 2e18": partial(_line, "cat/000.png 2000000000000000000"),
    "label of 308 digits": partial(_line, "cat/000.png " + "9" * 308),
    "label of 10,000 digits": partial(_line, "cat/000.png " + "9" * 10_000),
    "label 1e400": partial(_line, "cat/000.png 1e400"),
    "label nan": partial(_line, "cat/000.png nan"),
    "label -1": partial(_line, "cat/000.png -1"),
    "label 1_0": partial(_line, "cat/000.png 1_0"),
    "NUL in a path": partial(_line, "cat/0\0.png 0"),
    "path of a megabyte": partial(_line, "a" * (1 << 20) + " 0"),
    "path not UTF-8": partial(_line, b"cat/\xff\xfe.png 0"),
    "path above": partial(_outside_line, "../../outside/secret.png 0"),
    "path from the top": partial(_outside_line, "{secret} 0"),
    "UTF-16": partial(_whole_list, "cat/000.png 0\ncat/002.png 1\n".encode("utf-16")),
    "one long line": partial(_whole_list, b"a" * (50 << 20)),
    "a million spaces": partial(_whole_list, b" " * (1 << 20) + b"0\n"),
    "only NUL": partial(_whole_list, bytes(1 << 20)),
    "of a terabyte": _sparse_list,
    "classes not UTF-8": partial(_classes, b"cat\n\xff\xfe\n"),
    "classes a million": partial(_classes, b"".join(b"%d\n" % i for i in range(1_000_000))),
    "classes with NUL": partial(_classes, b"cat\n\0\n"),
}


def _archive(change: Callable[[Path], object], root: Path) -> None:
    sound.zips(root)
    change(root / "train.zip")


def _zip_with(names: list[str], data: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    with (path.parent / "train_map.txt").open("a") as file:
        file.writelines(f"{name}\t0\n" for name in names)


def _zip_bomb(path: Path) -> None:
    """One member that unpacks to four gigabytes, as its head says."""
    import zlib

    data = zeros(4 << 30)[2:-4]  # without the head and the sum of zlib
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cat/bomb.png", b"")
    raw = bytearray(path.read_bytes())
    head = raw.rindex(b"PK\x03\x04")
    directory = raw.rindex(b"PK\x01\x02")
    name, sizes = b"cat/bomb.png", (zlib.crc32(b""), len(data), (4 << 30) - 1)
    struct.pack_into("<HHHHIII", raw, head + 4, 20, 0, 8, 0, *sizes)
    struct.pack_into("<HHHHIII", raw, directory + 6, 20, 0, 8, 0, *sizes)
    body = head + 30 + len(name)
    raw[body:body] = data
    end = raw.rindex(b"PK\x05\x06")
    start = raw.index(b"PK\x01\x02", body + len(data))
    struct.pack_into("<I", raw, end + 16, start)
    path.write_bytes(raw)
    with (path.parent / "train_map.txt").open("a") as file:
        file.write("cat/bomb.png\t0\n")


def _patched(signature: bytes, offset: int, format: str, value: int, path: Path) -> None:
    """Write one number into the last head of an archive with this signature."""
    raw = bytearray(path.read_bytes())
    struct.pack_into(format, raw, raw.rindex(signature) + offset, value)
    path.write_bytes(raw)


def _many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(70_000):
            archive.writestr(f"{i}", b"")


def _list_of_zip(line: str, root: Path) -> None:
    sound.zips(root)
    with (root / "train_map.txt").open("a") as file:
        file.write(line + "\n")


ZIPS: dict[str, Build] = {
    "bomb": partial(_archive, _zip_bomb),
    "zeros of 200 MB": partial(_archive, partial(_zip_with, ["cat/z.png"], bytes(200 << 20))),
    "members above": partial(_archive, partial(_zip_with, ["../../outside/x.png", "/etc/x.png"], png(5))),
    "declared size": partial(_archive, partial(_patched, b"PK\x01\x02", 24, "<I", 2**32 - 2)),
    "declared packed size": partial(_archive, partial(_patched, b"PK\x01\x02", 20, "<I", 2**32 - 2)),
    "declared offset": partial(_archive, partial(_patched, b"PK\x01\x02", 42, "<I", 2**32 - 2)),
    "zip64 without field": partial(_archive, partial(_patched, b"PK\x01\x02", 24, "<I", 2**32 - 1)),
    "version 99": partial(_archive, partial(_patched, b"PK\x01\x02", 6, "<H", 99)),
    "method 99": partial(_archive, partial(_patched, b"PK\x01\x02", 10, "<H", 99)),
    "encrypted": partial(_archive, partial(_patched, b"PK\x01\x02", 8, "<H", 1)),
    "directory size": partial(_archive, partial(_patched, b"PK\x05\x06", 12, "<I", 2**32 - 2)),
    "directory start": partial(_archive, partial(_patched, b"PK\x05\x06", 16, "<I", 2**32 - 2)),
    "70,000 members": partial(_archive, _many_members),
    "no zip": partial(_archive, lambda path: path.write_bytes(b"no zip")),
    "cut": partial(_archive, lambda path: os.truncate(path, 1000)),
    "of a terabyte": partial(_archive, lambda path: os.truncate(path, 1 << 40)),
    "label of 100 million": partial(_list_of_zip, "cat/000.png\t100000000"),
    "label of 308 digits": partial(_list_of_zip, "cat/000.png\t" + "9" * 308),
    "label inf": partial(_list_of_zip, "cat/000.png\tinf"),
}


def _pairs(content: Any, root: Path) -> None:
    sound.fall(root)
    write(root / "ILSVRC2011fall_whole_map_train.txt", content)


def _pair(name: Any, label: Any, root: Path) -> None:
    sound.fall(root)
    path = root / "ILSVRC2011fall_whole_map_train.txt"
    write(path, [*json.loads(path.read_text()), [name, label]])


FALL: dict[str, Build] = {
    "deep": partial(_pairs, DEEP),
    "infinite label": partial(_pair, "cat/train000.png", float("inf")),
    "label nan": partial(_pair, "cat/train000.png", float("nan")),
    "label 1e30": partial(_pair, "cat/train000.png", 10**30),
    "label of 100 million": partial(_pair, "cat/train000.png", 10**8),
    "label true": partial(_pair, "cat/train000.png", True),
    "label 0.5": partial(_pair, "cat/train000.png", 0.5),
    "name a list": partial(_pair, ["cat/train000.png"], 0),
    "name with a surrogate": partial(_pair, "\ud800", 0),
    "name with NUL": partial(_pair, "cat/\0", 0),
    "a mapping": partial(_pairs, {"cat/train000.png": 0}),
    "name above": lambda root: (_secret(root), _pair("../outside/secret.png", 0, root)),
}


def _csv(line: str | bytes, root: Path) -> None:
    sound.kaggle(root)
    with (root / "LOC_val_solution.csv").open("ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")


KAGGLE: dict[str, Build] = {
    "not UTF-8": partial(_csv, b"\xff\xfe,cat"),
    "image above": partial(_csv, "../../../../../outside/secret,cat 1 2 3 4"),
    "NUL": partial(_csv, "\0,cat"),
    "mapping not UTF-8": lambda root: (sound.kaggle(root), write(root / "LOC_synset_mapping.txt", b"\xff\n\n")),
}


def _inat(change: Callable[[dict[str, Any]], Any], root: Path) -> None:
    sound.inaturalist(root, change)


INATURALIST: dict[str, Build] = {
    "deep": partial(_inat, lambda content: DEEP),
    "ids of two types": partial(_inat, lambda c: c["categories"].append({"id": "1", "name": "x"})),
    "id a list": partial(_inat, lambda c: c["categories"][0].update(id=[1])),
    "id a mapping": partial(_inat, lambda c: c["images"][0].update(id={})),
    "category a mapping": partial(_inat, lambda c: c["annotations"][0].update(category_id={})),
    "name a number": partial(_inat, lambda c: c["images"][0].update(file_name=3)),
    "name above": partial(_inat, lambda c: c["images"][0].update(file_name="../outside/secret.png")),
    "ids that collide": partial(_inat, lambda c: c["categories"].append({"id": True, "name": "x"})),
    "ids twice": partial(_inat, lambda c: c["images"][1].update(id=c["images"][0]["id"])),
    "a million categories": partial(
        _inat, lambda c: c["categories"].extend({"id": i, "name": str(i)} for i in range(2, 1_000_000))
    ),
    "a list": partial(_inat, lambda c: [c]),
}


def _meta(content: bytes, root: Path) -> None:
    """Write CIFAR for Python with these class names."""
    folder = root / "cifar-10-batches-py"
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        write(folder / name, pickle.dumps({b"labels": [0, 1], b"data": None}))
    write(folder / "batches.meta", content)


def _binary(name: str, content: bytes, root: Path) -> None:
    sound.cifar(root)
    write(root / "cifar-10-batches-bin" / name, content)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch EXECUTED",)


CIFAR: dict[str, Build] = {
    "code": partial(_meta, pickle.dumps(_Evil())),
    "memo": partial(_meta, b"\x80\x02Nr\xff\xff\xff\x7f."),
    "memo growing": partial(
        _meta, b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", 2**i) for i in range(8, 31)) + b"."
    ),
    "long": partial(_meta, b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 100),
    "text of 2 GB": partial(_meta, b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"a"),
    "frame": partial(_meta, b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N."),
    "nested": partial(_meta, b"\x80\x02" + b"]" * 10_000_000 + b"."),
    "laughs": partial(_meta, b"\x80\x02]" + b"".join(b"q%c]h%ch%ce" % (i, i, i) for i in range(1, 60)) + b"."),
    "digits": partial(_meta, b"I" + b"9" * 1_000_000 + b"\n."),
    "names not UTF-8": partial(_binary, "batches.meta.txt", b"\xff\n\xfe\n"),
    "names a million": partial(_binary, "batches.meta.txt", b"".join(b"%d\n" % i for i in range(1_000_000))),
    "label 255": partial(_binary, "data_batch_1.bin", b"\xff" * 3073),
    "cut": partial(_binary, "data_batch_1.bin", b"\0" * 3000),
    "of a terabyte": lambda root: (
        sound.cifar(root),
        os.truncate(root / "cifar-10-batches-bin" / "data_batch_1.bin", 1 << 40),
    ),
    "pipe": lambda root: (
        sound.cifar(root),
        (root / "cifar-10-batches-bin" / "data_batch_1.bin").unlink(),
        os.mkfifo(root / "cifar-10-batches-bin" / "data_batch_1.bin"),
    ),
}


def _member(name: str, data: bytes, root: Path) -> None:
    """Replace a member of the first shard, or add one."""
    sound.shards(root)
    members = [(n, d) for n, d in sound.members_of("train") if n != name]
    write(root / "train-000.tar", sound.tar([*members, (name, data)]))


def _note(content: str, root: Path) -> None:
    """Give a sample its label by JSON alone."""
    sound.shards(root)
    members = [*sound.members_of("train"), ("900.png", png(7)), ("900.json", content.encode())]
    write(root / "train-000.tar", sound.tar(members))


def _tar(data: bytes, root: Path) -> None:
    sound.shards(root)
    write(root / "train-000.tar", data)


def _head(size: bytes, kind: bytes = b"0", name: bytes = b"900.png") -> bytes:
    """Return one head of a tar file with a size field as it is given."""
    head = bytearray(BLOCKSIZE)
    head[: len(name)] = name
    head[100:108], head[124:136], head[156:157], head[257:265] = b"0000644\0", size, kind, b"ustar\x0000"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def _pax(headers: dict[str, str]) -> bytes:
    file = BytesIO()
    with TarFile(fileobj=file, mode="w", format=PAX_FORMAT, pax_headers=headers) as archive:
        head = TarInfo("900.png")
        head.pax_headers = headers
        archive.addfile(head, BytesIO())
    return file.getvalue()


def _linked(root: Path) -> None:
    file = BytesIO()
    with TarFile(fileobj=file, mode="w") as archive:
        head = TarInfo("900.png")
        head.type, head.linkname = SYMTYPE, "/etc/passwd"
        archive.addfile(head)
        label = TarInfo("900.cls")
        label.type, label.linkname = SYMTYPE, "../../etc/hostname"
        archive.addfile(label)
    _tar(file.getvalue(), root)


def _large(number: int) -> bytes:
    return b"\x80" + number.to_bytes(11, "big")


END = bytes(2 * BLOCKSIZE)


def _index(arrays: dict[str, Any], root: Path) -> None:
    """Put an index beside the shard, as a publisher may."""
    import numpy as np

    sound.shards(root)
    shard = root / "train-000.tar"
    stat, folder = shard.stat(), root / ".fourstage"
    folder.mkdir()
    sane = {
        "ids": np.array([b"a.png", b"b.png"]), "offsets": np.array([512, 2048]), "sizes": np.array([100, 100]),
        "labels": np.array([0, 1]), "names": np.array([b"", b""]),
    }  # fmt: skip
    known: dict[str, Any] = {"version": 1, "size": stat.st_size, "time": stat.st_mtime_ns}
    np.savez_compressed(folder / f"{shard.name}.npz", allow_pickle=False, **known, **(sane | arrays))


def _index_bomb(root: Path) -> None:
    import numpy as np

    _index({"ids": np.zeros(1 << 30, dtype=np.uint8), "labels": np.zeros(1 << 28)}, root)


def _numbers(*numbers: int) -> Any:
    import numpy as np

    return np.array(numbers)


SHARDS: dict[str, Build] = {
    "label of 100 million": partial(_member, "000.cls", b"100000000"),
    "label of 308 digits": partial(_member, "000.cls", b"9" * 308),
    "label nan": partial(_member, "000.cls", b"nan"),
    "label of a megabyte": partial(_member, "000.cls", b"a" * (1 << 20)),
    "label not UTF-8": partial(_member, "000.cls", b"\xff\xfe"),
    "label with NUL": partial(_member, "000.cls", b"a\0b"),
    "json infinite": partial(_note, '{"label": Infinity}'),
    "json 1e400": partial(_note, '{"label": 1e400}'),
    "json 308 digits": partial(_note, '{"label": ' + "9" * 308 + "}"),
    "json a mapping": partial(_note, '{"label": {"a": [1]}}'),
    "json true": partial(_note, '{"label": true}'),
    "json deep": partial(_note, '{"label": ' + DEEP),
    "json id of a megabyte": partial(_note, json.dumps({"label": 0, "source_id": "a" * 900_000})),
    "json id surrogate": partial(_note, '{"label": 0, "source_id": "\\ud800"}'),
    "json id above": partial(_note, '{"label": 0, "source_id": "../../outside/secret.png"}'),
    "size negative": partial(_tar, _head(b"\xff" * 12) + END),
    "size 2^80": partial(_tar, _head(_large(2**80)) + END),
    "size 2^62": partial(_tar, _head(_large(2**62)) + END),
    "pax head of 2^40": partial(_tar, _head(_large(2**40), b"x") + END),
    "pax heads in a row": partial(_tar, (_head(b"00000000000\0", b"x", b"p")) * 5000 + END),
    "long names in a row": partial(_tar, (_head(b"00000000001\0", b"L", b"p") + b"a" + bytes(511)) * 5000 + END),
    "pax size": partial(_tar, _pax({"size": "-1000"})),
    "pax size of words": partial(_tar, _pax({"size": "many"})),
    "pax sparse": partial(_tar, _pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"})),
    "pax sparse map": partial(_tar, _pax({"GNU.sparse.map": "a,b", "GNU.sparse.size": "9" * 300})),
    "pax path of a megabyte": partial(_tar, _pax({"path": "a" * (1 << 20) + ".png"})),
    "pax path NUL": partial(_tar, _pax({"path": "a\0.png"})),
    "links": _linked,
    "20,000 endings": lambda root: _tar(sound.tar((f"900.e{i}", b"") for i in range(20_000)), root),
    "zeros": partial(_tar, bytes(1 << 20)),
    "empty": partial(_tar, b""),
    "of a terabyte": lambda root: (sound.shards(root), os.truncate(root / "train-000.tar", 1 << 40)),
    "index of zeros": _index_bomb,
    "index with negative places": lambda root: _index({"offsets": _numbers(-5, 2**62)}, root),
    "index with large sizes": lambda root: _index({"sizes": _numbers(2**62, 2**62)}, root),
    "index with large labels": lambda root: _index({"labels": _numbers(0, 10**8)}, root),
    "index of words": lambda root: _index({"labels": __import__("numpy").array(["a", "b"])}, root),
    "index of other lengths": lambda root: _index({"labels": _numbers(0)}, root),
    "shards.json deep": lambda root: (sound.shards(root), write(root / "shards.json", DEEP)),
    "classes not UTF-8": lambda root: (sound.shards(root), write(root / "classes.txt", b"\xff\n\xfe\n")),
}


def _table(labels: list[Any] | None = None, images: list[Any] | None = None, features: Any = None) -> Build:
    """Return what writes one training table with these columns."""

    def build(root: Path) -> None:
        sound.parquet(root)
        table = sound.arrow_table(labels, images, features)
        sound.write_parquet(root / "data" / "train-00000-of-00001.parquet", table)

    return build


def _state(content: Any, root: Path) -> None:
    sound.huggingface(root)
    write(root / "train" / "state.json", content)


def _splits(content: Any, root: Path) -> None:
    sound.huggingface(root)
    write(root / "dataset_dict.json", content)


def _arrow(change: Callable[[bytes], bytes], root: Path) -> None:
    sound.huggingface(root)
    path = root / "train" / "data-00000-of-00001.arrow"
    path.write_bytes(change(path.read_bytes()))


def _overwritten(data: bytes, start: float, count: int) -> bytes:
    place = int(len(data) * start)
    return data[:place] + b"\xff" * count + data[place + count :]


def _compressed_arrow(root: Path) -> None:
    import pyarrow as pa

    sound.huggingface(root)
    images = pa.array([{"bytes": bytes(1 << 20), "path": None}] * 400)
    table = pa.table({"image": images, "label": [0, 1] * 200})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(str(root / "train" / "data-00000-of-00001.arrow"), table.schema, options=options) as writer:
        writer.write_table(table)


def _parquet_bomb(root: Path) -> None:
    import pyarrow as pa

    sound.parquet(root)
    images = pa.array([{"bytes": bytes(1 << 20), "path": None}] * 400)
    sound.write_parquet(
        root / "data" / "train-00000-of-00001.parquet", pa.table({"image": images, "label": [0, 1] * 200})
    )


NO_IMAGE = [{"bytes": None, "path": "/etc/passwd"}] * 4
HUGGINGFACE: dict[str, Build] = {
    "label of 100 million": _table([0, 10**8], features={}),
    "label infinite": _table([0.0, float("inf")], features={}),
    "label nan": _table([0.0, float("nan")], features={}),
    "labels are lists": _table([[0], [1, 2]], features={}),
    "labels are bytes": _table([b"a", b"b"], features={}),
    "labels are mappings": _table([{"a": 1}, {"a": 2}], features={}),
    "label negative": _table([0, -5]),
    "names of numbers": _table(features={"label": {"_type": "ClassLabel", "names": [1, True, None, {}]}}),
    "names twice": _table(features={"label": {"_type": "ClassLabel", "names": ["a", "a"]}}),
    "features a list": _table(features=[1, 2]),
    "features deep": _table(features=json.loads("[" * 500 + "]" * 500)),
    "images are numbers": _table([0, 1], [1, 2]),
    "images are null": _table([0, 1], [None, None]),
    "image path outside": _table([0, 1, 0, 1], NO_IMAGE),
    "compressed bomb": _parquet_bomb,
    "parquet of noise": lambda root: (
        sound.parquet(root),
        write(root / "data" / "train-00000-of-00001.parquet", b"PAR1" + b"\xff" * 1000 + b"PAR1"),
    ),
}
SAVED: dict[str, Build] = {
    "file above": partial(_state, {"_data_files": [{"filename": "../../outside/x.arrow"}]}),
    "file from the top": partial(_state, {"_data_files": [{"filename": "/etc/passwd"}]}),
    "file a pipe": lambda root: (
        _state({"_data_files": [{"filename": "pipe"}]}, root),
        os.mkfifo(root / "train" / "pipe"),
    ),
    "state deep": partial(_state, DEEP),
    "state of numbers": partial(_state, {"_data_files": [1, 2]}),
    "splits are mappings": partial(_splits, {"splits": [{}, []]}),
    "splits above": partial(_splits, {"splits": ["../../outside", "validation"]}),
    "splits a text": partial(_splits, {"splits": "train"}),
    "compressed bomb": _compressed_arrow,
    "cut": partial(_arrow, lambda data: data[:-300]),
    **{
        f"noise at {share}": partial(_arrow, partial(_overwritten, start=share, count=64))
        for share in (0.0, 0.01, 0.02, 0.05, 0.5)
    },
}
DAMAGES: dict[str, dict[str, Build]] = {
    "lists": LISTS, "zips": ZIPS, "fall": FALL, "kaggle": KAGGLE, "inaturalist": INATURALIST, "cifar": CIFAR,
    "shards": SHARDS, "parquet": HUGGINGFACE, "huggingface": SAVED,
}  # fmt: skip
