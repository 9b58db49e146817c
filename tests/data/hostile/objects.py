"""Damage to data with boxes, masks and label maps."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data.hostile import sound
from data.hostile.images import large_png, png_of, zeros
from data.hostile.labels import DEEP
from data.hostile.sound import png, write

Build = Callable[[Path], object]
Content = dict[str, Any]
LARGE = float("inf")


def _coco(change: Callable[[Content], Any]) -> Build:
    return partial(sound.coco, change=change)


def _first(key: str, **values: Any) -> Build:
    """Return what changes the first entry of a list of the json."""
    return _coco(lambda content: content[key][0].update(values))


def _text(old: str, new: str) -> Build:
    """Return what replaces text of the json itself, which may then be no JSON."""
    return _coco(lambda content: json.dumps(content).replace(old, new, 1))


def _box(box: str) -> Build:
    return _text("[4, 4, 20, 20]", box)


def _mask(mask: str) -> Build:
    return _text("[[4, 4, 24, 4, 24, 24, 4, 24]]", mask)


def _secret(root: Path) -> None:
    write(root.parent / "outside" / "secret.png", png(9))


def _named(name: str) -> Build:
    def build(root: Path) -> None:
        _secret(root)
        sound.coco(root, lambda c: c["images"][0].update(file_name=name.format(root=root.parent.resolve())))

    return build


def _many_masks(root: Path) -> None:
    """Ten thousand masks of one image of 3000 x 3000 pixels: ninety gigabytes as bits of a byte."""

    def change(content: Content) -> None:
        content["images"][0].update(height=3000, width=3000)
        content["annotations"] += [{**content["annotations"][0], "id": 10**6 + i} for i in range(10_000)]

    sound.coco(root, change)
    write(root / "train" / "000.png", large_png(3000))


COCO: dict[str, Build] = {
    "box infinite": _box("[Infinity, 4, 20, 20]"),
    "box nan": _box("[NaN, NaN, NaN, NaN]"),
    "box 1e400": _box("[4, 4, 1e400, -1e400]"),
    "box 308 digits": _box("[4, 4, " + "9" * 308 + ", 20]"),
    "box 400 digits": _box("[4, 4, " + "9" * 400 + ", 20]"),
    "box 5,000 digits": _box("[4, 4, " + "9" * 5000 + ", 20]"),
    "box 1e300": _box("[1e300, 1e300, 1e300, 1e300]"),
    "box of text": _box('["4", "4", "20", "20"]'),
    "box a text": _box('"4444"'),
    "box null": _box("null"),
    "box nested": _box("[[4, 4, 20, 20]]"),
    "box of null": _box("[null, 4, 20, 20]"),
    "box a mapping": _box('{"x": 1}'),
    "box of three": _box("[1, 2, 3]"),
    "box negative": _box("[-4, -4, -20, -20]"),
    "box true": _box("[true, true, true, true]"),
    "area text": _text('"area": 400', '"area": "large"'),
    "area infinite": _text('"area": 400', '"area": Infinity'),
    "area deep": _text('"area": 400', '"area": ' + "[" * 500 + "]" * 500),
    "crowd a mapping": _text('"iscrowd": 0', '"iscrowd": {"a": NaN}'),
    "polygon of one point": _mask("[[4, 4]]"),
    "polygon of none": _mask("[[]]"),
    "polygon infinite": _mask("[[Infinity, 4, 24, 4, 24, 24]]"),
    "polygon nan": _mask("[[NaN, NaN, NaN, NaN, NaN, NaN]]"),
    "polygon 1e9": _mask("[[1e9, 0, 4, 4, 5, -1e9]]"),
    "polygon of 1e7 often": _mask("[[" + ", ".join(["1e7, 0, 0, 1e7"] * 3000) + "]]"),
    "polygon 400 digits": _mask("[[" + "9" * 400 + ", 4, 24, 4, 24, 24]]"),
    "polygon of text": _mask('[["4", "4", "24", "4", "24", "24"]]'),
    "polygon nested": _mask("[[[4, 4], [24, 4], [24, 24]]]"),
    "polygon of null": _mask("[null]"),
    "polygon odd": _mask("[[1, 2, 3, 4, 5, 6, 7]]"),
    "polygon deep": _mask("[" * 900 + "]" * 900),
    "polygons a million": _mask("[" + ",".join(["[1,1,2,1,2,2]"] * 300_000) + "]"),
    "mask a number": _mask("7"),
    "mask a text": _mask('"mask"'),
    "mask of nothing": _mask("{}"),
    "mask garbage": _mask('{"a": 1}'),
    "run lengths short": _mask('{"size": [40, 40], "counts": [1, 2]}'),
    "run lengths long": _mask('{"size": [40, 40], "counts": [1, 1000000000]}'),
    "run lengths negative": _mask('{"size": [40, 40], "counts": [-1, 1601]}'),
    "run lengths 2^40": _mask('{"size": [40, 40], "counts": [1099511627776]}'),
    "run lengths infinite": _mask('{"size": [40, 40], "counts": [Infinity]}'),
    "run lengths text": _mask('{"size": [40, 40], "counts": "ZZZZZZZZZZZZZZZZ"}'),
    "run lengths odd text": _mask('{"size": [40, 40], "counts": "\\u0000\\uffff"}'),
    "run lengths null": _mask('{"size": [40, 40], "counts": null}'),
    "run lengths mapping": _mask('{"size": [40, 40], "counts": {"a": 1}}'),
    "run lengths other size": _mask('{"size": [1000000, 1000000], "counts": [1000000000000]}'),
    "run lengths size text": _mask('{"size": "40", "counts": [1600]}'),
    "run lengths size number": _mask('{"size": 40, "counts": [1600]}'),
    "run lengths size nested": _mask('{"size": [[40], [40]], "counts": [1600]}'),
    "id a mapping": _first("images", id={"a": 1}),
    "id a list": _first("images", id=[1]),
    "id null": _first("images", id=None),
    "id true": _first("images", id=True),
    "id 0.5": _first("images", id=0.5),
    "id nan": _first("images", id=float("nan")),
    "ids of two types": _first("images", id="2"),
    "ids twice": _first("images", id=2),
    "ids that collide": _coco(
        lambda c: c["annotations"].extend(
            {**c["annotations"][0], "id": i, "image_id": i * (2**61 - 1)} for i in range(100, 60_000)
        )
    ),
    "category id a mapping": _first("categories", id={}),
    "category ids twice": _first("categories", id=2),
    "category ids of two types": _first("categories", id="2"),
    "category id true": _first("categories", id=True),
    "category name a mapping": _first("categories", name={"a": 1}),
    "category name null": _first("categories", name=None),
    "category names twice": _first("categories", name="dog"),
    "category of an object a list": _first("annotations", category_id=[1]),
    "image of an object a mapping": _first("annotations", image_id={}),
    "a million categories": _coco(
        lambda c: c["categories"].extend({"id": i, "name": str(i)} for i in range(10, 1_000_000))
    ),
    "many keys": _coco(lambda c: c.update({f"k{i}": [] for i in range(300_000)})),
    "images twice": _text('"annotations"', '"images": [], "annotations"'),
    "size 1e18": _first("images", height=10**18, width=10**18),
    "size 1e30": _first("images", height=10**30, width=10**30),
    "size infinite": _first("images", height=LARGE, width=LARGE),
    "size negative": _first("images", height=-40, width=-40),
    "size zero": _first("images", height=0, width=0),
    "size text": _first("images", height="40", width="40"),
    "size null": _first("images", height=None, width=None),
    "size a list": _first("images", height=[40], width=[40]),
    "name a list": _first("images", file_name=["000.png"]),
    "name null": _first("images", file_name=None),
    "name empty": _first("images", file_name=""),
    "name NUL": _first("images", file_name="000.png\0"),
    "name surrogate": _first("images", file_name="\ud800.png"),
    "name of a megabyte": _first("images", file_name="a" * (1 << 20)),
    "name the folder": _first("images", file_name="."),
    "name above": _named("../../outside/secret.png"),
    "name from the top": _named("{root}/outside/secret.png"),
    "name above within": _named("../train/000.png"),
    "names twice": _first("images", file_name="001.png"),
    "ten thousand masks": _many_masks,
    "deep": _coco(lambda content: DEEP),
    "deep entry": _coco(lambda content: '{"images": [' + '{"a":' * 100_000),
    "a list": _coco(lambda content: "[]"),
    "a number": _coco(lambda content: "1" * 100_000),
    "empty": _coco(lambda content: ""),
    "NUL": _coco(lambda content: "\0" * 1000),
    "images a mapping": _coco(lambda c: c | {"images": {"0": c["images"][0]}}),
    "images null": _coco(lambda c: c | {"images": None}),
    "entries null": _coco(lambda c: c | {"images": [None], "annotations": [None], "categories": [None]}),
    "UTF-16": lambda root: (
        sound.coco(root),
        (path := root / "annotations" / "instances_train.json").write_bytes(path.read_text().encode("utf-16")),
    ),
    "not UTF-8": lambda root: (
        sound.coco(root),
        write(root / "annotations" / "instances_train.json", b'{"images": "\xff\xfe"}'),
    ),
    "json of a terabyte": lambda root: (
        sound.coco(root),
        os.truncate(root / "annotations" / "instances_train.json", 1 << 40),
    ),
    "json a pipe": lambda root: (
        sound.coco(root),
        (root / "annotations" / "instances_train.json").unlink(),
        os.mkfifo(root / "annotations" / "instances_train.json"),
    ),
    "json a folder": lambda root: (
        sound.coco(root),
        (root / "annotations" / "instances_train.json").unlink(),
        (root / "annotations" / "instances_train.json").mkdir(),
    ),
}


def _line(line: str | bytes, root: Path) -> None:
    sound.yolo(root)
    write(root / "labels" / "train" / "000.txt", line)


def _yaml(text: str | bytes, root: Path) -> None:
    _secret(root)
    sound.yolo(root)
    write(root / "data.yaml", text.format(root=root.parent.resolve()) if isinstance(text, str) else text)


def _many_polygons(root: Path) -> None:
    """Ten thousand polygons of one image of 3000 x 3000 pixels, where every object has one."""
    sound.yolo(root)
    for path in root.glob("labels/*/*.txt"):
        path.write_text("0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6\n" * (10_000 if path.match("train/000.txt") else 1))
    write(root / "images" / "train" / "000.png", large_png(3000))


HEAD = "train: images/train\nval: images/val\n"
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]\n" for i in range(1, 12))
YOLO: dict[str, Build] = {
    "class infinite": partial(_line, "inf 0.5 0.5 0.5 0.5"),
    "class nan": partial(_line, "nan 0.5 0.5 0.5 0.5"),
    "class 308 digits": partial(_line, "9" * 308 + " 0.5 0.5 0.5 0.5"),
    "class 400 digits": partial(_line, "9" * 400 + " 0.5 0.5 0.5 0.5"),
    "class 0.5": partial(_line, "0.5 0.5 0.5 0.5 0.5"),
    "class -1": partial(_line, "-1 0.5 0.5 0.5 0.5"),
    "box infinite": partial(_line, "0 inf 0.5 0.5 0.5"),
    "box 1e308": partial(_line, "0 1e308 1e308 1e308 1e308"),
    "box 400 digits": partial(_line, "0 " + "9" * 400 + " 0.5 0.5 0.5"),
    "box negative": partial(_line, "0 0.5 0.5 -0.5 -0.5"),
    "polygon 1e308": partial(_line, "0 1e308 0 0 1e308 1 1 -1e308 0"),
    "polygon 1e7": partial(_line, "0 " + "1e7 0 0 1e7 " * 3000),
    "a million numbers": partial(_line, "0 " + "0.5 " * 1_000_000),
    "a million lines": partial(_line, "0 0.5 0.5 0.5 0.5\n" * 300_000),
    "ten thousand polygons": _many_polygons,
    "NUL": partial(_line, "\0" * 1000),
    "not UTF-8": partial(_line, b"0 0.5 0.5 0.5 \xff"),
    "UTF-16": partial(_line, "0 0.5 0.5 0.5 0.5".encode("utf-16")),
    "of a terabyte": lambda root: (sound.yolo(root), os.truncate(root / "labels" / "train" / "000.txt", 1 << 40)),
    "label file a pipe": lambda root: (
        sound.yolo(root),
        (root / "labels" / "train" / "000.txt").unlink(),
        os.mkfifo(root / "labels" / "train" / "000.txt"),
    ),
    "image a pipe": lambda root: (sound.yolo(root), os.mkfifo(root / "images" / "train" / "pipe.jpg")),
    "image a folder": lambda root: (sound.yolo(root), (root / "images" / "train" / "folder.jpg").mkdir()),
    "yaml laughs": partial(_yaml, HEAD + LAUGHS + "names: *a11\n"),
    "yaml laughs aside": partial(_yaml, HEAD + LAUGHS + "names: [cat, dog]\n"),
    "yaml deep": partial(_yaml, HEAD + "names: " + "[" * 20_000),
    "yaml itself": partial(_yaml, HEAD + "names: &a [cat, *a]\n"),
    "yaml merges": partial(
        _yaml,
        HEAD
        + "".join(
            f"b{i}: &b{i}\n  <<: [{', '.join([f'*b{i - 1}'] * 9)}]\n" if i else "b0: &b0 {{x: 1}}\n" for i in range(12)
        )
        + "names: [cat, dog]\n",
    ),
    "yaml object": partial(_yaml, HEAD + "names: !!python/object/apply:os.system ['touch EXECUTED']\n"),
    "yaml of a gigabyte": lambda root: (sound.yolo(root), os.truncate(root / "data.yaml", 1 << 30)),
    "yaml not UTF-8": partial(_yaml, b"\xff\xff"),
    "yaml UTF-16": partial(_yaml, (HEAD + "names: [cat, dog]\n").encode("utf-16")),
    "yaml date": partial(_yaml, HEAD + "names: [cat, dog]\nday: 2024-99-99\n"),
    "yaml 5,000 digits": partial(_yaml, HEAD + "names: [cat, dog]\nn: " + "9" * 5000 + "\n"),
    "names a number": partial(_yaml, HEAD + "names: 100000000\n"),
    "names to 100 million": partial(_yaml, HEAD + "names: {{100000000: cat}}\n"),
    "names collide": partial(_yaml, HEAD + "names: {{0: cat, '0': dog}}\n"),
    "names of bools": partial(_yaml, HEAD + "names: {{false: cat, true: dog}}\n"),
    "names of floats": partial(_yaml, HEAD + "names: {{0.0: cat, 1.0: dog}}\n"),
    "names nested": partial(_yaml, HEAD + "names: [[cat], {{a: b}}]\n"),
    "names twice": partial(_yaml, HEAD + "names: [cat, cat]\n"),
    "names a million": partial(_yaml, HEAD + "names: [" + ", ".join(map(str, range(300_000))) + "]\n"),
    "nc 1e12": partial(_yaml, HEAD + "names: [cat, dog]\nnc: 1000000000000\n"),
    "nc infinite": partial(_yaml, HEAD + "names: [cat, dog]\nnc: .inf\n"),
    "train a mapping": partial(_yaml, "train: {{a: b}}\nval: images/val\nnames: [cat, dog]\n"),
    "train NUL": partial(_yaml, 'train: "images\\0"\nval: images/val\nnames: [cat, dog]\n'),
    "train the top": partial(_yaml, "train: /\nval: images/val\nnames: [cat, dog]\n"),
    "train above": partial(_yaml, "train: ../outside\nval: images/val\nnames: [cat, dog]\n"),
    "train from the top": partial(_yaml, "train: {root}/outside\nval: images/val\nnames: [cat, dog]\n"),
    "path above": partial(_yaml, "path: ../outside\ntrain: .\nval: .\nnames: [cat, dog]\n"),
    "path a list": partial(_yaml, HEAD + "path: [1, 2]\nnames: [cat, dog]\n"),
    "train a device": partial(_yaml, "train: /dev/zero\nval: images/val\nnames: [cat, dog]\n"),
    "list above": lambda root: (
        _yaml("train: list.txt\nval: images/val\nnames: [cat, dog]\n", root),
        write(root / "list.txt", "../outside/secret.png\n"),
    ),
    "list not UTF-8": lambda root: (
        _yaml("train: list.txt\nval: images/val\nnames: [cat, dog]\n", root),
        write(root / "list.txt", b"\xff\xfe\n"),
    ),
}


def _xml(text: str | bytes, root: Path) -> None:
    sound.voc(root)
    write(root / "Annotations" / "train000.xml", text)


def _edge(value: str) -> Build:
    return partial(_xml, sound.XML.format("cat").replace("<xmax>30", f"<xmax>{value}"))


def _listed(line: str | bytes, root: Path) -> None:
    _secret(root)
    sound.voc(root)
    with (root / "ImageSets" / "Main" / "train.txt").open("ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")


ENTITIES = "<!DOCTYPE l [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 12))
VOC: dict[str, Build] = {
    "laughs": partial(_xml, ENTITIES + "]><annotation>&a11;</annotation>"),
    "quadratic": partial(
        _xml, f"<!DOCTYPE l [<!ENTITY a '{'a' * 100_000}'>]><annotation>{'&a;' * 100_000}</annotation>"
    ),
    "external": partial(_xml, "<!DOCTYPE l [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><annotation>&a;</annotation>"),
    "parameter": partial(_xml, "<!DOCTYPE l [<!ENTITY % a SYSTEM 'file:///dev/zero'> %a;]><annotation/>"),
    "deep": partial(_xml, "<a>" * 500_000),
    "deep and closed": partial(_xml, "<annotation>" + "<a>" * 200_000 + "</a>" * 200_000 + "</annotation>"),
    "attributes": partial(_xml, "<annotation " + " ".join(f"a{i}='1'" for i in range(200_000)) + "/>"),
    "objects": partial(_xml, "<annotation>" + sound.XML.format("cat")[61:-13] * 50_000 + "</annotation>"),
    "encoding": partial(_xml, "<?xml version='1.0' encoding='no-such'?><annotation/>"),
    "encoding of many bytes": partial(_xml, "<?xml version='1.0' encoding='utf-7'?><annotation/>"),
    "UTF-16": partial(_xml, sound.XML.format("cat").encode("utf-16")),
    "not UTF-8": partial(_xml, sound.XML.format("cat").encode().replace(b"cat", b"\xff")),
    "NUL": partial(_xml, "\0" * 1000),
    "empty": partial(_xml, ""),
    "of a terabyte": lambda root: (
        sound.voc(root),
        os.truncate(root / "Annotations" / "train000.xml", 1 << 40),
    ),
    "a pipe": lambda root: (
        sound.voc(root),
        (root / "Annotations" / "train000.xml").unlink(),
        os.mkfifo(root / "Annotations" / "train000.xml"),
    ),
    "edge infinite": _edge("inf"),
    "edge nan": _edge("nan"),
    "edge 1e308": _edge("1e308"),
    "edge 400 digits": _edge("9" * 400),
    "edge text": _edge("wide"),
    "size infinite": partial(_xml, sound.XML.format("cat").replace("<width>40", "<width>inf")),
    "size 308 digits": partial(_xml, sound.XML.format("cat").replace("<width>40", "<width>" + "9" * 308)),
    "size 1e30": partial(_xml, sound.XML.format("cat").replace("<width>40", "<width>1e30")),
    "name of a megabyte": partial(_xml, sound.XML.format("c" * (1 << 20))),
    "name with escapes": partial(_xml, sound.XML.format("c&#xA;&#x1B;at".replace("&#x1B;", ""))),
    "listed above": partial(_listed, "../../outside/secret"),
    "listed from the top": partial(_listed, "/etc/passwd"),
    "listed NUL": partial(_listed, "a\0b"),
    "listed not UTF-8": partial(_listed, b"\xff\xfe"),
    "listed twice": partial(_listed, "train000"),
    "classes not UTF-8": lambda root: (sound.voc(root), write(root / "classes.txt", b"\xff\n")),
    "classes a million": lambda root: (
        sound.voc(root),
        write(root / "classes.txt", "cat\ndog\n" + "\n".join(map(str, range(1_000_000)))),
    ),
}


def _map(content: bytes, root: Path) -> None:
    sound.label_maps(root)
    write(root / "masks" / "train" / "000.png", content)


LABEL_MAPS: dict[str, Build] = {
    "huge": partial(_map, png_of(10**9, 10**9, b"", mode=0)),
    "large": lambda root: _map(png_of(11_500, 11_500, zeros(11_501 * 11_500), mode=0), root),
    "colours": partial(_map, png(4)),
    "sixteen bits": partial(_map, png_of(40, 40, zeros(81 * 40), mode=0, depth=16)),
    "cut": partial(_map, png_of(40, 40, zeros(41 * 40), mode=0)[:60]),
    "other size": partial(_map, png_of(30, 30, zeros(31 * 30), mode=0)),
    "no image": partial(_map, b"no image"),
    "a pipe": lambda root: (
        sound.label_maps(root),
        (root / "masks" / "train" / "000.png").unlink(),
        os.mkfifo(root / "masks" / "train" / "000.png"),
    ),
    "a folder": lambda root: (
        sound.label_maps(root),
        (root / "masks" / "train" / "000.png").unlink(),
        (root / "masks" / "train" / "000.png").mkdir(),
    ),
    "classes 300": lambda root: (sound.label_maps(root), write(root / "classes.txt", "\n".join(map(str, range(300))))),
    "classes a million": lambda root: (
        sound.label_maps(root),
        write(root / "classes.txt", "\n".join(map(str, range(1_000_000)))),
    ),
    "classes not UTF-8": lambda root: (sound.label_maps(root), write(root / "classes.txt", b"\xff\xfe\n")),
    "classes twice": lambda root: (sound.label_maps(root), write(root / "classes.txt", "sky\nsky\n")),
    "classes of a terabyte": lambda root: (sound.label_maps(root), os.truncate(root / "classes.txt", 1 << 40)),
}
DAMAGES: dict[str, dict[str, Build]] = {"coco": COCO, "yolo": YOLO, "voc": VOC, "label_maps": LABEL_MAPS}
