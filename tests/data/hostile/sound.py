"""Small sound data sets of every format, which hostile cases damage in one place. Two classes, four images a class."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from tarfile import TarFile, TarInfo
from typing import Any

import numpy as np
from PIL import Image

SIDE = 40
CLASSES = ("cat", "dog")
SPLITS = ("train", "val")


def png(number: int = 0, side: int = SIDE) -> bytes:
    """Return a picture of noise, another one for each number."""
    pixels_HW3 = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels_HW3).save(file, "PNG")
    return file.getvalue()


def write(path: Path, content: str | bytes | Any) -> Path:
    """Write text, bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def names() -> Iterable[tuple[str, int, str, int]]:
    """Yield the split, the label, the name and a number of each image."""
    for s, split in enumerate(SPLITS):
        for i in range(8 if split == "train" else 4):
            yield split, i % 2, f"{i:03d}.png", 100 * s + i


def imagefolder(root: Path) -> None:
    for split, label, name, number in names():
        write(root / split / CLASSES[label] / name, png(number))


def lists(root: Path) -> None:
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for split, label, name, number in names():
        write(root / split / CLASSES[label] / name, png(number))
        lines[split].append(f"{CLASSES[label]}/{name} {label}")
    for split in SPLITS:
        write(root / "meta" / f"{split}.txt", "\n".join(lines[split]) + "\n")


def zips(root: Path) -> None:
    for split in SPLITS:
        lines = []
        root.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for of, label, name, number in names():
                if of == split:
                    archive.writestr(f"{CLASSES[label]}/{name}", png(number))
                    lines.append(f"{CLASSES[label]}/{name}\t{label}")
        write(root / f"{split}_map.txt", "\n".join(lines) + "\n")


def fall(root: Path) -> None:
    pairs: dict[str, list[list[Any]]] = {"train": [], "val": []}
    for split, label, name, number in names():
        write(root / CLASSES[label] / f"{split}{name}", png(number))
        pairs[split].append([f"{CLASSES[label]}/{split}{name}", label])
    for split in SPLITS:
        write(root / f"ILSVRC2011fall_whole_map_{split}.txt", pairs[split])


def kaggle(root: Path) -> None:
    folder, lines = root / "ILSVRC/Data/CLS-LOC", ["ImageId,PredictionString"]
    for split, label, name, number in names():
        if split == "train":
            write(folder / split / CLASSES[label] / name, png(number))
        else:
            write(folder / split / f"{name[:3]}.JPEG", png(number))
            lines.append(f"{name[:3]},{CLASSES[label]} 1 2 3 4")
    write(root / "LOC_val_solution.csv", "\n".join(lines) + "\n")


def inaturalist(root: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> None:
    for s, split in enumerate(SPLITS):
        content: dict[str, Any] = {
            "images": [], "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        }  # fmt: skip
        for of, label, name, number in names():
            if of == split:
                write(root / "images" / split / name, png(number))
                content["images"].append({"id": number, "file_name": f"images/{split}/{name}"})
                content["annotations"].append({"id": number, "image_id": number, "category_id": label})
        if s == 0:
            changed = change(content)
            content = content if changed is None else changed
        write(root / f"{split}2018.json", content)


def cifar(root: Path) -> None:
    folder = root / "cifar-10-batches-bin"
    row = b"".join(bytes([i % 2]) + bytes(3072) for i in range(8))
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        write(folder / f"{name}.bin", row)
    write(folder / "batches.meta.txt", "cat\ndog\n")


def tar(members: Iterable[tuple[str, bytes]]) -> bytes:
    file = BytesIO()
    with TarFile(fileobj=file, mode="w") as archive:
        for name, data in members:
            head = TarInfo(name)
            head.size = len(data)
            archive.addfile(head, BytesIO(data))
    return file.getvalue()


def members_of(split: str) -> list[tuple[str, bytes]]:
    return [
        (f"{name[:3]}.{ending}", data)
        for of, label, name, number in names()
        if of == split
        for ending, data in (("png", png(number)), ("cls", str(label).encode()))
    ]


def shards(root: Path) -> None:
    for split in SPLITS:
        write(root / f"{split}-000.tar", tar(members_of(split)))


def arrow_table(labels: list[Any] | None = None, images: list[Any] | None = None, features: Any = None) -> Any:
    import pyarrow as pa

    labels = [0, 1] * 4 if labels is None else labels
    images = [{"bytes": png(i), "path": None} for i in range(len(labels))] if images is None else images
    said = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}
    told = {"huggingface": json.dumps({"info": {"features": said if features is None else features}})}
    return pa.table({"image": images, "label": labels}).replace_schema_metadata(told)


def write_parquet(path: Path, table: Any) -> None:
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)


def write_arrow(folder: Path, table: Any) -> None:
    import pyarrow as pa

    folder.mkdir(parents=True, exist_ok=True)
    with (
        pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table)
    write(folder / "state.json", {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})


def huggingface(root: Path) -> None:
    write(root / "dataset_dict.json", {"splits": ["train", "validation"]})
    for split in ("train", "validation"):
        write_arrow(root / split, arrow_table())


def parquet(root: Path) -> None:
    for split in ("train", "validation"):
        write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", arrow_table())


def coco(root: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> None:
    """Write COCO json; `change` alters the training json, or returns another one, also as text."""
    for split in SPLITS:
        content: dict[str, Any] = {
            "images": [], "annotations": [],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
        }  # fmt: skip
        for of, label, name, number in names():
            if of == split:
                write(root / split / name, png(number))
                content["images"].append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
                content["annotations"].append(
                    {
                        "id": number, "image_id": number, "category_id": label + 1, "bbox": [4, 4, 20, 20],
                        "area": 400, "iscrowd": 0, "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]],
                    }
                )  # fmt: skip
        if split == "train":
            changed = change(content)
            content = content if changed is None else changed
        write(root / "annotations" / f"instances_{split}.json", content)


def yolo(root: Path) -> None:
    for split, label, name, number in names():
        write(root / "images" / split / name, png(number))
        write(root / "labels" / split / f"{name[:3]}.txt", f"{label} 0.5 0.5 0.5 0.5\n")
    write(root / "data.yaml", "train: images/train\nval: images/val\nnames: [cat, dog]\n")


XML = (
    "<annotation><size><width>40</width><height>40</height></size><object><name>{}</name>"
    "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object></annotation>"
)


def voc(root: Path) -> None:
    listed: dict[str, list[str]] = {"train": [], "val": []}
    for split, label, name, number in names():
        stem = f"{split}{name[:3]}"
        write(root / "JPEGImages" / f"{stem}.png", png(number))
        write(root / "Annotations" / f"{stem}.xml", XML.format(CLASSES[label]))
        listed[split].append(stem)
    for split in SPLITS:
        write(root / "ImageSets" / "Main" / f"{split}.txt", "\n".join(listed[split]) + "\n")


def labelme_json(name: str, label: int, image: str, **more: Any) -> dict[str, Any]:
    """Return the content of a json of labelme."""
    shape = {"label": CLASSES[label], "points": [[4, 4], [24, 4], [24, 24]], "shape_type": "polygon", "group_id": None}
    content = {"version": "5.5.0", "flags": {}, "shapes": [shape], "imagePath": image, "imageData": None}
    return content | {"imageHeight": SIDE, "imageWidth": SIDE} | more


def labelme(root: Path) -> None:
    for split, label, name, number in names():
        write(root / split / name, png(number))
        write(root / split / f"{name[:3]}.json", labelme_json(name, label, name))


def labelme_apart(root: Path) -> None:
    """The json files in a folder of their own, as labelme's --output makes it."""
    for split, label, name, number in names():
        write(root / "images" / split / name, png(number))
        image = f"..\\..\\images\\{split}\\{name}"
        write(root / "annotations" / split / f"{name[:3]}.json", labelme_json(name, label, image))


def voc_beside(root: Path) -> None:
    """XML files beside the images, as Roboflow writes them."""
    for split, label, name, number in names():
        folder = root / ("valid" if split == "val" else split)
        write(folder / name, png(number))
        write(folder / f"{name[:3]}.xml", XML.format(CLASSES[label]))


def roboflow_masks(root: Path) -> None:
    for split, _, name, number in names():
        folder = root / ("valid" if split == "val" else split)
        write(folder / name, png(number))
        values_HW = np.zeros((SIDE, SIDE), dtype=np.uint8)
        values_HW[:20] = 1
        Image.fromarray(values_HW).save(folder / f"{name[:3]}_mask.png")
        write(folder / "_classes.csv", "Pixel Value, Class\n0, ground\n1, sky\n")


def coco_export(root: Path) -> None:
    """One json for both splits, beside its images."""
    coco(root)
    content = json.loads((root / "annotations/instances_train.json").read_text())
    for image in content["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    for folder in ("annotations", "val"):
        shutil.rmtree(root / folder)
    write(root / "result.json", content)


def yolo_plain(root: Path) -> None:
    """Label Studio's folders, without data.yaml."""
    yolo(root)
    (root / "data.yaml").unlink()
    write(root / "classes.txt", "cat\ndog\n")


def label_maps(root: Path) -> None:
    for split, _, name, number in names():
        write(root / "images" / split / name, png(number))
        values_HW = np.zeros((SIDE, SIDE), dtype=np.uint8)
        values_HW[:20] = 1
        target = root / "masks" / split / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values_HW).save(target)
    write(root / "classes.txt", "ground\nsky\n")


SOUND: dict[str, Callable[[Path], None]] = {
    "imagefolder": imagefolder, "lists": lists, "zips": zips, "fall": fall, "kaggle": kaggle,
    "inaturalist": inaturalist, "cifar": cifar, "shards": shards, "huggingface": huggingface, "parquet": parquet,
    "coco": coco, "yolo": yolo, "voc": voc, "label_maps": label_maps,
    "labelme": labelme, "labelme_apart": labelme_apart, "voc_beside": voc_beside, "roboflow_masks": roboflow_masks,
    "coco_export": coco_export, "yolo_plain": yolo_plain,
}  # fmt: skip
TASKS = {
    **dict.fromkeys(("coco", "yolo", "voc", "labelme", "labelme_apart", "voc_beside"), "detection"),
    **dict.fromkeys(("coco_export", "yolo_plain"), "detection"),
    **dict.fromkeys(("label_maps", "roboflow_masks"), "segmentation"),
}
