import gc
import pickle
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

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


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")


def with_chunk(path: Path, name: bytes, content: bytes) -> Path:
    """Put a chunk behind the header of a PNG."""
    data = path.read_bytes()
    path.write_bytes(data[:33] + chunk(name, content) + data[33:])
    return path


TWELVE = np.random.default_rng(0).integers(0, 4096, (40, 50, 3)).astype(np.uint16)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "raw.tif", "grey.png", "grey.tif", "alpha.png", "alpha.tif"])
def test_twelve_bits_in_a_file_of_sixteen_are_not_black(name: str, tmp_path: Path) -> None:
    values = TWELVE[..., 0] if "grey" in name else TWELVE
    if "alpha" in name:
        values = np.dstack([values, np.full((40, 50), 65535, np.uint16)])
    cv2.imwrite(str(tmp_path / name), values, [cv2.IMWRITE_TIFF_COMPRESSION, 1] if name == "raw.tif" else [])
    found = read_image(tmp_path / name)
    expected = np.dstack([values] * 3) if values.ndim == 2 else values[..., 2::-1]
    assert np.array_equal(found, expected >> 4)
    cv2.imwrite(str(tmp_path / name), values << 4)  # the same picture in all 16 bits
    assert np.array_equal(read_image(tmp_path / name), found)


def test_grey_of_twelve_bits_with_transparency(tmp_path: Path) -> None:
    values = np.dstack([TWELVE[..., 0], np.full((40, 50), 65535)]).astype(">u2")
    header = (50).to_bytes(4, "big") + (40).to_bytes(4, "big") + bytes([16, 4, 0, 0, 0])
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], TWELVE[..., 0] >> 4)


@pytest.mark.parametrize("grey", [True, False])
def test_a_file_that_states_its_bits_is_read_by_them(grey: bool, tmp_path: Path) -> None:
    values = TWELVE[..., 0] if grey else TWELVE
    shown = np.dstack([values] * 3) if grey else values[..., ::-1]
    for bits, shift in ((16, 8), (14, 6), (12, 4), (10, 8)):  # larger values than 10 bits: scaled to 16 by PNG's rule
        cv2.imwrite(str(tmp_path / "a.png"), values)
        with_chunk(tmp_path / "a.png", b"sBIT", bytes([bits] * (1 if grey else 3)))
        assert np.array_equal(read_image(tmp_path / "a.png"), shown >> shift), bits
    if grey:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[281] = 16383  # MaxSampleValue
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo=tags)
        assert np.array_equal(read_image(tmp_path / "a.tif"), shown >> 6)
        head, pixels = b"P5\n50 40\n4095\n", values.astype(">u2").tobytes()
        (tmp_path / "a.pgm").write_bytes(head + pixels)
        assert np.array_equal(read_image(tmp_path / "a.pgm"), shown >> 4)


def test_an_image_of_many_bits_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for values in (TWELVE, TWELVE[..., 0]):
        cv2.imwrite(str(tmp_path / "a.png"), values)
        plain = read_image(tmp_path / "a.png")
        with_chunk(tmp_path / "a.png", b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        assert np.array_equal(read_image(tmp_path / "a.png"), plain)
        assert np.array_equal(read_image(tmp_path / "a.png", orient=True), np.rot90(plain, -1))


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
    assert all(map(is_image_name, ("a.jpg", "a.JPEG", "a.b.Png", "a.webp", "a.tif", "a.bmp", "a.avif", "a.JP2")))
    assert not any(map(is_image_name, ("a.txt", "jpg", "._a.jpg", ".jpg", "a.jpg.zip", "Thumbs.db")))
