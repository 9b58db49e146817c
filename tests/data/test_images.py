import gc
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fourstage.data.images import as_picture, is_image_name, open_image, read_image
from fourstage.data.sample import BadImage

RED = np.full((6, 5, 3), (200, 30, 60), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "1", "CMYK", "YCbCr", "LAB", "RGB"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    Image.fromarray(RED).convert(mode if mode not in ("PA", "LAB") else "RGB").save(path)
    image_HW3 = read_image(path)
    assert image_HW3.shape == (6, 5, 3)
    assert image_HW3.dtype == np.uint8
    if mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        assert np.abs(image_HW3.astype(int) - RED).max() <= 2


def test_a_palette_with_transparency_warns_nobody(tmp_path: Path) -> None:
    Image.fromarray(RED).convert("P").save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert read_image(tmp_path / "a.png").shape == (6, 5, 3)


def test_transparent_pixels_keep_their_colour(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([RED, np.zeros((6, 5), np.uint8)])).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), RED)


@pytest.mark.parametrize("lends", [True, False])
def test_pixels_are_those_of_pil_whether_it_lends_them_or_not(
    lends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not lends:  # as Pillow before 11.2
        monkeypatch.delattr(Image.Image, "__arrow_c_array__")
    pixels = np.random.default_rng(0).integers(0, 255, (31, 47, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert found.shape == (31, 47, 3)
    assert not found.flags.writeable
    assert found.strides == ((47 * 4, 4, 1) if lends else (47 * 3, 3, 1))
    gc.collect()
    [read_image(tmp_path / "a.png") for _ in range(5)]  # would write over memory that was given back
    assert np.array_equal(found, pixels)
    assert np.array_equal(found[3:20, ::2], pixels[3:20, ::2])
    assert np.array_equal(np.asarray(as_picture(found)), pixels)
    assert np.array_equal(np.asarray(as_picture(found[3:20, ::2])), pixels[3:20, ::2])
    assert np.array_equal(pickle.loads(pickle.dumps(found)), pixels)
    assert np.array_equal(cv2.resize(found, (20, 30)), cv2.resize(pixels, (20, 30)))


def test_an_image_in_many_pieces_is_copied(tmp_path: Path) -> None:
    """PIL cuts the memory of large images into pieces of 16 MB, and lends none of them."""
    Image.new("RGB", (2600, 2000), (10, 20, 30)).save(tmp_path / "a.bmp")
    found = read_image(tmp_path / "a.bmp")
    assert found.shape == (2000, 2600, 3)
    assert (found == (10, 20, 30)).all()


def test_of_sixteen_bits_the_upper_eight_stay(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 1].tolist() == [0, 0, 1, 156, 255]


def test_exif_turns_an_image_only_where_it_is_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(RED).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (6, 5, 3)
    assert read_image(tmp_path / "a.jpg", orient=True).shape == (5, 6, 3)


def write_bad_files(folder: Path) -> dict[str, str]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    for name in ("short.jpg", "short.png"):
        noise.save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-900])
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "empty.png").touch()
    (folder / "folder.jpg").mkdir()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(folder / "float.tif")
    Image.new("1", (15000, 12000)).save(folder / "large.png")
    Image.new("1", (20000, 18000)).save(folder / "bomb.png")
    return {
        "short.jpg": "truncated", "short.png": "truncated", "text.jpg": "not recognise the image format",
        "empty.png": "not recognise the image format", "folder.jpg": "folder", "float.tif": "black to white",
        "large.png": "134,217,728", "bomb.png": "134,217,728", "missing.jpg": "no such file",
    }  # fmt: skip


def test_a_bad_file_is_named_with_the_reason(tmp_path: Path) -> None:
    for name, reason in write_bad_files(tmp_path).items():
        with pytest.raises(BadImage, match=reason) as caught:
            read_image(tmp_path / name)
        assert caught.value.path == str(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_large_image_is_no_reason_to_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (10000, 9000)).save(tmp_path / "large.png")  # PIL warns from 89 million pixels on
    with open_image(tmp_path / "large.png") as image:
        assert image.size == (10000, 9000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # what many programs do to be rid of the warning
    Image.new("1", (15000, 12000)).save(tmp_path / "larger.png")
    with pytest.raises(BadImage, match="15000 x 12000 pixels are more than"):
        open_image(tmp_path / "larger.png")


def test_names() -> None:
    assert all(map(is_image_name, ("a.jpg", "a.JPEG", "a.b.Png", "a.webp", "a.tif", "a.bmp")))
    assert not any(map(is_image_name, ("a.txt", "jpg", "._a.jpg", ".jpg", "a.jpg.zip", "Thumbs.db")))
