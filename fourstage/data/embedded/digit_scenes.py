"""Digit scenes: real digit scans on crops of real photographs, with exact boxes, masks and label maps.

For detection and segmentation without a data set. H x W pixels, N digits.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fourstage.data.embedded.digits import CLASSES, scans
from fourstage.data.sample import IGNORE
from fourstage.extras import install
from fourstage.files import OTHER_CACHE, cache_folder

VERSION = 1  # raised when the same seed gives other scenes
PHOTOGRAPHS: dict[str, tuple[str, ...]] = {  # those of scikit-image by their function, of scikit-learn by their file
    "train": ("astronaut", "brick", "camera", "chelsea", "coffee", "grass", "gravel", "rocket", "stereo_motorcycle"),
    "val": ("china.jpg", "flower.jpg", "moon"),
}
MOST = 6  # digits in a scene
SIZES = (0.13, 0.44)  # height of a digit, in units of the scene
TURN = 15.0  # degrees, to either side
VISIBLE = 0.8  # a digit is placed only where this share of every other digit stays visible
CONTRAST = 70.0  # least distance of the ink from the mean of what it covers, in grey levels
TRIES = 20  # places for one digit before the scene goes without it
CACHED = {"train": 2000, "val": 400, "size": 128, "seed": 0}  # what `--data digit_scenes` means
BACKGROUND = (38, 38, 46)  # colour of "no digit" in the palette of the label maps
COLOURS = (  # of the digits 0 to 9, told apart also by colour-blind eyes as far as ten colours can be
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178),
    (213, 94, 0), (204, 121, 167), (153, 153, 153), (153, 79, 0), (120, 94, 240),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One picture and its ground truth. Digits that were placed later cover earlier ones."""

    image_HW3: np.ndarray  # uint8
    masks_NHW: np.ndarray  # bool: what is visible of each digit; no pixel belongs to two
    labels_N: np.ndarray  # int64, the digits

    def boxes(self) -> np.ndarray:
        """(N, 4) int64 x1 y1 x2 y2, x2 and y2 exclusive: the tight box of each mask."""
        boxes = [_tight_box(mask_HW) for mask_HW in self.masks_NHW]
        return np.array(boxes, dtype=np.int64).reshape(-1, 4)

    def label_map(self) -> np.ndarray:
        """(H, W) uint8: 0 where no digit is, else the digit plus 1."""
        map_HW = np.zeros(self.image_HW3.shape[:2], dtype=np.uint8)
        for mask_HW, label in zip(self.masks_NHW, self.labels_N, strict=True):
            map_HW[mask_HW] = label + 1
        return map_HW


class SceneGenerator:
    """The scenes of one split: scene i is a function of (split, seed, size, i) alone.

    The training split draws from the training digits and nine photographs, the validation split from the validation
    digits and three other photographs. A scene has 1 to 6 digits, 13 % to 44 % of its side high, turned by up to 15
    degrees, in one colour each that stands out from what it covers. A digit is completely inside its scene, and at
    least 80 % of it is visible.
    """

    def __init__(self, split: Literal["train", "val"], size: int = 128, seed: int = 0) -> None:
        self._scans_N88, self._labels_N, _ = scans(split)
        self._photographs = [_photograph(name) for name in PHOTOGRAPHS[split]]
        self._key, self._size = (seed, ("train", "val").index(split)), size

    def scene(self, index: int) -> Scene:
        rng = np.random.default_rng((*self._key, index))
        canvas_HW3 = self._background(rng)
        masks: list[np.ndarray] = []  # of the complete digits
        labels: list[int] = []
        for _ in range(int(rng.integers(1, MOST + 1))):
            choice = int(rng.integers(len(self._scans_N88)))
            alpha_hw = _drawn(self._scans_N88[choice], self._size * rng.uniform(*SIZES), rng.uniform(-TURN, TURN))
            if self._place(canvas_HW3, masks, alpha_hw, rng):
                labels.append(int(self._labels_N[choice]))
        image_HW3 = np.rint(canvas_HW3).clip(0, 255).astype(np.uint8)
        return Scene(image_HW3, _visible(masks), np.array(labels, dtype=np.int64))

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """A crop of a photograph, at most enlarged a little, mirrored and relit at random; float."""
        from PIL import Image

        photo = self._photographs[int(rng.integers(len(self._photographs)))]
        shortest = min(photo.size)
        side = rng.uniform(min(0.8 * self._size, shortest), shortest)
        left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
        box = (left, top, left + side, top + side)
        crop = photo.resize((self._size, self._size), Image.Resampling.BICUBIC, box=box)
        crop_HW3 = np.asarray(crop)[:, :: rng.choice((-1, 1))].astype(np.float64)
        return (crop_HW3 - 128) * rng.uniform(0.6, 1.0) + 128 + rng.uniform(-30, 30)

    def _place(
        self, canvas_HW3: np.ndarray, masks: list[np.ndarray], alpha_hw: np.ndarray, rng: np.random.Generator
    ) -> bool:
        """Draw one digit onto `canvas_HW3` and add its mask to `masks`, unless no place leaves the others visible."""
        height, width = alpha_hw.shape
        for _ in range(TRIES):
            top, left = (int(rng.integers(self._size - side + 1)) for side in (height, width))
            region = (slice(top, top + height), slice(left, left + width))
            mask_HW = np.zeros(canvas_HW3.shape[:2], dtype=bool)
            mask_HW[region] = alpha_hw >= 0.5
            if _leaves_visible([*masks, mask_HW]):
                ink = _ink(canvas_HW3[mask_HW].mean(axis=0), rng)
                canvas_HW3[region] += alpha_hw[:, :, None] * (ink - canvas_HW3[region])
                masks.append(mask_HW)
                return True
        return False


def _photograph(name: str) -> Any:
    """A photograph that scikit-image or scikit-learn ships, as an RGB PIL image."""
    from PIL import Image

    try:
        if name.endswith(".jpg"):
            from sklearn.datasets import load_sample_image

            pixels = load_sample_image(name)
        else:
            from skimage import data

            pixels = getattr(data, name)()
    except ImportError as error:
        raise ValueError(f"the photographs come with scikit-image and scikit-learn: {install('demo')}") from error
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # a stereo pair: one photograph is enough
    return Image.fromarray(np.asarray(pixels)).convert("RGB")


def _drawn(scan_88: np.ndarray, height: float, degrees: float) -> np.ndarray:
    """The opacity of a digit, cut to what is at least half opaque; about `height` pixels high when upright.

    Enlarging a scan of 8 x 8 pixels blurs it. Raising the contrast with the size keeps the edge two pixels wide or so.
    """
    from PIL import Image

    framed = Image.fromarray(np.pad(scan_88, 2))  # so that turning and smoothing cut nothing off
    side = max(12, round(height * 12 / 8))
    large = framed.resize((side, side), Image.Resampling.BICUBIC)
    turned_hw = np.asarray(large.rotate(degrees, Image.Resampling.BICUBIC)).astype(np.float64) / 255
    alpha_hw = (0.5 + (turned_hw - 0.52) * max(2.0, height / 9)).clip(0, 1)
    x1, y1, x2, y2 = _tight_box(alpha_hw >= 0.5)
    return alpha_hw[y1:y2, x1:x2]


def _ink(under_3: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour whose brightness is at least `CONTRAST` away from the mean colour that it will cover."""
    grey = np.array([0.299, 0.587, 0.114])
    while True:
        ink_3 = rng.uniform(0, 255, size=3)
        if abs(float((ink_3 - under_3) @ grey)) >= CONTRAST:
            return ink_3


def _visible(masks: list[np.ndarray]) -> np.ndarray:
    """Return what later masks leave of each mask."""
    visible = np.array(masks)
    for earlier in range(len(masks)):
        for later in masks[earlier + 1 :]:
            visible[earlier] &= ~later
    return visible


def _leaves_visible(masks: list[np.ndarray]) -> bool:
    visible, complete = (np.count_nonzero(m, axis=(1, 2)) for m in (_visible(masks), np.array(masks)))
    return bool((visible >= VISIBLE * complete).all())


def _tight_box(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def write_digit_scenes(
    folder: str | Path,
    *,
    train: int = 2000,
    val: int = 400,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    otherwise: str = "free space, or name another folder",
) -> Path:
    """Write a data set of digit scenes as a folder in COCO layout. After an error there is no folder.

    ```
    train/000000.jpg  val/000000.jpg           scenes
    annotations/instances_{train,val}.json     boxes and RLE masks; the categories 1 to 10 are the digits 0 to 9
    masks/{train,val}/000000.png               label maps with a palette: 0 no digit, 1 to 10 the digits 0 to 9
    masks/classes.txt                          names of the labels in the label maps, one a line
    ```

    Args:
        train, val: number of scenes.
        size: height and width of a scene, pixels.
        progress: called with (scenes done, scenes in all).
        otherwise: what to do where the folder cannot be written, for the message.

    Raises:
        ValueError: the folder exists, cannot be written, or a library is missing.
    """
    folder = Path(folder)
    if min(train, val) < 1 or size < 32:
        raise ValueError(
            f"train={train}, val={val}, size={size}: at least one scene each, of 32 pixels or more, is needed"
        )
    if folder.exists():
        raise ValueError(f"{folder} is there already: name another folder, or delete it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as unfinished:
            new = Path(unfinished) / folder.name
            _write_splits(new, {"train": train, "val": val}, size, seed, progress or (lambda done, total: None))
            new.rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"digit scenes cannot be written to {folder} ({reason}); {otherwise}") from error
    return folder


def cached_digit_scenes(progress: Callable[[int, int], None] | None = None) -> Path:
    """The folder that `--data digit_scenes` means; written on first use to `$XDG_CACHE_HOME/fourstage`."""
    name = "-".join(["digit_scenes", f"v{VERSION}", *(f"{name}{value}" for name, value in CACHED.items())])
    folder = cache_folder() / name
    if not folder.is_dir():
        try:
            write_digit_scenes(folder, **CACHED, progress=progress, otherwise=OTHER_CACHE)
        except ValueError:
            if not folder.is_dir():  # else another process was faster; its scenes are the same
                raise
    return folder


def _write_splits(
    root: Path, counts: dict[Literal["train", "val"], int], size: int, seed: int, progress: Callable[[int, int], None]
) -> None:
    (root / "annotations").mkdir(parents=True)
    done = 0
    for split, count in counts.items():
        generator = SceneGenerator(split, size, seed)
        images, annotations = [], []
        for name in (root / split, root / "masks" / split):
            name.mkdir(parents=True)
        for index in range(count):
            scene = generator.scene(index)
            _write_pictures(root, split, f"{index:06d}", scene)
            images.append({"id": index + 1, "file_name": f"{index:06d}.jpg", "width": size, "height": size})
            annotations += _annotations(scene, image_id=index + 1, first_id=len(annotations) + 1)
            done += 1
            progress(done, sum(counts.values()))
        content = {
            "info": {"description": f"fourstage digit scenes, version {VERSION}, seed {seed}"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": digit + 1, "name": name} for digit, name in enumerate(CLASSES)],
        }
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (root / "masks" / "classes.txt").write_text("\n".join(("background", *CLASSES)) + "\n")


def _write_pictures(root: Path, split: str, name: str, scene: Scene) -> None:
    from PIL import Image

    # No chroma subsampling: it would smear the colour of thin strokes over their edges.
    Image.fromarray(scene.image_HW3).save(root / split / f"{name}.jpg", quality=95, subsampling=0)
    label_map = Image.fromarray(scene.label_map()).convert("P")
    colours = [*BACKGROUND, *(value for colour in COLOURS for value in colour)]
    label_map.putpalette(colours + [0] * (3 * IGNORE - len(colours)) + [255, 255, 255])
    label_map.save(root / "masks" / split / f"{name}.png")


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """Return one image's objects in COCO's form."""
    from fourstage.data.objects.rle import encode_mask

    return [
        {
            "id": first_id + i,
            "image_id": image_id,
            "category_id": int(scene.labels_N[i]) + 1,
            "bbox": [int(x1), int(y1), int(x2 - x1), int(y2 - y1)],
            "area": int(np.count_nonzero(scene.masks_NHW[i])),
            "iscrowd": 0,
            "segmentation": encode_mask(scene.masks_NHW[i]),
        }
        for i, (x1, y1, x2, y2) in enumerate(scene.boxes())
    ]
