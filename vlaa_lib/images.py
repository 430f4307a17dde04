"""Images: one safe way to open a file, one way to fit it, for every stage."""

from __future__ import annotations

import math
import re
import stat
import warnings
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import VlaaError
from .records import RecordError, clean_image_path

if TYPE_CHECKING:
    from PIL import Image, ImageFont

MIN_PIXELS = 56 * 56  # Qwen2-VL image processor default
MAX_PIXELS = 256 * 32 * 32  # paper B.2 (262,144, evaluation); of training it is silent: the same
MIN_SIDE_PX = 28  # Qwen2.5-VL: patch 14 x merge 2, the smallest side its resize rule accepts
MAX_RATIO = 200  # Qwen2.5-VL resize rule
MAX_FILE_BYTES = 64 * 2**20  # ours: ten times the largest picture of the paper's sources
MAX_DECODED_PIXELS = 50_000_000  # ours: a phone's largest photograph; 150 MB when decoded
# ours: of a JPEG's scans together, ten of the largest picture twice over, some 5 s of decoding; a
# progressive one usually has ten, and 300 kB can hold as many scans as they like
MAX_SCANNED_PIXELS = 20 * MAX_DECODED_PIXELS
# ours: what datasets hold; never the formats that PIL hands to outside programs
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# of pictures embedded in a table, as the file is; MPO is a camera's JPEG with further ones in it
EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "BMP": ".bmp",
              "GIF": ".gif", "TIFF": ".tif"}  # fmt: skip
# the lightest level of grey by bits: cameras and scanners put 10, 12 or 14 of them into 16
TOPS = (255, 1023, 4095, 16_383, 65_535, 2**24 - 1, 2**32 - 1)
PHOTOMETRIC, SAMPLE_FORMAT, COMPRESSION, STRIPS, TILES = 262, 339, 259, 273, 324  # TIFF's tags


class ImageError(VlaaError):
    """An image that cannot be used; caught where one broken picture leaves one record out."""


def open_image(path: str, root: str | Path) -> Image.Image:
    """Open an image (`Record.image`) below the root as RGB: upright, transparency on white."""
    from PIL import Image, UnidentifiedImageError

    file = image_file(path, root)
    try:
        # a huge picture warns in PIL before our own check can name its size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image, file)
                return _as_rgb(image)
    except ImageError as error:
        why = str(error)
    except Image.DecompressionBombError as error:
        why = f"is too large to decode ({error}); shrink it"
    except UnidentifiedImageError:
        why = f"is not one of {', '.join(FORMATS)}; replace the file"
    except Exception as error:  # PIL's decoders raise whatever a broken file makes them
        why = f"is broken or cut short ({error}); fetch it again"
    raise ImageError(f"image {path!r} below {root} {why}")


def problem_of(path: str, root: str | Path, max_pixels: int = MAX_PIXELS) -> str:
    """Say why an image cannot be shown to a model that takes so many pixels; "" where it can."""
    try:
        fitted_size(*open_image(path, root).size, min(MIN_PIXELS, max_pixels), max_pixels)
    except ImageError as error:
        return str(error)
    return ""


def image_file(path: str, root: str | Path) -> Path:
    """Return the regular file that the path names, following links, if it stays below the root."""
    try:
        base = Path(root).resolve()
        file = (base / clean_image_path(path)).resolve()
        found = file.stat() if file.is_relative_to(base) else None
    except RecordError as error:
        raise ImageError(str(error)) from None
    except FileNotFoundError:
        raise ImageError(f"image {path!r} is not below {root}; fetch it or fix the path") from None
    except (OSError, ValueError, RuntimeError) as error:  # link loops, NUL bytes, over-long names
        raise ImageError(f"image {path!r} below {root}: {error}; fix the path") from None
    if found is None:
        raise ImageError(f"image {path!r} is a link that leaves the image root {root}; copy it in")
    if not stat.S_ISREG(found.st_mode):
        raise ImageError(f"image {path!r} below {root} is not a regular file; fix the path")
    if found.st_size > MAX_FILE_BYTES:
        raise ImageError(
            f"image {path!r} has {found.st_size:,} bytes, more than {MAX_FILE_BYTES:,}; shrink it"
        )
    return file


def _check_size(image: Image.Image, file: Path) -> None:
    """Refuse a picture that takes too much room or too long to decode."""
    (width, height), tags = image.size, getattr(image, "tag_v2", {})
    if width * height > MAX_DECODED_PIXELS:
        raise ImageError(
            f"is {width} x {height} px, more than {MAX_DECODED_PIXELS:,} pixels; shrink it"
        )
    if image.format in ("JPEG", "MPO") or tags.get(COMPRESSION) in (6, 7):
        parts = len(tags.get(STRIPS) or tags.get(TILES) or (1,))  # of a TIFF; each is a JPEG
        scans = file.read_bytes().count(b"\xff\xda") // parts
        if scans * width * height > MAX_SCANNED_PIXELS:
            raise ImageError(f"is {width} x {height} px in {scans} scans; save it as a plain JPEG")


def _as_rgb(image: Image.Image) -> Image.Image:
    """Decode, turn upright (EXIF), put transparency on white, convert to RGB."""
    from PIL import Image, ImageOps

    tags, stored = dict(getattr(image, "tag_v2", {})), str(image.tile)
    image.load()
    image = ImageOps.exif_transpose(image)
    signed = 2 in tags.get(SAMPLE_FORMAT, ())
    if image.mode == "F" or image.mode.startswith("I") or (signed and image.mode == "L"):
        return _grey(image, tags).convert("RGB")
    if signed:
        raise ImageError("has colours below zero; save it as PNG")
    # PIL reads the upper 8 of 16 bits
    if re.search(";16[BLN]", stored) and image.mode in ("LA", "RGB", "RGBA"):
        colours = image.getbands()[: 1 if image.mode == "LA" else 3]
        if max(image.getchannel(band).getextrema()[1] for band in colours) < 16:
            raise ImageError("has 12 of 16 bits or is all black; save it with 8 bits a colour")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _grey(image: Image.Image, tags: dict[int, Any]) -> Image.Image:
    """Return grey of more than 8 bits as 8, its ramp kept: PIL's own conversion clips at 255.

    White is the top of the fewest bits that hold every level, of fractions 1; of other fractions
    the highest level. Where levels are below zero, black is the lowest and white the highest.
    """
    import numpy
    from PIL import Image

    levels = numpy.asarray(image)
    if image.mode == "I" and tags.get(SAMPLE_FORMAT, (0,)) == (1,):  # 32 bits without a sign
        levels = levels.view(numpy.uint32)
    elif image.mode == "L":
        levels = levels.view(numpy.int8)
    low, high = float(levels.min()), float(levels.max())
    if not math.isfinite(high - low):
        raise ImageError("holds levels that are no finite numbers; replace the file")
    if low >= 0:
        tops = TOPS if image.mode != "F" else (1, *TOPS)
        top = float(next((top for top in tops if high <= top), high))
        # fractions that pass 1 a little, degrees, metres: no count of bits stands for their white
        is_odd = image.mode == "F" and (high < 1 / 255 or top > 2 * high > 2)
        low, high = 0.0, high if is_odd else top
    scale = 255 / (high - low or 1)
    shades = ((levels.astype(numpy.float32) - low) * scale).round().astype(numpy.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # TIFF's "white is zero"
        shades = 255 - shades
    if (clear := image.info.get("transparency")) is not None:  # one level of a PNG
        shades[levels == clear] = 255
    return Image.fromarray(shades)


def image_extension(data: bytes) -> str:
    """Return the file extension of an embedded picture, from its bytes alone, or refuse it."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return EXTENSIONS[image.format]
    except Exception as error:  # PIL's decoders raise whatever broken bytes make them
        known, why = ", ".join(EXTENSIONS), type(error).__name__
        raise RecordError(f"field 'image' holds no {known} picture ({why})") from None


def fitted_size(
    width: int, height: int, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """Return the size (px) an image must have for the model, aspect kept (Qwen2.5-VL's limits).

    An image within the limits keeps its size; the processor rounds to whole patches by itself. One
    that is empty or too elongated is an ImageError.

    >>> fitted_size(320, 240), fitted_size(1024, 1024), fitted_size(14, 28)
    ((320, 240), (512, 512), (40, 80))
    """
    if min_pixels > max_pixels:
        raise VlaaError(f"min_pixels {min_pixels} is more than max_pixels {max_pixels}")
    if max_pixels < MIN_SIDE_PX**2:
        raise VlaaError(f"max_pixels {max_pixels} is less than {MIN_SIDE_PX} x {MIN_SIDE_PX} px")
    (short, long), said = sorted((width, height)), f"an image of {width} x {height} px"
    if short < 1:
        raise ImageError(f"{said} is empty; replace it")
    if long / short > MAX_RATIO:
        raise ImageError(f"{said} is more elongated than 1:{MAX_RATIO}; crop it")
    if long / short * MIN_SIDE_PX**2 > max_pixels:
        raise ImageError(
            f"{said} cannot have both a side of {MIN_SIDE_PX} px and at most {max_pixels} pixels; "
            "crop it or raise max_pixels"
        )
    area = width * height
    if short >= MIN_SIDE_PX and min_pixels <= area <= max_pixels:
        return width, height
    grow = max(MIN_SIDE_PX / short, math.sqrt(min_pixels / area), 1.0)
    scale = min(grow, math.sqrt(max_pixels / area))
    whole = math.ceil if scale > 1 else math.floor  # rounding must not break a limit
    short = max(MIN_SIDE_PX, whole(round(short * scale, 6)))
    long = min(whole(round(long * scale, 6)), MAX_RATIO * short, max_pixels // short)
    return (short, long) if width <= height else (long, short)


def fit_image(
    image: Image.Image, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Scale an image to `fitted_size`; the same object when there is nothing to do."""
    size = fitted_size(*image.size, min_pixels, max_pixels)
    if size == image.size:
        return image
    from PIL import Image

    return image.resize(size, Image.Resampling.BICUBIC)  # Qwen2-VL image processor default


def sheet(images: list[Image.Image], columns: int = 4, gap_px: int = 6) -> Image.Image:
    """Lay pictures out as a contact sheet."""
    from PIL import Image

    rows = math.ceil(len(images) / columns)
    step = max(max(image.size) for image in images) + gap_px
    made = Image.new("RGB", (columns * step + gap_px, rows * step + gap_px), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        made.paste(image, (gap_px + column * step, gap_px + row * step))
    return made


@cache
def font(size_px: float) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font at a size in painted pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size_px)
