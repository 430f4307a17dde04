"""Images: whatever lies on the disk, opening is safe and says why not; fitting keeps limits."""

import io
import os
import struct
import zlib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from vlaa_lib import images
from vlaa_lib.images import ImageError, fit_image, fitted_size, open_image


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
