"""Damage to exports of annotation tools: labelme's json files, and layouts without the usual folders."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data.hostile import sound
from data.hostile.sound import png, write

Build = Callable[[Path], object]
SHAPE = {"label": "cat", "points": [[4, 4], [24, 4], [24, 24]], "shape_type": "polygon", "group_id": None}

EMPTY = '{"images": [], "annotations": [{"bbox": 1, "category_id": 1}], "categories": []}'


def _json(root: Path, *, apart: bool = False) -> Path:
    (sound.labelme_apart if apart else sound.labelme)(root)
    return root / ("annotations/train/000.json" if apart else "train/000.json")


def _changed(root: Path, *, apart: bool = False, **values: Any) -> None:
    path = _json(root, apart=apart)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _shape(**values: Any) -> Build:
    return lambda root: _changed(root, shapes=[SHAPE | values])


def _text(old: str, new: str, root: Path) -> None:
    path = _json(root)
    path.write_text(path.read_text().replace(old, new, 1))


def _whole(content: bytes | str, root: Path, *, apart: bool = False) -> None:
    write(_json(root, apart=apart), content)


def _secret(image: str, root: Path) -> None:
    """Name an image outside of the folder; without it, none is left."""
    write(root.parent / "outside" / "secret.png", png(9))
    _changed(root, apart=True, imagePath=image.format(root=root.parent.resolve()))
    (root / "images/train/000.png").unlink()


def _pipe(root: Path, *, apart: bool = False) -> None:
    path = _json(root, apart=apart)
    path.unlink()
    os.mkfifo(path)


def _linked(root: Path) -> None:
    """A folder of json files that is a link to the folder above."""
    sound.labelme(root)
    (root / "json").symlink_to("..")


def _plain(name: str, content: str | bytes, build: Callable[[Path], object], root: Path) -> None:
    build(root)
    write(root / name, content)


LABELME: dict[str, Build] = {
    "no shapes": lambda root: _changed(root, shapes=None),
    "shapes a mapping": lambda root: _changed(root, shapes={"a": 1}),
    "shapes of null": lambda root: _changed(root, shapes=[None]),
    "shapes many": lambda root: _changed(root, shapes=[SHAPE] * 3000),
    "label a number": _shape(label=7),
    "label a mapping": _shape(label={"a": 1}),
    "label empty": _shape(label=""),
    "label of a megabyte": _shape(label="c" * (1 << 20)),
    "label with escapes": _shape(label="c\n\x1b[31mat"),
    "points infinite": partial(_text, "[4, 4]", "[Infinity, 4]"),
    "points nan": partial(_text, "[4, 4]", "[NaN, NaN]"),
    "points 1e400": partial(_text, "[4, 4]", "[1e400, 4]"),
    "points 400 digits": partial(_text, "[4, 4]", "[" + "9" * 400 + ", 4]"),
    "points 1e30": partial(_text, "[4, 4]", "[1e30, -1e30]"),
    "points of text": _shape(points=[["4", "4"], ["24", "4"], ["24", "24"]]),
    "points null": _shape(points=None),
    "points of three": _shape(points=[[1, 2, 3]] * 3),
    "points two": _shape(points=[[1, 2], [3, 4]]),
    "points equal": _shape(points=[[4, 4]] * 3),
    "points outside": _shape(points=[[-100, -100], [-50, -100], [-50, -50]]),
    "rectangle of one": _shape(shape_type="rectangle", points=[[4, 4]]),
    "circle of nothing": _shape(shape_type="circle", points=[[4, 4], [4, 4]]),
    "circle large": _shape(shape_type="circle", points=[[4, 4], [1e300, 1e300]]),
    "type a mapping": _shape(shape_type={"a": 1}),
    "type unknown": _shape(shape_type="spline"),
    "group a mapping": _shape(group_id={"a": [1]}),
    "group infinite": partial(_text, '"group_id": null', '"group_id": Infinity'),
    "height a text": lambda root: _changed(root, imageHeight="40"),
    "height other": lambda root: _changed(root, imageHeight=41),
    "height 1e400": partial(_text, '"imageHeight": 40', '"imageHeight": 1e400'),
    "path a mapping": lambda root: _changed(root, imagePath={"a": 1}),
    "path NUL": lambda root: _changed(root, imagePath="a\0b"),
    "path of a megabyte": lambda root: _changed(root, imagePath="a/" * (1 << 19)),
    "path of dots": lambda root: _changed(root, imagePath=".."),
    "json cut": partial(_whole, '{"version": "5.5.0", "shapes": [{"shape_type": '),
    "json not UTF-8": partial(_whole, b'{"shapes": [], "imagePath": "\xff\xfe"}'),
    "json a list": partial(_whole, "[]"),
    "json nested": partial(_whole, '{"shapes": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "json empty": partial(_whole, ""),
    "json a pipe": _pipe,
    "json a link": _linked,
    "labels not UTF-8": lambda root: (sound.labelme(root), write(root / "labels.txt", b"\xff\n")),
    "labels others": lambda root: (sound.labelme(root), write(root / "labels.txt", "bird\n")),
}
APART: dict[str, Build] = {
    "path above": partial(_secret, "../../../outside/secret.png"),
    "path from the top": partial(_secret, "{root}/outside/secret.png"),
    "path of another image": lambda root: _changed(root, apart=True, imagePath="../../images/val/000.png"),
    "path gone": lambda root: _changed(root, apart=True, imagePath="../../photos/gone.png"),
    "no image": lambda root: (sound.labelme_apart(root), (root / "images/train/000.png").unlink()),
    "json a list": lambda root: _whole("[]", root, apart=True),
    "json cut": lambda root: _whole('{"shapes": [', root, apart=True),
    "json a pipe": lambda root: _pipe(root, apart=True),
}
BESIDE: dict[str, Build] = {
    "xml cut": partial(_plain, "train/000.xml", "<annotation><size>", sound.voc_beside),
    "xml empty": partial(_plain, "train/000.xml", "", sound.voc_beside),
    "image gone": lambda root: (sound.voc_beside(root), (root / "train/000.png").unlink()),
    "image broken": partial(_plain, "train/000.png", b"no image", sound.voc_beside),
    "edge nan": partial(_plain, "train/000.xml", sound.XML.format("cat").replace(">5<", ">nan<"), sound.voc_beside),
}
ROBOFLOW: dict[str, Build] = {
    "table empty": partial(_plain, "train/_classes.csv", "Pixel Value, Class\n", sound.roboflow_masks),
    "table of text": partial(_plain, "train/_classes.csv", "Pixel Value, Class\nx, sky\n", sound.roboflow_masks),
    "table twice": partial(_plain, "train/_classes.csv", "Pixel Value, Class\n0, a\n0, b\n", sound.roboflow_masks),
    "table not UTF-8": partial(
        _plain, "train/_classes.csv", b"Pixel Value, Class\n0, \xff\xfe\n", sound.roboflow_masks
    ),
    "table quoted": partial(_plain, "train/_classes.csv", 'Pixel Value, Class\n0, "a\n1, b\n', sound.roboflow_masks),
    "mask broken": partial(_plain, "train/000_mask.png", b"no image", sound.roboflow_masks),
    "mask gone": lambda root: (sound.roboflow_masks(root), (root / "train/000_mask.png").unlink()),
}
COCO_EXPORT: dict[str, Build] = {
    "images none": partial(_plain, "result.json", EMPTY, sound.coco_export),
    "image gone": lambda root: (sound.coco_export(root), (root / "train/000.png").unlink()),
    "json twice": lambda root: (sound.coco_export(root), write(root / "b.json", (root / "result.json").read_bytes())),
}
YOLO_PLAIN: dict[str, Build] = {
    "classes none": partial(_plain, "classes.txt", "", sound.yolo_plain),
    "classes not UTF-8": partial(_plain, "classes.txt", b"\xff\xfe\n", sound.yolo_plain),
    "classes one": partial(_plain, "classes.txt", "cat\n", sound.yolo_plain),
    "line cut": partial(_plain, "labels/train/000.txt", "0 0.5 0.5", sound.yolo_plain),
    "line binary": partial(_plain, "labels/train/000.txt", b"\x00\xff\xfe", sound.yolo_plain),
}
DAMAGES: dict[str, dict[str, Build]] = {
    "labelme": LABELME, "labelme_apart": APART, "voc_beside": BESIDE, "roboflow_masks": ROBOFLOW,
    "coco_export": COCO_EXPORT, "yolo_plain": YOLO_PLAIN,
}  # fmt: skip
