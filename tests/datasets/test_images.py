from __future__ import annotations

import errno
import os
import struct

import numpy as np
import pytest
from PIL import Image

from resdet.api.pictures import to_tensor
from resdet.datasets import images
from resdet.datasets.images import image_size_hw, read_image, read_reduced
from resdet.errors import InputError

# 2 x 3 pixels, all different: red, green, blue / white, black, grey
PIXELS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [0, 0, 0], [128, 128, 128]]], dtype=np.uint8
)


def save(path, image, **options):
    image.save(path, **options)
    return path


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_rgb_is_unchanged(tmp_path):
    image = read_image(save(tmp_path / "a.png", Image.fromarray(PIXELS)))
    np.testing.assert_array_equal(image, PIXELS)
    assert image.dtype == np.uint8 and image.flags.writeable and image.flags.c_contiguous


@pytest.mark.parametrize("mode", ["RGBA", "P", "CMYK"])
def test_other_colour_modes_keep_the_colours(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image)
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))
    assert np.abs(read_image(path).astype(int) - PIXELS).max() <= 60  # the 216-colour palette's steps of 51


def test_grey_one_bit_and_alpha(tmp_path):
    grey = np.array([[0, 100, 255]], dtype=np.uint8)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read_image(save(tmp_path / "l.png", Image.fromarray(grey))), expected)
    with_alpha = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(grey)])
    np.testing.assert_array_equal(read_image(save(tmp_path / "la.png", with_alpha)), expected)  # alpha dropped
    bits = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(read_image(save(tmp_path / "1.png", bits))[0, :, 0], [255, 0])


def test_transparent_palette(tmp_path):
    path = save(tmp_path / "p.png", Image.fromarray(PIXELS).convert("P"), transparency=b"\0\x80\xff")
    assert read_image(path).shape == (2, 3, 3)  # Pillow warns, hence fails here, unless it goes through RGBA


def test_cmyk_jpeg_is_not_negative(tmp_path):
    # Adobe writes CMYK JPEG inverted, as Pillow does; a reader that misses it turns red into cyan
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = read_image(save(tmp_path / "a.jpg", red, quality=95))
    np.testing.assert_allclose(image[8, 8].astype(int), [255, 0, 0], atol=6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey(tmp_path, suffix):
    values = np.array([[0, 255, 256, 257 * 100, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    np.testing.assert_array_equal(image[0, :, 1], [0, 0, 1, 100, 255])  # high byte; 257 * k is k


def test_16_bit_rgb_png(tmp_path):
    import cv2

    values = np.array([[[257 * 10, 257 * 200, 65535]]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), values[:, :, ::-1])  # OpenCV writes BGR
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[10, 200, 255]]])


def test_pixels_without_a_defined_range_are_refused(tmp_path):
    for value in (1.5, -0.1, float("nan")):
        path = save(tmp_path / "a.tif", Image.fromarray(np.array([[value]], dtype=np.float32)))
        with pytest.raises(InputError, match=r"a\.tif.*\n.*floating-point"):
            read_image(path)
    path = save(tmp_path / "b.tif", Image.fromarray(np.array([[70000]], dtype=np.int32)))
    with pytest.raises(InputError, match="70000"):
        read_image(path)


def test_deep_pixels_by_one_rule(tmp_path, caplog):
    # However they come: 16 bits by their high byte, fractions times 255.
    deep = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    path = save(tmp_path / "a.tif", Image.fromarray(deep))
    by_path, by_pillow = to_tensor(path), to_tensor(Image.fromarray(deep))
    by_array = to_tensor(np.repeat(deep[..., None], 3, axis=2))
    for picture in (by_path, by_pillow, by_array):
        assert picture[0].tolist() == [[0, 100, 255]]
    share = np.array([[0.0, 0.5, 1.0]], dtype=np.float32)
    path = save(tmp_path / "b.tif", Image.fromarray(share))
    for picture in (
        to_tensor(path),
        to_tensor(Image.fromarray(share)),
        to_tensor(np.repeat(share[..., None], 3, axis=2)),
    ):
        assert picture[0].tolist() == [[0, 128, 255]]
    assert not caplog.records
    path = save(tmp_path / "c.tif", Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)))  # 12 bits of 16
    assert read_image(path)[..., 0].tolist() == [[0, 15]]
    assert "c.tif: its brightest pixel is 4095 of 65535" in caplog.text


def test_too_many_pixels(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("RGB", (40, 30)))
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    for read in (read_image, image_size_hw):
        with pytest.raises(InputError, match=r"40 x 30 pixels, more than 1,199: set RESDET_MAX_PIXELS"):
            read(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 1200)
    assert read_image(path).shape == (30, 40, 3)


def test_too_many_open_files_are_no_fault_of_an_image(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", Image.new("RGB", (4, 3)))

    def none_left(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(images.Image, "open", none_left)
    for read in (read_image, image_size_hw):
        with pytest.raises(OSError, match="Too many open files"):
            read(path)


def test_a_jpeg_that_lacks_its_last_bytes(tmp_path, caplog):
    photo = np.random.default_rng(0).integers(0, 256, (160, 120, 3), dtype=np.uint8)
    path = save(tmp_path / "a.jpg", Image.fromarray(photo), quality=90)
    whole, content = read_image(path), path.read_bytes()
    path.write_bytes(content[:-20])
    mended = read_image(path)
    np.testing.assert_array_equal(mended[:140], whole[:140])  # all but the last row of blocks
    assert caplog.messages == [f"image {path}: its last bytes are missing, and no more than its last 16 rows"]
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=r"cut short: its last \d+ rows are missing"):
        read_image(path)


# Where row 0, column 0 of the displayed image is stored, for each orientation: EXIF 6 means "turn 90 degrees
# clockwise to display", so the stored bottom-left pixel comes to the top left.
@pytest.mark.parametrize(
    ("orientation", "corner"),
    [(1, (0, 0)), (2, (0, 2)), (3, (1, 2)), (4, (1, 0)), (5, (0, 0)), (6, (1, 0)), (7, (1, 2)), (8, (0, 2))],
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_exif_orientation(tmp_path, orientation, corner, suffix):
    big = PIXELS.repeat(16, axis=0).repeat(16, axis=1)  # blocks, so that JPEG keeps the colours
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(big), exif=exif(orientation), quality=95)
    image = read_image(path)
    assert image.shape[:2] == ((48, 32) if orientation >= 5 else (32, 48)) == image_size_hw(path)
    np.testing.assert_allclose(image[4, 4].astype(int), PIXELS[corner].astype(int), atol=12)
    if suffix != "tif":
        np.testing.assert_allclose(read_image(path, rotate=False)[4, 4].astype(int), PIXELS[0, 0].astype(int), atol=12)


def test_size_without_exif(tmp_path):
    for suffix in ("png", "jpg", "tif"):
        assert image_size_hw(save(tmp_path / f"a.{suffix}", Image.fromarray(PIXELS))) == (2, 3)


@pytest.mark.parametrize("read", [read_image, image_size_hw])
def test_missing_and_not_an_image(tmp_path, read):
    with pytest.raises(InputError, match=r"nothing\.jpg\n.*no such file"):
        read(tmp_path / "nothing.jpg")
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(InputError, match=r"text\.jpg\n.*does not decode \(12 bytes"):
        read(tmp_path / "text.jpg")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(InputError, match="0 bytes"):
        read(tmp_path / "empty.jpg")
    with pytest.raises(InputError, match="not a file"):
        read(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"a\.{suffix}\n.*does not decode"):
        read_image(path)


@pytest.mark.parametrize("entry", [struct.pack(">HHHIII", 1, 0x0112, 2, 3, 0x61620000, 0), None])
def test_damaged_exif_is_no_obstacle(tmp_path, entry):
    # an orientation that is the text "ab"; and a block that is not EXIF at all
    block = b"Exif\0\0garbage" if entry is None else b"Exif\0\0MM\0*" + struct.pack(">I", 8) + entry
    path = save(tmp_path / "a.jpg", Image.fromarray(PIXELS), exif=block)
    assert read_image(path).shape == (2, 3, 3) and image_size_hw(path) == (2, 3)


def photograph(hw, *, mode="RGB"):
    """A smooth picture: reduced, it looks the same."""
    y, x = np.mgrid[0 : hw[0], 0 : hw[1]]
    pixels = np.stack([255 * y / hw[0], 255 * x / hw[1], 128 + 0 * x], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_decoded_as_pillow_does(tmp_path, mode, options):
    path = save(tmp_path / "a.jpg", photograph((37, 53), mode=mode), **options)
    image = read_image(path)
    np.testing.assert_array_equal(image, np.asarray(Image.open(path).convert("RGB")))
    assert image.flags.writeable and image.flags.c_contiguous


def test_bytes_after_the_end_of_a_jpeg_do_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", photograph((37, 53)))
    expected = read_image(path)
    path.write_bytes(path.read_bytes() + b"more")
    np.testing.assert_array_equal(read_image(path), expected)


def test_reduced(tmp_path):
    path = save(tmp_path / "a.jpg", photograph((100, 203)), quality=95)
    # At 1/2, 1/4, 1/8: 50 x 102, 25 x 51, 13 x 26. Pillow takes the whole sides' quotient, rounded down.
    for least, hw in (
        (51, (100, 203)),
        (50, (50, 102)),
        (26, (50, 102)),
        (25, (25, 51)),
        (12, (13, 26)),
        (1, (13, 26)),
    ):
        image, whole = read_reduced(path, least)
        assert image.shape == (*hw, 3) and whole == (100, 203)
        np.testing.assert_allclose(image[hw[0] // 2, hw[1] // 2].astype(int), [127, 127, 128], atol=12)
    np.testing.assert_array_equal(read_reduced(path, None)[0], read_image(path))
    image, whole = read_reduced(save(tmp_path / "a.png", photograph((100, 203))), 1)
    assert image.shape == (100, 203, 3) and whole == (100, 203)


def test_reduced_and_turned(tmp_path):
    path = save(tmp_path / "a.jpg", photograph((100, 203)), quality=95, exif=exif(6))
    image, whole = read_reduced(path, 40)
    assert image.shape == (102, 50, 3) and whole == (203, 100)
    image, whole = read_reduced(path, 40, rotate=False)
    assert image.shape == (50, 102, 3) and whole == (100, 203)


def test_only_raster_formats_are_opened(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(InputError, match=r"photo\.jpg"):
        read_image(path)
    with pytest.raises(InputError, match=r"photo\.jpg"):
        image_size_hw(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for read in (read_image, image_size_hw):
        with pytest.raises(InputError, match="a pipe"):
            read(tmp_path / "pipe.png")
