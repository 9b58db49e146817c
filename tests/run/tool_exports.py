"""Tiny data sets as the tools write them, each with the files and the words of the tool. Boxes are of `BOXES`."""

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 64
BOX = (8, 12, 24, 20)  # x, y, width, height of the object of every image
NAMES = ("cat", "dog")
COUNT = 12
POLYGON = [8, 12, 32, 12, 32, 32, 8, 32]

Build = Callable[[Path], Path]


def stems(count: int = COUNT) -> list[str]:
    return [f"frame_{i:06d}" for i in range(count)]


def label(i: int) -> int:
    return i % 2


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def encoded(pixels: np.ndarray, format: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def picture(path: Path, i: int) -> None:
    """Write an image of its own noise, so that no two files are the same."""
    pixels = np.random.default_rng(i).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    write(path, encoded(pixels, "JPEG" if path.suffix.lower() == ".jpg" else "PNG"))


def label_map(i: int) -> np.ndarray:
    """The label map: 0 is the background, and the object has 1 + its label."""
    out, (x, y, width, height) = np.zeros((SIDE, SIDE), dtype=np.uint8), BOX
    out[y : y + height, x : x + width] = 1 + label(i)
    return out


def coco(names: Sequence[str], ids: Sequence[int], first: int = 0, **more: Any) -> dict[str, Any]:
    """The content of a json; `ids` are those of the categories."""
    images = [{"id": i + 1, "width": SIDE, "height": SIDE, "file_name": name} for i, name in enumerate(names)]
    annotations = [
        {
            "id": i + 1,
            "image_id": i + 1,
            "category_id": ids[label(first + i)],
            "segmentation": [POLYGON],
            "area": 480.0,
            "bbox": list(map(float, BOX)),
            "iscrowd": 0,
        }
        for i in range(len(names))
    ]
    categories = [{"id": id, "name": name, "supercategory": ""} for id, name in zip(ids, NAMES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories, **more}


def cvat_coco(root: Path) -> Path:
    for i, stem in enumerate(stems()):
        picture(root / f"images/default/{stem}.PNG", i)
    more = {"licenses": [{"name": "", "id": 0, "url": ""}], "info": {"contributor": "", "date_created": ""}}
    content = coco([f"{stem}.PNG" for stem in stems()], (1, 2), **more)
    for annotation in content["annotations"]:
        annotation["attributes"] = {"occluded": False}
    write(root / "annotations/instances_default.json", json.dumps(content))
    return root


def cvat_masks(root: Path) -> Path:
    colours = {"background": (0, 0, 0), "cat": (250, 50, 83), "dog": (51, 221, 255)}
    lines = [f"{name}:{','.join(map(str, colour))}::" for name, colour in colours.items()]
    write(root / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "\n".join(lines) + "\n")
    table = np.array(list(colours.values()), dtype=np.uint8)
    for i, stem in enumerate(stems()):
        picture(root / f"JPEGImages/{stem}.jpg", i)
        write(root / f"SegmentationClass/{stem}.png", encoded(table[label_map(i)]))
        write(root / f"SegmentationObject/{stem}.png", encoded(table[label_map(i)]))
    write(root / "ImageSets/Segmentation/default.txt", "\n".join(stems()) + "\n")
    return root


def yolo_line(i: int) -> str:
    x, y, width, height = (value / SIDE for value in BOX)
    return f"{label(i)} {x + width / 2:.6f} {y + height / 2:.6f} {width:.6f} {height:.6f}\n"


def cvat_yolo(root: Path) -> Path:
    lines = f"classes = {len(NAMES)}\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"
    write(root / "obj.data", lines)
    write(root / "obj.names", "\n".join(NAMES) + "\n")
    for i, stem in enumerate(stems()):
        picture(root / f"obj_train_data/{stem}.jpg", i)
        write(root / f"obj_train_data/{stem}.txt", yolo_line(i))
    write(root / "train.txt", "".join(f"data/obj_train_data/{stem}.jpg\n" for stem in stems()))
    return root


def cvat_ultralytics(root: Path) -> Path:
    write(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\n")
    for i, stem in enumerate(stems()):
        picture(root / f"images/train/{stem}.jpg", i)
        write(root / f"labels/train/{stem}.txt", yolo_line(i))
    write(root / "train.txt", "".join(f"data/images/train/{stem}.jpg\n" for stem in stems()))
    return root


def label_studio_coco(root: Path) -> Path:
    names = [f"images\\8f8a1b2c-{stem}%20copy.jpg" for stem in stems()]  # as written on Windows
    for i, stem in enumerate(stems()):
        picture(root / f"images/8f8a1b2c-{stem} copy.jpg", i)
    write(root / "result.json", json.dumps(coco(names, (0, 1), info={"year": 2026, "version": "1.0"}), indent=2))
    return root


def label_studio_yolo(root: Path) -> Path:
    write(root / "classes.txt", "\n".join(NAMES) + "\n")
    notes = {"categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)], "info": {"version": "1.0"}}
    write(root / "notes.json", json.dumps(notes, indent=2))
    for i, stem in enumerate(stems()):
        picture(root / f"images/8f8a1b2c-{stem}.jpg", i)
        write(root / f"labels/8f8a1b2c-{stem}.txt", yolo_line(i))
    return root


def roboflow_splits() -> dict[str, list[int]]:
    return {"train": list(range(8)), "valid": [8, 9], "test": [10, 11]}


def roboflow_name(i: int) -> str:
    return f"{stems()[i]}_jpg.rf.0123456789abcdef"


def roboflow_coco(root: Path) -> Path:
    for split, places in roboflow_splits().items():
        for i in places:
            picture(root / f"{split}/{roboflow_name(i)}.jpg", i)
        content = coco([f"{roboflow_name(i)}.jpg" for i in places], (1, 2), first=places[0])
        categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
        categories += [{**one, "supercategory": "pets"} for one in content["categories"]]
        write(root / f"{split}/_annotations.coco.json", json.dumps(content | {"categories": categories}))
    return root


def roboflow_yolo(root: Path) -> Path:
    splits = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    about = "roboflow:\n  workspace: mine\n  project: pets\n  version: 1\n"
    write(root / "data.yaml", f"{splits}\nnc: 2\nnames: ['cat', 'dog']\n\n{about}")
    for split, places in roboflow_splits().items():
        for i in places:
            picture(root / f"{split}/images/{roboflow_name(i)}.jpg", i)
            write(root / f"{split}/labels/{roboflow_name(i)}.txt", yolo_line(i))
    return root


def xml(i: int, file_name: str, difficult: str = "<difficult>0</difficult>") -> str:
    left, top, width, height = BOX
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (left + 1, top + 1, left + width, top + height), strict=True)
    box = "".join(f"<{name}>{value}</{name}>" for name, value in corners)
    return (
        f"<annotation>\n\t<folder>photos</folder>\n\t<filename>{file_name}</filename>\n"
        f"\t<path>C:\\photos\\{file_name}</path>\n"
        f"\t<size><width>{SIDE}</width><height>{SIDE}</height><depth>3</depth></size>\n\t<segmented>0</segmented>\n"
        f"\t<object><name>{NAMES[label(i)]}</name><pose>Unspecified</pose><truncated>0</truncated>{difficult}"
        f"<bndbox>{box}</bndbox></object>\n</annotation>\n"
    )


def roboflow_voc(root: Path) -> Path:
    for split, places in roboflow_splits().items():
        for i in places:
            picture(root / f"{split}/{roboflow_name(i)}.jpg", i)
            write(root / f"{split}/{roboflow_name(i)}.xml", xml(i, f"{roboflow_name(i)}.jpg"))
    return root


def roboflow_masks(root: Path) -> Path:
    for split, places in roboflow_splits().items():
        for i in places:
            picture(root / f"{split}/{roboflow_name(i)}.jpg", i)
            write(root / f"{split}/{roboflow_name(i)}_mask.png", encoded(label_map(i)))
        write(root / f"{split}/_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n")
    return root


def labelme(root: Path) -> Path:
    x, y, width, height = map(float, BOX)
    corners = [[x, y], [x + width, y + height]]
    shapes = (
        ("polygon", [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]),
        ("rectangle", corners),
        ("circle", [[x + width / 2, y + height / 2], [x + width / 2, y + height]]),
    )
    for i, stem in enumerate(stems()):
        kind, points = shapes[i % 3]
        flags = {"group_id": None, "description": "", "flags": {}, "mask": None}
        shape = {"label": NAMES[label(i)], "points": points, "shape_type": kind, **flags}
        picture(root / f"{stem}.jpg", i)
        content = {"version": "5.5.0", "flags": {}, "shapes": [shape], "imagePath": f"..\\photos\\{stem}.jpg"}
        content |= {"imageData": "aGVsbG8=", "imageHeight": SIDE, "imageWidth": SIDE}
        write(root / f"{stem}.json", json.dumps(content, indent=2))
    return root


def labelimg_voc(root: Path) -> Path:
    """A flat folder, with a camera's endings in capitals that the XML files have in small letters."""
    for i, stem in enumerate(stems()):
        picture(root / f"{stem}.JPG", i)
        write(root / f"{stem}.xml", xml(i, f"{stem}.jpg", "<Difficult>False</Difficult>"))
    return root


def labelimg_yolo(root: Path) -> Path:
    write(root / "classes.txt", "\n".join(NAMES) + "\n")
    for i, stem in enumerate(stems()):
        picture(root / f"{stem}.jpg", i)
        write(root / f"{stem}.txt", yolo_line(i))
    return root


def voc_without_lists(root: Path) -> Path:
    for i, stem in enumerate(stems()):
        picture(root / f"JPEGImages/{stem}.jpg", i)
        write(root / f"Annotations/{stem}.xml", xml(i, f"{stem}.jpg"))
    return root


def voc_in_small_letters(root: Path) -> Path:
    for i, stem in enumerate(stems()):
        picture(root / f"images/{stem}.png", i)
        write(root / f"annotations/{stem}.xml", xml(i, f"{stem}.png"))
    return root


def mmsegmentation(root: Path) -> Path:
    for i, stem in enumerate(stems()):
        split = "val" if i >= 10 else "train"
        picture(root / f"img_dir/{split}/{stem}.jpg", i)
        write(root / f"ann_dir/{split}/{stem}.png", encoded(label_map(i)))
    write(root / "classes.txt", "background\ncat\ndog\n")
    return root


def images_and_masks(root: Path) -> Path:
    for i, stem in enumerate(stems()):
        picture(root / f"images/{stem}.jpg", i)
        write(root / f"masks/{stem}_mask.tif", encoded(label_map(i), "TIFF"))
    write(root / "classes.txt", b"\xef\xbb\xbfbackground\r\ncat\r\ndog\r\n")
    return root


def one_json(root: Path) -> Path:
    """One json beside one folder of images; the json itself is what `--data` names."""
    for i, stem in enumerate(stems()):
        picture(root / f"photos/{stem}.jpg", i)
    content = coco([rf"C:\Users\me\photos\{stem}.jpg" for stem in stems()], (3, 17))
    write(root / "boxes.json", json.dumps(content))
    return root / "boxes.json"


BOXES: dict[str, Build] = {
    "CVAT COCO 1.0": cvat_coco,
    "CVAT YOLO 1.1": cvat_yolo,
    "CVAT Ultralytics YOLO": cvat_ultralytics,
    "Label Studio COCO": label_studio_coco,
    "Label Studio YOLO": label_studio_yolo,
    "Roboflow COCO": roboflow_coco,
    "Roboflow YOLO": roboflow_yolo,
    "Roboflow VOC": roboflow_voc,
    "labelme": labelme,
    "labelImg VOC": labelimg_voc,
    "labelImg YOLO": labelimg_yolo,
    "VOC without lists": voc_without_lists,
    "VOC in small letters": voc_in_small_letters,
    "one json": one_json,
}
MAPS: dict[str, Build] = {
    "CVAT Segmentation mask 1.1": cvat_masks,
    "Roboflow masks": roboflow_masks,
    "MMSegmentation": mmsegmentation,
    "images and masks": images_and_masks,
}
WITH_SPLITS = ("Roboflow", "MMSegmentation")  # the others have no validation split
