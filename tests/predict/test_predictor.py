"""The laws of a predictor: alone as in a batch, and the same result for every form of an image."""

import pickle
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predict.networks import CLASSES, TASKS, predictor
from run.test_predict_dense import film

from fourstage.data.images import read_image
from fourstage.predict import ClassResult, LabelMapResult, ObjectResult, Result


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Images of three sizes; the last one is turned by its EXIF data."""
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    paths = []
    for name, size in (
        ("a.png", (70, 110, 3)),
        ("b.png", (90, 50, 3)),
        ("c.jpg", (70, 110, 3)),
        ("d.jpg", (60, 80, 3)),
    ):
        picture = Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8))
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(folder / name, exif=exif if name == "d.jpg" else b"")
        paths.append(folder / name)
    return paths


def assert_same(a: Result, b: Result) -> None:
    """Raise unless two results are of the same predictions, up to the rounding of batched matrix products."""
    assert type(a) is type(b)
    assert (a.size, a.class_names) == (b.size, b.class_names)
    if isinstance(a, LabelMapResult) and isinstance(b, LabelMapResult):
        assert (a.label_map != b.label_map).mean() < 1e-3  # pixels between two classes may round to either
        return
    np.testing.assert_array_equal(a.labels, b.labels)
    for name in ("scores", "boxes"):
        if hasattr(a, name):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-4)
    if isinstance(a, ObjectResult) and isinstance(b, ObjectResult) and a.masks is not None:
        assert b.masks is not None
        assert (a.masks != b.masks).mean() < 1e-3


@pytest.mark.parametrize("task", TASKS)
def test_results_go_to_other_processes(task: str, photos: list[Path]) -> None:
    network, image_HW3 = predictor(task, threshold=0.0), read_image(photos[0])
    several: Any = network(photos[:2])
    results: list[Any] = [network(photos[0]), network(image_HW3), *several]
    results += [network(torch.tensor(image_HW3).permute(2, 0, 1)), next(network.stream(iter([image_HW3])))]
    for result in results:
        sent = pickle.loads(pickle.dumps(result))
        assert_same(sent, result)
        np.testing.assert_array_equal(sent.image, result.image)
        np.testing.assert_array_equal(np.asarray(sent.picture()), np.asarray(result.picture()))


def test_a_drawing_below_a_file_gets_one_sentence(photos: list[Path]) -> None:
    result: Any = predictor(TASKS[0])(photos[0])
    with pytest.raises(OSError, match=r"a\.png cannot be created \(.*\); choose another folder"):
        result.save(photos[0] / "out.png")


@pytest.mark.parametrize("task", TASKS)
def test_an_image_alone_is_the_same_as_in_a_batch(task: str, photos: list[Path]) -> None:
    network = predictor(task, threshold=0.0)
    alone: list[Any] = [network(path) for path in photos]
    network.batch_size = 3
    together: Any = network(photos)
    assert [one.name for one in together] == [str(path) for path in photos]
    for a, b in zip(alone, together, strict=True):
        assert_same(a, b)
    counts = [len(one.labels) for one in alone]
    assert min(counts) > 0
    with pytest.raises(AssertionError):
        assert_same(alone[0], alone[2])  # the predictions depend on the image


@pytest.mark.parametrize("task", TASKS)
def test_every_form_of_an_image_gives_the_same_result(task: str, photos: list[Path]) -> None:
    network = predictor(task, threshold=0.0)
    path = photos[3]
    file: Any = network(path)
    array_HW3 = read_image(path, orient=network.task.orient)
    tensor_3HW = torch.from_numpy(array_HW3.copy()).permute(2, 0, 1)
    forms = [str(path), Image.open(path), array_HW3, tensor_3HW, tensor_3HW.float() / 255]
    for form in forms:
        one: Any = network(form)
        assert isinstance(one, Result)
        assert_same(one, file)
        np.testing.assert_array_equal(one.image, file.image)
    batch: Any = network(tensor_3HW[None].repeat(2, 1, 1, 1))
    assert len(batch) == 2
    assert_same(batch[1], file)


def test_folders_patterns_and_iterators(photos: list[Path]) -> None:
    network = predictor("classification")
    folder: Any = network(photos[0].parent)
    pattern: Any = network(str(photos[0].parent / "*.png"))
    assert [one.name for one in folder] == list(map(str, photos))
    assert [one.name for one in pattern] == list(map(str, photos[:2]))
    lazy: Any = network(path for path in [photos[0], Path("absent.png")])
    assert not isinstance(lazy, list)
    assert_same(next(lazy), folder[0])
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        next(lazy)
    assert [one.name for one in network.stream(photos[0].parent)] == list(map(str, photos))
    np.testing.assert_array_equal(folder[0].image, read_image(photos[0]))
    photos[0].unlink()
    with pytest.raises(ValueError, match="cannot be read"):  # results of several files read them again
        _ = folder[0].image


def test_the_frames_of_a_video_come_one_by_one(photos: list[Path], tmp_path: Path) -> None:
    network = predictor("detection", threshold=0.0)
    video = film(tmp_path / "a.mp4", frames=3)
    frames: Any = network(video)
    first = next(frames)
    assert (first.source.frame, first.source.seconds, first.name) == (0, 0.0, f"{video}#0")
    assert [one.source.frame for one in frames] == [1, 2]
    assert_same(network(first.image), first)  # pyright: ignore[reportArgumentType]
    for given in ([photos[0], video], str(tmp_path)):
        film(tmp_path / "a.mp4")
        with pytest.raises(ValueError, match=r"a\.mp4 is a video among images; give it alone"):
            network(given)


# ------------------------------------------------------------------------------------------------------------ addresses


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address(photos: list[Path]) -> Iterator[str]:
    """A server on this machine with the photos."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(photos[0].parent))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_at_an_address(address: str, photos: list[Path]) -> None:
    network = predictor("detection", threshold=0.0)
    assert_same(network(f"{address}/d.jpg"), network(photos[3]))  # pyright: ignore[reportArgumentType]
    mixed: Any = network([photos[0], f"{address}/a.png", Image.open(photos[0])])
    assert_same(mixed[1], mixed[0])
    assert_same(mixed[2], mixed[0])
    with pytest.raises(ValueError, match=r"absent\.jpg could not be fetched \(HTTP 404"):
        network(f"{address}/absent.jpg")
    (photos[0].parent / "page.jpg").write_text("<html>no image</html>")
    with pytest.raises(ValueError, match=r"page\.jpg cannot be read as an image"):
        network(f"{address}/page.jpg")


def test_a_server_that_does_not_answer_is_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"^http://127\.0\.0\.1:9/a\.jpg could not be fetched \(.*\); check the address"
    ):
        predictor("classification")("http://127.0.0.1:9/a.jpg")


# ------------------------------------------------------------------------------------------------ what users get wrong

ZEROS = np.zeros((8, 9, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ZEROS.transpose(2, 0, 1), r"shape \(3, 8, 9\).*transpose\(1, 2, 0\)"),
        (ZEROS[..., 0], r"shape \(8, 9\).*np\.repeat"),
        (np.zeros((8, 9, 4), np.uint8), r"leave the transparency out with image\[\.\.\., :3\]"),
        (ZEROS.astype(np.float32), r"type float32.*from 0 to 1: \(image \* 255\)"),
        (ZEROS.astype(np.int64), r"type int64.*image\.astype\(np\.uint8\)"),
        (ZEROS[None], r"list\(images\)"),
        (ZEROS[:0], "at least one pixel"),
        (torch.zeros(8, 9, 3), r"permute\(2, 0, 1\)"),
        (torch.zeros(1, 8, 9), "convert it to RGB"),
        (torch.randn(3, 8, 9) - 9, "before it is normalised"),
        (torch.zeros(3, 8, 9, dtype=torch.int64), r"image\.to\(torch\.uint8\)"),
        (3, "an object of type int is not an image"),
        ({"image": 1}, "an object of type dict is not an image"),
        ("absent.jpg", "there is no image or video absent.jpg"),
        ("", "a path is empty"),
        ("http://[bad/x.png", r"http://\[bad/x.png could not be fetched \(.*\); check the address"),
        ("absent/*.jpg", r"no file matches absent/\*\.jpg"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(given: Any, message: str) -> None:
    network = predictor("classification")
    for form in (given, [given]):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
            network(form)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_size": 0}, "batch_size"), ({"precision": "half"}, "choose float32, bfloat16, float16")],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predictor("classification", **options)


def test_thresholds_are_scores_of_detectors() -> None:
    with pytest.raises(ValueError, match=r"from 0 to 1; got 30"):
        predictor("detection", threshold=30)


@pytest.mark.parametrize("task", TASKS)
def test_half_precision_is_close(task: str, photos: list[Path]) -> None:
    full: Any = predictor(task, threshold=0.0)(photos[0])
    half: Any = predictor(task, threshold=0.0, precision="bfloat16")(photos[0])
    if isinstance(full, LabelMapResult):
        assert (full.label_map != half.label_map).mean() < 0.2
    else:
        assert 0 < abs(full.scores[0] - half.scores[0]) < 0.1


def test_class_names_and_text(photos: list[Path]) -> None:
    network = predictor("classification")
    result: Any = network(photos[0])
    assert isinstance(result, ClassResult)
    assert network.class_names == result.class_names == CLASSES
    assert result.names[0] == CLASSES[result.labels[0]]
    assert repr(result).startswith(f"ClassResult('{photos[0]}': {result.names[0]} ")
    assert "3 classes, cpu, float32" in repr(network)
