import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from resdet.datasets import images
from resdet.datasets.cut_short import END, jpeg_rows_lost, png_rows_lost
from resdet.datasets.images import is_cut, read_image, read_reduced
from resdet.errors import InputError


@pytest.fixture(autouse=True)
def forget():
    images._tell_cut.cache_clear()


def photo(h=128, w=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def jpeg(pixels, **how):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", **{"quality": 90, "subsampling": 0, **how})
    return file.getvalue()


def png(pixels, rows, interlaced=0):
    """A PNG of ``pixels`` that is closed after some rows."""
    raw = b"".join(b"\0" + row.tobytes() for row in pixels[:rows])
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *pixels.shape[1::-1], 8, 2, 0, 0, interlaced))]
    parts += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    blocks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(blocks)


def test_rows_of_a_png():
    pixels = photo(100, 30)
    for rows in (0, 1, 40, 99, 100):
        assert png_rows_lost(png(pixels, rows)) == 100 - rows


def test_rows_of_an_interlaced_png():
    # 3 x 5 pixels (columns x rows) in Adam7's passes: 1x1, none, 1x1, 1x2, 2x1, 1x3, 3x2.
    # With a byte of filter a row and 3 bytes a pixel: 4 + 4 + 8 + 7 + 12 + 20 = 55 bytes.
    for given, lost in ((54, 5), (55, 0), (56, 0)):
        parts = png(np.zeros((given, 0, 3), np.uint8), given, interlaced=1)  # so many bytes of rows
        content = parts[:16] + struct.pack(">II", 3, 5) + parts[24:]
        assert png_rows_lost(content) == lost


@pytest.mark.parametrize("how", [{}, {"restart_marker_rows": 1}, {"subsampling": 2}, {"progressive": True}])
def test_sound_jpegs_lack_nothing(how):
    for pixels in (photo(), np.full((40, 40, 3), 128, np.uint8), np.vstack([photo(40), np.full((60, 96, 3), 128)])):
        assert jpeg_rows_lost(jpeg(pixels.astype(np.uint8), **how)) == 0


def test_rows_of_a_jpeg():
    pixels = photo()
    content = jpeg(pixels)
    head = len(jpeg(pixels[:1]))  # nearly: the tables, and one row of blocks of the sixteen
    half = content[: (head + len(content)) // 2] + END
    whole, there = (np.asarray(Image.open(io.BytesIO(each))) for each in (content, half))
    lost = jpeg_rows_lost(half)
    assert 48 <= lost <= 72  # of 128, in rows of blocks
    assert (there[-lost:] == 128).all() and not (there[-lost - 1] == 128).all()
    np.testing.assert_array_equal(there[: 128 - lost - 8], whole[: 128 - lost - 8])
    assert jpeg_rows_lost(content[:-60] + END) <= 8


def test_a_thumbnail_has_an_end_of_its_own():
    content, inside = jpeg(photo()), jpeg(photo(8, 8))
    grown = content[:2] + b"\xff\xe3" + struct.pack(">H", 2 + len(inside)) + inside + content[2:]
    assert jpeg_rows_lost(grown) == 0
    assert jpeg_rows_lost(grown[: len(grown) * 2 // 3] + END) > 16


def test_closed_files_that_lack_rows_are_refused(tmp_path):
    content = jpeg(photo())
    files = {"a.jpg": content[: len(content) // 2] + END, "b.jpg": content[: len(content) // 2]}
    files |= {"c.png": png(photo(), 40), "d.png": png(photo(), 127)}
    for name, kept in files.items():
        (tmp_path / name).write_bytes(kept)
        for read in (read_image, is_cut, lambda path: read_reduced(path, 16), lambda p: read_image(p, rotate=False)):
            with pytest.raises(InputError, match=r"cut short: its last \d+ rows are missing"):
                read(tmp_path / name)


def test_what_has_its_rows_is_read_with_one_warning(tmp_path, caplog):
    content = jpeg(photo())
    for name, kept in {"a.jpg": content[:-600] + END, "b.jpg": content[:-600]}.items():
        caplog.clear()
        (tmp_path / name).write_bytes(kept)
        for _ in range(2):
            assert read_image(tmp_path / name).shape == (128, 96, 3)
        assert read_reduced(tmp_path / name, 30)[0].shape == (64, 48, 3)
        assert caplog.messages == [
            f"image {tmp_path / name}: its last bytes are missing, and no more than its last 16 rows"
        ]
        assert is_cut(tmp_path / name)
    (tmp_path / "c.jpg").write_bytes(content)
    (tmp_path / "d.png").write_bytes(png(np.zeros((20, 30, 3), np.uint8), 20)[:-12])  # black, without its end mark
    assert not is_cut(tmp_path / "c.jpg") and not is_cut(tmp_path / "d.png")
    assert not read_image(tmp_path / "d.png").any()


def test_grey_and_black_pictures_are_read(tmp_path, caplog):
    (tmp_path / "a.jpg").write_bytes(jpeg(np.full((40, 50, 3), 128, np.uint8)))
    (tmp_path / "b.png").write_bytes(png(np.zeros((40, 50, 3), np.uint8), 40))
    Image.new("L", (50, 40), 128).save(tmp_path / "c.jpg")
    Image.new("P", (50, 40)).save(tmp_path / "d.png")
    Image.new("1", (50, 40)).save(tmp_path / "e.png")
    Image.new("CMYK", (50, 40), (128, 127, 127, 127)).save(tmp_path / "f.jpg")
    for path in sorted(tmp_path.iterdir()):
        assert read_image(path).shape == (40, 50, 3)
    assert caplog.messages == []
