"""The files that the lines of the pages name: images in class folders, boxes, masks, a video, checkpoints."""

import shutil
from pathlib import Path
from textwrap import dedent

import numpy as np
from pages.lines import python_of
from PIL import Image

from fourstage.data.embedded.digit_scenes import write_digit_scenes
from fourstage.data.labels.imagenet_variants import wnids

TRAIN, VAL = 30, 6
OWN_FILES = {  # Python files and recipes of the user's own that a page names, where it does not show them
    "docs/mixers.md": {"my_mixer.py": python_of("docs/mixers.md")[0]},
    "docs/recipes.md": {
        "my_backbone.py": """\
            from torch import nn
            import fourstage

            @fourstage.register
            def my_backbone(num_classes=10, img_size=32):
                stem, pool = nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1)
                return nn.Sequential(stem, pool, nn.Flatten(), nn.Linear(8, num_classes))
            """
    },
    "docs/security.md": {
        "my_mixer.py": python_of("docs/mixers.md")[0],
        "mine.yaml": """\
            base: digits_visformer
            data: photos
            imports: [my_mixer.py]
            model: unified_pvt_micro
            model_args: {mixer: MeanMixer}
            """,
    },
}
ANIMALS = ("cat", "dog", "eel")


def write_material(root: Path) -> None:
    """Write everything below `root`: `common` for every page, and a folder for what pages understand differently."""
    common = root / "common"
    _class_folders(common / "photos", ANIMALS)
    _class_folders(common / "imagenet", wnids()[:3])
    write_digit_scenes(root / "scenes", train=TRAIN, val=VAL, size=96)
    _boxes(root / "scenes", common / "boxes")
    _masks(root / "scenes", common / "masks")
    images = sorted((root / "scenes" / "val").glob("*.jpg"))
    for name in ("new.jpg", "photo.jpg"):
        shutil.copy(images[0], common / name)
    (common / "folder").mkdir()
    shutil.copy(images[1], common / "folder")
    _video(common / "clip.mp4", images[:3])


def copy_for(page: str, material: Path, folder: Path, published: Path) -> None:
    """Copy what the lines of a page name into an empty folder, published weights among it."""
    shutil.copytree(material / "common", folder, dirs_exist_ok=True)
    of_page = {"docs/detection.md": "boxes", "docs/segmentation.md": "masks"}.get(page, "photos")
    shutil.copytree(folder / of_page, folder / "my_folder")
    for name, text in OWN_FILES.get(page, {}).items():
        (folder / name).write_text(dedent(text))
    for path in published.iterdir():
        (folder / path.name).symlink_to(path)


def _class_folders(root: Path, names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        for index in range(count):
            label = index % len(names)
            pixels = rng.integers(0, 120, (60, 80, 3), dtype=np.uint8)
            pixels[..., label] += 100
            path = root / split / names[label] / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def _boxes(scenes: Path, root: Path) -> None:
    shutil.copytree(scenes, root, ignore=shutil.ignore_patterns("masks"))


def _masks(scenes: Path, root: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(scenes / split, root / "images" / split)
    shutil.copytree(scenes / "masks", root / "masks")


def _video(path: Path, images: list[Path]) -> None:
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5.0, (96, 96))
    for image in images:
        with Image.open(image) as picture:
            writer.write(np.asarray(picture.convert("RGB"))[..., ::-1].copy())
    writer.release()
