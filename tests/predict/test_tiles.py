"""Large images in tiles: whatever the borders cut, the objects of the complete image come out."""

from functools import partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from predict.networks import MEAN, STD, predictor
from scipy import ndimage
from tasks.detection.scenes import small, with_detections
from torch import Tensor, nn

import fourstage
from fourstage.data.sample import Batch, Sample, collate
from fourstage.data.transforms import detection
from fourstage.data.transforms.segmentation import evaluation_transform
from fourstage.predict import memory, tasks
from fourstage.predict.predictor import Predictor
from fourstage.predict.results import ObjectResult
from fourstage.predict.tasks import ImageDetector, Tiling, image_predictor
from fourstage.predict.tiles import Grid
from fourstage.tasks.detection.detector import Detections
from fourstage.tasks.detection.masks import SmallMasks
from fourstage.tasks.detection.task import Detection
from fourstage.tasks.segmentation.protocol import Protocol
from fourstage.tasks.segmentation.task import Segmentation

CLASSES = tuple("abc")


class Exact(nn.Module):
    """Finds what is drawn, exactly: the first two bytes of a colour are the number of an object, the third its class.

    `detect` gets images of bytes, and returns the box of the visible pixels of each object.
    """

    num_classes = len(CLASSES)

    def __init__(self, *, masks: bool = False) -> None:
        super().__init__()
        self.nothing, self.masks = nn.Parameter(torch.zeros(1)), masks
        self.images = 0

    def detect(self, batch: Batch) -> list[Detections]:
        self.images += len(batch)
        return [self._found(image_3HW.numpy()) for image_3HW in batch.images_BCHW]

    def _found(self, image_3HW: np.ndarray) -> Detections:
        boxes, numbers = seen(image_3HW)
        labels = [int(image_3HW[2][numbers_at]) - 1 for numbers_at in places(image_3HW, numbers)]
        boxes_N4 = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        scores_N = 0.5 + torch.tensor(numbers, dtype=torch.float32) / 10_000
        masks = SmallMasks(torch.ones(len(boxes), 4, 4), boxes_N4, image_3HW.shape[1:]) if self.masks else None
        return Detections(boxes_N4, torch.tensor(labels, dtype=torch.int64), scores_N, masks)


def ids(image_3HW: np.ndarray) -> np.ndarray:
    return image_3HW[0].astype(np.int32) + 256 * image_3HW[1].astype(np.int32)


def seen(image_3HW: np.ndarray) -> tuple[list[list[int]], list[int]]:
    """The boxes of the visible pixels of the objects in an image, and their numbers."""
    slices = ndimage.find_objects(ids(image_3HW))
    found = [(number, place) for number, place in enumerate(slices, 1) if place is not None]
    boxes = [[x.start, y.start, x.stop, y.stop] for _, (y, x) in found]
    return boxes, [number for number, _ in found]


def places(image_3HW: np.ndarray, numbers: list[int]) -> list[Any]:
    """One pixel of each object."""
    ids_HW = ids(image_3HW)
    flat, first = np.unique(ids_HW, return_index=True)
    where = dict(zip(flat.tolist(), first.tolist(), strict=True))
    return [np.unravel_index(where[number], ids_HW.shape) for number in numbers]


def scene(size: tuple[int, int], boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """An image (H, W, 3) of rectangles x1 y1 x2 y2, those of higher numbers on top; the classes take turns."""
    image_HW3 = np.zeros((*size, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes, 1):
        image_HW3[y1:y2, x1:x2] = (number % 256, number // 256, number % 3 + 1)
    return image_HW3


def as_it_is(sample: Sample) -> Sample:
    return Sample(sample.id, torch.from_numpy(np.asarray(sample.image).transpose(2, 0, 1).copy()), sample.original_size)


def tiled(tile: int, overlap: float, *, masks: bool = False) -> Predictor:
    task = Detection(cast(Any, Exact(masks=masks)), CLASSES)
    return Predictor(ImageDetector(task, as_it_is, 0.1, Tiling(tile, overlap)))


def found_in(network: Predictor, image_HW3: np.ndarray) -> ObjectResult:
    result = network(image_HW3)
    assert isinstance(result, ObjectResult)
    return result


def as_set(boxes: Any, labels: Any) -> set[tuple[int, ...]]:
    return {(int(label), *map(int, box)) for box, label in zip(np.asarray(boxes).tolist(), labels, strict=True)}


def truth_of(image_HW3: np.ndarray) -> set[tuple[int, ...]]:
    boxes, numbers = seen(image_HW3.transpose(2, 0, 1))
    return as_set(boxes, [number % 3 for number in numbers])


@pytest.mark.parametrize("overlap", [0.2, 0.0])
def test_two_thousand_small_objects_of_a_large_scene(overlap: float) -> None:
    """At most one in a hundred is lost at the borders, and as few are found that are none."""
    rng = np.random.default_rng(0)
    size, count = (6000, 8000), 2000
    sides, corners = rng.integers(8, 60, (count, 2)), rng.integers(0, (7940, 5940), (count, 2))
    image_HW3 = scene(size, [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sides, strict=True)])
    network = tiled(640, overlap)
    result = found_in(network, image_HW3)
    truth, found = truth_of(image_HW3), as_set(result.boxes, result.labels)
    assert len(truth) > 1950
    assert len(truth - found) <= 0.01 * len(truth)
    assert len(found - truth) <= 0.01 * len(truth)
    assert (np.diff(result.scores) <= 0).all()
    cut = sum(any(b[1] < edge < b[3] for edge in Grid.of(size, 640, overlap).lefts[1:]) for b in truth)
    assert cut > 50  # the borders do cut objects


def test_objects_larger_than_a_tile_are_joined() -> None:
    image_HW3 = scene((700, 900), [(50, 60, 650, 560), (700, 20, 730, 690), (660, 600, 690, 640)])
    for overlap in (0.0, 0.1, 0.5):
        result = found_in(tiled(128, overlap), image_HW3)
        assert as_set(result.boxes, result.labels) == truth_of(image_HW3)


def test_neighbours_of_one_class_stay_apart() -> None:
    """Rows of equal objects, side by side, of which the borders cut many."""
    boxes = [(x, y, x + 20, y + 20) for y in range(0, 380, 24) for x in range(0, 380, 24)]
    image_HW3 = scene((400, 400), boxes)
    image_HW3[..., 2][image_HW3[..., 2] > 0] = 1
    truth = {(0, *box) for box in boxes}
    for overlap in (0.0, 0.2, 0.45):
        result = found_in(tiled(100, overlap), image_HW3)
        assert as_set(result.boxes, result.labels) == truth


@given(
    boxes=st.lists(st.tuples(*[st.integers(0, 260)] * 2, *[st.integers(6, 90)] * 2), min_size=1, max_size=6),
    overlap=st.sampled_from([0.2, 0.35, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_objects_that_lie_apart_come_out_exactly(boxes: list[tuple[int, int, int, int]], overlap: float) -> None:
    image_HW3, kept = np.zeros((360, 360, 3), np.uint8), 0
    for x, y, w, h in boxes:
        around = image_HW3[max(0, y - 8) : y + h + 8, max(0, x - 8) : x + w + 8]
        if not around.any():
            kept += 1
            image_HW3[y : y + h, x : x + w] = (kept, 0, kept % 3 + 1)
    result = found_in(tiled(120, overlap), image_HW3)
    assert as_set(result.boxes, result.labels) == truth_of(image_HW3)


def test_masks_of_cut_objects_are_joined() -> None:
    image_HW3 = scene((300, 300), [(20, 30, 260, 80), (100, 150, 130, 200), (190, 150, 215, 290)])
    result = found_in(tiled(100, 0.2, masks=True), image_HW3)
    assert result.masks is not None
    for box, mask_HW in zip(result.boxes.astype(int), result.masks, strict=True):
        x1, y1, x2, y2 = box
        expected_HW = np.zeros((300, 300), bool)
        expected_HW[y1:y2, x1:x2] = True
        assert (mask_HW != expected_HW).mean() < 0.001
    assert as_set(result.boxes, result.labels) == truth_of(image_HW3)


def test_a_piece_that_no_other_tile_agrees_with_is_left_out() -> None:
    """A detector that finds the piece of an object at the border as an object of its own, smaller than it is."""

    class Doubtful(Exact):
        def _found(self, image_3HW: np.ndarray) -> Detections:
            found = super()._found(image_3HW)
            boxes_N4 = found.boxes_N4.clone()
            cut_N = (boxes_N4[:, 2] == image_3HW.shape[2]) & (boxes_N4[:, 2] - boxes_N4[:, 0] < 30)
            boxes_N4[cut_N, 1] += 0.6 * (boxes_N4[cut_N, 3] - boxes_N4[cut_N, 1])
            return Detections(boxes_N4, found.labels_N, found.scores_N)

    image_HW3 = scene((100, 180), [(85, 20, 140, 80)])
    task = Detection(cast(Any, Doubtful()), CLASSES)
    result = found_in(Predictor(ImageDetector(task, as_it_is, 0.1, Tiling(100, 0.2))), image_HW3)
    assert as_set(result.boxes, result.labels) == truth_of(image_HW3)


@given(length=st.integers(1, 5000), side=st.integers(64, 700), overlap=st.floats(0, 0.9))
def test_tiles_cover_an_image_and_overlap(length: int, side: int, overlap: float) -> None:
    grid = Grid.of((length, 10), side, overlap)
    assert grid.tops[0] == 0
    assert grid.lefts == (0,)
    assert grid.tops[-1] == max(0, length - side)
    assert all(side - (b - a) >= np.floor(side * overlap) for a, b in pairwise(grid.tops))
    assert len(grid.boxes) == len(grid.tops)


def test_a_small_image_is_one_tile_and_tiles_come_in_batches() -> None:
    network = tiled(640, 0.2)
    exact: Any = network.network
    found_in(network, scene((200, 300), [(5, 5, 20, 20)]))
    assert exact.images == 1
    steps: list[tuple[int, int]] = []
    network.task.progress = lambda done, total: steps.append((done, total))
    empty = found_in(network, scene((640, 1500), []))
    assert len(empty.labels) == 0
    assert steps == [(3, 3)]


def test_a_real_detector_finds_in_a_tile_what_it_finds_in_the_image() -> None:
    """Without a border inside, tiles change nothing."""
    image_HW3 = np.random.default_rng(0).integers(0, 255, (80, 110, 3), dtype=np.uint8)
    whole = predictor("masks", threshold=0.0)
    task: Any = whole.task
    parts = Predictor(ImageDetector(task.task, task.transform, 0.0, Tiling(128)))
    a, b = found_in(whole, image_HW3), found_in(parts, image_HW3)
    assert len(a.labels) > 0
    np.testing.assert_array_equal(a.boxes, b.boxes)
    assert a.run_lengths == b.run_lengths


def test_windows_of_a_segmentor() -> None:
    image_HW3 = np.random.default_rng(0).integers(0, 255, (150, 230, 3), dtype=np.uint8)
    whole: Any = predictor("segmentation").task
    task: Segmentation = whole.task
    windows = image_predictor(task, evaluation_transform(), tiling=Tiling(96, 0.25))
    steps: list[float] = []
    windows.progress = lambda done, total: steps.append(done / total)
    result: Any = Predictor(windows)(image_HW3)
    protocol = Protocol(None, window=(96, 96), stride=(72, 72))
    pixels_3HW: Tensor = torch.from_numpy(image_HW3.transpose(2, 0, 1).copy())
    batch = Batch(("a",), pixels_3HW[None], ((150, 230),), ((150, 230),))
    np.testing.assert_array_equal(result.label_map, task.label_maps(batch, protocol)["a"].numpy())
    assert steps[-1] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 10}, "a whole number from 64 on; got 10"),
        ({"tile": 64.5}, "got 64.5"),
        ({"tile": 640, "overlap": 1.0}, "from 0 to 0.9; got 1.0"),
        ({"overlap": 0.3}, "no tile size was given; add tile=640"),
    ],
)
def test_impossible_tiles_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fourstage.load("visformer_digits", weights="absent.pth", **options)


def test_a_classifier_has_no_tiles() -> None:
    classifier: Any = predictor("classification").task
    with pytest.raises(ValueError, match="a classifier reads the complete image"):
        image_predictor(classifier.task, classifier.transform, tiling=Tiling(640))


# -------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("task", ["detection", "masks", "segmentation"])
def test_an_image_that_no_memory_holds_is_refused_before_the_network_runs(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = predictor(task)
    predicts: Any = network.task
    if task == "segmentation":
        predicts.protocol = Protocol(None)
    else:
        predicts.transform = partial(detection.evaluation_transform, (800, 600), mean=MEAN, std=STD)()
    image_HW3 = np.zeros((600, 800, 3), np.uint8)
    monkeypatch.setattr(memory, "free_memory", lambda: 10**6)
    monkeypatch.setattr(tasks, "LARGE", 2**16)
    message = r"^image 1 has 480,000 pixels .* about .* MB of memory, and 1\.0 MB are free; add tile=640"
    with pytest.raises(ValueError, match=message):
        network(image_HW3)
    small: Any = network(image_HW3[:64, :64]) if task == "segmentation" else None
    assert small is None or small.size == (64, 64)


def test_the_estimate_is_of_all_tensors_that_are_alive() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(inplace=True), nn.Conv2d(64, 32, 4, stride=4))

    def run() -> None:
        image_BCHW = torch.zeros(1, 3, memory.PROBE, memory.PROBE)
        for layer in layers:
            image_BCHW = layer(image_BCHW)
        image_BCHW.view(-1).clone()

    assert memory.bytes_per_pixel(run) == 4 * (3 + 64)  # the image and the first map; the rest is smaller
    assert memory.bytes_per_pixel(lambda: [torch.zeros(memory.PROBE**2) for _ in range(5)]) == 20


def test_regions_whose_number_is_limited_do_not_grow_with_the_image() -> None:
    torch.manual_seed(0)
    detector = with_detections(small("mask_rcnn"))

    def run(side: int) -> None:
        detector.detect(collate([Sample("x", torch.zeros(3, side, side), (side, side))]))

    estimate = memory.bytes_per_pixel(lambda: run(memory.PROBE)) * 2048**2
    with torch.no_grad(), memory._LiveBytes() as live:
        run(2048)
    assert 0.8 < estimate / live.most < 1.5


def test_free_memory_is_known_here() -> None:
    assert memory.free_memory() is None or memory.free_memory() > 2**20  # pyright: ignore[reportOptionalOperand]
