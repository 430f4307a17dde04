"""Paint a scene; a person can read the result at 112 px."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw, ImageFilter

from vlaa_lib.images import font

from .scenes import AXIS, COLORS, GRID, SIDE_PX

ZOOM = 3  # painted larger and averaged down, for smooth edges
SIDE = SIDE_PX * ZOOM
INK = (40, 40, 40)


def render(scene: dict) -> Image.Image:
    """Paint a scene as an RGB image of `SIDE_PX` pixels a side."""
    ground = scene["style"].get("ground", 255)
    image = Image.new("RGB", (SIDE, SIDE), (ground,) * 3)
    _PAINT[scene["kind"]](image, ImageDraw.Draw(image), scene)
    image = image.reduce(ZOOM)
    blur = scene["style"].get("blur")
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur else image


def _write(pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size_px: int = 13) -> None:
    pen.text(at, text, fill=INK, font=font(size_px * ZOOM), anchor="mm", stroke_width=1)


def _shade(color: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Darken (factor < 1) or lighten (> 1) a colour."""
    if factor <= 1:
        return tuple(int(c * factor) for c in color)
    return tuple(int(255 - (255 - c) / factor) for c in color)


def _paint_objects(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    for item in scene["objects"]:
        box = [v * SIDE for v in item["box"]]
        _SOLIDS[item["shape"]](pen, box, COLORS[item["color"]])


def _cube(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    d = (x1 - x0) * 0.25
    pen.rectangle((x0, y0 + d, x1 - d, y1), fill=color)
    pen.polygon([(x0, y0 + d), (x0 + d, y0), (x1, y0), (x1 - d, y0 + d)], fill=_shade(color, 1.9))
    pen.polygon([(x1 - d, y0 + d), (x1, y0), (x1, y1 - d), (x1 - d, y1)], fill=_shade(color, 0.6))


def _ball(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, ...]) -> None:
    x0, y0, x1, _y1 = box
    r = x1 - x0
    pen.ellipse(box, fill=color)
    pen.ellipse((x0 + r * 0.2, y0 + r * 0.15, x0 + r * 0.45, y0 + r * 0.4), fill=_shade(color, 3))


def _cone(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    middle, d = (x0 + x1) / 2, (y1 - y0) * 0.12
    pen.polygon([(middle, y0), (x1, y1 - d), (x0, y1 - d)], fill=color)
    pen.polygon([(middle, y0), (x1, y1 - d), (middle, y1 - d)], fill=_shade(color, 0.7))
    pen.ellipse((x0, y1 - 2 * d, x1, y1), fill=_shade(color, 0.7))


def _cylinder(pen: ImageDraw.ImageDraw, box: list[float], color: tuple[int, ...]) -> None:
    x0, y0, x1, y1 = box
    inset, d = (x1 - x0) * 0.18, (y1 - y0) * 0.13
    pen.ellipse((x0 + inset, y1 - 2 * d, x1 - inset, y1), fill=color)
    pen.rectangle((x0 + inset, y0 + d, x1 - inset, y1 - d), fill=color)
    pen.ellipse((x0 + inset, y0, x1 - inset, y0 + 2 * d), fill=_shade(color, 1.9))


_SOLIDS = {"cube": _cube, "ball": _ball, "cone": _cone, "cylinder": _cylinder}


def _ruled(pen: ImageDraw.ImageDraw) -> tuple[float, float]:
    """Rule lines for the values 0 to 10, 0, 5 and 10 darker; return (step, base line)."""
    step, base = SIDE / 11, SIDE * 10.5 / 11
    for value in range(11):
        y = base - value * step
        pen.line((0, y, SIDE, y), fill=(150,) * 3 if value in (0, 5, 10) else (222,) * 3, width=2)
    return step, base


def _paint_bars(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    step, base = _ruled(pen)
    for slot, bar in enumerate(scene["bars"]):
        x0, x1 = (slot + 0.2) * SIDE / GRID, (slot + 0.8) * SIDE / GRID
        pen.rectangle((x0, base - bar["value"] * step, x1, base), fill=COLORS[bar["color"]])


def _paint_line(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    step, base = _ruled(pen)
    color = COLORS[scene["style"]["color"]]
    at = [((x + 0.5) * SIDE / GRID, base - y * step) for x, y in enumerate(scene["values"])]
    pen.line(at, fill=color, width=8)
    for x, y in at:
        pen.ellipse((x - 14, y - 14, x + 14, y + 14), fill=color)
        pen.line((x, base, x, base + 10), fill=INK, width=4)


def _paint_scatter(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    pen.line((4, 4, 4, SIDE - 4, SIDE - 4, SIDE - 4), fill=(120,) * 3, width=4)
    for point in scene["objects"]:
        x, y = (point["x"] + 0.5) * SIDE / 7, (point["y"] + 0.5) * SIDE / 7
        pen.ellipse((x - 15, y - 15, x + 15, y + 15), fill=COLORS[point["color"]])


def plot_point(x: float, y: float) -> tuple[float, float]:
    """Place a point of a function plot, in fractions of the picture."""
    width = 2 * AXIS + 0.4
    return 0.5 + x / width, 0.5 - y / width


def _paint_function(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    def at(x: float, y: float) -> tuple[float, float]:
        across, down = plot_point(x, y)
        return across * SIDE, down * SIDE

    for tick in range(-AXIS, AXIS + 1):
        shade, width = ((60,) * 3, 4) if tick == 0 else ((215,) * 3, 2)
        pen.line((*at(tick, -AXIS), *at(tick, AXIS)), fill=shade, width=width)
        pen.line((*at(-AXIS, tick), *at(AXIS, tick)), fill=shade, width=width)
    for curve in scene["curves"]:
        a, h, k = curve["a"], curve["h"], curve["k"]
        points = [
            (x, a * _SHAPE[curve["family"]](x - h) + k)
            for x in (i / 20 - AXIS for i in range(40 * AXIS + 1))
        ]
        inside = [at(x, y) for x, y in points if abs(y) <= AXIS + 1]
        pen.line(inside, fill=COLORS[curve["color"]], width=9, joint="curve")


_SHAPE = {"line": lambda x: x, "absolute": abs, "parabola": lambda x: x * x, "sine": math.sin}


def _paint_triangle(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    """Draw to scale; a marked corner has its degrees outside, a corner to find a question mark."""
    corners = [(x * SIDE, y * SIDE) for x, y in corner_points(scene)]
    middle = [sum(p[i] for p in corners) / 3 for i in (0, 1)]
    for (x, y), corner in zip(corners, scene["corners"], strict=True):
        ends = [math.degrees(math.atan2(q[1] - y, q[0] - x)) for q in corners if q != (x, y)]
        first, last = sorted(ends)
        if last - first > 180:
            first, last = last, first + 360
        r = 15 * ZOOM
        pen.pieslice((x - r, y - r, x + r, y + r), first, last, fill=COLORS[corner["color"]])
    pen.line([*corners, corners[0]], fill=INK, width=6, joint="curve")
    for (x, y), corner in zip(corners, scene["corners"], strict=True):
        far = math.hypot(x - middle[0], y - middle[1])
        out = [v + (v - m) / far * 11 * ZOOM for v, m in zip((x, y), middle, strict=True)]
        _write(pen, tuple(out), str(corner["angle"]) if corner["marked"] else "?")
    if scene["equal"]:  # two short strokes on the sides that are equal
        apex, *others = corners
        for x, y in others:
            cx, cy = (x + apex[0]) / 2, (y + apex[1]) / 2
            dx, dy = (y - apex[1]) / 14, (apex[0] - x) / 14
            pen.line((cx - dx, cy - dy, cx + dx, cy + dy), fill=INK, width=8)


def corner_points(scene: dict) -> list[tuple[float, float]]:
    """Place a triangle's corners, in fractions of the picture.

    By the law of sines, turned, and fitted between the numbers.
    """
    a, b, c = (math.radians(corner["angle"]) for corner in scene["corners"])
    points = [(0, 0), (math.sin(c), 0), (math.sin(b) * math.cos(a), math.sin(b) * math.sin(a))]
    t = math.radians(scene["turn"])
    turned = [
        (x * math.cos(t) - y * math.sin(t), x * math.sin(t) + y * math.cos(t)) for x, y in points
    ]
    low = [min(p[i] for p in turned) for i in (0, 1)]
    span = [max(p[i] for p in turned) - low[i] for i in (0, 1)]
    scale = (1 - 2 * 19 / SIDE_PX) / max(span)
    shift = [(1 - s * scale) / 2 for s in span]
    return [tuple((p[i] - low[i]) * scale + shift[i] for i in (0, 1)) for p in turned]


def _paint_circle(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    style = scene["style"]
    r, t = style["radius_px"] * ZOOM, math.radians(scene["turn"])
    x, y = (v * ZOOM for v in scene["center"])
    dx, dy = r * math.cos(t), r * math.sin(t)
    pen.ellipse((x - r, y - r, x + r, y + r), outline=INK, width=6)
    if scene["chord"]:  # it only distracts
        ends = [(x + r * math.cos(t + e), y + r * math.sin(t + e)) for e in (1.9, 3.6)]
        pen.line(ends, fill=(170,) * 3, width=5)
    pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill=INK)
    start = (x, y) if scene["marked"] == "radius" else (x - dx, y - dy)
    pen.line((*start, x + dx, y + dy), fill=COLORS[style["color"]], width=8)
    value = scene["radius"] * (1 if scene["marked"] == "radius" else 2)
    off = 10 * ZOOM / r
    _write(pen, (x + dx * 0.55 + dy * off, y + dy * 0.55 - dx * off), str(value))


def _paint_rectangle(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    """Draw to scale, the width's number below and the height's to the left."""
    unit = scene["longest_px"] * ZOOM / max(scene["width"], scene["height"])
    w, h = scene["width"] * unit, scene["height"] * unit
    x, y = (SIDE - w) / 2 + 8 * ZOOM, (SIDE - h) / 2 - 8 * ZOOM
    box = (x, y, x + w, y + h)
    pen.rectangle(box, fill=_shade(COLORS[scene["style"]["color"]], 3), outline=INK, width=6)
    if scene["diagonal"]:  # it only distracts
        pen.line((x, y + h, x + w, y), fill=(120,) * 3, width=5)
    _write(pen, (x + w / 2, y + h + 10 * ZOOM), str(scene["width"]))
    _write(pen, (x - 10 * ZOOM, y + h / 2), str(scene["height"]))


def _paint_slip(_: Image.Image, pen: ImageDraw.ImageDraw, scene: dict) -> None:
    pen.rectangle((2, 2, SIDE - 3, SIDE - 3), outline=(150,) * 3, width=4)
    row = SIDE / GRID
    for number, (key, value) in enumerate(scene["fields"].items()):
        y = (number + 0.5) * row
        pen.text((16, y), key, fill=(90,) * 3, font=font(14 * ZOOM), anchor="lm")
        pen.text((SIDE - 16, y), value, fill=INK, font=font(16 * ZOOM), anchor="rm", stroke_width=1)
        pen.line((8, y + row / 2, SIDE - 8, y + row / 2), fill=(205,) * 3, width=3)


def _paint_closeup(image: Image.Image, _: ImageDraw.ImageDraw, scene: dict) -> None:
    """Tilt one thing over a cluttered ground; `render` blurs it."""
    x, y, side = (v * ZOOM for v in scene["box"])
    clutter, pen = random.Random(f"{scene['box']}{scene['tilt']}"), ImageDraw.Draw(image)
    for _number in range(5):
        cx, cy, r = (clutter.randrange(0, SIDE), clutter.randrange(0, SIDE), 20 * ZOOM)
        tone = scene["style"]["ground"] - clutter.randrange(10, 35)
        pen.rectangle((cx - r, cy - r, cx + r, cy + r), fill=(tone,) * 3)
    layer = Image.new("RGBA", image.size)
    box = [x, y, x + side, y + side]
    _SOLIDS[scene["shape"]](ImageDraw.Draw(layer), box, COLORS[scene["color"]])
    center = (x + side / 2, y + side / 2)
    turned = layer.rotate(scene["tilt"], Image.Resampling.BILINEAR, center=center)
    image.paste(turned, mask=turned)


_PAINT = {"objects": _paint_objects, "bars": _paint_bars, "line": _paint_line,
          "scatter": _paint_scatter, "function": _paint_function,
          "triangle": _paint_triangle, "circle": _paint_circle,
          "rectangle": _paint_rectangle, "slip": _paint_slip,
          "closeup": _paint_closeup}  # fmt: skip
