"""Images: whatever lies on the disk, opening is safe and says why not; fitting keeps limits."""

import io
import math
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from vlaa_lib import images
from vlaa_lib.images import ImageError, fit_image, fitted_size, open_image
from vlaa_lib.records import RecordError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "a").mkdir(parents=True)
    Image.new("RGB", (40, 30), "red").save(folder / "a" / "red.png")
    Image.new("RGB", (40, 30), "blue").save(tmp_path / "outside.png")
    return folder


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("path", ["a/red.png", "/a/red.png", "./a//red.png", "a\\red.png"])
def test_path_means_the_image_root(root, path):
    image = open_image(path, root)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (40, 30), (255, 0, 0))


def png_header(width, height):
    """A PNG that claims a size and holds almost nothing: a decompression bomb's first bytes."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


NOISE = Image.effect_noise((64, 64), 90)
LEAVES = "leaves the image root"


@pytest.mark.parametrize(("path", "content", "message"), [
    ("../outside.png", None, LEAVES), ("a/../../outside.png", None, LEAVES),
    ("C:/x.png", None, LEAVES), ("", None, "is empty"), ("/", None, "is empty"),
    ("out.png", None, f"link that {LEAVES}"), ("up/outside.png", None, f"link that {LEAVES}"),
    ("loop.png", None, "fix the path"), ("a/red.png/x", None, "fix the path"),
    ("a/\0.png", None, "fix the path"), ("a" * 5000, None, "fix the path"),
    ("a/none.png", None, "'a/none.png' is not below"), ("a", None, "not a regular file"),
    ("pipe.png", None, "not a regular file"),
    ("bad.png", b"", "'bad.png' .* is not one of PNG"),
    ("bad.png", b"<html>not found</html>", "'bad.png' .* is not one of PNG"),
    ("bad.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not one of PNG"),
    ("bad.png", encoded(NOISE)[:900], "'bad.png' .* is broken or cut short"),
    ("bad.png", encoded(NOISE, "JPEG")[:900], "is broken or cut short"),
    ("bad.png", encoded(Image.new("RGB", (9, 9)))[:20], "is not one of PNG|broken"),
    ("bad.png", png_header(8_000, 8_000), "8000 x 8000 px, more than .*; shrink it"),
    ("bad.png", png_header(10_000, 10_000), "10000 x 10000 px, more than .*; shrink it"),
    ("bad.png", png_header(60_000, 60_000), "3600000000.*; shrink it"),  # a bomb, not decoded
])
def test_what_may_not_or_cannot_be_opened_is_named(root, path, content, message):
    os.mkfifo(root / "pipe.png")
    (root / "out.png").symlink_to(root.parent / "outside.png")
    (root / "up").symlink_to(root.parent)
    (root / "loop.png").symlink_to(root / "loop.png")
    if content is not None:
        (root / path).write_bytes(content)
    with pytest.raises(ImageError, match=message):
        open_image(path, root)


def test_links_may_stay_below_the_root(root, tmp_path):
    (root / "in.png").symlink_to(root / "a" / "red.png")
    (tmp_path / "alias").symlink_to(root)
    assert open_image("in.png", root).size == (40, 30)
    assert open_image("a/red.png", tmp_path / "alias").size == (40, 30)


def test_large_files_are_refused_unread(root, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 50)
    with pytest.raises(ImageError, match=r"bytes, more than 50; shrink it"):
        open_image("a/red.png", root)


def test_transparency_lies_on_white(root):
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (0, 0, 255, 255))
    half.save(root / "rgba.png")
    palette = half.convert("RGB").convert("P")
    palette.info["transparency"] = palette.getpixel((0, 0))
    palette.save(root / "palette.png", transparency=palette.getpixel((0, 0)))
    for name in ("rgba.png", "palette.png"):
        image = open_image(name, root)
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_exif_turns_the_picture_upright(root):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn
    Image.new("RGB", (40, 20)).save(root / "turned.jpg", exif=exif)
    assert open_image("turned.jpg", root).size == (20, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(root, mode):
    kind = "tiff" if mode == "CMYK" else "png"
    white = {"I;16": 65535, "CMYK": (0, 0, 0, 0), "LA": (255, 255)}.get(mode, 255)
    picture = Image.new("RGB", (4, 4), "white").convert("P") if mode == "P" else None
    (picture or Image.new(mode, (4, 4), white)).save(root / f"m.{kind}")
    image = open_image(f"m.{kind}", root)
    assert image.mode == "RGB" and image.getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_keeps_its_shades(root):
    Image.new("I;16", (2, 2), 32896).save(root / "grey.png")
    assert open_image("grey.png", root).getpixel((0, 0)) == (128, 128, 128)


def tiff(levels, photometric=1):
    """A grey TIFF of any kind of numbers, [height, width]; PIL writes only some of them."""
    kinds, (height, width) = {"u": 1, "i": 2, "f": 3}, levels.shape
    tags = [(256, width), (257, height), (258, levels.dtype.itemsize * 8), (259, 1),
            (262, photometric), (273, 8 + 2 + 12 * 10 + 4), (277, 1), (278, height),
            (279, levels.nbytes), (339, kinds[levels.dtype.kind])]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, 10) + entries + bytes(4) + levels.tobytes()


def ramp(low, high, kind):
    return np.tile(np.linspace(low, high, 64).astype(kind), (8, 1))


@pytest.mark.parametrize(("data", "first"), [
    *((encoded(Image.fromarray(ramp(0, top, "uint16")), kind), 0)
      for top in (65_535, 16_383, 4095, 1023, 255) for kind in ("PNG", "TIFF")),
    (encoded(Image.fromarray(ramp(0, 4095, "uint16")), transparency=0), 255),
    (encoded(Image.fromarray(ramp(0, 65_535, "uint16")), transparency=0), 255),
    *((tiff(ramp(0, top, kind)), 0) for top, kind in (
        (65_535, "uint16"), (4095, "int16"), (2**32 - 1, "uint32"), (1, "float32"),
        (255, "float32"), (65_535, "float32"), (1e30, "float32"), (1.2, "float32"),
        (1e-30, "float32"), (40, "float32"))),
    *((tiff(ramp(low, high, kind)), 0) for low, high, kind in (
        (-32_768, 32_767, "int16"), (-100, 155, "int16"), (-(2**31), 2**31 - 1, "int32"),
        (-128, 127, "int8"), (-1, 1, "float32"))),
])  # fmt: skip
def test_deep_grey_keeps_its_ramp(root, data, first):
    (root / "deep").write_bytes(data)
    row = np.asarray(open_image("deep", root))[4, :, 0].tolist()
    assert row[0] == first and row[-1] == 255
    assert row[1:] == sorted(set(row[1:])) and len(row) == 64


def test_white_may_be_zero(root):
    (root / "a.tif").write_bytes(tiff(ramp(0, 65_535, "uint16"), photometric=0))
    row = np.asarray(open_image("a.tif", root))[4, :, 0].tolist()
    assert (row[0], row[-1]) == (255, 0)


def sixteen_bit_rgb(top):
    """A PNG of 16 bits a colour, 2 x 1 px, black and `top`; PIL writes none."""
    def chunk(kind, body):
        body = kind + body
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    rows = zlib.compress(struct.pack(">B6H", 0, 0, 0, 0, top, top, top))
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    return png + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_deep_colours_that_would_be_lost_are_refused(root):
    (root / "a.png").write_bytes(sixteen_bit_rgb(65_535))
    assert open_image("a.png", root).getpixel((1, 0)) == (255, 255, 255)
    (root / "a.png").write_bytes(sixteen_bit_rgb(4095))
    with pytest.raises(ImageError, match="has 12 of 16 bits"):
        open_image("a.png", root)
    levels = ramp(0, 1, "float32")
    levels[0, 0] = math.nan
    (root / "a.tif").write_bytes(tiff(levels))
    with pytest.raises(ImageError, match="no finite numbers"):
        open_image("a.tif", root)


# --- what takes too long -------------------------------------------------------------------------

def test_scans_are_counted_before_they_are_decoded(root):
    """300 kB of a progressive JPEG can hold scans for half a minute."""
    data = encoded(Image.new("RGB", (3000, 3000)), "JPEG", progressive=True)
    (root / "usual.jpg").write_bytes(data)
    assert open_image("usual.jpg", root).size == (3000, 3000)
    scan = data[data.rindex(b"\xff\xda") : -2]
    (root / "slow.jpg").write_bytes(data[:-2] + 400 * scan + data[-2:])
    start = time.monotonic()
    with pytest.raises(ImageError, match=r"3000 x 3000 px in 41\d scans"):
        open_image("slow.jpg", root)
    assert time.monotonic() - start < 1


def test_a_hole_of_20_gb_is_no_picture(root):
    with (root / "sparse.png").open("wb") as stream:
        stream.truncate(20 * 10**9)
    start = time.monotonic()
    with pytest.raises(ImageError, match="20,000,000,000 bytes, more than"):
        open_image("sparse.png", root)
    assert time.monotonic() - start < 1


@pytest.mark.skipif("PILLOW_IMAGES" not in os.environ, reason="PILLOW_IMAGES names no folder")
def test_pillows_own_test_images(monkeypatch):
    """Broken and odd files of a decoder's own tests: opened or refused, each in a second.

    They are in Pillow's source distribution (`pip download --no-deps --no-binary pillow pillow`),
    in the folder Tests/images.
    """
    folder = Path(os.environ["PILLOW_IMAGES"])
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 1000
    opened = 0
    for path in files:
        start = time.process_time()
        try:
            open_image(str(path.relative_to(folder)), folder)
            opened += 1
        except ImageError as error:
            assert path.name in str(error) or "above" in str(error)
        assert time.process_time() - start < 2, path
    assert opened > 400


# --- embedded ------------------------------------------------------------------------------------

def camera_jpeg():
    return encoded(Image.new("RGB", (8, 8), "red"), "MPO", save_all=True,
                   append_images=[Image.new("RGB", (4, 4), "blue")])  # fmt: skip


@pytest.mark.parametrize(("data", "extension"), [
    (camera_jpeg(), ".jpg"), (encoded(NOISE, "TIFF"), ".tif"), (encoded(NOISE, "JPEG"), ".jpg"),
    (encoded(NOISE, "GIF"), ".gif"),
])  # fmt: skip
def test_an_embedded_picture_is_read_as_a_file_is(root, data, extension):
    assert images.image_extension(data) == extension
    (root / f"a{extension}").write_bytes(data)
    assert open_image(f"a{extension}", root).size in ((8, 8), (64, 64))


@pytest.mark.parametrize("data", [b"", b"<html>", encoded(NOISE, "ICO"), encoded(NOISE, "PPM")])
def test_other_formats_are_not(data):
    with pytest.raises(RecordError, match="holds no PNG"):
        images.image_extension(data)


# --- fitting -------------------------------------------------------------------------------------

@pytest.mark.parametrize(("size", "fitted"), [
    ((112, 112), (112, 112)),
    ((512, 512), (512, 512)),
    ((513, 512), (512, 511)),
    ((28, 112), (28, 112)),
    ((27, 200), (28, 208)),
    ((1, 1), (56, 56)),
    ((1, 200), (28, 5600)),
    ((690, 15_420), (108, 2420)),
    ((10_000, 50), (7200, 36)),
])
def test_fitted_size_by_hand(size, fitted):
    assert fitted_size(*size) == fitted


@pytest.mark.parametrize("size", [(1, 201), (201, 1), (0, 5), (5, 0), (28, 10_000)])
def test_elongated_and_empty_pictures_are_refused(size):
    with pytest.raises(ImageError, match="crop it|replace it"):
        fitted_size(*size)


def test_contradicting_limits_are_refused():
    with pytest.raises(ValueError, match="min_pixels 200000 is more than max_pixels 100000"):
        fitted_size(100, 100, min_pixels=200_000, max_pixels=100_000)
    with pytest.raises(ValueError, match="less than 28 x 28"):
        fitted_size(100, 100, min_pixels=1, max_pixels=500)
    with pytest.raises(ImageError, match="raise max_pixels"):
        fitted_size(10, 1000, max_pixels=10_000)


SIDE = st.integers(1, 20_000)


@given(SIDE, SIDE, st.integers(784, 100_000), st.floats(1.3, 50))
def test_fitted_size_keeps_every_limit(width, height, min_pixels, spread):
    max_pixels = int(min_pixels * spread)
    try:
        size = fitted_size(width, height, min_pixels, max_pixels)
    except ImageError:
        ratio = max(width, height) / min(width, height)
        assert ratio > 200 or ratio * 28 * 28 > max_pixels
        return
    assert min_pixels <= size[0] * size[1] <= max_pixels
    assert min(size) >= 28
    assert fitted_size(*size, min_pixels, max_pixels) == size
    # rounding a side of 28 px to a whole pixel changes the aspect by at most a few per cent
    assert size[0] / size[1] == pytest.approx(width / height, rel=0.1)
    assert sorted(fitted_size(height, width, min_pixels, max_pixels)) == sorted(size)


@given(SIDE, SIDE)
def test_the_processor_accepts_what_was_fitted(width, height):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assume(max(width, height) / min(width, height) <= 200)
    fitted = fitted_size(width, height)
    rows, columns = smart_resize(
        fitted[1], fitted[0], min_pixels=images.MIN_PIXELS, max_pixels=images.MAX_PIXELS
    )
    assert min(rows, columns) >= 28 and rows * columns <= images.MAX_PIXELS


def test_fit_image_returns_the_same_object_or_a_scaled_one():
    small = Image.new("RGB", (112, 112))
    assert fit_image(small) is small
    assert fit_image(Image.new("RGB", (1024, 512))).size == (724, 362)
    assert fit_image(small, max_pixels=3136, min_pixels=784).size == (56, 56)
    with pytest.raises(ImageError, match="crop it"):
        fit_image(Image.new("RGB", (1, 300)))
